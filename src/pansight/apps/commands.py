"""The commands of ``pansight`` as functions, which the command line and ``import pansight`` both call."""

from __future__ import annotations

import inspect
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from pansight.apps.listing import describe_model, first_line, list_models, table
from pansight.apps.measuring import evaluate
from pansight.apps.measuring.facts import ENDINGS, add_ending, write_facts
from pansight.apps.measuring.pictures import predicted_pictures
from pansight.apps.measuring.thresholds import lost_to_threshold
from pansight.apps.measuring.trained import TRAINING_IMAGES, write_training_images
from pansight.apps.pages.report import REPORT, write_overview, write_report
from pansight.config import Config, flatten, override, read_config, read_recipe
from pansight.data import DATASETS, Dataset
from pansight.data.loader import train_stream, whole_batch
from pansight.data.transforms import Compose
from pansight.engine import distributed
from pansight.engine.assemble import (
    check_model,
    describe,
    left_out,
    make_model,
    make_transform,
    open_data,
    relabel,
    same_architecture,
    told_left_out,
    with_absolute_paths,
    with_copy_paste,
)
from pansight.engine.automatic import choose, statistics
from pansight.engine.automatic.checks import check_together
from pansight.engine.automatic.counting import choose_repeats, count_pixels, read_repeats, told, write_repeats
from pansight.engine.automatic.recipes import for_other_data
from pansight.engine.checkpoint import (
    CONFIG,
    LOG,
    RunLog,
    check_folder,
    empty_folder,
    last_checkpoint,
    read_training_state,
    start_folder,
)
from pansight.engine.checkpoint.changes import asked_for, changes, heading_with
from pansight.engine.checkpoint.lock import holding
from pansight.engine.evaluate import EVALUATION
from pansight.engine.evaluate import evaluate as measure
from pansight.engine.evaluate.loss import loss_batch
from pansight.engine.infer import check_decode_options
from pansight.engine.optim import freeze, parameter_groups
from pansight.engine.progress import clock, stop_signal
from pansight.engine.session import evaluation_row, merit
from pansight.engine.train import Result
from pansight.engine.train import train as run_loop
from pansight.errors import Interrupted, PansightError, choice_error, interrupted
from pansight.files import read_json, write_json
from pansight.metrics.bootstrap.records import with_intervals
from pansight.metrics.files.summary import summary
from pansight.models import builder_options, entry
from pansight.nn.checkpointing import set_checkpointing
from pansight.weights import load_model
from pansight.weights.native import write_model

__all__ = ["Run", "datasets", "demo", "evaluate", "models", "train"]

AUTO = "auto"
"""The name of a model that is that of its weights."""
FIRST = "first"
"""The folder, in that of a run, of the run that came before it."""


class Run(NamedTuple):
    """A finished run: its folder and the record of its evaluation.json."""

    folder: Path
    evaluation: dict[str, Any]
    left_out: tuple[str, ...] = ()
    """A line for every image or annotation that could not be used."""


