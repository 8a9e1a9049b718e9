"""Things that are kept apart in a semantic loss: U-Net's weights of borders, from the truths of a batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pansight.ops.semantic.border import border_weights, touching
from pansight.types import IGNORE, Batch, PanopticSegmentation


class Borders(NamedTuple):
    """w₀ and σ of U-Net's weight map, and which categories of a truth are things and which are stuff.

    All that is no thing is background. Crowds are neither: they have no border, and are no background.
    """

    weight: float
    sigma: float  # in pixels
    things: tuple[int, ...]
    stuff: tuple[int, ...]

    def separated(self, batch: Batch, target: Tensor) -> Tensor:
        """A target int64 (B, H, W) with background between things of a class that touch, one pixel wide.

        It is the largest stuff of the image, IGNORE where there is none. The pixels are those of one of the two things.
        """
        target = target.clone()
        for row, truth in zip(target, batch.truths, strict=True):
            ids = truth.ids.cpu().numpy()
            ridge = np.zeros(ids.shape, bool)
            for category in self.things:
                if len(numbers := _objects(truth, (category,))) > 1:
                    ridge |= touching(ids, numbers)
            if ridge.any():
                place = row[: ids.shape[0], : ids.shape[1]]
                place[torch.from_numpy(ridge).to(place.device)] = self._background(place)
        return target

    def weights(self, batch: Batch, target: Tensor) -> Tensor:
        """float32 (B, H, W): what the weight of each pixel grows by, 0 on things and padding. target: as separated."""
        things = torch.tensor(self.things, device=target.device)
        found = torch.zeros(target.shape, dtype=torch.float32)
        for row, classes, truth in zip(found, target, batch.truths, strict=True):
            height, width = truth.size
            of_things = torch.isin(classes[:height, :width], things).cpu().numpy()
            cells = np.where(of_things, truth.ids.cpu().numpy(), 0).astype(np.int32)
            terms = border_weights(cells, _objects(truth, self.things), self.weight, self.sigma)
            row[:height, :width] = torch.from_numpy(np.where(of_things, 0, terms))
        return found.to(target.device)

    def _background(self, target: Tensor) -> int:
        """The stuff that has most pixels of a target (h, w), IGNORE where there is none."""
        counts = [int((target == category).sum()) for category in self.stuff]
        return self.stuff[counts.index(max(counts))] if any(counts) else IGNORE


def _objects(truth: PanopticSegmentation, categories: tuple[int, ...]) -> list[int]:
    return [s.id for s in truth.segments if s.category in categories and not s.is_crowd]
