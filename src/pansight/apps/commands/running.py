"""One training from its settings to its report: the run folder, the loop, the last evaluation."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from pansight.apps.commands.preparing import Prepared, prepare
from pansight.apps.measuring.facts import ENDINGS, add_ending, write_facts
from pansight.apps.measuring.pictures import predicted_pictures
from pansight.apps.measuring.thresholds import lost_to_threshold
from pansight.apps.measuring.trained import TRAINING_IMAGES, write_training_images
from pansight.apps.pages.report import write_report
from pansight.config import Config, flatten, override, read_config
from pansight.data.loader import train_stream
from pansight.engine import distributed
from pansight.engine.assemble import left_out, make_transform, with_absolute_paths, with_copy_paste
from pansight.engine.automatic.counting import write_repeats
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
from pansight.engine.checkpoint.changes import changes, heading_with
from pansight.engine.evaluate import EVALUATION
from pansight.engine.evaluate import evaluate as measure
from pansight.engine.evaluate.loss import loss_batch
from pansight.engine.progress import clock, stop_signal
from pansight.engine.session import evaluation_row
from pansight.engine.train import Result
from pansight.engine.train import train as run_loop
from pansight.errors import Interrupted, PansightError, interrupted
from pansight.files import read_json, write_json
from pansight.metrics.bootstrap.records import with_intervals
from pansight.metrics.files.summary import summary
from pansight.models import entry
from pansight.weights import load_model
from pansight.weights.native import write_model

FIRST = "first"
"""The folder, in that of a run, of the run that came before it."""


class Run(NamedTuple):
    """A finished run: its folder and the record of its evaluation.json."""

    folder: Path
    evaluation: dict[str, Any]
    left_out: tuple[str, ...] = ()
    """A line for every image or annotation that could not be used."""


def train_one(
    config: Config,
    folder: Path,
    resume: bool,
    overwrite: bool,
    first: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Run:
    """Train one model in `folder`, evaluate it and write its report.

    first: what run.json is to say of the run in FOLDER/first, whose weights this one starts from. notes: on what was
    left out of the recipe.
    """
    accelerator = distributed.make_accelerator(config.train.precision, folder, config.train.trackers)
    if first is None or resume:
        check_folder(folder, resume, overwrite)
    distributed.wait_for_everyone(
        accelerator
    )  # the first process must not write into the folder before all have looked at it
    say = distributed.speaker(accelerator)
    for note in notes:
        say(f"recipe     {note}")
    config = with_absolute_paths(config)
    heading = heading_of_run()
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
    distributed.wait_for_everyone(accelerator)
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


def _fit(run: Prepared, folder: Path, accelerator: Accelerator, resume: bool) -> Result:
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


def _measure(run: Prepared, accelerator: Accelerator, model: Any, intervals: bool, out: Path) -> dict[str, Any]:
    """Intervals can take as long as the images: in training there are none, the evaluation that stands gets them."""
    config = run.config
    facts = accelerator, out, config.data.workers
    batch = loss_batch(config.train, accelerator.num_processes)
    return measure(model, run.validation, config.evaluate, *facts, intervals=intervals, loss_batch=batch)


def _finish(run: Prepared, result: Result, folder: Path, accelerator: Accelerator, say: Callable[..., None]) -> Run:
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
    distributed.wait_for_everyone(accelerator)
    return Run(folder, record, left_out(run.training, run.validation))


def _lost_to_threshold(run: Prepared, record: Mapping[str, Any], weights: Path, accelerator: Accelerator) -> str | None:
    """What the threshold of the model took away where nothing is found; a few images are enough to tell."""
    if all(record.get(name, {}).get("pq", 1) for name in ("All", "Things")):
        return None
    model = load_model(weights)[0].to(accelerator.device)
    return lost_to_threshold(record, model, run.validation, run.config.evaluate, accelerator.device, images=4)


def _evaluation_of_training(folder: Path) -> dict[str, Any] | None:
    """evaluation.json as training left it; None where there is none, or one that `pansight evaluate` wrote since."""
    record = read_json(folder / EVALUATION) if (folder / EVALUATION).is_file() else {}
    return record if "step" in record else None


def heading_of_run() -> str:
    """What config.toml begins with."""
    return (
        f"written by pansight {version('pansight')}, torch {torch.__version__}, python {platform.python_version()}\n"
        "everything needed to repeat the run: pansight train --recipe THIS --out FOLDER"
    )
