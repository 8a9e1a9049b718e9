"""One step in one piece or in several, without chance: what test_whole_step.py compares.

As a script under torchrun it computes the step of every small entry in two parts a process, and the first process
saves the gradients and loss terms: ``torchrun … tests/models/steps.py <folder>``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from contract import LABELS, SMALL, random_sample, small
from torch import Tensor, nn

from pansight.data.loader import collate
from pansight.engine.distributed import sum_gradients, sums
from pansight.engine.train import gradients, split
from pansight.nn.queries.transformer import Attention
from pansight.ops.queries.losses import point_set_loss
from pansight.ops.regions import boxes
from pansight.types import Batch, PanopticSegmentation, Sample, Segment


def crowded_sample() -> Sample:
    """96×96 with nine things of two classes on one stuff."""
    pixels = np.random.default_rng(11).integers(0, 256, (96, 96, 3), np.uint8)
    ids = torch.full((96, 96), 99, dtype=torch.int32)
    segments = [Segment(99, LABELS.stuff[0].id)]
    for n in range(9):
        y, x = 32 * (n // 3) + 4, 32 * (n % 3) + 2
        ids[y : y + 18 + n, x : x + 28 - n] = n + 1
        segments.append(Segment(n + 1, LABELS.things[n % 2].id))
    truth = PanopticSegmentation(ids, tuple(segments))
    return Sample(torch.from_numpy(pixels).permute(2, 0, 1), truth, "crowded", (96, 96))


def empty_sample(height: int, width: int) -> Sample:
    """Noise, all of it void."""
    sample = random_sample(height, width, 2)
    return replace(sample, truth=PanopticSegmentation(torch.zeros_like(sample.truth.ids), ()))


def uneven_batch() -> Batch:
    """Nine things; one in void, with padding; nothing at all; one again, on another kind of padding."""
    samples = [crowded_sample(), random_sample(61, 90, 1), empty_sample(96, 40), random_sample(96, 33, 3)]
    return collate(samples)


def without_chance(name: str, seed: int = 0) -> Any:
    """A small model that drops nothing, also in training mode.

    BatchNorm that is trained normalises by the images that it sees together, in a part of a step by fewer than in the
    whole of it; here it does so by what it has learned.
    """
    model = small(name, seed=seed).train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
        if isinstance(module, Attention):
            module.dropout = 0.0
    return model


def same_for_each(*shape: int, device: torch.device) -> Tensor:
    """Uniform numbers that do not depend on how many images or pairs (the first axis) are drawn for."""
    rows = torch.rand(shape[1:], generator=torch.Generator().manual_seed(9))
    return rows.to(device).expand(shape)


@contextmanager
def fixed_draws() -> Iterator[None]:
    """Points, anchors and regions are chosen by a rule that looks at one image at a time."""

    def points(*arguments: Any, totals: Any) -> dict[str, Tensor]:
        return point_set_loss(*arguments[:6], draw=same_for_each, totals=totals)

    with (
        patch.object(boxes, "_some_of", lambda index, count: index[:count]),
        patch.object(import_module("pansight.models.queries.mask2former"), "point_set_loss", points),
        patch.object(import_module("pansight.models.queries.eomt"), "point_set_loss", points),
    ):
        yield


def step(model: Any, batch: Batch, parts: int, accelerator: Accelerator) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(gradients by name, loss terms) of a step of all processes, by the functions of the training loop."""
    model.zero_grad()
    with fixed_draws():
        shares = gradients(model, batch, parts, (0, 0), "fp32", accelerator)
    assert shares is not None
    sum_gradients(model.parameters(), accelerator)
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, sums(shares, accelerator)


if __name__ == "__main__":
    machine = Accelerator(cpu=True)
    mine = list(split(uneven_batch(), machine.num_processes))[machine.process_index]
    found = {name: step(without_chance(name), mine, 2, machine) for name in SMALL}
    if machine.is_main_process:
        torch.save(found, Path(sys.argv[1]) / "found.pt")
    machine.end_training()
