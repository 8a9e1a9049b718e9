"""Maps on their way to the size of a photo, some rows at a time, and what several rules ask of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..resizing import axis_of, mixed
from ..values import Array, Canvas, Instances, Panoptic, Rule, Segment

VALUES_AT_ONCE = 1 << 19
"""Numbers of all maps in a band of rows: 2 MiB, which stay in the processor's cache."""


def bands(maps: Array, canvas: Canvas, align_corners: bool = False) -> Iterator[tuple[int, int, Array]]:
    """(first row, last row, float32 (N, rows, W)) of maps float32 (N, h, w) at ``canvas.size``, band after band.

    Bilinear to ``canvas.padded``, cut to ``canvas.extent``, bilinear to ``canvas.size``. align_corners: of the first.
    """
    height, width = canvas.size
    step = max(1, VALUES_AT_ONCE // max(1, len(maps) * width))
    for start in range(0, height, step):
        stop = min(start + step, height)
        yield start, stop, rows_of(maps, canvas, start, stop, align_corners)


def rows_of(maps: Array, canvas: Canvas, start: int, stop: int, align_corners: bool = False) -> Array:
    """The rows start … stop − 1 of `on_canvas`."""
    seen = [min(side, whole) for side, whole in zip(canvas.extent, canvas.padded)]
    rows = axis_of(seen[0], canvas.size[0])
    first, last = start, stop  # of the rows that the network saw
    if rows is not None:
        low, high, share = (each[start:stop] for each in rows)
        first, last = int(low.min()), int(high.max()) + 1
        rows = low - first, high - first, share
    down, across = (
        axis_of(maps.shape[1], canvas.padded[0], align_corners),
        axis_of(maps.shape[2], canvas.padded[1], align_corners),
    )
    if down is None:
        part = maps[:, first:last]
    else:
        low, high, share = (each[first:last] for each in down)
        top, bottom = int(low.min()), int(high.max()) + 1
        part = mixed(maps[:, top:bottom], (low - top, high - top, share), True)
    if across is not None:
        low, high, share = (each[: seen[1]] for each in across)
        part = mixed(part, (low, high, share), False)
    else:
        part = part[:, :, : seen[1]]
    return mixed(mixed(part, rows, True), axis_of(seen[1], canvas.size[1]), False)


def on_canvas(maps: Array, canvas: Canvas, align_corners: bool = False) -> Array:
    """float (N, h, w) → float32 (N, H, W) at ``canvas.size``, all at once."""
    return rows_of(maps.astype(np.float32, copy=False), canvas, 0, canvas.size[0], align_corners)


def likeliest(maps: Array, canvas: Canvas, align_corners: bool = False) -> Array:
    """The number of the largest of N maps at each pixel of the photo, the first of equal ones: int64 (H, W)."""
    result = np.empty(canvas.size, np.int64)
    for start, stop, values in bands(maps.astype(np.float32, copy=False), canvas, align_corners):
        result[start:stop] = largest(values)[1]
    return result


def largest(values: Array) -> tuple[Array, Array]:
    """(the largest of N maps (N, H, W), its number int64), the first of equal ones; faster than argmax along them."""
    best, number = values[0].copy(), np.zeros(values.shape[1:], np.int64)
    for index in range(1, len(values)):
        better = values[index] > best
        np.copyto(best, values[index], where=better)
        number[better] = index
    return best, number


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(−x)), float32."""
    with np.errstate(over="ignore"):  # infinity, whose inverse is the zero that is meant
        return np.float32(1) / (np.float32(1) + np.exp(-logits.astype(np.float32, copy=False)))


def softmax(logits: Array) -> Array:
    """Over the last axis, float32."""
    powers = np.exp(logits.astype(np.float32, copy=False) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def boxes_of_masks(masks: Array) -> Array:
    """Tight boxes at pixel edges: bool (N, H, W) → xyxy float32 (N, 4), 0 where a mask is empty."""
    bounds: list[Array] = []
    for axis in (1, 2):
        seen: Array = np.any(masks, axis=axis)  # (N, W), then (N, H)
        any_at_all, side = np.any(seen, axis=1), seen.shape[1]
        bounds += [np.where(any_at_all, seen.argmax(1), 0), np.where(any_at_all, side - seen[:, ::-1].argmax(1), 0)]
    x1, x2, y1, y2 = bounds
    return np.stack((x1, y1, x2, y2), axis=1).astype(np.float32)


def falling(scores: Array) -> Array:
    """The order of falling scores; equal ones keep theirs."""
    return np.argsort(-scores, kind="stable")


def void(size: tuple[int, int]) -> Panoptic:
    """A panoptic map of nothing."""
    return Panoptic(np.zeros(size, np.int32), ())


def objects_of(panoptic: Panoptic, rule: Rule) -> Instances:
    """The things of a panoptic map as objects with masks, by falling score."""
    things = sorted((s for s in panoptic.segments if rule.labels[s.category].is_thing), key=lambda s: -s.score)
    masks = np.zeros((len(things), *panoptic.ids.shape), np.bool_)
    for index, segment in enumerate(things):
        masks[index] = panoptic.ids == segment.id
    return Instances(
        boxes_of_masks(masks),
        np.array([s.category for s in things], np.int64),
        np.array([s.score for s in things], np.float32),
        masks,
    )


def numbered(segments: list[Segment], category: int, score: float = 1.0) -> int:
    """Append a segment of the next id to the list → the id."""
    segments.append(Segment(len(segments) + 1, category, score))
    return len(segments)
