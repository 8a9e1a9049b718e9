"""The commands of ``pansight`` as functions, which the command line and ``import pansight`` both call."""

from __future__ import annotations

import inspect
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from pansight.apps.measuring import evaluate
from pansight.apps.measuring.trained import TRAINING_IMAGES, write_training_images
from pansight.apps.pages.report import REPORT, write_overview, write_report
from pansight.config import Config, flatten, override, read_config, read_recipe
from pansight.data import DATASETS, Dataset
from pansight.data.loader import train_stream
from pansight.engine import distributed
from pansight.engine.assemble import (
    describe,
    make_model,
    make_transform,
    open_data,
    relabel,
    same_architecture,
)
from pansight.engine.automatic import choose
from pansight.engine.checkpoint import CONFIG, LOG, RunLog, check_folder, last_checkpoint, start_folder
from pansight.engine.evaluate import EVALUATION
from pansight.engine.evaluate import evaluate as measure
from pansight.engine.infer import check_decode_options
from pansight.engine.optim import freeze
from pansight.engine.progress import clock
from pansight.engine.session import evaluation_row, merit
from pansight.engine.train import Result
from pansight.engine.train import train as run_loop
from pansight.errors import PansightError, choice_error
from pansight.files import read_json, write_json
from pansight.metrics.files.summary import summary
from pansight.models import MODELS, builder_options, entry
from pansight.weights import load_model
from pansight.weights.licences import of_published
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
    given |= flatten(settings or {})
    folder = Path(out) if out else Path("runs") / (str(recipe).replace("/", "-") if recipe else str(model or "run"))
    if weights and not recipe and not resume and "model.name" not in given:
        given["model.name"] = AUTO
    if resume:
        if not (folder / FIRST / CONFIG).is_file():
            last_checkpoint(folder)
        config = override(read_config(folder / CONFIG), given)
    else:
        config = override(read_recipe(recipe) if recipe else Config(), given)
    if config.model.first_recipe and not config.model.weights:
        return _train_in_two_steps(config, given, folder, resume, overwrite)
    return _train(config, folder, resume, overwrite)


def _train(config: Config, folder: Path, resume: bool, overwrite: bool, first: Mapping[str, Any] | None = None) -> Run:
    """first: what run.json is to say of the run in FOLDER/first, whose weights this one starts from."""
    accelerator = distributed.make_accelerator(config.train.precision, folder, config.train.trackers)
    if first is None or resume:
        check_folder(folder, resume, overwrite)
    say = print if accelerator.is_main_process else _silent
    start = override(config, {"model.weights": folder / FIRST}) if first else config
    prepared = _prepare(start, folder, accelerator, resume, say)
    if accelerator.is_main_process:
        # the weights of a first step are no setting: whoever repeats the run trains them again
        used = override(prepared.config, {"model.weights": ""}) if first else prepared.config
        start_folder(folder, used, _heading(), resume or first is not None)
        facts = {"hardware": _hardware(accelerator), "started": time.strftime("%Y-%m-%d %H:%M")}
        write_json(folder / "run.json", facts | ({"first": first} if first else {}))
        if not (resume and (folder / TRAINING_IMAGES).is_file()):
            write_training_images(folder, prepared.training)
    accelerator.wait_for_everyone()
    try:
        result = _fit(prepared, folder, accelerator, resume)
    except PansightError:
        if accelerator.is_main_process and not any(folder.rglob("*.safetensors")):
            shutil.rmtree(folder, ignore_errors=True)  # no weights are in it yet
        raise
    rate = f"{result.step} steps in {clock(result.seconds)}"
    say(f"trained    {rate}" + (", stopped by the clock" if result.stopped_by == "time" else ""))
    return _finish(prepared, result, folder, accelerator, say)


