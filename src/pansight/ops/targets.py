"""What each loss needs, computed from the one stored truth (an id map and the table of its segments).

Masks are not expanded to one map for each object: an object is a value in a shared map.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pansight.types import IGNORE, VOID, Batch, Instances, LabelSpace, PanopticSegmentation


class InstanceTargets(NamedTuple):
    """The N things of one image, crowds left out.

    boxes_xyxy float32 (N, 4), pixel edges (x2, y2 exclusive); things int64 (N,), index among ``labels.things``.
    The mask of object n is ``mask_stack[mask_index[n]] == mask_value[n]``: for disjoint truth the stack is the id map
    itself (S = 1), for overlapping annotations one 0/1 map each (S = N). mask_stack int32 or uint8 (S, H, W).
    """

    boxes_xyxy: Tensor
    things: Tensor
    mask_stack: Tensor
    mask_index: Tensor  # int64 (N,)
    mask_value: Tensor  # int32 (N,)


def lookup(id_map: Tensor, ids: Tensor, values: Tensor, default: int) -> Tensor:
    """Replace each id of a map by its value: ``out[y, x] = values[k]`` where ``id_map[y, x] == ids[k]``.

    id_map int32 (H, W), ids int (K,) unique and ≥ 0, values int64 (K,) → int64 (H, W); `default` for ids not listed.
    """
    if ids.numel() == 0:
        return torch.full(id_map.shape, default, dtype=torch.int64, device=id_map.device)
    top = int(id_map.max()) if id_map.numel() else 0
    if max(top, int(ids.max())) < 1 << 16:  # small ids, the usual case: one table, one gather
        table = torch.full((1 << 16,), default, dtype=torch.int64, device=id_map.device)
        table[ids.long()] = values
        return table[id_map.long()]
    ids, order = ids.to(id_map.dtype).sort()
    position = torch.searchsorted(ids, id_map).clamp_(max=ids.numel() - 1)  # (H, W)
    return torch.where(ids[position] == id_map, values[order][position], default)


def boxes_of_ids(id_map: Tensor, ids: Tensor) -> Tensor:
    """Tight boxes of the pixels of each id. id_map int32 (H, W), ids int (N,) unique → boxes_xyxy float32 (N, 4).

    Pixel edges: a single pixel at x = 3 has x1 = 3, x2 = 4. An id without pixels gets the empty box (0, 0, 0, 0).
    Only the first and last pixel of each horizontal run are looked at: label maps are long runs.
    """
    height, width = id_map.shape
    count = ids.numel()
    if count == 0 or height == 0 or width == 0:
        return torch.zeros((count, 4), dtype=torch.float32, device=id_map.device)
    starts = torch.ones_like(id_map, dtype=torch.bool)
    starts[:, 1:] = id_map[:, 1:] != id_map[:, :-1]
    ends = torch.ones_like(starts)
    ends[:, :-1] = starts[:, 1:]
    y, x1 = starts.nonzero(as_tuple=True)  # (R,) runs in reading order; the k-th end belongs to the k-th start
    x2 = ends.nonzero(as_tuple=True)[1] + 1
    slot = lookup(id_map[y, x1].unsqueeze(0), ids, torch.arange(count, device=ids.device), -1).squeeze(0)  # (R,)
    keep = slot >= 0
    slot, y, x1, x2 = slot[keep], y[keep], x1[keep], x2[keep]
    low = torch.full((2, count), max(height, width), dtype=torch.int64, device=ids.device)
    high = torch.zeros((2, count), dtype=torch.int64, device=ids.device)
    low[0].scatter_reduce_(0, slot, x1, "amin")
    low[1].scatter_reduce_(0, slot, y, "amin")
    high[0].scatter_reduce_(0, slot, x2, "amax")
    high[1].scatter_reduce_(0, slot, y + 1, "amax")
    empty = high[0] == 0
    return torch.cat((low, high)).T.masked_fill(empty[:, None], 0).float()  # (N, 4)


def instance_targets(batch: Batch, labels: LabelSpace) -> list[InstanceTargets]:
    """The things of each image of a batch, on the device of ``batch.images``; crowds and empty objects left out."""
    thing_index = {category.id: index for index, category in enumerate(labels.things)}
    device = batch.images.device
    return [
        _from_overlapping(instances, thing_index, device)
        if instances is not None
        else _from_disjoint(truth, thing_index, device)
        for truth, instances in zip(batch.truths, batch.instances, strict=True)
    ]


def _from_disjoint(truth: PanopticSegmentation, thing_index: dict[int, int], device: torch.device) -> InstanceTargets:
    rows = [(s.id, thing_index[s.category]) for s in truth.segments if s.category in thing_index and not s.is_crowd]
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)  # (N, 2) id, thing index
    boxes = boxes_of_ids(truth.ids, table[:, 0].to(truth.ids.device))
    seen = (boxes[:, 2] > boxes[:, 0]).cpu()
    table, boxes = table[seen], boxes[seen.to(boxes.device)]
    return InstanceTargets(
        boxes_xyxy=boxes.to(device),
        things=table[:, 1].to(device),
        mask_stack=truth.ids.unsqueeze(0).to(device),  # (1, H, W)
        mask_index=torch.zeros(len(table), dtype=torch.int64, device=device),
        mask_value=table[:, 0].to(device=device, dtype=torch.int32),
    )


def _from_overlapping(instances: Instances, thing_index: dict[int, int], device: torch.device) -> InstanceTargets:
    label_list: list[int] = instances.labels.tolist()
    keep = torch.tensor([label in thing_index for label in label_list], dtype=torch.bool)
    if instances.is_crowd is not None:
        keep &= ~instances.is_crowd.cpu()
    boxes = instances.boxes_xyxy.cpu()
    keep &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    chosen: list[int] = keep.nonzero().flatten().tolist()
    things = torch.tensor([thing_index[label_list[k]] for k in chosen], dtype=torch.int64)
    masks = instances.masks
    stack = torch.zeros((0, 1, 1), dtype=torch.uint8) if masks is None else masks[chosen].to(torch.uint8)
    return InstanceTargets(
        boxes_xyxy=boxes[chosen].to(device),
        things=things.to(device),
        mask_stack=stack.to(device),  # (N, H, W)
        mask_index=torch.arange(len(chosen), device=device),
        mask_value=torch.ones(len(chosen), dtype=torch.int32, device=device),
    )


def semantic_map(truth: PanopticSegmentation, class_of_category: Sequence[int]) -> Tensor:
    """int64 (H, W): the class of every pixel, IGNORE on void. ``class_of_category[c]`` is the class of category c."""
    ids = torch.tensor([s.id for s in truth.segments], dtype=torch.int32, device=truth.ids.device)
    classes = torch.tensor([class_of_category[s.category] for s in truth.segments], dtype=torch.int64)
    assert VOID not in ids.tolist()
    return lookup(truth.ids, ids, classes.to(truth.ids.device), IGNORE)


def semantic_targets(batch: Batch, class_of_category: Sequence[int]) -> Tensor:
    """int64 (B, H, W) at the padded size of the batch, IGNORE on void and padding; crowds carry their class."""
    count, _, height, width = batch.images.shape
    target = torch.full((count, height, width), IGNORE, dtype=torch.int64, device=batch.images.device)
    for row, truth in zip(target, batch.truths, strict=True):
        classes = semantic_map(truth, class_of_category)
        row[: classes.shape[0], : classes.shape[1]] = classes.to(row.device)
    return target


def in_other_classes(batch: Batch, class_of_category: Sequence[int]) -> Batch:
    """The same images with a truth of other classes: ``class_of_category[c]`` stands for category c.

    Where that is IGNORE, segments become void and objects are left out.
    """
    truths = tuple(_truth_in_other_classes(truth, class_of_category) for truth in batch.truths)
    objects = tuple(None if i is None else _objects_in_other_classes(i, class_of_category) for i in batch.instances)
    return replace(batch, truths=truths, instances=objects)


def _truth_in_other_classes(truth: PanopticSegmentation, class_of_category: Sequence[int]) -> PanopticSegmentation:
    kept = [s for s in truth.segments if class_of_category[s.category] != IGNORE]
    ids = truth.ids
    if len(kept) < len(truth.segments):
        numbers = torch.tensor([s.id for s in kept], dtype=ids.dtype, device=ids.device)
        ids = torch.where(torch.isin(ids, numbers), ids, VOID)
    return PanopticSegmentation(ids, tuple(s._replace(category=class_of_category[s.category]) for s in kept))


def _objects_in_other_classes(objects: Instances, class_of_category: Sequence[int]) -> Instances:
    labels = torch.tensor(class_of_category, dtype=torch.int64, device=objects.labels.device)[objects.labels]
    kept = labels != IGNORE
    masks, crowd = objects.masks, objects.is_crowd
    return Instances(
        objects.boxes_xyxy[kept],
        labels[kept],
        objects.scores[kept],
        None if masks is None else masks[kept.to(masks.device)],
        None if crowd is None else crowd[kept.to(crowd.device)],
    )


def valid_extents(images: Tensor, valid: Tensor | None) -> Tensor:
    """int64 (B, 2): (height, width) of the unpadded part of each image. images (B, 3, H, W), valid bool (B, H, W)."""
    if valid is None:
        count, _, height, width = images.shape
        return torch.tensor([[height, width]], device=images.device).expand(count, 2)
    return torch.stack((valid.any(2).sum(1), valid.any(1).sum(1)), dim=1)  # (B, 2)
