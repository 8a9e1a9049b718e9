"""Count which pairs of values two maps have at the same pixel, and how often: all that metrics need of the pixels.

Label maps consist of long runs of one value. So runs are counted instead of pixels, and a few thousand runs are sorted
instead of every pixel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    changes = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    starts = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(changes) + 1])  # (runs,) where a new pair begins
    lengths = np.diff(starts, append=a.size)
    keys = (a[starts].astype(np.int64) << 32) | b[starts].astype(np.int64)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    firsts = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(keys[1:] != keys[:-1]) + 1])
    pixels = np.add.reduceat(lengths[order], firsts)
    unique = keys[firsts]
    return Overlaps(unique >> 32, unique & 0xFFFFFFFF, pixels)
