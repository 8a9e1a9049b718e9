"""What the semantic networks share: how their logits become a loss, a map of classes, and class scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.nn.input import Input
from pansight.nn.semantic.criterion import Criterion
from pansight.ops.fusion.components import decided
from pansight.ops.targets import semantic_targets, valid_extents
from pansight.types import Batch, LabelSpace, Prediction


class SemanticOutputs(NamedTuple):
    logits: Tensor  # (B, C, h, w), at the resolution that the network gives
    aux_logits: Tensor | None  # (B, C, h', w') of the auxiliary head; None outside training, or without such a head
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image
    canvas: Tensor  # int64 (2,): (height, width) of the padded images, which the logits cover


class Segmenter(nn.Module):
    """A network that says a class for every pixel, without the network: subclasses write `forward`.

    criterion: what the logits are trained by. aux_weight: weight of the auxiliary head's logits, which are trained the
    same way. align_corners: how the system's own code resizes logits to the size of the input.
    """

    def __init__(
        self,
        labels: LabelSpace,
        input: Input,
        criterion: Criterion,
        aux_weight: float = 0.0,
        align_corners: bool = False,
    ):
        super().__init__()
        self.labels = labels
        self.input = input
        self.criterion = criterion
        self.aux_weight = aux_weight
        self.align_corners = align_corners

    def forward(self, images: Tensor, valid: Tensor | None = None) -> SemanticOutputs:
        """images uint8 (B, 3, H, W) of any size, valid bool (B, H, W), False on padding."""
        raise NotImplementedError

    def outputs(
        self, images: Tensor, valid: Tensor | None, logits: Tensor, aux_logits: Tensor | None = None
    ) -> SemanticOutputs:
        """The outputs of `forward`, for these arguments of it."""
        canvas = torch.tensor(images.shape[2:], device=images.device)
        return SemanticOutputs(logits, aux_logits, valid_extents(images, valid), canvas)

    def set_progress(self, share: float) -> None:
        """Nothing changes as training progresses."""

    def counts(self, batch: Batch) -> dict[str, Tensor | float]:
        """What `loss` divides by, for these images."""
        return self.criterion.counts(batch, semantic_targets(batch, range(len(self.labels))))

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """The loss of the logits, resized to the pixels of the batch, and that of the auxiliary head's."""
        outputs = self(batch.images, batch.valid)
        target = semantic_targets(batch, range(len(self.labels)))  # (B, H, W)
        counts = self.criterion.counts(batch, target) if totals is None else totals
        logits = resized(outputs.logits.float(), target.shape[1:], self.align_corners)
        losses = {"semantic": self.criterion(logits, target, counts, batch)}
        if outputs.aux_logits is not None:
            logits = resized(outputs.aux_logits.float(), target.shape[1:], self.align_corners)
            losses["auxiliary"] = self.aux_weight * self.criterion(logits, target, counts, batch)
        return losses

    def decode(
        self,
        outputs: SemanticOutputs,
        sizes: Sequence[tuple[int, int]],
        components: bool = False,
        min_area: int = 0,
        certainty: float = 0.0,
    ) -> list[Prediction]:
        """The likeliest class of each pixel at `sizes` (H, W); logits are resized, as bilinear maps, before that.

        components: make objects of it, too: a panoptic map and instances of the connected components of things that
        have at least `min_area` pixels, as sure as their pixels are on average. certainty: pixels whose likeliest
        class is less likely than this are IGNORE in the map, and void.
        """
        maps = zip(self._of_images(outputs), sizes, strict=True)
        if components or certainty:
            likeliest = (resized(logits, size)[0].softmax(0).max(0) for logits, size in maps)
            return [
                decided(best.indices, best.values, self.labels, components, min_area, certainty) for best in likeliest
            ]
        # argmax(1) is six times slower on the CPU
        return [Prediction(semantic=resized(logits, size).max(1).indices[0]) for logits, size in maps]

    def class_scores(self, outputs: SemanticOutputs, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """float32 (C, H, W) of each image: the probability of each class, resized to `sizes` (H, W)."""
        maps = zip(self._of_images(outputs), sizes, strict=True)
        return [resized(logits.softmax(1), size)[0] for logits, size in maps]

    def _of_images(self, outputs: SemanticOutputs) -> list[Tensor]:
        """Float32 (1, C, h, w) of each image, at the size that the network saw it in, without padding."""
        canvas, extents = outputs.canvas.tolist(), outputs.extents.tolist()
        # split, not [None]: of a map that it makes torch no longer sees that it is channels_last, and copies it twice
        logits = (resized(each.float(), canvas, self.align_corners) for each in outputs.logits.split(1))
        return [each[:, :, :height, :width] for each, (height, width) in zip(logits, extents, strict=True)]


def resized(maps: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear (B, C, h, w) → (B, C, *size); the maps themselves where the size is right already."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=align_corners)