def _train_in_two_steps(config: Config, given: Mapping[str, Any], folder: Path, resume: bool, overwrite: bool) -> Run:
    """The run of ``model.first_recipe`` in FOLDER/first, then `config` from its best weights; what is done is kept.

    given: the settings over the recipe, which hold for both steps.
    """
    inner = folder / FIRST
    accelerator = distributed.make_accelerator(config.train.precision, folder)
    say = print if accelerator.is_main_process else _silent
    if not resume:
        check_folder(folder, False, overwrite)
        before = _first_step(config, given)
        _check_second_step(config, folder, accelerator)
        if accelerator.is_main_process:
            start_folder(folder, _absolute(config), _heading(), False)
        accelerator.wait_for_everyone()
    else:
        before = override(read_config(inner / CONFIG), _for_first(given, read_config(inner / CONFIG).model.name))
    if not (inner / REPORT).is_file():  # the last file that a run writes
        say(f"step 1     {config.model.first_recipe}, in {inner}")
        try:
            _train(before, inner, resume, False)
        except PansightError:
            if accelerator.is_main_process and not any(folder.rglob("*.safetensors")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
    figure, value = merit(read_json(inner / EVALUATION))
    say(f"step 2     {config.model.name}, from {figure} {100 * value:.1f}")
    first = {"recipe": config.model.first_recipe, "figure": figure, "value": value, "report": f"{FIRST}/{REPORT}"}
    return _train(config, folder, resume and (folder / "checkpoints" / "last").is_dir(), False, first)


def _first_step(config: Config, given: Mapping[str, Any]) -> Config:
    """The settings of the first of two steps: its recipe on the data of the second. Raises PansightError."""
    recipe = config.model.first_recipe
    first = read_recipe(recipe)
    if first.model.first_recipe:
        raise PansightError(where="model.first_recipe", expected="a recipe of one step", found=f"{recipe} with two")
    if not same_architecture(config.model.name, first.model.name):
        raise PansightError(
            where="model.first_recipe",
            expected=f"a recipe for weights of {config.model.name}",
            found=f"{recipe} of {first.model.name}",
        )
    return override(replace(first, data=config.data), _for_first(given, first.model.name))


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
    prepared = _prepare(config, folder, accelerator, False, _silent)
    freeze(prepared.model, config.train.freeze)


class _Prepared(NamedTuple):
    config: Config
    training: Dataset
    validation: Dataset
    model: Any
    name: str
    options: dict[str, Any]


def _prepare(
    config: Config, folder: Path, accelerator: Accelerator, resume: bool, say: Callable[..., None]
) -> _Prepared:
    """Prepare a training; whatever can fail before the first step fails here, before anything is written."""
    config = _absolute(config)
    training, validation, note = open_data(config.data)
    say(f"training   {describe(config.data.source, training)}")
    say(f"validation {note}")
    source = load_model(config.model.weights) if config.model.weights and not resume else None
    if config.model.name == AUTO:
        if source is None:
            raise PansightError(where="model.name", expected="a model", found=f"{AUTO} without model.weights")
        config = override(config, {"model.name": source[1]})
    if not resume:
        config, choices = choose(config, training, accelerator.device, accelerator.num_processes)
        for choice in choices:
            say(f"chosen     {choice.key} = {choice.value} ({choice.reason})")
    torch.manual_seed(config.train.seed)
    if resume:
        model, name, options = load_model(last_checkpoint(folder))
        where = str(config.data.source)
        training, validation = (relabel(d, model.labels, where) for d in (training, validation))
        return _Prepared(config, training, validation, model, name, options)
    model, name, options, lines = make_model(config.model, training.labels, source)
    for line in lines:
        say(f"weights    {line}")
    check_decode_options(model, name, config.evaluate.decode)
    return _Prepared(config, training, validation, model, name, options)


def _absolute(config: Config) -> Config:
    """Paths that hold wherever the run is resumed from."""
    paths = {"data.source": config.data.source, "data.validation_source": config.data.validation_source}
    paths |= {"model.weights": config.model.weights, "model.first_recipe": config.model.first_recipe}
    return override(config, {k: str(Path(v).resolve()) for k, v in paths.items() if v and Path(v).exists()})


def _fit(run: _Prepared, folder: Path, accelerator: Accelerator, resume: bool) -> Result:
    config = run.config
    transform, divisor = make_transform(config.augment, run.model.input.resize)
    scalars = {k: v for k, v in flatten(config.to_dict()).items() if isinstance(v, int | float | str)}
    accelerator.init_trackers("tensorboard", config=scalars)
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
        ),
        config.train,
        folder,
        accelerator,
        partial(write_model, model=run.model, name=run.name, options=run.options),
        lambda out: measure(run.model, run.validation, config.evaluate, accelerator, out, config.data.workers),
        resume,
        entry(run.name).rates,
    )


