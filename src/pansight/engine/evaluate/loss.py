"""The loss on measured images: what training minimises, on images that it does not learn from.

It is the mean over the images of the loss of their batches, which have the size of a training step and are normalised
as that is, so that both curves can stand in one chart. Nothing is augmented, nothing is learnt, and no statistics
change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from pansight.config import AugmentConfig, TrainConfig
from pansight.data.dataset import Dataset
from pansight.data.loader import collate, pinned, run_workers
from pansight.engine import distributed
from pansight.engine.assemble import make_transform, square_of
from pansight.engine.progress import ProgressBar, Stop
from pansight.types import Batch

SEED = 0
"""Of what a loss draws (sampled regions and points): the same for every evaluation, so that they can be compared."""


def loss_batch(config: TrainConfig, processes: int) -> int:
    """Images that a process passes through the network at once in training, and can for its loss."""
    return max(1, config.batch_size // (processes * config.accumulate))


def validation_loss(
    model: Any,
    dataset: Dataset,
    indices: Sequence[int],
    batch_size: int,
    accelerator: Accelerator,
    precision: str = "auto",
    workers: int = 0,
    stop: Stop | None = None,
) -> dict[str, Any]:
    """``{"total": …, "terms": {name: …}}``, the same on every process; None for a value that is not finite.

    model: on the accelerator's device, with the labels of `dataset`; it is in eval mode afterwards. indices: the images
    of this process. precision: of `EvaluateConfig`; auto: fp32. stop: asked after every batch; what was counted until
    then is given.
    """
    precision = "fp32" if precision == "auto" else precision
    chunks = [list(indices[n : n + batch_size]) for n in range(0, len(indices), batch_size)]
    batches = _LossBatches(model, dataset, chunks)
    sums: dict[str, float] = {}
    done = 0
    with _watching(model), torch.no_grad(), ProgressBar("loss", accelerator.is_main_process) as bar:
        for chunk, batch in zip(chunks, map(pinned, run_workers(batches.__getitem__, range(len(chunks)), workers))):
            distributed.seed_step(SEED, chunk[0], 0)
            with distributed.autocast(precision, accelerator.device):
                losses = model.loss(distributed.to_device(batch, accelerator.device))
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(chunk)
            done += len(chunk)
            bar.update(done / len(indices), f"image {done}/{len(indices)}")
            if stop is not None and stop.is_set():
                break
    everyone = distributed.gather((done, sums), accelerator)
    images = max(1, sum(count for count, _ in everyone))
    names = dict.fromkeys(name for _, each in everyone for name in each)
    means = {name: sum(each.get(name, 0.0) for _, each in everyone) / images for name in names}
    terms = {name: value if math.isfinite(value) else None for name, value in means.items()}
    return {"total": None if None in terms.values() else sum(means.values()), "terms": terms}


@contextmanager
def _watching(model: nn.Module) -> Iterator[None]:
    """Inside, the model gives what its loss needs (auxiliary outputs, those of all layers), while every layer of it is
    as in a prediction: no dropout, and normalisation by the statistics that were learnt.

    What a model gives besides depends on the mode of itself, what a layer does on that of the layer.
    """
    model.eval()
    model.training = True
    try:
        yield
    finally:
        model.eval()


class _LossBatches:
    """Number of a chunk → its images as the network takes them in training, without augmentation."""

    def __init__(self, model: Any, dataset: Dataset, chunks: Sequence[Sequence[int]]):
        rule = model.input.resize
        # a network of one fixed square learns from squares that are cut out of the images
        self.transform, self.divisor = make_transform(AugmentConfig(crop=square_of(rule), hflip=0.0), rule)
        self.dataset, self.chunks = dataset, chunks

    def __getitem__(self, chunk: int) -> Batch:
        drawn = ((index, np.random.default_rng((SEED, index))) for index in self.chunks[chunk])
        return collate([self.transform(self.dataset[index], rng) for index, rng in drawn], self.divisor)