def train(
    model: str | None = None,
    backbone: str | None = None,
    data: str | Path | None = None,
    recipe: str | Path | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    max_minutes: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Train a model, evaluate it and write its report.

    model, backbone, data, weights, max_minutes: short for the settings model.name, model.backbone, data.source,
    model.weights, train.max_minutes. recipe: a shipped recipe or a TOML file, which the settings go over.
    out: the run folder, runs/NAME by default. resume: go on with the run in it. settings: nested or dotted.
    Raises PansightError for bad input, and Interrupted (a KeyboardInterrupt) after Ctrl-C, when the state is saved.
    """
    short = {"model.name": model, "model.backbone": backbone, "model.weights": weights, "data.source": data}
    given = {k: v for k, v in (short | {"train.max_minutes": max_minutes}).items() if v is not None}
    given = _steps_or_epochs(given | flatten(settings or {}), resume)
    folder = Path(out) if out else Path("runs") / (str(recipe).replace("/", "-") if recipe else str(model or "run"))
    if weights and not recipe and not resume and "model.name" not in given:
        given["model.name"] = AUTO
    main = int(os.environ.get("RANK", "0")) == 0  # as torchrun and accelerate launch number the processes
    with holding(folder) if main else nullcontext():
        notes: list[str] = []
        if resume:
            given = asked_for(given, recipe)
            if not (folder / FIRST / CONFIG).is_file():
                last_checkpoint(folder)
            config = override(read_config(folder / CONFIG), given)
            check_together(config)
        else:
            config, notes = training_settings(recipe, given)
        if config.model.first_recipe and not config.model.weights:
            return _train_in_two_steps(config, given, folder, resume, overwrite, notes)
        return _train(config, folder, resume, overwrite, notes=notes)


def training_settings(recipe: str | Path | None, given: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """(a recipe with the given settings over it, notes on what of it does not hold for other data).

    Raises PansightError for settings that do not exist, cannot be, or cannot be together.
    """
    given = _steps_or_epochs(given, False)
    config, notes = for_other_data(read_recipe(recipe), given, str(recipe)) if recipe else (Config(), [])
    config = override(config, given)
    check_together(config)
    return config, notes


def _steps_or_epochs(given: Mapping[str, Any], resume: bool) -> dict[str, Any]:
    """The given settings, where one of steps and epochs is given with the other set to 0, which a recipe may have."""
    steps, epochs = "train.steps" in given, "train.epochs" in given
    if resume and epochs:
        raise PansightError(
            where="train.epochs", expected="the steps of a run that is resumed", found="epochs", hint="--train.steps N"
        )
    other = {} if steps == epochs else {"train.steps": 0} if epochs else {"train.epochs": 0}
    return {**given, **other}


def _train(
    config: Config,
    folder: Path,
    resume: bool,
    overwrite: bool,
    first: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Run:
    """first: what run.json is to say of the run in FOLDER/first, whose weights this one starts from. notes: on what was
    left out of the recipe."""
    accelerator = distributed.make_accelerator(config.train.precision, folder, config.train.trackers)
    if first is None or resume:
        check_folder(folder, resume, overwrite)
    say = print if accelerator.is_main_process else silent
    for note in notes:
        say(f"recipe     {note}")
    config = with_absolute_paths(config)
    heading = _heading()
    if resume:
        changed = changes(read_config(folder / CONFIG), config)
        step = read_training_state(last_checkpoint(folder))["step"]
        for change in changed:
            say(f"changed    {change}, from step {step} on")
        heading = heading_with((folder / CONFIG).read_text(encoding="utf-8-sig"), heading, step, changed)
    start = override(config, {"model.weights": folder / FIRST}) if first else config
    prepared = prepare(start, folder, accelerator, resume, say)
    if accelerator.is_main_process:
        # the weights of a first step are no setting: whoever repeats the run trains them again
        used = override(prepared.config, {"model.weights": ""}) if first else prepared.config
        start_folder(folder, used, heading, resume or first is not None)
        write_facts(folder, prepared.model, accelerator, {"first": first} if first else {})
        if prepared.repeats is not None:
            write_repeats(folder, prepared.config.train.repeat_threshold, prepared.repeats)
        if not (resume and (folder / TRAINING_IMAGES).is_file()):
            write_training_images(folder, prepared.training)
    accelerator.wait_for_everyone()
    try:
        with distributed.tracking(folder):
            result = _fit(prepared, folder, accelerator, resume)
    except (PansightError, KeyboardInterrupt) as error:
        empty = not any(folder.rglob("*.safetensors"))
        if accelerator.is_main_process and empty:
            empty_folder(folder)  # no weights are in it yet
        if isinstance(error, KeyboardInterrupt):
            raise _with_the_way_on(error, empty) from None
        raise
    if accelerator.is_main_process:
        add_ending(folder, result.stopped_by, accelerator.device)
    say(f"trained    {result.step} steps in {clock(result.seconds)}" + ENDINGS[result.stopped_by])
    try:
        with stop_signal():
            return _finish(prepared, result, folder, accelerator, say)
    except KeyboardInterrupt as error:
        text = "interrupted after the training, which is saved; --resume measures it and writes its report"
        raise interrupted(error, text) from None


def _with_the_way_on(error: KeyboardInterrupt, empty: bool) -> Interrupted:
    """The interruption of a training that has or has not saved anything, told with what to do next."""
    if empty:
        return interrupted(error, "interrupted before anything was saved")
    if isinstance(error, Interrupted) and not error.at_once:
        return error
    return interrupted(error, "stopped at once; go on from the last checkpoint with --resume")


def _train_in_two_steps(
    config: Config,
    given: Mapping[str, Any],
    folder: Path,
    resume: bool,
    overwrite: bool,
    notes: Sequence[str] = (),
) -> Run:
    """The run of ``model.first_recipe`` in FOLDER/first, then `config` from its best weights; what is done is kept.

    given: the settings over the recipe, which hold for both steps.
    """
    inner = folder / FIRST
    accelerator = distributed.make_accelerator(config.train.precision, folder)
    say = print if accelerator.is_main_process else silent
    for note in notes:
        say(f"recipe     {note}")
    if not resume:
        check_folder(folder, False, overwrite)
        before = _first_step(config, given)
        check_model(before.model, before.evaluate.decode)
        _check_second_step(config, folder, accelerator)
        if accelerator.is_main_process:
            start_folder(folder, with_absolute_paths(config), _heading(), False)
        accelerator.wait_for_everyone()
    else:
        before = override(read_config(inner / CONFIG), _for_first(given, read_config(inner / CONFIG).model.name))
    if not (inner / REPORT).is_file():  # the last file that a run writes
        say(f"step 1     {config.model.first_recipe}, in {inner}")
        begun = resume and (inner / "checkpoints" / "last").is_dir()  # it may have been killed before that
        try:
            _train(before, inner, begun, resume)
        except (PansightError, KeyboardInterrupt):
            if accelerator.is_main_process and not any(folder.rglob("*.safetensors")):
                empty_folder(folder)
            raise
    figure, value = merit(read_json(inner / EVALUATION))
    say(f"step 2     {config.model.name}, from {figure} {100 * value:.1f}")
    first = {"recipe": config.model.first_recipe, "figure": figure, "value": value, "report": f"{FIRST}/{REPORT}"}
    return _train(config, folder, resume and (folder / "checkpoints" / "last").is_dir(), False, first)


def _first_step(config: Config, given: Mapping[str, Any]) -> Config:
    """The settings of the first of two steps: its recipe on the data of the second. Raises PansightError."""
    recipe = config.model.first_recipe
    of_second = {"data.source": config.data.source, "data.format": config.data.format}
    first, _ = for_other_data(read_recipe(recipe), of_second, recipe)
    if first.model.first_recipe:
        raise PansightError(where="model.first_recipe", expected="a recipe of one step", found=f"{recipe} with two")
    if not same_architecture(config.model.name, first.model.name):
        raise PansightError(
            where="model.first_recipe",
            expected=f"a recipe for weights of {config.model.name}",
            found=f"{recipe} of {first.model.name}",
        )
    option = entry(first.model.name).stuff
    if option and option not in first.model.options:  # the second step needs what the first knows of stuff
        first = override(first, {f"model.options.{option}": True})
    first = override(replace(first, data=config.data), _for_first(given, first.model.name))
    check_together(first)
    return first


def _for_first(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What holds for the first step, too, of the settings that were given for both."""
    known = {f"model.options.{option}" for option in builder_options(name)}
    not_its_own = ("model.name", "model.weights", "model.first_recipe", "train.freeze", "evaluate.decode")
    return {
        key: value
        for key, value in given.items()
        if not key.startswith(not_its_own) and (key in known or not key.startswith("model.options."))
    }


def _check_second_step(config: Config, folder: Path, accelerator: Accelerator) -> None:
    """Find mistakes in the second step's settings before the first step spends its time."""
    if "pretrained" in builder_options(config.model.name):
        config = override(config, {"model.pretrained": "none"})  # nothing is downloaded for this check
    prepare(config, folder, accelerator, False, silent)


class _Prepared(NamedTuple):
    config: Config
    training: Dataset
    validation: Dataset
    model: Any
    name: str
    options: dict[str, Any]
    repeats: list[float] | None  # how often each training image is shown; None: once


def prepare(
    config: Config, folder: Path, accelerator: Accelerator, resume: bool, say: Callable[..., None]
) -> _Prepared:
    """Prepare a training; whatever can fail before the first step fails here, before anything is written."""
    config = with_absolute_paths(config)
    check_model(config.model, config.evaluate.decode)
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
        return _Prepared(config, training, validation, model, name, options, repeats)
    model, name, options, lines = make_model(config.model, training.labels, source, config.train.freeze)
    for line in lines:
        say(f"weights    {line}")
    check_decode_options(model, name, config.evaluate.decode)
    with_copy_paste(Compose(()), training, config.augment)  # raises where there is nothing to paste
    if config.train.checkpointing:
        parts = set_checkpointing(model, True)
        say(f"checkpointing {', '.join(parts) or f'has no effect: no part of {name} can be computed again'}")
    freeze(model, config.train.freeze)
    parameter_groups(model, config.train, entry(name).rates)  # raises where nothing is left to train
    return _Prepared(config, training, validation, model, name, options, repeats)


def _fit(run: _Prepared, folder: Path, accelerator: Accelerator, resume: bool) -> Result:
    config = run.config
    transform, divisor = make_transform(config.augment, run.model.input.resize)
    transform = with_copy_paste(transform, run.training, config.augment)
    scalars = {k: v for k, v in flatten(config.to_dict()).items() if isinstance(v, int | float | str)}
    try:
        accelerator.init_trackers("tensorboard", config=scalars)
    except OSError as error:
        raise distributed.tracker_failure(folder, error) from error
    return run_loop(
        run.model,
        lambda first: train_stream(
            run.training,
            transform,
            config.train.batch_size,
            divisor,
            config.train.steps,
            config.train.seed,
            first,
            config.data.workers,
            accelerator.process_index,
            accelerator.num_processes,
            run.repeats,
        ),
        config.train,
        folder,
        accelerator,
        partial(write_model, model=run.model, name=run.name, options=run.options),
        partial(_measure, run, accelerator, run.model, False),
        resume,
        entry(run.name).rates,
        min(len(run.validation), config.evaluate.limit or len(run.validation)),
        pictures=partial(predicted_pictures, run.model, run.validation, config, accelerator.device)
        if config.train.tracker_images
        else None,
    )


def _measure(run: _Prepared, accelerator: Accelerator, model: Any, intervals: bool, out: Path) -> dict[str, Any]:
    """Intervals can take as long as the images: in training there are none, the evaluation that stands gets them."""
    config = run.config
    facts = accelerator, out, config.data.workers
    batch = loss_batch(config.train, accelerator.num_processes)
    return measure(model, run.validation, config.evaluate, *facts, intervals=intervals, loss_batch=batch)


def _finish(run: _Prepared, result: Result, folder: Path, accelerator: Accelerator, say: Callable[..., None]) -> Run:
    """The evaluation that chose the best weights, or where none chose any, one of the last; and the report of it."""
    chosen = run.config.train.evaluate_every != 0
    weights = folder / "checkpoints" / ("best" if chosen else "last")
    record = _evaluation_of_training(folder) if chosen else None
    if record is not None:
        record = with_intervals(record)
        if accelerator.is_main_process:
            write_json(folder / EVALUATION, record)
    else:
        model = load_model(weights)[0].to(accelerator.device) if chosen else run.model
        record = _measure(run, accelerator, model, True, folder)
    if accelerator.is_main_process:
        if not chosen:
            RunLog(folder / LOG).append(evaluation_row(result.step, record))
        report = write_report(folder)
        say(summary(record))
        lost = _lost_to_threshold(run, record, weights, accelerator)
        if lost:
            say(f"note       {lost}")
        say(f"weights    {weights}")
        say(f"report     {report}")
    accelerator.wait_for_everyone()
    return Run(folder, record, left_out(run.training, run.validation))


def _lost_to_threshold(
    run: _Prepared, record: Mapping[str, Any], weights: Path, accelerator: Accelerator
) -> str | None:
    """What the threshold of the model took away where nothing is found; a few images are enough to tell."""
    if all(record.get(name, {}).get("pq", 1) for name in ("All", "Things")):
        return None
    model = load_model(weights)[0].to(accelerator.device)
    return lost_to_threshold(record, model, run.validation, run.config.evaluate, accelerator.device, images=4)


def _evaluation_of_training(folder: Path) -> dict[str, Any] | None:
    """evaluation.json as training left it; None where there is none, or one that `pansight evaluate` wrote since."""
    record = read_json(folder / EVALUATION) if (folder / EVALUATION).is_file() else {}
    return record if "step" in record else None


def demo(
    minutes: float = 3.5,
    out: str | Path = "runs/demo",
    steps: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Run:
    """Train Panoptic FPN on generated shapes, measure it on 200 others, write the report and say where it is.

    minutes: of training. steps: as many optimiser steps instead, whatever they take.
    """
    limit: dict[str, Any] = {"train.steps": steps, "train.max_minutes": 0}
    if steps is None:
        limit = {"train.max_minutes": minutes}
    start = time.monotonic()
    run = train(recipe="shapes/panoptic_fpn", out=out, overwrite=overwrite, settings=limit | {"train.seed": seed})
    print(f"picture    {write_overview(run.folder)}")
    print(f"all told   {clock(time.monotonic() - start)}; open {run.folder / 'report.html'}")
    return run


def models(name: str | None = None) -> str:
    """A line for each model, by system; or what one gives, and its options explained. PansightError: unknown."""
    return list_models() if name is None else describe_model(name)


def datasets(name: str | None = None) -> str:
    """A line for each data format, or the options of one. Raises PansightError for an unknown one."""
    if name is None:
        return table((key, first_line(opener)) for key, opener in DATASETS.items())
    if name not in DATASETS:
        raise choice_error("data set", name, DATASETS)
    parameters = list(inspect.signature(DATASETS[name]).parameters.values())[2:]  # source and split come first
    options = [(f"--data.options.{p.name}", f"default {p.default!r}") for p in parameters]
    return f"{name}: {first_line(DATASETS[name])}\n{table(options)}"


def _heading() -> str:
    return (
        f"written by pansight {version('pansight')}, torch {torch.__version__}, python {platform.python_version()}\n"
        "everything needed to repeat the run: pansight train --recipe THIS --out FOLDER"
    )


def silent(*values: object) -> None:
    """The print function of all processes but the first, which prints nothing."""
