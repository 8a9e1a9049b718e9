"""The compiled part of Panoptic-DeepLab's grouping: which of the centres is nearest to a place.

A few thousand places are compared with all of the centres before the next ones are read, so that no distances need
memory beyond the processor's cache; the innermost loop is over places, which vector instructions take eight at a time.
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
