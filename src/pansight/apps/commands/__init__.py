"""The commands of ``pansight`` as functions, which the command line and ``import pansight`` both call."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pansight.apps.commands.listing import describe_model, first_line, list_models, table
from pansight.apps.commands.preparing import AUTO, steps_or_epochs, training_settings
from pansight.apps.commands.running import FIRST, Run, train_one
from pansight.apps.commands.two_steps import train_in_two_steps
from pansight.apps.measuring import evaluate
from pansight.apps.pages.report import write_overview
from pansight.config import flatten, override, read_config
from pansight.data import DATASETS
from pansight.engine.automatic.checks import check_together
from pansight.engine.checkpoint import CONFIG, last_checkpoint
from pansight.engine.checkpoint.changes import asked_for
from pansight.engine.checkpoint.lock import holding
from pansight.engine.progress import clock
from pansight.errors import choice_error

__all__ = ["Run", "datasets", "demo", "evaluate", "models", "train"]


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
    given = steps_or_epochs(given | flatten(settings or {}), resume)
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
            return train_in_two_steps(config, given, folder, resume, overwrite, notes)
        return train_one(config, folder, resume, overwrite, notes=notes)


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
