"""EfficientPS: the logits of an object's mask and of its class adapt each other, and the largest wins a pixel.

The rule is that of ops/fusion/adaptive.py of pansight.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..values import IGNORE, Array, Outputs, Prediction, Rule, Segment
from .instances import canvas_of_logits, found_objects, with_stuff
from .maps import falling, largest, numbered, on_canvas, sigmoid


class Part(NamedTuple):
    """A rectangle of pixels, its bottom and right exclusive."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Where it is in a map."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def within(self, other: Part) -> Part:
        """What both share, empty where they share nothing."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        return Part(top, max(top, min(self.bottom, other.bottom)), left, max(left, min(self.right, other.right)))

    def seen_from(self, other: Part) -> Part:
        """The same pixels, counted from the corner of `other`."""
        return Part(self.top - other.top, self.bottom - other.top, self.left - other.left, self.right - other.left)


class Objects(NamedTuple):
    """boxes float32 (N, 4) in pixels of the photo, mask_logits (N, M, M), scores (N,), categories int64 (N,)."""

    boxes_xyxy: Array
    mask_logits: Array
    scores: Array
    categories: Array


def efficientps(outputs: Outputs, size: tuple[int, int], rule: Rule, task: str | None = None) -> Prediction:
    """Objects, the semantic map of all classes, and the panoptic map that they adapt each other to."""
    found = found_objects(outputs, size, rule)
    logits = on_canvas(outputs["semantic_logits"][0], canvas_of_logits(outputs, size))
    semantic = largest(logits)[1]
    objects = _objects(outputs, size, rule)
    winner, accepted = _contest(logits, objects, rule)
    won = np.bincount(winner.reshape(-1), minlength=len(accepted) + 1)[1:].tolist()
    table, segments = np.zeros(len(accepted) + 1, np.int32), list[Segment]()
    for position, (index, pixels) in enumerate(zip(accepted, won), start=1):
        if pixels:
            table[position] = numbered(segments, int(objects.categories[index]), float(objects.scores[index]))
    ids = table[winner]
    left = np.where(ids == 0, semantic, IGNORE)
    return Prediction(with_stuff(ids, segments, left, rule, rule.number("rule.min_stuff_area")), semantic, found)


def _objects(outputs: Outputs, size: tuple[int, int], rule: Rule) -> Objects:
    extent = outputs["extents"][0].tolist()
    height, width = size[0] / extent[0], size[1] / extent[1]
    boxes = outputs["detections.boxes_xyxy"] * np.array([width, height, width, height], np.float32)
    if rule.number("corners_of_pixels"):
        boxes = boxes - np.array([0, 0, 1, 1], np.float32)
    labels = np.array(rule.things, np.int64)[outputs["detections.labels"]]
    return Objects(boxes, outputs["detections.mask_logits"], outputs["detections.scores"], labels)


def _contest(logits: Array, objects: Objects, rule: Rule) -> tuple[Array, list[int]]:
    """(int32 (H, W): 0 for stuff, k + 1 for the k-th object that takes part; the indices of those)."""
    whole = Part(0, logits.shape[1], 0, logits.shape[2])
    best = logits[rule.stuff].max(0) if rule.stuff else np.zeros(logits.shape[1:], np.float32)
    winner, covered = np.zeros(best.shape, np.int32), np.zeros(best.shape, np.bool_)
    open_part, bounded = whole, rule.number("rule.bounded")
    margin = 0.0 if bounded else 0.5 / objects.mask_logits.shape[-1]
    factor = np.float32(rule.number("rule.mask_factor"))
    accepted: list[int] = []
    boxes = objects.boxes_xyxy.tolist()
    order = falling(objects.scores)
    for index in order[objects.scores[order] > np.float32(rule.number("rule.score_threshold"))].tolist():
        part = _part_of_box(boxes[index], whole, margin)
        mask_logits = _stretched(objects.mask_logits[index], boxes[index], part)
        mask = mask_logits > 0
        area, hidden = int(mask.sum()), int((mask & covered[part.slices]).sum())
        if area == 0 or hidden / area > rule.number("rule.max_overlap"):
            continue
        covered[part.slices] |= mask
        accepted.append(index)
        of_mask, of_class = factor * mask_logits, _inside(logits[objects.categories[index]], boxes[index], part)
        fused = (sigmoid(of_mask) + sigmoid(of_class)) * (of_mask + of_class)
        larger = fused > best[part.slices]
        winner[part.slices][larger] = len(accepted)
        np.copyto(best[part.slices], fused, where=larger)
        if not bounded:
            _win_elsewhere(best, winner, open_part, part, len(accepted))
            open_part = open_part.within(part)
    return winner, accepted


def _win_elsewhere(best: Array, winner: Array, open_part: Part, own: Part, number: int) -> None:
    """The value of an object outside of its own part is 0: give it the pixels of `open_part` where that is largest."""
    larger = best[open_part.slices] < 0
    larger[own.within(open_part).seen_from(open_part).slices] = False
    winner[open_part.slices][larger] = number
    best[open_part.slices][larger] = 0


def _part_of_box(box: list[float], whole: Part, margin: float) -> Part:
    """The pixels whose centres lie in a box that is grown by `margin` times its sides."""
    x1, y1, x2, y2 = box
    across, down = margin * (x2 - x1), margin * (y2 - y1)
    rows = math.ceil(y1 - down - 0.5), math.ceil(y2 + down - 0.5)
    columns = math.ceil(x1 - across - 0.5), math.ceil(x2 + across - 0.5)
    return Part(*rows, *columns).within(whole)


def _stretched(mask_logits: Array, box: list[float], part: Part) -> Array:
    """A mask stretched over its box, read bilinearly between the centres of its cells: float32 (h, w) of `part`."""
    x1, y1, x2, y2 = box
    cells = np.arange(len(mask_logits), dtype=np.float32)
    weights: list[Array] = []
    for first, stop, low, high in ((part.top, part.bottom, y1, y2), (part.left, part.right, x1, x2)):
        centres = np.arange(first, stop, dtype=np.float32) + np.float32(0.5)
        place = (centres - np.float32(low)) * np.float32(len(cells) / max(high - low, 1e-12)) - np.float32(0.5)
        weights.append((1 - np.abs(place[:, None] - cells)).clip(0))
    return weights[0] @ mask_logits.astype(np.float32, copy=False) @ weights[1].T


def _inside(logits: Array, box: list[float], part: Part) -> Array:
    """The logits (H, W) of a class in the pixels of `part`, 0 outside of the box as the released code cuts it."""
    x1, y1, x2, y2 = box
    inner = Part(int(y1 + 1), round(y2 - 1) + 1, int(x1 + 1), round(x2 - 1) + 1).within(part)
    result = np.zeros((part.bottom - part.top, part.right - part.left), np.float32)
    result[inner.seen_from(part).slices] = logits[inner.slices]
    return result
