"""Compiled sampling of true masks at points: the masks of all segments are read from the id map in one pass."""

# numba's decorator leaves its results without a type
# pyright: reportUnknownMemberType=false, reportUntypedFunctionDecorator=false, reportMissingTypeStubs=false
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.ops.fast.kernels.compiled import compiled


@compiled
def sample(
    stack: NDArray[Any],
    plane: NDArray[np.int64],
    value: NDArray[np.int32],
    points: NDArray[np.float32],
    size: tuple[int, int],
    samples: NDArray[np.float32],
) -> None:
    """samples (N, P): bilinear, of the masks ``stack[plane[n]] == value[n]``, stack (S, h, w), 0 outside.

    points (N, P, 2) or (1, P, 2) for all masks: x, y in 0 … 1 of the canvas `size` (H, W).
    """
    height, width = stack.shape[1:]
    scale_y, scale_x, half, one = np.float32(size[0]), np.float32(size[1]), np.float32(0.5), np.float32(1)
    for n in range(samples.shape[0]):
        ids, wanted, own = stack[plane[n]], value[n], points[n if len(points) > 1 else 0]
        for p in range(samples.shape[1]):
            x, y = own[p, 0] * scale_x - half, own[p, 1] * scale_y - half
            left, top = int(np.floor(x)), int(np.floor(y))
            far_x, far_y = x - np.float32(left), y - np.float32(top)
            total = np.float32(0)
            if 0 <= top < height:
                if 0 <= left < width and ids[top, left] == wanted:
                    total += (one - far_x) * (one - far_y)
                if 0 <= left + 1 < width and ids[top, left + 1] == wanted:
                    total += far_x * (one - far_y)
            if 0 <= top + 1 < height:
                if 0 <= left < width and ids[top + 1, left] == wanted:
                    total += (one - far_x) * far_y
                if 0 <= left + 1 < width and ids[top + 1, left + 1] == wanted:
                    total += far_x * far_y
            samples[n, p] = total
