"""Two-stage detectors: boxes at the size of the photo, masks pasted, and the merge of objects with stuff.

The rules are those of ops/fusion/instances.py and ops/regions/masks.py of pansight, which name their sources.
"""

from __future__ import annotations

import numpy as np

from ..values import IGNORE, Array, Canvas, Instances, Outputs, Panoptic, Prediction, Rule, Segment
from .maps import falling, likeliest, numbered, sigmoid

STRIDE = 4
"""Pixels of the network to a place of the semantic logits beside a detector."""

FCIS_THRESHOLD = 0.4
"""An object of FCIS is where its mask is at least that probable."""


def boxes_and_masks(outputs: Outputs, size: tuple[int, int], rule: Rule, task: str | None = None) -> Prediction:
    """Fast and Faster R-CNN: objects without a panoptic map, and without masks where the network has none."""
    return Prediction(instances=found_objects(outputs, size, rule))


def mask_rcnn(outputs: Outputs, size: tuple[int, int], rule: Rule, task: str | None = None) -> Prediction:
    """Objects, and a panoptic map of them; a single class of stuff takes what is left."""
    found = found_objects(outputs, size, rule, integer=rule.number("integer_paste"))
    return Prediction(merged(found, None, rule), None, found)


def fcis(outputs: Outputs, size: tuple[int, int], rule: Rule, task: str | None = None) -> Prediction:
    """As `mask_rcnn`, by FCIS's own threshold of masks."""
    found = found_objects(outputs, size, rule, FCIS_THRESHOLD)
    return Prediction(merged(found, None, rule), None, found)


def panoptic_fpn(outputs: Outputs, size: tuple[int, int], rule: Rule, task: str | None = None) -> Prediction:
    """Objects over stuff, whose logits are of "any thing" first and then of each class of stuff."""
    found = found_objects(outputs, size, rule)
    logits = outputs["semantic_logits"][0]
    category = np.array([IGNORE, *rule.stuff], np.int64)
    semantic = category[likeliest(logits, canvas_of_logits(outputs, size))]
    return Prediction(merged(found, semantic, rule), None, found)


def canvas_of_logits(outputs: Outputs, size: tuple[int, int]) -> Canvas:
    """The way of semantic logits beside a detector to a photo of `size` (H, W)."""
    height, width = (STRIDE * side for side in outputs["semantic_logits"].shape[2:])
    top, left = outputs["extents"][0].tolist()
    return Canvas((height, width), (top, left), size)


def found_objects(
    outputs: Outputs, size: tuple[int, int], rule: Rule, threshold: float = 0.5, integer: bool = False
) -> Instances:
    """The detections at the size of the photo; boxes that become empty are dropped.

    threshold: a mask is where it is at least that probable. integer: masks are pasted as torchvision does it.
    """
    extent = outputs["extents"][0]
    scale = np.array(size, np.float32) / extent.astype(np.float32)
    boxes = outputs["detections.boxes_xyxy"] * scale[[1, 0, 1, 0]]
    boxes = np.minimum(boxes.clip(0), np.array([size[1], size[0]] * 2, np.float32))
    scores, masks = outputs["detections.scores"], outputs["detections.mask_logits"]
    usable = (boxes[:, 2:] > boxes[:, :2]).all(1) & np.isfinite(boxes).all(1) & np.isfinite(scores)
    labels = np.array(rule.things, np.int64)[outputs["detections.labels"][usable]]
    boxes, scores, masks = boxes[usable], scores[usable], masks[usable]
    full = None
    if masks.shape[1]:
        full = (_paste_integer if integer else _paste_sampled)(sigmoid(masks), boxes, size, threshold)
    return Instances(boxes, labels, scores, full)


def _paste_sampled(probabilities: Array, boxes: Array, size: tuple[int, int], threshold: float) -> Array:
    """detectron2's paste: the grid stretched over the box as it is, read bilinearly, zero outside: bool (N, H, W)."""
    masks, grid = np.zeros((len(boxes), *size), np.bool_), probabilities.shape[-1]
    margin = (boxes[:, 2:] - boxes[:, :2]) / np.float32(grid)
    limits = np.concatenate((np.floor(boxes[:, :2] - margin), np.ceil(boxes[:, 2:] + margin)), axis=1).tolist()
    for mask, each, box, limit in zip(masks, probabilities, boxes.tolist(), limits):
        weights: list[Array] = []
        parts: list[slice] = []
        for axis in (1, 0):
            first, stop = max(0, int(limit[axis])), min(size[1 - axis], int(limit[axis + 2]))
            at = np.arange(first, stop, dtype=np.float32) + np.float32(0.5)
            stretch = np.float32(grid / max(box[axis + 2] - box[axis], 1e-12))
            weights.append(_bilinear((at - np.float32(box[axis])) * stretch - np.float32(0.5), grid))
            parts.append(slice(first, max(first, stop)))
        mask[parts[0], parts[1]] = weights[0] @ each @ weights[1].T >= np.float32(threshold)
    return masks


