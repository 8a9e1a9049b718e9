"""Panoptic-DeepLab: things are the pixels that point to the same centre, their class is what most of them say.

The rule is that of ops/fusion/centres.py of pansight.
"""

from __future__ import annotations

import numpy as np

from ..values import Array, Outputs, Panoptic, Prediction, Rule, Segment
from .maps import largest, numbered, objects_of, on_canvas
from .semantic import canvas_of

PIXELS_AT_ONCE = 1 << 12
"""Pixels of which the nearest centre is looked for together, so that their distances stay in the processor's cache."""


def panoptic_deeplab(outputs: Outputs, size: tuple[int, int], rule: Rule, task: str | None = None) -> Prediction:
    """Classes (1, C, h, w), heat (1, 1, h, w) and offsets (1, 2, h, w) in pixels of the network, y first."""
    canvas, align = canvas_of(outputs, size), rule.number("align_corners")
    logits, heat, offsets = (
        on_canvas(outputs[name][0], canvas, align) for name in ("semantic_logits", "heat", "offsets_yx")
    )
    if not rule.number("keeps_offsets"):
        scale = [file / seen for file, seen in zip(size, canvas.extent)]
        offsets = offsets * np.array(scale, np.float32)[:, None, None]
    best, semantic = largest(logits)
    panoptic = _grouped(logits, best, semantic, heat[0], offsets, rule)
    return Prediction(panoptic, semantic, objects_of(panoptic, rule))


def find_centres(heat: Array, threshold: float, window: int, count: int) -> Array:
    """The peaks of a heat map float32 (H, W): int64 (K, 2), y and x, in reading order.

    Above the threshold and the largest of the window around them; of `count` or more those above the count-th.
    """
    reach = max(1, window) // 2
    high = heat
    for axis in (0, 1):
        high = _largest_around(high, reach, axis)
    peaks = np.argwhere((heat == high) & (heat > np.float32(threshold)))
    if len(peaks) < count:
        return peaks
    values = heat[peaks[:, 0], peaks[:, 1]]
    return peaks[values > np.sort(values)[::-1][count - 1]]


def _largest_around(values: Array, reach: int, axis: int) -> Array:
    """The largest of up to `reach` places to both sides along an axis."""
    result, length = values.copy(), values.shape[axis]
    for step in range(1, min(reach, length - 1) + 1):
        low, high = slice(None, -step), slice(step, None)
        lower = (low, slice(None)) if axis == 0 else (slice(None), low)
        upper = (high, slice(None)) if axis == 0 else (slice(None), high)
        np.maximum(result[lower], values[upper], out=result[lower])
        np.maximum(result[upper], values[lower], out=result[upper])
    return result


def nearest_centres(centres_yx: Array, offsets_yx: Array, is_thing: Array) -> Array:
    """Which centre each pixel of a thing points to: int64 (H, W), from 1, the first of equally near; 0 elsewhere."""
    pixels = np.flatnonzero(is_thing)
    width = is_thing.shape[1]
    pointed = offsets_yx.reshape(2, -1)[:, pixels]
    pointed[0] += (pixels // width).astype(np.float32)
    pointed[1] += (pixels % width).astype(np.float32)
    centres = centres_yx.astype(np.float32)
    numbers = np.zeros(is_thing.size, np.int64)
    for start in range(0, len(pixels), PIXELS_AT_ONCE):
        part = slice(start, start + PIXELS_AT_ONCE)
        down = centres[:, :1] - pointed[0, part]  # (K, P)
        across = centres[:, 1:] - pointed[1, part]
        down *= down
        across *= across
        down += across
        numbers[pixels[part]] = down.argmin(0) + 1
    return numbers.reshape(is_thing.shape)


def _grouped(logits: Array, best: Array, semantic: Array, heat: Array, offsets: Array, rule: Rule) -> Panoptic:
    """Objects in the order of their centres, then stuff in the order of the classes."""
    count_of_classes, loose = len(rule.labels), rule.number("rule.grouping") == "deeplab2"
    is_thing = np.array([label.is_thing for label in rule.labels])[semantic]
    numbers_of = (rule.number(f"rule.{name}") for name in ("threshold", "window", "centres"))
    centres = find_centres(heat, *numbers_of)
    numbers = nearest_centres(centres, offsets, is_thing) if len(centres) else is_thing.astype(np.int64) * loose
    count = max(len(centres), 1)
    votes = np.bincount((numbers * count_of_classes + semantic).reshape(-1), minlength=(count + 1) * count_of_classes)
    voted = votes.reshape(-1, count_of_classes)[1:].argmax(1)
    scores = _scores(numbers, voted, logits, best, heat)
    areas = np.bincount(numbers.reshape(-1), minlength=count + 1)[1:].tolist()
    of_object, of_stuff = np.zeros(count + 1, np.int32), np.zeros(count_of_classes, np.int32)
    segments: list[Segment] = []
    for number, (area, category, score) in enumerate(zip(areas, voted.tolist(), scores.tolist()), start=1):
        if area:
            of_object[number] = numbered(segments, category, score)
    pixels = np.bincount(semantic.reshape(-1), minlength=count_of_classes)
    least = max(1, rule.number("rule.min_stuff_area") + loose)
    for category in rule.stuff:
        if pixels[category] >= least:
            of_stuff[category] = numbered(segments, category)
    return Panoptic(of_object[numbers] + of_stuff[semantic], tuple(segments))


def _scores(numbers: Array, voted: Array, logits: Array, best: Array, heat: Array) -> Array:
    """The mean probability of its class in an object times the heat at its mean place, 0 … 1: float64 (K,)."""
    count, width = len(voted), numbers.shape[1]
    pixels = np.flatnonzero(numbers)
    owner = numbers.reshape(-1)[pixels] - 1
    area = np.maximum(np.bincount(owner, minlength=count), 1)
    flat, highest = logits.reshape(len(logits), -1), best.reshape(-1)
    certainty = np.zeros(len(pixels))
    for start in range(0, len(pixels), PIXELS_AT_ONCE):
        part = slice(start, start + PIXELS_AT_ONCE)
        said = flat[:, pixels[part]] - highest[pixels[part]]  # (C, P)
        of_class = np.take_along_axis(said, voted[owner[part]][None], 0)[0]
        certainty[part] = np.exp(of_class - np.log(np.exp(said).sum(0)))
    sums = np.bincount(owner, certainty, count)
    rows, columns = pixels // width, pixels % width
    y, x = ((np.bincount(owner, place, count) / area).astype(np.int64) for place in (rows, columns))
    return (sums / area * heat[y, x].astype(np.float64)).clip(0, 1)
