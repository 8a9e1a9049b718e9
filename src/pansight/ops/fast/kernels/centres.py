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


@compiled
def nearest_centres(
    places_yx: NDArray[np.float32], centres_yx: NDArray[np.float32], first: int, last: int, nearest: NDArray[np.int32]
) -> None:
    """places float32 (2, P), centres float32 (K, 2), K ≥ 1: writes nearest[first:last], int32, numbers from 1.

    Of equally near centres the first counts; also where no distance is a number.
    """
    best = np.empty(TILE, np.float32)
    number = np.empty(TILE, np.int32)
    for start in range(first, last, TILE):
        count = min(TILE, last - start)
        best[:] = np.inf
        number[:] = 1
        for k in range(len(centres_yx)):
            y, x = centres_yx[k, 0], centres_yx[k, 1]
            for i in range(count):
                down = y - places_yx[0, start + i]
                across = x - places_yx[1, start + i]
                distance = down * down + across * across
                nearer = distance < best[i]
                best[i] = distance if nearer else best[i]
                number[i] = np.int32(k + 1) if nearer else number[i]
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
