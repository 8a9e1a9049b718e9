"""The compiled part of Panoptic-DeepLab's grouping: the peaks of a heat map, and which of the centres is nearest.

For the latter a few thousand places are compared with all of the centres before the next ones are read, so that no
distances need memory beyond the processor's cache; the innermost loop is over places, which vector instructions take
eight at a time.
"""

# numba's decorator leaves its results without a type, and an entry of an array is an int only to numba
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedFunctionDecorator=false, reportMissingTypeStubs=false, reportArgumentType=false
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pansight.ops.fast.kernels.compiled import compiled

TILE = 2048
"""Places that are compared at a time."""
FOUR = 4
"""Centres that are compared at a time."""


@compiled
def _compare_four(
    centres: NDArray[np.float32],
    named: int,
    y: NDArray[np.float32],
    x: NDArray[np.float32],
    best: NDArray[np.float32],
    number: NDArray[np.int32],
) -> None:
    """Update the least distance and its centre for all places of a tile; the four centres are called `named` and up.

    Four at a time, so that what is read and written of a place serves four comparisons.
    """
    y0, y1, y2, y3 = centres[0, 0], centres[1, 0], centres[2, 0], centres[3, 0]
    x0, x1, x2, x3 = centres[0, 1], centres[1, 1], centres[2, 1], centres[3, 1]
    name0, name1, name2, name3 = np.int32(named), np.int32(named + 1), np.int32(named + 2), np.int32(named + 3)
    for i in range(TILE):
        down, across = y[i], x[i]
        least, name = best[i], number[i]
        distance = (y0 - down) * (y0 - down) + (x0 - across) * (x0 - across)
        name = name0 if distance < least else name
        least = distance if distance < least else least
        distance = (y1 - down) * (y1 - down) + (x1 - across) * (x1 - across)
        name = name1 if distance < least else name
        least = distance if distance < least else least
        distance = (y2 - down) * (y2 - down) + (x2 - across) * (x2 - across)
        name = name2 if distance < least else name
        least = distance if distance < least else least
        distance = (y3 - down) * (y3 - down) + (x3 - across) * (x3 - across)
        name = name3 if distance < least else name
        least = distance if distance < least else least
        best[i], number[i] = least, name


@compiled
def nearest_centres(
    places_yx: NDArray[np.float32], centres_yx: NDArray[np.float32], first: int, last: int, nearest: NDArray[np.int32]
) -> None:
    """places float32 (2, P), centres float32 (K, 2), K ≥ 1: writes nearest[first:last], int32, numbers from 1.

    Of equally near centres the first counts; also where no distance is a number.
    """
    groups = (len(centres_yx) + FOUR - 1) // FOUR
    centres = np.empty((groups * FOUR, 2), np.float32)
    centres[: len(centres_yx)] = centres_yx
    centres[len(centres_yx) :] = centres_yx[-1]  # never nearer than itself
    y, x = np.zeros(TILE, np.float32), np.zeros(TILE, np.float32)
    best, number = np.empty(TILE, np.float32), np.empty(TILE, np.int32)
    for start in range(first, last, TILE):
        count = min(TILE, last - start)
        y[:count] = places_yx[0, start : start + count]
        x[:count] = places_yx[1, start : start + count]
        best[:] = np.inf
        number[:] = 1
        for group in range(groups):
            _compare_four(centres[group * FOUR : group * FOUR + FOUR], group * FOUR + 1, y, x, best, number)
        nearest[start : start + count] = number[:count]


@compiled
def peaks(
    heat: NDArray[np.float32], threshold: float, reach: int, first: int, last: int, found: NDArray[np.bool_]
) -> None:
    """heat float32 (H, W): writes rows first … last − 1 of found, bool (H, W): whether a place is above the threshold
    and no value up to `reach` rows and columns away is larger, or no number.
    """
    height, width = heat.shape
    for y in range(first, last):
        for x in range(width):
            value = heat[y, x]
            is_peak = value > threshold
            if is_peak:
                for row in range(max(0, y - reach), min(height, y + reach + 1)):
                    for column in range(max(0, x - reach), min(width, x + reach + 1)):
                        if not heat[row, column] <= value:
                            is_peak = False
                            break
                    if not is_peak:
                        break
            found[y, x] = is_peak
