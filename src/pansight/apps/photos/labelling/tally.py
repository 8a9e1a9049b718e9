"""Counts of pseudo-labels: what the model gave of each class, and what stays void."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pansight.apps.photos.labelling.filling import Labelled
from pansight.types import LabelSpace, PanopticSegmentation


class ClassCount(NamedTuple):
    """What the model gave of a class. share: of the pixels of all images, 0 … 1. confidence: the mean score of its
    segments; None where the model does not score them."""

    name: str
    is_thing: bool
    images: int
    segments: int
    share: float
    confidence: float | None


class Tally:
    """Sums over images. pixels: of all; kept: annotated before; open: not annotated before; void: by the reason.

    empty: photos without a segment. best: the highest score below 1 that the model gave.
    """

    def __init__(self, labels: LabelSpace):
        self.labels = labels
        self.images = self.empty = self.pixels = self.kept = 0
        self.void: Counter[str] = Counter()
        self.best = 0.0
        self._images = np.zeros(len(labels), np.int64)
        self._segments = np.zeros(len(labels), np.int64)
        self._pixels = np.zeros(len(labels), np.int64)
        self._scores = np.zeros(len(labels), np.float64)
        self._scored = np.zeros(len(labels), np.int64)

    @property
    def open(self) -> int:
        return self.pixels - self.kept

    def see(self, found: PanopticSegmentation) -> None:
        """A prediction, whatever becomes of it."""
        self.best = max([self.best, *(segment.score for segment in found.segments if segment.score < 1)])

    def add(self, found: Labelled) -> None:
        """An image that is written."""
        self.images += 1
        self.pixels += found.map.ids.numel()
        self.kept += found.kept
        self.void += found.void
        for row in found.added:
            self._segments[row.category] += 1
            self._pixels[row.category] += row.pixels
            if row.score < 1:  # a model without a score for stuff gives 1
                self._scores[row.category] += row.score
                self._scored[row.category] += 1
        self._images[list({row.category for row in found.added})] += 1

    def rows(self) -> Iterator[ClassCount]:
        """A row for each class, also those of which there is nothing."""
        for category in self.labels:
            n = category.id
            scored = int(self._scored[n])
            confidence = float(self._scores[n]) / scored if scored else None
            share = int(self._pixels[n]) / max(self.pixels, 1)
            counts = int(self._images[n]), int(self._segments[n])
            yield ClassCount(category.name, category.is_thing, *counts, share, confidence)
