"""Everything around the steps of a training: its state, log, checkpoints, progress, interruption and failures."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from pansight.config import TrainConfig
from pansight.engine import distributed
from pansight.engine.checkpoint import (
    LOG,
    RunLog,
    last_checkpoint,
    read_training_state,
    write_training_state,
)
from pansight.engine.clock import BusyMachine, Stopwatch, evaluations_due, may_evaluate, progress_of
from pansight.engine.evaluate import EVALUATION, PREDICTIONS
from pansight.engine.optim import MovingAverage, averaged
from pansight.engine.progress import ProgressBar, clock
from pansight.errors import Interrupted, PansightError, interrupted
from pansight.files import replacing_folder, write_json
from pansight.types import Batch

CANDIDATE = "candidate"
"""The folder, in that of a run, of an evaluation until it is known whether it is the best one."""


@dataclass
class RunState:
    """The state of a run, all of which is saved in a checkpoint."""

    step: int = 0  # optimiser steps done
    seconds: float = 0.0  # of training, earlier sessions included and evaluations left out
    parts: int = 1  # micro-batches that a process computes its batch in
    best: float | None = None  # the figure of checkpoints/best
    waited: int = 0  # evaluations since the best one
    due: bool = False  # an evaluation was put off, or interrupted
    evaluations: float = 0.0  # seconds that all evaluations took together
    evaluation: float = 0.0  # seconds that the last one took
    window: dict[str, float] = field(default_factory=dict)  # loss terms, summed since the last line of the log
    window_steps: int = 0


class Session:
    """Everything about a run but its steps. `state` is what the loop reads and writes.

    batch_norm: whether the model trains BatchNorm, for which parts of a batch are not what the whole is.
    evaluation_images: how many `evaluate` measures, from which is guessed how long the first evaluation takes.
    now: the clock, in seconds. pictures: what the trackers are shown after every evaluation, uint8 (3, H, W) each.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        accelerator: Accelerator,
        optimizer: AcceleratedOptimizer,
        average: MovingAverage | None,
        save: Callable[[Path], None],
        evaluate: Callable[[Path], dict[str, Any]] | None,
        batch_norm: bool,
        evaluation_images: int = 0,
        now: Callable[[], float] = time.monotonic,
        pictures: Callable[[], list[Tensor]] | None = None,
    ):
        if not (config.steps or config.max_minutes):
            raise PansightError(where="train.steps", expected="steps, or train.max_minutes", found="neither")
        self.config, self.folder, self.accelerator = config, folder, accelerator
        self.optimizer, self.average = optimizer, average
        self._save, self._evaluate, self._batch_norm = save, evaluate, batch_norm
        self._evaluation_images, self._now, self._pictures = evaluation_images, now, pictures
        self.state = RunState(parts=config.accumulate)
        self.log = RunLog(folder / LOG if accelerator.is_main_process else None)
        self.bar = ProgressBar("train", accelerator.is_main_process)
        self.watch = Stopwatch(now=now)
        self._mark = (0, now())  # (step, time) since which throughput is counted
        self._rate = 0.0
        self._had_due = 0  # evaluations of the schedule until now
        self._machine = BusyMachine(now=now)

    def __enter__(self) -> Self:
        self._mark = self.state.step, self._now()
        self.watch = Stopwatch(self.state.seconds, self._now)
        self._had_due = evaluations_due(self.config, self.state.step, self.progress())
        self._clear(self.folder / CANDIDATE)  # of an evaluation that was killed
        self.bar.__enter__()
        self._say_batch_norm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.__exit__(kind, error, trace)

    def _say_batch_norm(self) -> None:
        processes = 1 if self.config.sync_bn else self.accelerator.num_processes
        if self._batch_norm and (self.state.parts > 1 or processes > 1):
            self.bar.say(
                f"the model trains BatchNorm, which sees the batch in {self.state.parts * processes} pieces and "
                "normalises each by itself: the result is not that of one piece"
            )

    def resume(self) -> None:
        """Restore the state of checkpoints/last; the weights of the model have been loaded before."""
        saved = read_training_state(last_checkpoint(self.folder))
        self.state = RunState(**{name: saved[name] for name in asdict(self.state) if name in saved})
        given = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise PansightError("the optimiser does not fit the model", where=self.folder, reason=error) from error
        for group, settings in zip(self.optimizer.param_groups, given, strict=True):
            group.update(settings)  # rates and decay as the settings now say; the checkpoint has those of its own time
        if self.average is not None:
            self.average.restore(saved["raw"])
        if self.accelerator.scaler is not None and saved["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.log.trim(self.state.step)

    def progress(self) -> float:
        """The share of the run that is done, by steps or by the clock, whichever is ahead; 1 or more at the end."""
        return progress_of(self.config, self.state.step, self.state.seconds)

    def record(self, losses: dict[str, float], norm: float) -> None:
        """After a step: the bar, and every `log_every` steps a line of the log with the means since the last one.

        losses: the terms of the whole step, of all processes together.
        """
        state, config, progress = self.state, self.config, self.progress()
        for name, value in (losses | {"gradient norm": norm}).items():
            state.window[name] = state.window.get(name, 0.0) + value
        state.window_steps += 1
        first, since = self._mark
        self._rate = (state.step - first) * config.batch_size / max(self._now() - since, 1e-9)
        self.bar.update(progress, f"{self._place()}, loss {sum(losses.values()):.3f}, {self._rate:.1f} images/s")
        if busy := self._machine.notice():
            self.bar.say(busy)
        if state.step % config.log_every and progress < 1:
            return
        means = {n: v / state.window_steps for n, v in state.window.items()}
        norm = means.pop("gradient norm")
        row: dict[str, Any] = {"step": state.step, "kind": "train", "loss": sum(means.values()), "losses": means}
        row |= {"gradient_norm": norm, "lr": max(g["lr"] for g in self.optimizer.param_groups)}
        row |= {"images_per_second": self._rate, "time": state.seconds}
        self.log.append(row)
        scalars = {f"train/{n}": row[n] for n in ("loss", "gradient_norm", "lr", "images_per_second")}
        self._track(scalars | {f"train/{n}": v for n, v in means.items()})
        state.window, state.window_steps = {}, 0
        self._mark = state.step, self._now()

    def _track(self, scalars: dict[str, float]) -> None:
        """A row for the trackers. Raises PansightError where they cannot write."""
        try:
            self.accelerator.log(scalars, step=self.state.step)
        except OSError as error:
            raise distributed.tracker_failure(self.folder, error) from error

    def _track_pictures(self) -> None:
        """The predictions for the trackers, where there are any. Raises PansightError where they cannot write."""
        if self._pictures is None or not distributed.shows_pictures(self.accelerator):
            return
        try:
            distributed.track_pictures(self._pictures(), self.state.step, self.accelerator)
        except OSError as error:
            raise distributed.tracker_failure(self.folder, error) from error

    def _place(self) -> str:
        """As "step 37/6000, 0:42 of 2:00", by what the run ends."""
        state, config = self.state, self.config
        steps = f"step {state.step}/{config.steps}" if config.steps else f"step {state.step}"
        return f"{steps}, {clock(state.seconds)} of {clock(60 * config.max_minutes)}" if config.max_minutes else steps

    def catch_up(self) -> bool:
        """Before the first step: the evaluation that an earlier session left out. Returns whether the run is over."""
        over = self.progress() >= 1
        if self.state.due and (over or self._may_evaluate()):
            self.evaluate()
            self.save_last()
        return over or self.out_of_patience()

    def out_of_patience(self) -> bool:
        """Whether so many evaluations were no better than the best one that the run ends before its time."""
        return 0 < self.config.patience <= self.state.waited

    def ended_by(self) -> str:
        """What ends the run: "steps", "time" or "patience"."""
        if 0 < self.config.steps <= self.state.step:
            return "steps"
        return "patience" if self.out_of_patience() and self.progress() < 1 else "time"

    def evaluate_and_save(self, stopping: bool) -> bool:
        """After a step: whatever the settings have due now; returns whether the run is over.

        stopping: only save; an evaluation that is due is left to the session that goes on.
        """
        state, config, over = self.state, self.config, self.progress() >= 1
        due = evaluations_due(config, state.step, self.progress())
        falls_due = due > self._had_due or (over and config.evaluate_every != 0)
        self._had_due, state.due = due, state.due or falls_due
        if state.due and not stopping:
            if over or self._may_evaluate():
                self.evaluate()
            elif falls_due:
                self.bar.say(
                    f"step {state.step}: the evaluation, of about {clock(self._expected())}, is put off: they take at "
                    f"most {100 * config.evaluate_share:.0f} % of the time of training (train.evaluate_share)"
                )
        if self.out_of_patience() and not over:
            over = True
            self.bar.say(
                f"step {state.step}: stopped early: {state.waited} evaluations in a row were no better than the best, "
                f"{100 * (state.best or 0.0):.1f} (train.patience)"
            )
            self.log.append({"step": state.step, "kind": "stopped", "by": "patience"})
        if over or stopping or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
            self.save_last()
        return over

    def _may_evaluate(self) -> bool:
        state = self.state
        return may_evaluate(self.config.evaluate_share, state.seconds, state.evaluations, self._expected())

    def _expected(self) -> float:
        """Seconds that an evaluation takes: as the last one, else for each image as long as training on it."""
        state = self.state
        of_training = state.seconds / max(state.step * self.config.batch_size, 1)
        return state.evaluation or self._evaluation_images * of_training

    def evaluate(self) -> None:
        """Measure the (averaged) weights. Where they are the best so far, they become checkpoints/best, and what the
        evaluation wrote becomes the run's own evaluation: nothing is measured twice.

        Raises Interrupted after Ctrl-C or SIGTERM, when the state is saved, the evaluation being due.
        """
        if self._evaluate is None:
            self.state.due = False
            return
        start = self._now()
        try:
            with self.watch.paused(), averaged(self.average):
                self._measure(self._evaluate)
        except Interrupted as error:
            if error.at_once:
                raise
            self._clear(self.folder / CANDIDATE)
            self.state.due = True
            self.save_last()
            text = f"interrupted in the evaluation after step {self.state.step}, which is saved; go on with --resume"
            raise interrupted(error, text) from None
        (self.state.evaluation,) = distributed.largest([self._now() - start], self.accelerator)
        self.state.evaluations += self.state.evaluation
        self.state.due = False
        self._mark = self.state.step, self._now()

    def _measure(self, evaluate: Callable[[Path], dict[str, Any]]) -> None:
        candidate = self.folder / CANDIDATE
        self._clear(candidate)
        record = evaluate(candidate)
        name, figure = merit(record)
        self.log.append(evaluation_row(self.state.step, record))
        self._track(scalars_of(record))
        self._track_pictures()
        loss = record.get("loss", {}).get("total")
        of_loss = "" if loss is None else f", loss {loss:.3f}"
        self.bar.say(f"step {self.state.step}: {name} {100 * figure:.1f}{of_loss}")
        self.state.waited += 1
        if self.state.best is None or figure > self.state.best:
            self.state.best, self.state.waited = figure, 0
            self._write("best", self._save)
            if self.accelerator.is_main_process:
                take_evaluation(candidate, self.folder, {"step": self.state.step, **record})
        self._clear(candidate)

    def _clear(self, folder: Path) -> None:
        if self.accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
        distributed.wait_for_everyone(self.accelerator)

    def save_last(self) -> None:
        """Everything that a resumption needs, as checkpoints/last."""
        with averaged(self.average) as raw:
            scaler = self.accelerator.scaler
            content = asdict(self.state) | {
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "raw": raw,
            }

            def write(folder: Path) -> None:
                self._save(folder)
                write_training_state(folder, content)

            self._write("last", write)

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        if self.accelerator.is_main_process:
            with replacing_folder(self.folder / "checkpoints" / name) as folder:
                write(folder)
        distributed.wait_for_everyone(self.accelerator)

    def shrink(self, batch: Batch) -> None:
        """Double the number of micro-batches, each with half the images. Raises PansightError where they have one image
        already.
        """
        images = len(batch.sizes)
        if self.state.parts >= images:
            height, width = batch.images.shape[2:]
            raise PansightError(
                f"out of memory with one image of {height}×{width} at a time",
                hint="use smaller images",
                code="out_of_memory",
            )
        self.state.parts = min(2 * self.state.parts, images)
        size = -(-images // self.state.parts)
        self.bar.say(
            f"out of memory at step {self.state.step}: from now on {self.state.parts} micro-batches of {size}; "
            "the batch of a step stays the same"
        )
        self._say_batch_norm()

    def not_finite(self, batch: Batch, losses: dict[str, float]) -> PansightError:
        """The error for a step whose loss or gradient is not finite; the weights are saved as checkpoints/stopped."""
        everyone = distributed.gather((list(batch.image_ids), losses), self.accelerator)
        guilty = [pair for pair in everyone if not all(map(math.isfinite, pair[1].values()))] or everyone
        ids = ", ".join(str(i) for pair in guilty for i in pair[0])
        terms = ", ".join(f"{name} {value:.4g}" for name, value in guilty[0][1].items())
        self._write("stopped", self._save)
        last = "checkpoints/last is the last good state" if (self.folder / "checkpoints" / "last").is_dir() else ""
        kept = "; ".join(text for text in ("the weights before it are in checkpoints/stopped", last) if text)
        return PansightError(
            where=f"step {self.state.step + 1}",
            expected="finite losses",
            found=f"{terms}, for the images {ids}",
            hint=kept,
        )


def take_evaluation(candidate: Path, folder: Path, record: dict[str, Any]) -> None:
    """Make the evaluation in `candidate` that of the run in `folder`. record: with the step that it is of."""
    if (candidate / PREDICTIONS).is_dir():
        with replacing_folder(folder / PREDICTIONS) as empty:
            empty.rmdir()
            (candidate / PREDICTIONS).rename(empty)
    write_json(folder / EVALUATION, record)


OF_IMAGES = ("images", "image_ids", "counts")


def evaluation_row(step: int, record: dict[str, Any]) -> dict[str, Any]:
    """The line of the log for an evaluation; the figures of each image stand in evaluation.json only."""
    return {"step": step, "kind": "evaluation", "metrics": _without_images(record)}


def _without_images(record: dict[str, Any]) -> dict[str, Any]:
    rows = {key: value for key, value in record.items() if key not in OF_IMAGES}
    nested = {key: _without_images(rows[key]) for key in ("semantic", "instances") if key in rows}
    return rows | nested


def merit(record: dict[str, Any]) -> tuple[str, float]:
    """The one figure that checkpoints are chosen by: PQ of all classes, else mask AP, box AP, mIoU."""
    if "All" in record:
        return "PQ", record["All"]["pq"]
    for kind in ("mask", "box"):
        figures = record.get("instances", {}).get(kind)
        if figures:
            return f"{kind} AP", figures["ap"] or 0.0  # None: no object at all
    return f"mIoU ({record['semantic']['convention']})", record["semantic"]["miou"]


def scalars_of(record: dict[str, Any]) -> dict[str, float]:
    """The headline figures for trackers."""
    scalars = {f"evaluation/{n}": record[n]["pq"] for n in ("All", "Things", "Stuff") if n in record}
    for kind in ("box", "mask"):
        figures = record.get("instances", {}).get(kind)
        if figures and figures["ap"] is not None:
            scalars[f"evaluation/{kind} AP"] = figures["ap"]
    if "semantic" in record:
        scalars["evaluation/mIoU"] = record["semantic"]["miou"]
    loss = record.get("loss", {"total": None, "terms": {}})
    losses = {"loss": loss["total"]} | {f"loss/{name}": value for name, value in loss["terms"].items()}
    scalars |= {f"evaluation/{name}": value for name, value in losses.items() if value is not None}
    return scalars
