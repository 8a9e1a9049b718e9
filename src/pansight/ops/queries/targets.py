"""The truth as mask transformers learn from it: the set of all segments, things and stuff alike."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pansight.ops.targets import InstanceTargets, boxes_of_ids, lookup
from pansight.types import Batch, Instances, LabelSpace, PanopticSegmentation


def segment_targets(batch: Batch, labels: LabelSpace, things_only: bool = False) -> list[InstanceTargets]:
    """Every segment of each image on the device of ``batch.images``; ``labels`` are indices into the LabelSpace.

    Crowds and segments without a pixel are left out. Where a sample has overlapping `instances`, its things are those
    and its stuff comes from the id map. things_only: no stuff (detection). boxes_xyxy are at pixel edges (see
    InstanceTargets); masks are never expanded to one map per segment where the truth is disjoint.
    """
    device = batch.images.device
    wanted = {c.id for c in labels if c.is_thing or not things_only}
    stuff = wanted - {c.id for c in labels.things}
    return [
        _disjoint(truth, wanted, device) if instances is None else _overlapping(instances, truth, wanted, stuff, device)
        for truth, instances in zip(batch.truths, batch.instances, strict=True)
    ]


def _disjoint(truth: PanopticSegmentation, wanted: set[int], device: torch.device) -> InstanceTargets:
    rows = [(s.id, s.category) for s in truth.segments if s.category in wanted and not s.is_crowd]
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)  # (N, 2) id, category
    boxes = boxes_of_ids(truth.ids, table[:, 0].to(truth.ids.device))
    seen = boxes[:, 2] > boxes[:, 0]
    table = table[seen.cpu()]
    return InstanceTargets(
        boxes_xyxy=boxes[seen].to(device),
        labels=table[:, 1].to(device),
        mask_stack=truth.ids.unsqueeze(0).to(device),  # (1, H, W)
        mask_index=torch.zeros(len(table), dtype=torch.int64, device=device),
        mask_value=table[:, 0].to(device=device, dtype=torch.int32),
    )


def _overlapping(
    instances: Instances, truth: PanopticSegmentation, wanted: set[int], stuff: set[int], device: torch.device
) -> InstanceTargets:
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
    dtype = torch.uint8 if len(rest.labels) < 256 else torch.int32
    numbers = torch.arange(1, len(rest.labels) + 1, device=device)
    stack = masks.to(device=device, dtype=dtype)  # (T, H, W)
    if len(rest.labels):
        shared = lookup(rest.mask_stack[0], rest.mask_value, numbers, 0).to(dtype)  # (H, W)
        stack = torch.cat((stack, shared.unsqueeze(0)))
    count = len(chosen)
    things = torch.arange(count, device=device)
    return InstanceTargets(
        boxes_xyxy=torch.cat((boxes[chosen].to(device), rest.boxes_xyxy)),
        labels=torch.cat((instances.labels[chosen].to(device), rest.labels)),
        mask_stack=stack,
        mask_index=torch.cat((things, torch.full_like(numbers, count))),
        mask_value=torch.cat((torch.ones_like(things), numbers)).to(torch.int32),
    )


def padded_labels(targets: Sequence[InstanceTargets]) -> tuple[Tensor, list[int]]:
    """(labels int64 (B, N), N the most of any image, 0 where there is none; the number of targets of each image)."""
    counts = [len(t.labels) for t in targets]
    return torch.nn.utils.rnn.pad_sequence([t.labels for t in targets], batch_first=True), counts


def sample_masks(
    targets: InstanceTargets, points: Tensor, size: tuple[int, int], index: Tensor | None = None
) -> Tensor:
    """Bilinear samples of the masks at points: float32 (N, P), 0 … 1; outside the image the masks are 0.

    points float (P, 2), shared by all masks, or (N, P, 2): x, y in 0 … 1 of the padded canvas `size` (H, W), as in
    ``grid_sample(mask, 2 p − 1, align_corners=False, padding zeros)`` on the mask padded to `size`.
    index int64 (M,): only these targets, in this order (then N = M).
    """
    value, plane = targets.mask_value, targets.mask_index
    if index is not None:
        value, plane = value[index], plane[index]
    if points.device.type != "cpu":
        return gathered_samples(targets.mask_stack, plane, value, points.float(), size)
    from pansight.ops.queries import mask_kernels as kernels  # imported here, since numba takes long to load

    samples = torch.empty((len(value), points.shape[-2]))
    every = points.float() if points.ndim == 3 else points.float().unsqueeze(0)
    stack, points = targets.mask_stack.contiguous(), every.contiguous()
    kernels.sample(stack.numpy(), plane.numpy(), value.numpy(), points.numpy(), size, samples.numpy())
    return samples


def gathered_samples(stack: Tensor, plane: Tensor, value: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """The samples as four gathers: for accelerators."""
    # a border of one pixel with 0, which is no mask's value; points outside are clamped onto it
    stack = torch.nn.functional.pad(stack, (1, 1, 1, 1))  # (S, h + 2, w + 2)
    planes, height, width = stack.shape
    x = points[..., 0] * size[1] + 0.5  # (P,) or (N, P), pixel centres of the padded stack at 0, 1, 2 …
    y = points[..., 1] * size[0] + 0.5
    x0, y0 = x.floor(), y.floor()
    x, y = x - x0, y - y0  # 0 … 1, the way from one neighbour to the next
    columns = [(x0 + step).clamp_(0, width - 1).long() for step in (0, 1)]
    rows = [(y0 + step).clamp_(0, height - 1).long() * width for step in (0, 1)]
    flat = stack.flatten()  # (S · (h + 2) · (w + 2),)
    start = (plane * (height * width)).unsqueeze(1) if planes > 1 else 0  # (N, 1)
    result = torch.zeros((len(value), points.shape[-2]), device=points.device)
    for row, down in zip(rows, (1 - y, y), strict=True):
        for column, across in zip(columns, (1 - x, x), strict=True):
            result += (flat[start + (row + column)] == value.unsqueeze(1)) * (down * across)  # (N, P)
    return result


def dense_masks(targets: InstanceTargets, size: tuple[int, int], index: Tensor | None = None) -> Tensor:
    """float32 (N, H, W) of 0 and 1, padded with 0 at the right and the bottom to `size`. index as in sample_masks."""
    value, plane = targets.mask_value, targets.mask_index
    if index is not None:
        value, plane = value[index], plane[index]
    height, width = targets.mask_stack.shape[1:]
    result = torch.zeros((len(value), *size), device=value.device)
    stack = targets.mask_stack if len(targets.mask_stack) == 1 else targets.mask_stack[plane]
    result[:, :height, :width] = stack == value[:, None, None]
    return result
