"""Semantic maps and objects as id maps of regions, to be looked at beside a truth of the same kind."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import torch
from torch import Tensor

from pansight.types import IGNORE, Instances, PanopticSegmentation, Segment


def class_regions(semantic: Tensor) -> PanopticSegmentation:
    """One segment for each class of a map int64 (H, W), things too; IGNORE becomes void."""
    categories = [category for category in semantic.unique().tolist() if category != IGNORE]
    table = torch.zeros(max([-1, *categories]) + 2, dtype=torch.int32)  # IGNORE, which is −1, looks up the last: void
    for number, category in enumerate(categories, 1):
        table[category] = number
    return PanopticSegmentation(table[semantic], tuple(Segment(n, c) for n, c in enumerate(categories, 1)))


def object_regions(instances: Instances, size: tuple[int, int], score: float) -> PanopticSegmentation:
    """The objects of at least `score` painted into one map of `size` (H, W), smaller ones on top.

    Where there are no masks, boxes are filled. Objects that others hide altogether are left out.
    """
    masks = instances.masks
    regions = [_filled(box, size) for box in instances.boxes_xyxy] if masks is None else list(masks)
    shown = [n for n, value in enumerate(instances.scores.tolist()) if value >= score]
    shown.sort(key=lambda n: -int(regions[n].sum()))
    ids = torch.zeros(size, dtype=torch.int32)
    for number, n in enumerate(shown, 1):
        ids[regions[n]] = number
    seen = set(ids.unique().tolist())
    labels, scores, crowd = instances.labels.tolist(), instances.scores.tolist(), instances.is_crowd
    rows = (
        Segment(number, labels[n], scores[n], crowd is not None and bool(crowd[n]))
        for number, n in enumerate(shown, 1)
        if number in seen
    )
    return PanopticSegmentation(ids, tuple(rows))


def surer_than(instances: Instances, score: float) -> Instances:
    """The objects of at least this score, the surest first."""
    order = torch.argsort(instances.scores, descending=True, stable=True)
    kept = order[instances.scores[order] >= score]
    return Instances(
        instances.boxes_xyxy[kept],
        instances.labels[kept],
        instances.scores[kept],
        None if instances.masks is None else instances.masks[kept],
        None if instances.is_crowd is None else instances.is_crowd[kept],
    )


def _filled(box_xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """bool (H, W): the pixels of a box; at least one, and none beyond the map."""
    x1, y1, x2, y2 = (round(value) for value in box_xyxy.tolist())
    mask = torch.zeros(size, dtype=torch.bool)
    top, left = min(max(y1, 0), size[0] - 1), min(max(x1, 0), size[1] - 1)
    mask[top : max(y2, top + 1), left : max(x2, left + 1)] = True
    return mask
