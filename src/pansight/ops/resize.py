"""The rule that turns the size of a photo into the size of a network's input."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import math
from typing import NamedTuple


class ResizeRule(NamedTuple):
    """Short side to `short` unless the long side would pass `long`; both in pixels. ``short=0`` keeps the size.

    divisor: batches are padded (right, bottom) to multiples of it. floor: torchvision rounds the scaled sides down,
    detectron2 (and we, by default) to the nearest integer.
    """

    short: int
    long: int
    divisor: int = 32
    floor: bool = False

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the resized image, each at least 1; the aspect ratio is kept up to rounding."""
        if self.short == 0:
            return height, width
        scale = min(self.short / min(height, width), self.long / max(height, width))
        if self.floor:
            # 1e-9: a side that is scaled to exactly an integer must not fall below it by a rounding error
            return max(1, math.floor(height * scale + 1e-9)), max(1, math.floor(width * scale + 1e-9))
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The next multiples of the divisor: ``(640, 600)`` → ``(640, 608)``."""
        return -(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor
