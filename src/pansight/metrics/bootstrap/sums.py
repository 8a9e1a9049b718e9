"""Figures that are made of sums over images, so that a resample is a product of matrices.

Sums over images are matrix products in float32: (resamples, images) @ (images, columns · classes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.ops.maps.overlap import IntArray

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]

GROUPS = ("All", "Things", "Stuff")
"""The first rows of figures that know both kinds of classes; a row for each class follows."""

_SLAB = 4096
"""Images whose counts are summed in one float32 product."""


@dataclass(frozen=True)
class SumFigures:
    """Figures of counts that are summed over images; see `bootstrap.Figures`.

    image, category: int64 (N,). columns: (M, N), what each row counts. things: (C,), whether a class is a thing.
    from_sums: sums (M, C, ...) and `members` (3, C) → figures (3 + C, scores, ...), NaN where there is none.
    """

    image: IntArray
    category: IntArray
    columns: FloatArray
    things: BoolArray
    scores: tuple[str, ...]
    from_sums: Callable[[FloatArray, FloatArray], FloatArray]
    tolerance: float
    groups: tuple[str, ...] = GROUPS

    @property
    def classes(self) -> int:
        return len(self.things)

    def value(self) -> FloatArray:
        return self.from_sums(self._totals(), members(self.things, np.float64))

    def drawn(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        found = self.from_sums(self.sums(weights), members(self.things, np.float32))
        return found.astype(np.float32, copy=False)

    def swapped(self, other: SumFigures) -> Callable[[NDArray[np.float32]], FloatArray]:
        middle = ((self._totals() + other._totals()) / 2).astype(np.float32)[..., None]  # (M, C, 1)
        change = SumFigures(
            np.concatenate([other.image, self.image]),
            np.concatenate([other.category, self.category]),
            np.concatenate([other.columns, -self.columns], axis=1),
            self.things,
            self.scores,
            self.from_sums,
            self.tolerance,
        )
        groups = members(self.things, np.float32)

        def apart(signs: NDArray[np.float32]) -> FloatArray:
            half = change.sums(signs)  # (M, C, R)
            return np.abs(self.from_sums(middle + half, groups) - self.from_sums(middle - half, groups))

        return apart

    def _totals(self) -> FloatArray:
        """float64 (M, C): the columns summed over all images."""
        sums = [np.bincount(self.category, column, self.classes) for column in self.columns]
        return np.stack(sums).astype(np.float64)  # integers where there is no row at all

    def sums(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (M, C, R): the columns summed over images, each counted as often as the (R, images) weights say."""
        resamples, images = weights.shape
        kinds, classes = len(self.columns), self.classes
        total = np.zeros((resamples, kinds * classes), np.float32)
        for start in range(0, images, _SLAB):
            length = min(_SLAB, images - start)
            inside = (self.image >= start) & (self.image < start + length)
            cell = self.category[inside] * length + self.image[inside] - start
            dense = [np.bincount(cell, column[inside], classes * length) for column in self.columns]
            slab = np.concatenate(dense).astype(np.float32).reshape(kinds * classes, length)  # (M · C, length)
            total += weights[:, start : start + length] @ slab.T
        return np.ascontiguousarray(total.T).reshape(kinds, classes, resamples)  # (R, M · C) → (M, C, R)


def members(things: BoolArray, dtype: type[np.floating[Any]]) -> FloatArray:
    """(3, C): 1 where a class belongs to All, Things, Stuff."""
    groups: FloatArray = np.stack([np.ones_like(things), things, ~things]).astype(dtype)
    return groups


def with_means(scores: FloatArray, counted: BoolArray, groups: FloatArray) -> FloatArray:
    """(S, C, ...) scores of the classes, 0 where not counted, → (3 + C, S, ...): means over the counted ones of each
    group, then the classes, NaN where not counted. counted: (S, C, ...).
    """
    present = counted.astype(groups.dtype)
    size = np.stack([groups @ each for each in present])  # (S, 3, ...), classes that occur in each group
    means = np.stack([groups @ score for score in scores]) / np.where(size > 0, size, np.nan)
    classes = np.where(counted, scores, np.nan)
    return np.concatenate([means, classes], axis=1).swapaxes(0, 1)  # (S, 3 + C, ...) → (3 + C, S, ...)
