"""The training loop.

Randomness, order and augmentation of a step are pure functions of (seed, step, rank), so a run that is killed and
resumed ends with exactly the weights of an unbroken one. With ``max_minutes`` this does not hold, since the schedule
then follows the clock, which differs from run to run; with ``evaluate_share`` the clock has a say in which weights are
evaluated, and so in which are the best.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pansight.config import TrainConfig
from pansight.engine import distributed
from pansight.engine.optim import (
    MovingAverage,
    freeze,
    make_optimizer,
    set_learning_rate,
    settled,
)
from pansight.engine.progress import Stop, stop_signal
from pansight.engine.session import Session
from pansight.errors import Interrupted
from pansight.models.contract import Model, RateGroups
from pansight.nn.checkpointing import set_checkpointing
from pansight.nn.statistics import kept_statistics, restore_statistics, running_statistics, trains_batch_norm
from pansight.types import Batch


@dataclass(frozen=True)
class Result:
    """How a run ended: after `step` steps, by "steps", "time" or "patience"; `seconds` of training, in all sessions."""

    step: int
    stopped_by: str
    seconds: float


def train(
    model: Any,
    batches: Callable[[int], Iterator[Batch]],
    config: TrainConfig,
    folder: Path,
    accelerator: Accelerator,
    save: Callable[[Path], None],
    evaluate: Callable[[Path], dict[str, Any]] | None = None,
    resume: bool = False,
    rates: RateGroups = RateGroups(),  # noqa: B008 (immutable)
    evaluation_images: int = 0,
    now: Callable[[], float] = time.monotonic,
    pictures: Callable[[], list[Tensor]] | None = None,
) -> Result:
    """Train `model` until `config.steps` or `config.max_minutes` by its ``loss``; leaves it as it is saved.

    batches: first step → this process's batches from there on. save: writes the model's files into an existing folder.
    evaluate: measures `evaluation_images` images, writes into a folder and gives the record. resume: the model has the
    weights of checkpoints/last; the rest is read from there. rates: of its entry. now: the clock, in seconds. pictures:
    draws predictions for the trackers after an evaluation, uint8 (3, H, W) each.
    Raises PansightError for a loss that is not finite, naming the images, and Interrupted after Ctrl-C or SIGTERM.
    """
    device, config, shown = accelerator.device, settled(config), accelerator.is_main_process
    frozen, statistics = make_ready(model, config, accelerator), running_statistics(model)
    optimizer = accelerator.prepare(make_optimizer(model, config, rates))
    average = MovingAverage(model, config.ema_decay) if config.ema_decay else None
    facts = trains_batch_norm(model), evaluation_images, now, pictures
    session = Session(config, folder, accelerator, optimizer, average, save, evaluate, *facts)
    if resume:
        session.resume()
    precision, state = distributed.resolve_precision(config.precision, device), session.state

    with session, stop_signal("step", shown) as stop, distributed.repeatable(device, config.deterministic):
        for batch in () if session.catch_up() else batches(state.step):
            train_mode(model, frozen)
            batch = distributed.to_device(batch, device)
            follow(optimizer, model, config, state.step, session.progress())
            before = [tensor.clone() for tensor in statistics]  # a pass that is repeated must not leave a trace
            while True:  # more than once only where memory does not suffice
                seed = (config.seed, state.step)
                shares = gradients(model, batch, state.parts, seed, precision, accelerator, config.checkpointing)
                bad = not all(map(math.isfinite, (shares or {}).values()))
                signs = [shares is None, bad, stop.number, session.watch.seconds()]
                failed, bad, stopping, state.seconds = distributed.largest(signs, accelerator)
                if failed or bad:
                    restore_statistics(statistics, before)
                if not failed:
                    break
                optimizer.zero_grad()
                session.shrink(batch)
            if bad:
                raise session.not_finite(batch, shares or {})
            losses = distributed.sums(shares or {}, accelerator)
            distributed.sum_gradients(model.parameters(), accelerator)
            distributed.average_statistics(statistics, accelerator)
            norm = distributed.clip_gradients(model, config.clip_norm, accelerator)
            if not math.isfinite(norm) and accelerator.scaler is None:  # the scaler of fp16 skips such steps itself
                raise session.not_finite(batch, losses | {"gradient norm": norm})
            optimizer.step()
            optimizer.zero_grad()
            if average is not None:
                average.update(state.step)
            state.step += 1
            session.record(losses, norm)
            if session.evaluate_and_save(bool(stopping)) or stopping:
                break
        raise_if_stopped(stop, state.step, accelerator)
    if average is not None:
        average.into_model()
    return Result(state.step, session.ended_by(), state.seconds)


def raise_if_stopped(stop: Stop, step: int, accelerator: Accelerator) -> None:
    """Raises Interrupted where a process was told to stop, be it while the end of the run was saved."""
    (number,) = distributed.largest([stop.number], accelerator)
    if number:
        raise Interrupted(f"interrupted after step {step}, which is saved; go on with --resume", int(number))


def make_ready(model: Any, config: TrainConfig, accelerator: Accelerator) -> list[nn.Module]:
    """Put the model on the device, in training mode, with the weights of the first process; returns what is frozen."""
    model.to(accelerator.device, memory_format=torch.channels_last if config.channels_last else torch.preserve_format)
    if config.sync_bn:
        distributed.synchronise_batch_norm(model, accelerator)
    frozen = freeze(model, config.freeze)
    set_checkpointing(model, config.checkpointing)
    distributed.broadcast_weights(model, accelerator)
    train_mode(model, frozen)
    return frozen


def follow(optimizer: Any, model: Model, config: TrainConfig, step: int, progress: float) -> None:
    """Rates and model as they stand at `step`: functions of it and of the progress, which a resumption repeats."""
    set_learning_rate(optimizer, config, step, progress)
    model.set_progress(progress)


def train_mode(model: Any, frozen: Sequence[nn.Module]) -> None:
    """Everything but the frozen modules, whose normalisation statistics stay too."""
    model.train()
    for module in frozen:
        module.eval()


def gradients(
    model: Model,
    batch: Batch,
    parts: int,
    seed: tuple[int, int],
    precision: str,
    accelerator: Accelerator,
    recomputes: bool = False,
) -> dict[str, float] | None:
    """Add this process's share of the gradients of the loss of the whole step, computed in `parts` micro-batches.

    The step is the batches of all processes: each term is divided by what all their parts count, so that the shares
    add up to the loss of one large batch. Returns the shares of the loss terms; None where memory ran out (in this
    process, or while any was counting): the gradients are then incomplete. seed: of the run, and the step.
    recomputes: layers are computed again in the backward pass (gradient checkpointing), which must leave no trace in
    the running statistics: they would count each piece twice.
    """

    def count() -> dict[str, float]:
        counts: dict[str, float] = {}
        with distributed.autocast(precision, accelerator.device):
            for piece in split(batch, parts):
                for name, value in model.counts(piece).items():
                    counts[name] = counts.get(name, 0.0) + float(value)
        return counts

    def learn() -> dict[str, float]:
        total: Tensor | None = None
        names: list[str] = []
        for piece in split(batch, parts):
            with distributed.autocast(precision, accelerator.device):
                losses = model.loss(piece, totals)
            terms = torch.stack([loss.float() for loss in losses.values()])  # (terms,)
            with kept_statistics(cast(nn.Module, model)) if recomputes else nullcontext():
                accelerator.backward(terms.sum())
            names = list(losses)
            total = terms.detach() if total is None else total + terms.detach()
        assert total is not None  # a batch has at least one image
        return dict(zip(names, total.tolist(), strict=True))  # one transfer from the device

    totals: dict[str, float] | None = None  # where the batch is the whole step, its loss counts by itself
    if parts > 1 or accelerator.num_processes > 1:
        distributed.seed_step(*seed, accelerator.process_index)
        everyone = distributed.gather(distributed.unless_out_of_memory(count), accelerator)
        if None in everyone:
            return None
        totals = {name: sum(counts[name] for counts in everyone) for name in everyone[0]}
    distributed.seed_step(*seed, accelerator.process_index)  # again: counting may have drawn
    return distributed.unless_out_of_memory(learn)


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """The batch in at most `parts` pieces, equal up to one image, all padded as the whole is."""
    count = len(batch.sizes)
    parts = min(parts, count)
    ends = [round(count * n / parts) for n in range(parts + 1)]
    for first, end in pairwise(ends):
        piece = slice(first, end)
        yield Batch(
            batch.images[piece],
            batch.valid[piece],
            batch.sizes[piece],
            batch.truths[piece],
            batch.image_ids[piece],
            batch.instances[piece],
            batch.proposals[piece],
        )
