"""Segments painted over their photo, with contours and names.

All images are uint8 (3, H, W) RGB; no input is changed. Void and background stay unpainted, stuff has its category's
colour, and each thing a variation of it, so that neighbours of one class can be told apart.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from pansight.drawing.pixels import Color, Picture, font, inner_edges, line_width, picture_of, row_map, tensor_of
from pansight.types import Category, LabelSpace, PanopticSegmentation, Segment

SMALLEST_NAMED = 0.005
"""Segments below this share of the image get no name: it would hide them."""

BACKGROUND = ("background", "_background_", "bg")
"""Names of stuff that stands for "nothing of interest": painting it would only veil the photo."""


def segment_colors(
    segments: Sequence[Segment], labels: LabelSpace, taken: Mapping[int, Color] | None = None
) -> dict[int, Color]:
    """Segment id → colour: the category's for stuff, variations of it for things in the order given.

    taken: colours given already, which these segments keep and others avoid (a match has the colour of its truth).
    The fewer thing classes there are, the wider the hues of one class spread: cells differ as much as cars and dogs.
    """
    taken = taken or {}
    used = set(taken.values())
    spread = 0.3 / max(len(labels.things), 1)  # share of the colour circle to either side
    numbers = [0] * len(labels)  # variations of each category handed out so far
    colors: dict[int, Color] = {}
    for segment in segments:
        category = labels[segment.category]
        if segment.id in taken or not category.is_thing:
            colors[segment.id] = taken.get(segment.id, category.color)
            continue
        color = _variation(category.color, numbers[category.id], spread)
        while color in used and numbers[category.id] < 1000:
            numbers[category.id] += 1
            color = _variation(category.color, numbers[category.id], spread)
        numbers[category.id] += 1
        colors[segment.id] = color
    return colors


def class_colors(segments: Sequence[Segment], labels: LabelSpace) -> dict[int, Color]:
    """Segment id → the colour of its category, for things, too: what stays the same from frame to frame of a video."""
    return {segment.id: labels[segment.category].color for segment in segments}


def overlay(
    image: Tensor,
    segmentation: PanopticSegmentation,
    labels: LabelSpace,
    *,
    opacity: float = 0.5,
    contours: bool = True,
    names: bool = True,
    scores: bool = False,
    background: bool = False,
    colors: Mapping[int, Color] | None = None,
) -> Tensor:
    """The image with its segments painted over it: uint8 (3, H, W).

    opacity: of the paint inside a segment, 0..1. contours: an opaque line along the inner edge of each segment.
    names: the class name inside each segment of at least 0.5 % of the image, at its point furthest from any border.
    scores: its score after the name, where it is below 1 (a model without a score for stuff gives 1).
    background: paint stuff of the name background, too. colors: of each segment id, `segment_colors` unless given.
    Raises PansightError where image and map differ in size.
    """
    if not background:
        segmentation = without_background(segmentation, labels)
    picture = picture_of(image, segmentation.size)
    index = row_map(segmentation)  # (H, W), −1 on void
    colors = segment_colors(segmentation.segments, labels) if colors is None else colors
    palette = np.array([*(colors[s.id] for s in segmentation.segments), (0, 0, 0)], np.uint8)  # last row for void
    color = palette[index]  # (H, W, 3)
    painted = index >= 0
    result = picture.copy()
    result[painted] = cv2.addWeighted(picture, 1 - opacity, color, opacity, 0)[painted]
    if contours:
        edge = inner_edges(index, line_width(segmentation.size)) & painted
        result[edge] = color[edge]
    if names:
        result = _with_names(result, index, segmentation, labels, scores)
    return tensor_of(result)


def without_background(segmentation: PanopticSegmentation, labels: LabelSpace) -> PanopticSegmentation:
    """The same map, its table without segments of background: their pixels are drawn as void is."""
    kept = tuple(s for s in segmentation.segments if not is_background(labels[s.category]))
    return PanopticSegmentation(segmentation.ids, kept)


def is_background(category: Category) -> bool:
    """Whether this is stuff that stands for "nothing of interest"."""
    return not category.is_thing and category.name.lower() in BACKGROUND


def _variation(color: Color, number: int, spread: float) -> Color:
    """The number-th relative of a colour: other hue within ± spread, other lightness. Number 0 is the colour itself."""
    if number == 0:
        return color
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in color))
    turn = (0.6180339887 * number) % 1.0  # golden ratio: neighbours in number are far apart
    hue = (hue + spread * (2 * turn - 1)) % 1.0
    value = min(1.0, max(0.35, value * (1.0, 0.78, 1.18, 0.9)[number % 4]))
    saturation = min(1.0, max(0.45, saturation * (1.0, 1.15, 0.8)[number % 3]))
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def _with_names(
    picture: Picture, rows: NDArray[np.int16], segmentation: PanopticSegmentation, labels: LabelSpace, scores: bool
) -> Picture:
    """Class names on a copy of the picture, largest segments first; a name that would cover another is left out."""
    height, width = segmentation.size
    areas = np.bincount(rows.ravel() + 1, minlength=len(segmentation.segments) + 1)[1:]
    drawing = Image.fromarray(picture)
    pen = ImageDraw.Draw(drawing)
    full = round(min(max(0.034 * (height * width) ** 0.5, 10), 56))  # pixels, with the size of the image
    placed: list[tuple[float, float, float, float]] = []
    for row in np.argsort(-areas, kind="stable").tolist():
        if areas[row] < SMALLEST_NAMED * height * width or areas[row] == 0:
            break
        segment = segmentation.segments[row]
        name = labels[segment.category].name + (f" {segment.score:.2f}" if scores and segment.score < 1 else "")
        x, y, room = _inner_point(rows == row)
        size = full
        while size > max(9, full // 2) and pen.textlength(name, font=font(size)) > 1.1 * room:
            size -= 1  # as large as the segment allows, but legible
        stroke = max(1, round(size / 9))
        left, top, right, bottom = pen.textbbox((0, 0), name, font=font(size), anchor="mm", stroke_width=stroke)
        x = min(max(x, -left), max(width - right, -left))  # inside the image
        y = min(max(y, -top), max(height - bottom, -top))
        box = (x + left, y + top, x + right, y + bottom)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in placed):
            continue
        placed.append(box)
        pen.text((x, y), name, (255, 255, 255), font(size), anchor="mm", stroke_width=stroke, stroke_fill=(20, 20, 20))
    return np.array(drawing)


def _inner_point(mask: NDArray[np.bool_]) -> tuple[float, float, float]:
    """(x, y) inside a mask (H, W), as far from its border as any pixel, and the mask's width (pixels) along that line.

    The image's rim is a border. Where many pixels are equally far, the one nearest to the centre of the mask is taken.
    """
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    window = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1].astype(np.uint8)
    distance = cv2.distanceTransform(np.pad(window, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    best_y, best_x = np.nonzero(distance >= 0.97 * distance.max())
    inside_y, inside_x = np.nonzero(window)
    nearest = int(np.argmin((best_y - inside_y.mean()) ** 2 + (best_x - inside_x.mean()) ** 2))
    y, x = int(best_y[nearest]), int(best_x[nearest])
    gaps = np.flatnonzero(np.pad(window[y], 1) == 0) - 1  # columns outside the mask on that line, both ends included
    right = int(np.searchsorted(gaps, x))
    return float(x + xs[0]), float(y + ys[0]), float(gaps[right] - gaps[right - 1] - 1)
