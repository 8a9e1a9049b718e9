"""Which values of two maps lie on each other, and on how many pixels: the one pass over pixels that figures need."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.ops.fast import use_plain
from pansight.ops.fast.runs import pairs_by_runs

IntArray = NDArray[np.int64]


class Overlaps(NamedTuple):
    """The pairs of values that meet at some pixel, in rising order of (first, second). All int64 (P,)."""

    first: IntArray
    second: IntArray
    pixels: IntArray


def overlaps_of(first: NDArray[Any], second: NDArray[Any]) -> Overlaps:
    """Count the pixels of every pair (first[y, x], second[y, x]).

    first, second: integer (H, W), values 0 … 2³¹ − 1, equal sizes.
    """
    a, b = np.ascontiguousarray(first).ravel(), np.ascontiguousarray(second).ravel()  # (H·W,)
    if a.size == 0:
        nothing = np.zeros(0, np.int64)
        return Overlaps(nothing, nothing, nothing)
    pairs = pairs_by_pixels(a, b) if use_plain() else pairs_by_runs(a, b)
    return Overlaps(*pairs)


def pairs_by_pixels(a: NDArray[Any], b: NDArray[Any]) -> tuple[IntArray, IntArray, IntArray]:
    """The plain form: (first, second, pixels) of two flat arrays (N,), every pixel being sorted."""
    unique, pixels = np.unique((a.astype(np.int64) << 32) | b, return_counts=True)
    return unique >> 32, unique & 0xFFFFFFFF, pixels
