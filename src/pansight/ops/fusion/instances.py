"""From the detections of a two-stage detector to instances, and the heuristic merge of these with stuff into one map.

The merge comes in its two published variants (docs/systems/merging.md): instances are painted by falling score, then
stuff fills what is left. Both variants accept the same instances; they differ in how stuff is given (an argmax map or
one mask per class, which may overlap), in its order, and in the ids of the segments.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pansight.errors import PansightError
from pansight.ops.regions import boxes as box_ops
from pansight.ops.regions.masks import paste_integer, paste_sampled
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Segment


class Detections(NamedTuple):
    """The D objects found in a batch, grouped by image, by falling score within one. Boxes in network pixels."""

    boxes_xyxy: Tensor  # float32 (D, 4)
    labels: Tensor  # int64 (D,), index among labels.things
    scores: Tensor  # float32 (D,)
    mask_logits: Tensor  # float32 (D, M, M) of the predicted class; (D, 0, 0) without a mask head
    image_index: Tensor  # int64 (D,)


def detections_to_instances(
    detections: Detections,
    extents: Tensor,
    sizes: Sequence[tuple[int, int]],
    labels: LabelSpace,
    mask_threshold: float = 0.5,
    integer_paste: bool = False,
) -> list[Instances]:
    """Instances at the sizes of the files: boxes are scaled, masks pasted, labels become indices into the LabelSpace.

    extents int64 (B, 2): (height, width) of each valid image; sizes: (H, W) of the B files. Boxes that become empty
    are dropped. integer_paste: masks in torchvision's convention, else in detectron2's (`paste_integer`,
    `paste_sampled`). Masks bool (N, H, W); None where the model has no mask head.
    """
    category = torch.tensor([c.id for c in labels.things], dtype=torch.int64, device=detections.labels.device)
    counts = detections.image_index.bincount(minlength=len(sizes)).tolist()
    columns = [column.split(counts) for column in detections]
    result: list[Instances] = []
    for image, size in enumerate(sizes):
        boxes, thing, scores, mask_logits = (column[image] for column in columns[:4])
        scale = boxes.new_tensor(size) / extents[image].to(boxes)  # (2,) y, x
        boxes = boxes * scale[[1, 0, 1, 0]]
        boxes = box_ops.clip_boxes(boxes, extents.new_tensor(size))  # scaling may round past the edge
        keep = box_ops.usable_boxes(boxes, scores, 0.0)
        boxes, thing, scores, mask_logits = boxes[keep], thing[keep], scores[keep], mask_logits[keep]
        masks = None
        if mask_logits.shape[1]:
            paste = paste_integer if integer_paste else paste_sampled
            masks = paste(mask_logits.sigmoid(), boxes, size, mask_threshold)
        result.append(Instances(boxes, category[thing], scores, masks))
    return result


def accept_instances(
    masks: Tensor, scores: Tensor, score_threshold: float, max_overlap: float
) -> tuple[Tensor, list[int]]:
    """Paint instances by falling score, and skip those that are covered too much by earlier ones.

    masks bool (N, H, W), scores float (N,) → canvas int32 (H, W) with k + 1 where the k-th accepted instance is
    visible, and the indices of the accepted ones. Kept are scores ≥ score_threshold (NaN never); ties keep their
    order; skipped where hidden / area > max_overlap, and where nothing would be visible.
    """
    canvas = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[scores[order] >= score_threshold]
    bytes_of_masks = masks.view(torch.uint8)  # amax of bytes is ten times as fast as any() of bools
    columns, rows = bytes_of_masks.amax(1), bytes_of_masks.amax(2)  # (N, W), (N, H)
    accepted: list[int] = []
    for index in order.tolist():
        mask = masks[index]
        x, y = columns[index].nonzero().flatten().tolist(), rows[index].nonzero().flatten().tolist()
        if not x:
            continue
        box = (slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1))  # nothing of the mask lies outside
        mask, beneath = mask[box], canvas[box]
        free = mask & (beneath == 0)
        area, visible = int(mask.sum()), int(free.sum())
        if visible == 0 or (area - visible) / area > max_overlap:
            continue
        accepted.append(index)
        beneath.masked_fill_(free, len(accepted))
    return canvas, accepted


def merge_by_label_map(
    masks: Tensor,
    scores: Tensor,
    categories: Tensor,
    semantic: Tensor | None,
    labels: LabelSpace,
    score_threshold: float = 0.5,
    max_overlap: float = 0.5,
    min_stuff_area: int = 4096,
) -> PanopticSegmentation:
    """detectron2's ``combine_semantic_and_instance_outputs`` (its meta_arch/panoptic_fpn.py): Panoptic FPN's merge.

    masks bool (N, H, W), scores float (N,), categories int64 (N,): the instances, indices into `labels`.
    semantic int64 (H, W): index of the stuff category of each pixel; pixels of any other value stay void unless an
    instance covers them. None: where `labels` has exactly one stuff category it takes all that is left, whatever its
    area (an instance model with "background as stuff"), else what is left is void.
    Stuff follows in ascending order; skipped where fewer than min_stuff_area free pixels are left. Ids 1, 2, 3 …
    """
    ids, accepted = accept_instances(masks, scores, score_threshold, max_overlap)
    segments = [
        Segment(position + 1, category, score)
        for position, (category, score) in enumerate(
            zip(categories[accepted].tolist(), scores[accepted].tolist(), strict=True)
        )
    ]
    stuff = [c.id for c in labels.stuff]
    free = ids == 0
    if semantic is None:
        if len(stuff) == 1 and bool(free.any()):
            segments.append(Segment(len(segments) + 1, stuff[0]))
            ids.masked_fill_(free, len(segments))
        return PanopticSegmentation(ids, tuple(segments))
    if not stuff:
        return PanopticSegmentation(ids, tuple(segments))
    remaining = torch.where(free, semantic, -1)  # (H, W)
    for category in stuff:
        region = remaining == category
        area = int(region.sum())
        if area == 0 or area < min_stuff_area:
            continue
        segments.append(Segment(len(segments) + 1, category))
        ids.masked_fill_(region, len(segments))
    return PanopticSegmentation(ids, tuple(segments))


def merge_by_stuff_masks(
    masks: Tensor,
    scores: Tensor,
    categories: Tensor,
    stuff_masks: Tensor,
    stuff_categories: Sequence[int],
    labels: LabelSpace,
    score_threshold: float = 0.5,
    max_overlap: float = 0.5,
    min_stuff_area: int = 4096,
    seed: int = 0,
) -> PanopticSegmentation:
    """panopticapi's ``combine_semantic_and_instance_predictions`` (the script of that name).

    masks bool (N, H, W), scores float (N,), categories int64 (N,): the instances.
    stuff_masks bool (S, H, W), may overlap, painted in the order given; entries of thing categories are ignored.
    Ids are colours (R + 256 G + 65536 B): stuff and the first instance of a class take the category's colour, further
    instances a random one within ±30 a channel (`seed` makes them repeatable; the reference does not).
    """
    canvas, accepted = accept_instances(masks, scores, score_threshold, max_overlap)
    colors = _ColorIds(labels, seed)
    ids = torch.zeros_like(canvas)
    segments: list[Segment] = []
    for position, index in enumerate(accepted):
        category = int(categories[index])
        segments.append(Segment(colors.take(category), category, float(scores[index])))
        ids.masked_fill_(canvas == position + 1, segments[-1].id)
    for mask, category in zip(stuff_masks, stuff_categories, strict=True):
        region = mask & (ids == 0)
        area = int(region.sum())
        if labels[category].is_thing or area == 0 or area < min_stuff_area:
            continue
        segments.append(Segment(colors.take(category), category))
        ids.masked_fill_(region, segments[-1].id)
    return PanopticSegmentation(ids, tuple(segments))


class _ColorIds:
    """panopticapi's IdGenerator: unique ids whose colours lie near the colour of their category."""

    def __init__(self, labels: LabelSpace, seed: int):
        self.labels = labels
        self.random = np.random.default_rng(seed)
        self.used = {(0, 0, 0)} | {c.color for c in labels.stuff}

    def take(self, category: int) -> int:
        color = self.labels[category].color
        if self.labels[category].is_thing:
            tries = 0
            while color in self.used:
                tries += 1
                reach = 30 if tries < 1000 else 255  # 60³ neighbours: only a crowded corner of the cube needs more
                shifted = np.asarray(self.labels[category].color) + self.random.integers(-reach, reach + 1, 3)
                red, green, blue = np.clip(shifted, 0, 255).tolist()
                color = (red, green, blue)
                if tries > 100_000:
                    raise PansightError(f"no free colour near that of category {self.labels[category].name!r}")
            self.used.add(color)
        return color[0] + 256 * color[1] + 65536 * color[2]
