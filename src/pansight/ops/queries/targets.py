"""The truth as sets of segments, things and stuff alike: what mask transformers learn from."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pansight.ops.targets import InstanceTargets
from pansight.types import Batch


def segment_targets(batch: Batch, things_only: bool = False) -> list[InstanceTargets]:
    """Every segment of each image on the device of ``batch.images``; ``labels`` are indices into the LabelSpace.

    Crowds and segments without a pixel are left out. Where a sample has overlapping `instances`, its things are those
    and its stuff comes from the id map. things_only: no stuff (detection). boxes_xyxy are at pixel edges (see
    InstanceTargets); masks are never expanded to one map per segment where the truth is disjoint.
    """
    raise NotImplementedError


def padded_labels(targets: Sequence[InstanceTargets]) -> tuple[Tensor, list[int]]:
    """(labels int64 (B, N), N the most of any image, 0 where there is none; the number of targets of each image)."""
    raise NotImplementedError


def sample_masks(
    targets: InstanceTargets, points: Tensor, size: tuple[int, int], index: Tensor | None = None
) -> Tensor:
    """Bilinear samples of the masks at points: float32 (N, P), 0 … 1; outside the image the masks are 0.

    points float (P, 2), shared by all masks, or (N, P, 2): x, y in 0 … 1 of the padded canvas `size` (H, W), as in
    ``grid_sample(mask, 2 p − 1, align_corners=False, padding zeros)`` on the mask padded to `size`.
    index int64 (M,): only these targets, in this order (then N = M).
    """
    raise NotImplementedError


def dense_masks(targets: InstanceTargets, size: tuple[int, int], index: Tensor | None = None) -> Tensor:
    """float32 (N, H, W) of 0 and 1, padded with 0 at the right and the bottom to `size`. index as in sample_masks."""
    raise NotImplementedError
