"""Where the overlapping windows of semantic inference lie."""

from __future__ import annotations

import math


def window_places(size: tuple[int, int], side: int, stride: float) -> list[tuple[int, int]]:
    """(top, left) of the square windows over a photo of `size` (H, W) px, in reading order.

    stride: from one to the next, as a share of `side`, rounded up to pixels; the last one of a row or column is moved
    inside. A photo that is shorter than a window has one at 0.
    Source: github.com/hszhao/semseg, tool/test.py.
    """
    step = max(1, math.ceil(round(stride * side, 6)))  # 0.1 · 30 is a little more than 3
    tops, lefts = (_starts(length, side, step) for length in size)
    return [(top, left) for top in tops for left in lefts]


def _starts(length: int, side: int, step: int) -> list[int]:
    count = math.ceil(max(0, length - side) / step) + 1
    return [min(index * step, max(0, length - side)) for index in range(count)]
