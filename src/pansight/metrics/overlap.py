"""Count the pairs of values of two maps that are given as tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pansight.ops.maps.overlap import Overlaps, overlaps_of

if TYPE_CHECKING:
    from torch import Tensor


def count_overlaps(first: Tensor, second: Tensor) -> Overlaps:
    """`overlaps_of` for integer tensors (H, W) on any device."""
    return overlaps_of(first.detach().cpu().numpy(), second.detach().cpu().numpy())
