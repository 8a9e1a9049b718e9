"""Masks to outlines along the edges of their pixels; drawing such an outline gives exactly the same pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Outline = NDArray[np.int64]
"""(N, 2) x, y; neighbours are joined by a straight line, the last point and the first as well."""

MAX_PARTS = 200
"""Up to so many outlines are joined where they are nearest; more of them, noise, all at one corner."""


def outlines(mask: NDArray[np.bool_]) -> list[Outline]:
    """The closed outlines of a bool (h, w) mask, of parts and holes alike, corners only; (0, 0) is its first corner.

    A pixel is inside where a ray crosses an odd number of lines. Corners in a row, taken in pairs, are the ends of its
    horizontal lines; corners in a column are those of the vertical ones: an outline takes them by turns.
    """
    padded = np.pad(mask, 1)
    # how often a corner is one: 1 where an odd number of its four pixels is set, 2 where only two opposite ones are
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    times = (a ^ b ^ c ^ d) + 2 * ((a == d) & (b == c) & (a != b)).astype(np.int8)
    y, x = (np.repeat(side, times[times > 0]) for side in np.nonzero(times))  # by row, then by column
    count = len(x)
    along_row = np.arange(count) ^ 1
    order = np.lexsort((y, x))
    along_column = np.empty(count, np.int64)
    along_column[order] = order[np.arange(count) ^ 1]
    points = np.stack([x, y], 1)
    steps = along_row.tolist(), along_column.tolist()
    free = [True] * count
    found: list[Outline] = []
    for start in range(count):
        if not free[start]:
            continue
        path, at, turn = list[int](), start, 0
        while free[at]:
            free[at] = False
            path.append(at)
            at, turn = steps[turn][at], 1 - turn
        found.append(points[path])
    return found


def one_outline(parts: list[Outline]) -> Outline:
    """Several outlines as one that encloses the same pixels: bridges of no width join each part to those before."""
    whole = parts[0]
    if len(parts) > MAX_PARTS:
        corner = whole[-1:]
        return np.concatenate([whole, *(points for part in parts[1:] for points in (part, part[:1], corner))])
    for part in parts[1:]:
        distances = np.abs(whole[:, None] - part).sum(axis=2)  # (N, M)
        leave, land = (int(n) for n in np.unravel_index(int(distances.argmin()), distances.shape))
        turned = np.concatenate([part[land:], part[: land + 1]])  # from `land` all around to `land`
        whole = np.concatenate([whole[: leave + 1], turned, whole[leave:]])
    return whole
