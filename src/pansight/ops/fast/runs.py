"""Pairs of labels are counted run by run: label maps are long runs of one value, so there are few runs to sort."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


def pairs_by_runs(a: NDArray[Any], b: NDArray[Any]) -> tuple[IntArray, IntArray, IntArray]:
    """`ops.maps.overlap.pairs_by_pixels`: (first, second, pixels) of two flat arrays (N,), N ≥ 1."""
    changes = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    starts = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(changes) + 1])  # (runs,) where a new pair begins
    lengths = np.diff(starts, append=a.size)
    keys = (a[starts].astype(np.int64) << 32) | b[starts].astype(np.int64)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    firsts = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(keys[1:] != keys[:-1]) + 1])
    pixels = np.add.reduceat(lengths[order], firsts)
    unique = keys[firsts]
    return unique >> 32, unique & 0xFFFFFFFF, pixels
