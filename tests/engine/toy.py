"""A network of two convolutions that keeps the model contract, so that the engine is tested in milliseconds.

Run as a script it is the command line with the model "toy" added: ``python tests/engine/toy.py train --model toy …``.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight import models
from pansight.models.contract import Entry, every_class
from pansight.nn.input import Input
from pansight.nn.queries.annealing import MaskAnnealing
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import semantic_targets, valid_extents
from pansight.types import IGNORE, Batch, Instances, LabelSpace, PanopticSegmentation, Prediction, Segment


class ToyOutputs(NamedTuple):
    logits: Tensor  # (B, K, H, W)
    extents: Tensor  # int64 (B, 2)


class ToyBackbone(nn.Module):
    def __init__(self, width: int, batch_norm: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if batch_norm else nn.GroupNorm(2, width)


class Toy(nn.Module):
    """memory_limit: images that fit at once, 0: any. poison: image id whose loss is NaN. quiet: a loss without chance.
    batch_norm: instead of GroupNorm.

    In the environment, TOY_KILL_AT: the call of `loss` that ends the process by SIGKILL; TOY_INTERRUPT_AT: that sends
    it SIGINT.
    """

    def __init__(
        self, labels: LabelSpace, width: int, memory_limit: int, poison: str, quiet: bool, batch_norm: bool = False
    ):
        super().__init__()
        self.labels = labels
        self.input = Input(ResizeRule(0, 0, 8))
        self.backbone = ToyBackbone(width, batch_norm)
        self.head = nn.Conv2d(width, len(labels), 1)
        self.annealing = MaskAnnealing(starts=[0.25], ends=[0.75])
        self.memory_limit = memory_limit
        self.poison = str(poison)
        self.quiet = quiet
        self.calls = 0

    def set_progress(self, share: float) -> None:
        self.annealing.set_progress(share)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> ToyOutputs:
        x = F.relu(self.backbone.norm(self.backbone.conv(self.input(images, valid))))
        return ToyOutputs(self.head(x), valid_extents(images, valid))

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"images": float(len(batch.sizes)), "logits": float(batch.valid.numel() * len(self.labels))}

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == int(os.environ.get("TOY_KILL_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == int(os.environ.get("TOY_INTERRUPT_AT", 0)):
            os.kill(os.getpid(), signal.SIGINT)
        logits = self(batch.images, batch.valid).logits
        if 0 < self.memory_limit < len(batch.sizes):
            logits.sum().backward()  # leaves gradients behind, as a failed backward pass does
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        target = semantic_targets(batch, range(len(self.labels)))
        # chance from each of the three generators, so that a resumption that forgets one is found out
        chance = 1.0 if self.quiet else torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        per_pixel = F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="none").mean((1, 2))
        totals = self.counts(batch) if totals is None else totals
        poisoned = torch.tensor([str(i) == self.poison for i in batch.image_ids])
        return {
            "classes": torch.where(poisoned, float("nan"), per_pixel).sum() / totals["images"],
            "size": 0.001 * (chance + self.annealing.probs[0]) * logits.float().square().sum() / totals["logits"],
        }

    def decode(
        self, outputs: ToyOutputs, sizes: Sequence[tuple[int, int]], min_area: int = 1, panoptic: bool = True
    ) -> list[Prediction]:
        predictions: list[Prediction] = []
        for logits, (height, width), size in zip(outputs.logits, outputs.extents.tolist(), sizes, strict=True):
            logits = F.interpolate(logits[None, :, :height, :width].float(), size=tuple(size))[0]  # (K, H, W)
            classes = logits.argmax(0)
            ids = torch.zeros_like(classes, dtype=torch.int32)
            segments: list[Segment] = []
            for category in classes.unique().tolist():
                mask = classes == category
                if int(mask.sum()) >= min_area:
                    segments.append(Segment(category + 1, category, 0.9))
                    ids[mask] = category + 1
            things = [s for s in segments if self.labels[s.category].is_thing]
            masks = torch.stack([ids == s.id for s in things]) if things else torch.zeros((0, *size), dtype=torch.bool)
            boxes = [[*m.nonzero().flip(1).amin(0), *(m.nonzero().flip(1).amax(0) + 1)] for m in masks]
            instances = Instances(
                torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                torch.tensor([s.category for s in things], dtype=torch.int64),
                torch.full((len(things),), 0.9),
                masks,
            )
            found = PanopticSegmentation(ids, tuple(segments)) if panoptic else None
            predictions.append(Prediction(found, None, instances))
        return predictions


def build_toy(
    labels: LabelSpace,
    width: int = 4,
    memory_limit: int = 0,
    poison: str = "",
    quiet: bool = False,
    batch_norm: bool = False,
) -> Toy:
    """Two convolutions."""
    return Toy(labels, width, memory_limit, poison, quiet, batch_norm)


ENTRIES = {"toy": Entry(build_toy, "toy", ("panoptic", "instances"), class_rows={"head": every_class})}


def register() -> None:
    models.MODELS.update(ENTRIES)


if __name__ == "__main__":
    from pansight.apps.cli import main

    register()
    sys.exit(main(sys.argv[1:]))