def _finish(run: _Prepared, result: Result, folder: Path, accelerator: Accelerator, say: Callable[..., None]) -> Run:
    """The evaluation that chose the best weights, or where none chose any, one of the last; and the report of it."""
    config, chosen = run.config, run.config.train.evaluate_every > 0
    weights = folder / "checkpoints" / ("best" if chosen else "last")
    record = _evaluation_of_training(folder) if chosen else None
    if record is None:
        model = load_model(weights)[0].to(accelerator.device) if chosen else run.model
        record = measure(model, run.validation, config.evaluate, accelerator, folder, config.data.workers)
    if accelerator.is_main_process:
        if not chosen:
            RunLog(folder / LOG).append(evaluation_row(result.step, record))
        report = write_report(folder)
        say(summary(record))
        say(f"weights    {weights}")
        say(f"report     {report}")
    accelerator.wait_for_everyone()
    return Run(folder, record)


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
    """A line for each model; or what one gives, whose weights there are, and its options. PansightError: unknown."""
    if name is None:
        return _table((key, _first_line(each.build)) for key, each in MODELS.items())
    facts = [("gives", ", ".join(entry(name).produces))]
    facts += [("tasks", ", ".join(entry(name).tasks))] if entry(name).tasks else []
    facts += [("weights", f"published under {of_published(name)}")] if entry(name).licence else []
    options = [(f"--model.options.{key}", f"default {value!r}") for key, value in builder_options(name).items()]
    return f"{name}: {_first_line(entry(name).build)}\n{_table(facts)}\n{_table(options)}"


def datasets(name: str | None = None) -> str:
    """A line for each data format, or the options of one. Raises PansightError for an unknown one."""
    if name is None:
        return _table((key, _first_line(opener)) for key, opener in DATASETS.items())
    if name not in DATASETS:
        raise choice_error("data set", name, DATASETS)
    parameters = list(inspect.signature(DATASETS[name]).parameters.values())[2:]  # source and split come first
    options = [(f"--data.options.{p.name}", f"default {p.default!r}") for p in parameters]
    return f"{name}: {_first_line(DATASETS[name])}\n{_table(options)}"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    rows = list(rows)
    width = max((len(key) for key, _ in rows), default=0)
    return "\n".join(f"{key:{width}}  {text}" for key, text in rows)


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _heading() -> str:
    return (
        f"written by pansight {version('pansight')}, torch {torch.__version__}, python {platform.python_version()}\n"
        "everything needed to repeat the run: pansight train --recipe THIS --out FOLDER"
    )


def _hardware(accelerator: Accelerator) -> str:
    """What the run ran on, for the report: the device, and how many processes or threads."""
    if accelerator.device.type == "cuda":
        return f"{accelerator.num_processes} × {torch.cuda.get_device_name(accelerator.device)}"
    if accelerator.device.type != "cpu":
        return f"{accelerator.num_processes} × {accelerator.device.type}"
    return f"CPU ({platform.machine()}), {accelerator.num_processes} × {torch.get_num_threads()} threads"


def _silent(*values: object) -> None:
    """The print function of all processes but the first, which prints nothing."""
