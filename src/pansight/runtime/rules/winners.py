"""UPSNet's panoptic head: a score for each class of stuff, for each object, and for "unknown", of which one wins.

The rule is that of ops/fusion/panoptic_head.py of pansight. Classes are numbered stuff first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..resizing import resized
from ..values import Array, Canvas, Outputs, Panoptic, Prediction, Rule, Segment
from .instances import canvas_of_logits, found_objects
from .maps import largest, numbered


class Objects(NamedTuple):
    """crops int64 (N, 4) x1, y1, x2, y2, ends exclusive; things int64 (N,); scores (N,); mask_logits (N, M, M)."""

    crops: Array
    things: Array
    scores: Array
    mask_logits: Array

    def some(self, index: Array | list[int]) -> Objects:
        """The objects of these numbers, or where a bool array is true."""
        return Objects(*(column[index] for column in self))

    def part(self, number: int) -> tuple[slice, slice]:
        """Where an object lies in a map."""
        x1, y1, x2, y2 = self.crops[number].tolist()
        return slice(y1, y2), slice(x1, x2)

    def mask(self, number: int) -> Array:
        """Logits float32 (h, w) of an object in its crop."""
        x1, y1, x2, y2 = self.crops[number].tolist()
        cells = self.mask_logits.shape[-1]
        down, across = _resizing(y2 - y1, cells), _resizing(x2 - x1, cells)
        return down @ self.mask_logits[number].astype(np.float32, copy=False) @ across.T


def upsnet(outputs: Outputs, size: tuple[int, int], rule: Rule, task: str | None = None) -> Prediction:
    """Objects, the semantic map, and the panoptic map of the head."""
    found = found_objects(outputs, size, rule)
    canvas, stuff = canvas_of_logits(outputs, size), len(rule.stuff)
    objects = _objects(outputs, canvas.extent)
    objects = objects.some(objects.scores > np.float32(rule.number("score_threshold")))
    objects = objects.some(_pruned(objects, canvas.extent, rule.number("max_overlap")))
    code, likeliest = (_nearest(each, size) for each in _winners(outputs["semantic_logits"][0], stuff, canvas, objects))
    semantic = np.array([*rule.stuff, *rule.things], np.int64)[likeliest]
    return Prediction(_segments(code, likeliest, objects, rule), semantic, found)


def _objects(outputs: Outputs, size: tuple[int, int]) -> Objects:
    """What was found for the head, with crops in pixels of a map of `size` (H, W)."""
    boxes = outputs["objects.boxes_xyxy"]
    limit = np.array([size[1], size[0]], np.float32)
    first = np.minimum(np.floor(boxes[:, :2]).clip(0), limit - 1)
    stop = np.maximum(np.minimum(np.round(boxes[:, 2:] - 1) + 1, limit), first + 1)
    crops = np.concatenate((first, stop), axis=1).astype(np.int64)
    return Objects(crops, outputs["objects.labels"], outputs["objects.scores"], outputs["objects.mask_logits"])


def _resizing(length: int, cells: int) -> Array:
    """Bilinear resizing of `cells` values to `length` as a matrix: float32 (length, cells)."""
    pixel = np.arange(length, dtype=np.float32) + np.float32(0.5)
    place = (pixel * np.float32(cells) / np.float32(length) - np.float32(0.5)).clip(0, cells - 1)
    return (1 - np.abs(place[:, None] - np.arange(cells, dtype=np.float32))).clip(0)


def _pruned(objects: Objects, size: tuple[int, int], max_overlap: float) -> list[int]:
    """The objects that are not empty, and not covered too much by better ones of their class; ascending."""
    kept: list[int] = []
    for thing in np.unique(objects.things).tolist():
        taken = np.zeros(size, np.bool_)
        for number in np.flatnonzero(objects.things == thing).tolist():
            mask, beneath = objects.mask(number) > 0, taken[objects.part(number)]
            area = int(mask.sum())
            if area == 0 or int((mask & beneath).sum()) / area > max_overlap:
                continue
            kept.append(number)
            beneath |= mask
    return sorted(kept)


def _winners(logits: Array, stuff: int, canvas: Canvas, objects: Objects) -> tuple[Array, Array]:
    """(the number of the highest score of each pixel, its likeliest class), int64 of the size ``canvas.extent``."""
    extent, count = canvas.extent, len(objects.things)
    maps = resized(logits.astype(np.float32, copy=False), canvas.padded)[:, : extent[0], : extent[1]]
    best_stuff, of_stuff = largest(maps[:stuff]) if stuff else (np.full(extent, -np.inf, np.float32), 0)
    best_thing, of_thing = largest(maps[stuff:])
    semantic = np.where(best_thing > best_stuff, stuff + of_thing, of_stuff)
    best, number = np.full(extent, -np.inf, np.float32), np.full(extent, count, np.int64)
    seen, outside = np.full(extent, -np.inf, np.float32), np.zeros(extent, np.int64)
    for index, thing in enumerate(objects.things.tolist()):
        part = objects.part(index)
        said = maps[stuff + thing][part]
        value = said + objects.mask(index)
        better = value > best[part]
        np.copyto(best[part], value, where=better)
        number[part][better] = index
        np.maximum(seen[part], said, out=seen[part])
        first = outside[part]
        first[first == index] = index + 1
    is_outside = outside < count  # of an object, whose score there is 0
    better = is_outside & ((best < 0) | ((best == 0) & (outside < number)))
    best, number = np.where(better, np.float32(0), best), np.where(better, outside, number)
    seen = np.where(is_outside, seen.clip(0), seen)
    unknown = best_thing - seen if count else best_thing.clip(0)
    code = np.where(best > best_stuff, stuff + number, of_stuff)
    return np.where(unknown > np.maximum(best, best_stuff), stuff + count, code), semantic


def _nearest(numbers: Array, size: tuple[int, int]) -> Array:
    """A map of numbers at `size`: each pixel is that of the same relative place, rounded down."""
    rows, columns = (np.arange(new) * old // new for old, new in zip(numbers.shape, size))
    return numbers[rows[:, None], columns]


def _segments(code: Array, likeliest: Array, objects: Objects, rule: Rule) -> Panoptic:
    """Objects by falling score, then stuff. One most of whose pixels are likeliest of one class of stuff is stuff."""
    stuff, count, classes = len(rule.stuff), len(objects.things), len(rule.labels)
    is_object = (code >= stuff) & (code < stuff + count)
    both = (code[is_object] - stuff) * classes + likeliest[is_object]
    of_class = np.bincount(both, minlength=count * classes).reshape(count, classes)
    target = np.arange(stuff + count + 1)
    if count:
        pixels, majority, area = of_class.max(1), of_class.argmax(1), of_class.sum(1)
        becomes_stuff = (majority < stuff) & (2 * pixels >= area) & (area > 0)
        target[stuff : stuff + count] = np.where(becomes_stuff, majority, target[stuff : stuff + count])
    code = target[code]
    left = np.bincount(code.reshape(-1), minlength=stuff + count + 1).tolist()
    ids, segments = np.zeros(stuff + count + 1, np.int32), list[Segment]()
    for number, (thing, score) in enumerate(zip(objects.things.tolist(), objects.scores.tolist()), start=stuff):
        if left[number]:
            ids[number] = numbered(segments, rule.things[thing], score)
    for number, category in enumerate(rule.stuff):
        if left[number] >= max(1, rule.number("min_stuff_area")):
            ids[number] = numbered(segments, category)
    return Panoptic(ids[code], tuple(segments))
