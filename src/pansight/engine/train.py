"""The training loop.

Randomness, order and augmentation of a step are pure functions of (seed, step, rank), so a run that is killed and
resumed ends with exactly the weights of an unbroken one. With ``max_minutes`` this does not hold, since the learning
rate then follows the clock, which differs from run to run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

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
from pansight.engine.session import Interrupted, Session, stop_signal
from pansight.nn.queries.annealing import MaskAnnealing
from pansight.types import Batch


@dataclass(frozen=True)
class Result:
    """How a run ended: after `step` steps, by "steps" or by "time"; `seconds` on the clock, all sessions together."""

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
    evaluate: Callable[[], dict[str, Any]] | None = None,
    resume: bool = False,
) -> Result:
    """Train `model` by ``model.loss(batch)`` until `config.steps` or `config.max_minutes`; leaves it as it is saved.

    batches: first step → this process's batches from there on. save: writes the model's files into an existing folder.
    evaluate: gives the record of evaluation.json; called every `config.evaluate_every` steps and at the end.
    resume: the model has the weights of checkpoints/last; everything else is read from there.
    Raises PansightError for a loss that is not finite, naming the images, and Interrupted after Ctrl-C.
    """
    device, config = accelerator.device, settled(config)
    model.to(device, memory_format=torch.channels_last if config.channels_last else torch.preserve_format)
    frozen = freeze(model, config.freeze)
    distributed.broadcast_weights(model, accelerator)
    optimizer = accelerator.prepare(make_optimizer(model, config))
    average = MovingAverage(model, config.ema_decay) if config.ema_decay else None
    session = Session(config, folder, accelerator, optimizer, average, save, evaluate)
    if resume:
        session.resume()
    precision = distributed.resolve_precision(config.precision, device)
    annealed = [module for module in model.modules() if isinstance(module, MaskAnnealing)]
    state, clock_start = session.state, time.monotonic() - session.state.seconds

    with session, stop_signal() as stop, distributed.repeatable(device, config.deterministic):
        for batch in batches(state.step):
            train_mode(model, frozen)
            batch = distributed.to_device(batch, device)
            progress = session.progress()
            follow(optimizer, annealed, config, state.step, progress)
            while True:  # more than once only where memory does not suffice
                distributed.seed_step(config.seed, state.step, accelerator.process_index)
                losses, failed = gradients(model, batch, state.parts, precision, accelerator)
                bad = not all(map(math.isfinite, losses.values()))
                signs = [failed, bad, stop.is_set(), time.monotonic() - clock_start]
                failed, bad, stopping, state.seconds = distributed.largest(signs, accelerator)
                if not failed:
                    break
                optimizer.zero_grad()
                session.shrink(batch)
            if bad:
                raise session.not_finite(batch, losses)
            distributed.average_gradients(model.parameters(), accelerator)
            norm = distributed.clip_gradients(model, config.clip_norm, accelerator)
            if not math.isfinite(norm) and accelerator.scaler is None:  # the scaler of fp16 skips such steps itself
                raise session.not_finite(batch, losses | {"gradient norm": norm})
            optimizer.step()
            optimizer.zero_grad()
            if average is not None:
                average.update(state.step)
            state.step += 1
            session.record(losses, norm, progress)
            over = session.progress() >= 1
            if config.evaluate_every > 0 and (over or state.step % config.evaluate_every == 0):
                session.evaluate()
            if over or stopping or (config.checkpoint_every and state.step % config.checkpoint_every == 0):
                session.save_last()
            if over:
                break
            if stopping:
                raise Interrupted(f"interrupted after step {state.step}, which is saved; go on with --resume")
    if average is not None:
        average.into_model()
    return Result(state.step, "steps" if state.step >= config.steps else "time", state.seconds)


def follow(optimizer: Any, annealed: Sequence[MaskAnnealing], config: TrainConfig, step: int, progress: float) -> None:
    """Rates and annealing as they stand at `step`: functions of it and of the progress, which a resumption repeats."""
    set_learning_rate(optimizer, config, step, progress)
    for module in annealed:
        module.set_progress(progress)


def train_mode(model: Any, frozen: Sequence[nn.Module]) -> None:
    """Everything but the frozen modules, whose normalisation statistics stay too."""
    model.train()
    for module in frozen:
        module.eval()


def gradients(
    model: Any, batch: Batch, parts: int, precision: str, accelerator: Accelerator
) -> tuple[dict[str, float], bool]:
    """Add the gradients of the mean loss over the images of `batch`, computed in `parts` micro-batches.

    Returns each loss term, weighted by the images of its micro-batch, and whether memory ran out; the gradients are
    then incomplete and the terms missing. One transfer from the device a call.
    """
    total: Tensor | None = None
    names: list[str] = []
    try:
        for piece in split(batch, parts):
            share = len(piece.sizes) / len(batch.sizes)
            with distributed.autocast(precision, accelerator.device):
                losses = model.loss(piece)
            terms = torch.stack([loss.float() for loss in losses.values()]) * share  # (terms,)
            accelerator.backward(terms.sum())
            names = list(losses)
            total = terms.detach() if total is None else total + terms.detach()
        assert total is not None  # a batch has at least one image
        return dict(zip(names, total.tolist(), strict=True)), False
    except (RuntimeError, MemoryError) as error:
        if not distributed.is_out_of_memory(error):
            raise
    # outside the except block: the traceback would keep the tensors of the failed pass alive
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()
    return {}, True


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
        )
