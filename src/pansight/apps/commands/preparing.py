"""What happens before the first step of a training: data, settings, model; what can fail fails here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from pansight.config import Config, ModelConfig, override, read_recipe
from pansight.data import Dataset
from pansight.data.loader import whole_batch
from pansight.data.transforms import Compose
from pansight.engine.assemble import (
    check_model,
    check_proposals,
    describe,
    left_out,
    make_model,
    open_data,
    relabel,
    told_left_out,
    with_absolute_paths,
    with_copy_paste,
)
from pansight.engine.automatic import choose, statistics
from pansight.engine.automatic.checks import check_together
from pansight.engine.automatic.counting import choose_repeats, count_pixels, read_repeats, told
from pansight.engine.automatic.recipes import for_other_data
from pansight.engine.checkpoint import last_checkpoint
from pansight.engine.infer import check_decode_options
from pansight.engine.optim import freeze, parameter_groups
from pansight.errors import PansightError
from pansight.models import entry
from pansight.nn.checkpointing import set_checkpointing
from pansight.weights import load_model

AUTO = "auto"
"""The name of a model that is that of its weights."""


def training_settings(recipe: str | Path | None, given: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """(a recipe with the given settings over it, notes on what of it does not hold for other data).

    Raises PansightError for settings that do not exist, cannot be, or cannot be together.
    """
    given = steps_or_epochs(given, False)
    config, notes = for_other_data(read_recipe(recipe), given, str(recipe)) if recipe else (Config(), [])
    config = override(config, given)
    check_together(config)
    return config, notes


def steps_or_epochs(given: Mapping[str, Any], resume: bool) -> dict[str, Any]:
    """The given settings, where one of steps and epochs is given with the other set to 0, which a recipe may have."""
    steps, epochs = "train.steps" in given, "train.epochs" in given
    if resume and epochs:
        raise PansightError(
            where="train.epochs", expected="the steps of a run that is resumed", found="epochs", hint="--train.steps N"
        )
    other = {} if steps == epochs else {"train.steps": 0} if epochs else {"train.epochs": 0}
    return {**given, **other}


class Prepared(NamedTuple):
    """Everything that a training needs."""

    config: Config
    training: Dataset
    validation: Dataset
    model: Any
    name: str
    options: dict[str, Any]
    repeats: list[float] | None  # how often each training image is shown; None: once


def prepare(config: Config, folder: Path, accelerator: Accelerator, resume: bool, say: Callable[..., None]) -> Prepared:
    """Prepare a training; whatever can fail before the first step fails here, before anything is written."""
    config = with_absolute_paths(config)
    check_model(_without_borrowed(config.model) if resume else config.model, config.evaluate.decode)
    training, validation, note = open_data(config.data)
    say(f"training   {describe(config.data.source, training)}")
    say(f"validation {note}")
    for line in told_left_out(left_out(training, validation)):
        say(f"left out   {line}")
    asked = config.train.batch_size
    batch = asked if resume else whole_batch(asked, len(training), accelerator.num_processes)
    if batch != asked:
        say(f"cut        train.batch_size = {batch} instead of {asked}: there are {len(training)} images to train on")
        config = override(config, {"train.batch_size": batch})
    source = load_model(config.model.weights) if config.model.weights and not resume else None
    if config.model.name == AUTO:
        if source is None:
            raise PansightError(where="model.name", expected="a model", found=f"{AUTO} without model.weights")
        config = override(config, {"model.name": source[1]})
    counted = cache(partial(count_pixels, training, accelerator.is_main_process))
    if not resume:
        rule = source[0].input.resize if source else None
        stats = statistics(training)
        counts_objects = set(entry(config.model.name).produces) != {"semantic"}
        if counts_objects and training.labels.things and not stats.most_objects:
            say("note       the training images have no object to learn: none, or crowds alone (see pansight check)")
        config, choices = choose(config, training, accelerator.device, accelerator.num_processes, rule, stats, counted)
        for choice in choices:
            say(f"chosen     {choice.key} = {choice.value} ({choice.reason})")
    threshold = config.train.repeat_threshold
    kept = read_repeats(folder, threshold, len(training)) if resume else None
    repeats = kept or choose_repeats(threshold, counted)
    if repeats is not None:
        say(f"repeated   {told(repeats, threshold)}")
    torch.manual_seed(config.train.seed)
    if resume:
        model, name, options = load_model(last_checkpoint(folder))
        where = str(config.data.source)
        training, validation = (relabel(d, model.labels, where) for d in (training, validation))
        return Prepared(config, training, validation, model, name, options, repeats)
    model, name, options, lines = make_model(config.model, training.labels, source, config.train.freeze)
    for line in lines:
        say(f"weights    {line}")
    check_decode_options(model, name, config.evaluate.decode)
    check_proposals(model, name, config.data)
    with_copy_paste(Compose(()), training, config.augment)  # raises where there is nothing to paste
    if config.train.checkpointing:
        parts = set_checkpointing(model, True)
        say(f"checkpointing {', '.join(parts) or f'has no effect: no part of {name} can be computed again'}")
    freeze(model, config.train.freeze)
    parameter_groups(model, config.train, entry(name).rates)  # raises where nothing is left to train
    return Prepared(config, training, validation, model, name, options, repeats)


def _without_borrowed(config: ModelConfig) -> ModelConfig:
    """The same model without the place of another one that it was once copied from, which may be gone by now."""
    borrowed = f"{entry(config.name).borrows}_weights" if config.name != AUTO else ""
    return replace(config, options={key: value for key, value in config.options.items() if key != borrowed})