def _paste_integer(probabilities: Array, boxes: Array, size: tuple[int, int], threshold: float) -> Array:
    """torchvision's paste: a cell of zeros around the grid, the box grown alike, cut to integers, then resized."""
    masks, grid = np.zeros((len(boxes), *size), np.bool_), probabilities.shape[-1]
    padded = np.pad(probabilities, ((0, 0), (1, 1), (1, 1)))
    centre = (boxes[:, :2] + boxes[:, 2:]) * np.float32(0.5)
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32((grid + 2) / grid)
    grown = np.concatenate((centre - half, centre + half), axis=1).astype(np.int64).tolist()  # towards zero
    for mask, each, box in zip(masks, padded, grown):
        weights: list[Array] = []
        parts: list[slice] = []
        for axis in (1, 0):
            low, high = box[axis], box[axis + 2]
            first, stop = max(0, low), min(size[1 - axis], high + 1)
            at = np.arange(first - low, stop - low, dtype=np.float32) + np.float32(0.5)
            place = at * np.float32((grid + 2) / max(high - low + 1, 1)) - np.float32(0.5)
            weights.append(_bilinear(place.clip(0, grid + 1), grid + 2))
            parts.append(slice(first, max(first, stop)))
        mask[parts[0], parts[1]] = weights[0] @ each @ weights[1].T > np.float32(threshold)
    return masks


def _bilinear(places: Array, cells: int) -> Array:
    """The weight of each cell at each place, in cells: float32 (P,) → (P, cells)."""
    return (1 - np.abs(places[:, None] - np.arange(cells, dtype=np.float32))).clip(0)


def accepted_objects(found: Instances, threshold: float, max_overlap: float) -> tuple[Array, list[int]]:
    """Objects painted by falling score, those covered too much skipped.

    → (int32 (H, W), k + 1 where the k-th accepted one is seen; the indices of the accepted ones).
    """
    assert found.masks is not None
    canvas = np.zeros(found.masks.shape[1:], np.int32)
    accepted: list[int] = []
    order = falling(found.scores)
    for index in order[found.scores[order] >= np.float32(threshold)].tolist():
        mask = found.masks[index]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        free = mask[part] & (canvas[part] == 0)
        area, visible = int(mask[part].sum()), int(free.sum())
        if visible == 0 or (area - visible) / area > max_overlap:
            continue
        accepted.append(index)
        canvas[part][free] = len(accepted)
    return canvas, accepted


def merged(found: Instances, semantic: Array | None, rule: Rule, prefix: str = "") -> Panoptic:
    """`merge_by_label_map`: objects over stuff; semantic int64 (H, W), None: one class of stuff takes what is left.

    prefix: of the names of the thresholds among the rule's numbers.
    """
    threshold, overlap = (rule.number(f"{prefix}{name}") for name in ("score_threshold", "max_overlap"))
    ids, accepted = accepted_objects(found, threshold, overlap)
    segments: list[Segment] = []
    for index in accepted:
        numbered(segments, int(found.labels[index]), float(found.scores[index]))
    free = ids == 0
    if semantic is None:
        if len(rule.stuff) == 1 and free.any():
            ids[free] = numbered(segments, rule.stuff[0])
        return Panoptic(ids, tuple(segments))
    return with_stuff(ids, segments, np.where(free, semantic, IGNORE), rule, rule.number(f"{prefix}min_stuff_area"))


def with_stuff(ids: Array, segments: list[Segment], semantic: Array, rule: Rule, least: int) -> Panoptic:
    """The map with the classes of stuff of `semantic` int64 (H, W) in it that have at least so many pixels."""
    areas = np.bincount(semantic.reshape(-1) - IGNORE, minlength=len(rule.labels) + 1)[1:]
    for category in rule.stuff:
        if areas[category] >= max(1, least):
            ids[semantic == category] = numbered(segments, category)
    return Panoptic(ids, tuple(segments))
