"""The truth as mask transformers learn from it: the set of all segments, things and stuff alike."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.fast import use_plain
from pansight.ops.fast.points import samples_by_gathering, samples_by_loop
from pansight.ops.targets import boxes_of_ids, lookup
from pansight.types import Batch, Instances, LabelSpace, PanopticSegmentation


class SegmentTargets(NamedTuple):
    """The N segments of one image that a query may answer for, crowds left out.

    As `InstanceTargets`, but each has its category: an index into the whole LabelSpace, stuff included.
    """

    boxes_xyxy: Tensor
    categories: Tensor  # int64 (N,)
    mask_stack: Tensor
    mask_index: Tensor  # int64 (N,)
    mask_value: Tensor  # int32 (N,)


def segment_targets(batch: Batch, labels: LabelSpace, things_only: bool = False) -> list[SegmentTargets]:
    """Every segment of each image on the device of ``batch.images``.

    Crowds and segments without a pixel are left out. Where a sample has overlapping `instances`, its things are those
    and its stuff comes from the id map. things_only: no stuff (detection). boxes_xyxy are at pixel edges (see
    SegmentTargets); masks are never expanded to one map per segment where the truth is disjoint.
    """
    device = batch.images.device
    wanted = {c.id for c in labels if c.is_thing or not things_only}
    stuff = wanted - {c.id for c in labels.things}
    return [
        _disjoint(truth, wanted, device) if instances is None else _overlapping(instances, truth, wanted, stuff, device)
        for truth, instances in zip(batch.truths, batch.instances, strict=True)
    ]


def _disjoint(truth: PanopticSegmentation, wanted: set[int], device: torch.device) -> SegmentTargets:
    rows = [(s.id, s.category) for s in truth.segments if s.category in wanted and not s.is_crowd]
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)  # (N, 2) id, category
    boxes = boxes_of_ids(truth.ids, table[:, 0].to(truth.ids.device))
    seen = boxes[:, 2] > boxes[:, 0]
    table = table[seen.cpu()]
    return SegmentTargets(
        boxes_xyxy=boxes[seen].to(device),
        categories=table[:, 1].to(device),
        mask_stack=truth.ids.unsqueeze(0).to(device),  # (1, H, W)
        mask_index=torch.zeros(len(table), dtype=torch.int64, device=device),
        mask_value=table[:, 0].to(device=device, dtype=torch.int32),
    )


def _overlapping(
    instances: Instances, truth: PanopticSegmentation, wanted: set[int], stuff: set[int], device: torch.device
) -> SegmentTargets:
    """Things as one 0/1 map each; all stuff shares one more map, numbered from 1."""
    boxes = instances.boxes_xyxy.cpu()
    names: list[int] = instances.labels.tolist()
    keep = torch.tensor([name in wanted and name not in stuff for name in names], dtype=torch.bool)
    keep &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if instances.is_crowd is not None:
        keep &= ~instances.is_crowd.cpu()
    chosen: list[int] = keep.nonzero().flatten().tolist()
    masks = torch.zeros((len(chosen), *truth.size)) if instances.masks is None else instances.masks[chosen]
    rest = _disjoint(truth, stuff, device)
    dtype = torch.uint8 if len(rest.categories) < 256 else torch.int32
    numbers = torch.arange(1, len(rest.categories) + 1, device=device)
    stack = masks.to(device=device, dtype=dtype)  # (T, H, W)
    if len(rest.categories):
        shared = lookup(rest.mask_stack[0], rest.mask_value, numbers, 0).to(dtype)  # (H, W)
        stack = torch.cat((stack, shared.unsqueeze(0)))
    count = len(chosen)
    things = torch.arange(count, device=device)
    return SegmentTargets(
        boxes_xyxy=torch.cat((boxes[chosen].to(device), rest.boxes_xyxy)),
        categories=torch.cat((instances.labels[chosen].to(device), rest.categories)),
        mask_stack=stack,
        mask_index=torch.cat((things, torch.full_like(numbers, count))),
        mask_value=torch.cat((torch.ones_like(things), numbers)).to(torch.int32),
    )


def padded_categories(targets: Sequence[SegmentTargets]) -> tuple[Tensor, list[int]]:
    """(categories int64 (B, N), N the most of any image, 0 where there is none; the number of targets of each)."""
    counts = [len(t.categories) for t in targets]
    return torch.nn.utils.rnn.pad_sequence([t.categories for t in targets], batch_first=True), counts


def sample_masks(targets: SegmentTargets, points: Tensor, size: tuple[int, int], index: Tensor | None = None) -> Tensor:
    """Bilinear samples of the masks at points: float32 (N, P), 0 … 1; outside the image the masks are 0.

    points float (P, 2), shared by all masks, or (N, P, 2): x, y in 0 … 1 of the padded canvas `size` (H, W), as in
    ``grid_sample(mask, 2 p − 1, align_corners=False, padding zeros)`` on the mask padded to `size`.
    index int64 (M,): only these targets, in this order (then N = M).
    """
    value, plane = targets.mask_value, targets.mask_index
    if index is not None:
        value, plane = value[index], plane[index]
    if use_plain():
        dense = dense_masks(targets, size, index)  # (N, H, W)
        return bilinear_samples(dense, points.float().expand(len(dense), -1, -1))
    sample = samples_by_loop if points.device.type == "cpu" else samples_by_gathering
    return sample(targets.mask_stack, plane, value, points.float(), size)


def bilinear_samples(masks: Tensor, points: Tensor) -> Tensor:
    """Between pixels, 0 outside: masks (M, h, w), points (M, P, 2) as x, y in 0 … 1 → (M, P)."""
    grid = points.unsqueeze(1).mul(2).sub_(1)
    return F.grid_sample(masks.unsqueeze(1), grid, align_corners=False)[:, 0, 0]


def dense_masks(targets: SegmentTargets, size: tuple[int, int], index: Tensor | None = None) -> Tensor:
    """float32 (N, H, W) of 0 and 1, padded with 0 at the right and the bottom to `size`. index as in sample_masks."""
    value, plane = targets.mask_value, targets.mask_index
    if index is not None:
        value, plane = value[index], plane[index]
    height, width = targets.mask_stack.shape[1:]
    result = torch.zeros((len(value), *size), device=value.device)
    stack = targets.mask_stack if len(targets.mask_stack) == 1 else targets.mask_stack[plane]
    result[:, :height, :width] = stack == value[:, None, None]
    return result
