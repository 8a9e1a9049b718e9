"""A whole system in one file: three convolutions that say a class for every pixel. Nothing else of ours knows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from pansight.models.contract import Entry, every_class
from pansight.nn.input import Input
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import semantic_targets, valid_extents
from pansight.types import IGNORE, Batch, LabelSpace, Prediction


class ToyOutputs(NamedTuple):
    logits: Tensor  # (B, C, H, W)
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image


class ToySemantic(nn.Module):
    def __init__(self, labels: LabelSpace, width: int):
        super().__init__()
        self.labels, self.input = labels, Input(ResizeRule(0, 0, divisor=1))
        first, second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.backbone = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.head = nn.Conv2d(width, len(labels), 1)

    def set_progress(self, share: float) -> None:
        """Nothing changes as training progresses."""

    def forward(self, images: Tensor, valid: Tensor | None = None) -> ToyOutputs:
        features = self.backbone(self.input(images, valid))
        return ToyOutputs(self.head(features), valid_extents(images, valid))

    def counts(self, batch: Batch) -> dict[str, Tensor | float]:
        return {"pixels": (semantic_targets(batch, range(len(self.labels))) != IGNORE).sum()}

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        target = semantic_targets(batch, range(len(self.labels)))  # (B, H, W)
        logits = self(batch.images, batch.valid).logits.float()
        summed = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
        return {"classes": summed / max(1, (totals or self.counts(batch))["pixels"])}

    def decode(self, outputs: ToyOutputs, sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        cut = zip(outputs.logits, outputs.extents.tolist(), sizes, strict=True)
        maps = [F.interpolate(logits[None, :, :h, :w], size) for logits, (h, w), size in cut]
        return [Prediction(semantic=scores[0].argmax(0)) for scores in maps]


def toy_semantic(labels: LabelSpace, width: int = 8) -> ToySemantic:
    """Three convolutions, for tests."""
    return ToySemantic(labels, width)


ENTRIES = {"toy": Entry(toy_semantic, "toy", ("semantic",), class_rows={"head": every_class}, tiny={"width": 4})}
