"""Pictures of segmentations: overlays, error maps, and truth | prediction | errors side by side.

All images are uint8 (3, H, W) RGB; no input is changed. Void stays unpainted, stuff has its category's colour, and each
thing a variation of it, so that neighbours of one class can be told apart.
"""

from __future__ import annotations

import colorsys
import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pansight.errors import PansightError
from pansight.metrics.panoptic.quality import match_segments
from pansight.types import VOID, LabelSpace, PanopticSegmentation, Segment

Color = tuple[int, int, int]
Picture = NDArray[Any]  # uint8 (H, W, 3), contiguous

SMALLEST_NAMED = 0.005
"""Segments below this share of the image get no name: it would hide them."""

ERROR_COLORS: dict[str, Color] = {
    "correct": (198, 205, 211),
    "missed": (213, 94, 0),
    "phantom": (0, 114, 178),
    "wrong": (240, 205, 40),
    "border": (112, 120, 128),
    "void": (255, 255, 255),
}
"""What the colours of an error map stand for; orange, blue and yellow differ for colour-blind eyes too (Okabe and Ito).

correct: found by its match. missed: belongs to a truth segment that nobody found. phantom: claimed by a prediction of
something that is not there. wrong: both at once, so a wrong class or a poor shape. border: both segments are matched,
but not with each other: an inexact outline. void: not scored (void or crowd in the truth).
"""


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


def overlay(
    image: Tensor,
    segmentation: PanopticSegmentation,
    labels: LabelSpace,
    *,
    opacity: float = 0.5,
    contours: bool = True,
    names: bool = True,
    colors: Mapping[int, Color] | None = None,
) -> Tensor:
    """The image with its segments painted over it: uint8 (3, H, W).

    opacity: of the paint inside a segment, 0..1. contours: an opaque line along the inner edge of each segment.
    names: the class name inside each segment of at least 0.5 % of the image, at its point furthest from any border.
    colors: of each segment id, `segment_colors` unless given.
    Raises PansightError where image and map differ in size.
    """
    picture = _picture(image, segmentation.size)
    index = _row_map(segmentation)  # (H, W), −1 on void
    colors = segment_colors(segmentation.segments, labels) if colors is None else colors
    palette = np.array([*(colors[s.id] for s in segmentation.segments), (0, 0, 0)], np.uint8)  # last row for void
    color = palette[index]  # (H, W, 3)
    painted = index >= 0
    result = picture.copy()
    result[painted] = cv2.addWeighted(picture, 1 - opacity, color, opacity, 0)[painted]
    if contours:
        edge = _inner_edges(index, _line_width(segmentation.size)) & painted
        result[edge] = color[edge]
    if names:
        result = _with_names(result, index, segmentation, labels)
    return _tensor(result)


def error_codes(truth: PanopticSegmentation, prediction: PanopticSegmentation) -> NDArray[np.uint8]:
    """What is right and what is wrong at each pixel: (H, W), positions in ERROR_COLORS.

    Segments are matched as for PQ. Raises PansightError as `match_segments` does.
    """
    result = match_segments(truth, prediction)
    correct, missed, phantom, wrong, border, void = range(len(ERROR_COLORS))
    partner = {m.truth.id: m.prediction.id for m in result.matches}
    missed_ids = {s.id for s in result.missed}
    phantom_ids = {s.id for s in result.phantom}
    truth_rows, predicted_rows = _row_map(truth), _row_map(prediction)  # (H, W), −1 on void
    # the code of every pair (truth segment, predicted segment); last row and column: void
    codes = np.full((len(truth.segments) + 1, len(prediction.segments) + 1), void, np.uint8)
    for t, segment in enumerate(truth.segments):
        if segment.is_crowd:
            continue
        for p, other in enumerate([s.id for s in prediction.segments] + [None]):
            lost, invented = segment.id in missed_ids, other in phantom_ids
            if partner.get(segment.id) == other and not lost:
                codes[t, p] = correct
            else:
                codes[t, p] = (border, phantom, missed, wrong)[2 * lost + invented]
    return codes[truth_rows, predicted_rows]


def error_map(truth: PanopticSegmentation, prediction: PanopticSegmentation, image: Tensor | None = None) -> Tensor:
    """`error_codes` in ERROR_COLORS, the truth's contours darker: uint8 (3, H, W).

    With an image, its grey shape shows through everywhere but on void.
    """
    return _tensor(_paint_errors(error_codes(truth, prediction), _row_map(truth), image))


def panels(
    image: Tensor,
    truth: PanopticSegmentation,
    prediction: PanopticSegmentation,
    labels: LabelSpace,
    long_side: int = 640,
) -> tuple[Tensor, Tensor, Tensor]:
    """Truth, prediction and errors as three pictures of one size, the longer side about `long_side` pixels.

    Small images are enlarged first, so that lines and names stay fine. A match has the colour of its truth segment.
    Raises PansightError where image, truth and prediction differ in size.
    """
    _picture(image, truth.size)  # checks the size
    codes = error_codes(truth, prediction)
    truth_colors = segment_colors(truth.segments, labels)
    matches = match_segments(truth, prediction).matches
    found = segment_colors(
        prediction.segments, labels, taken={m.prediction.id: truth_colors[m.truth.id] for m in matches}
    )
    height, width = truth.size
    scale = long_side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    shown, small_truth = resized_image(image, size), resized_map(truth, size)
    small_codes = np.asarray(cv2.resize(codes, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    return (
        overlay(shown, small_truth, labels, colors=truth_colors),
        overlay(shown, resized_map(prediction, size), labels, colors=found),
        _tensor(_paint_errors(small_codes, _row_map(small_truth), shown)),
    )


def sheet(
    image: Tensor,
    truth: PanopticSegmentation,
    prediction: PanopticSegmentation,
    labels: LabelSpace,
    long_side: int = 640,
) -> Tensor:
    """truth | prediction | errors as one picture: uint8 (3, h, 3·w + two white gaps), see `panels`."""
    pictures = [_picture(p, (p.shape[1], p.shape[2])) for p in panels(image, truth, prediction, labels, long_side)]
    gap = np.full((pictures[0].shape[0], max(4, long_side // 80), 3), 255, np.uint8)
    return _tensor(np.concatenate([pictures[0], gap, pictures[1], gap, pictures[2]], axis=1))


def resized_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) → (3, h, w): averaged when smaller, cubic when larger."""
    picture = _picture(image, (image.shape[1], image.shape[2]))
    how = cv2.INTER_AREA if size[0] < picture.shape[0] else cv2.INTER_CUBIC
    return _tensor(cv2.resize(picture, (size[1], size[0]), interpolation=how))


def resized_map(segmentation: PanopticSegmentation, size: tuple[int, int]) -> PanopticSegmentation:
    """The map at another size (h, w), without the segments that vanish; for looking at, not for scoring."""
    rows = _row_map(segmentation)
    small = np.asarray(cv2.resize(rows, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT), np.int16)
    left = set(np.unique(small).tolist())
    ids = np.array([*(s.id for s in segmentation.segments), VOID], np.int32)[small]
    return PanopticSegmentation(
        torch.from_numpy(ids), tuple(s for row, s in enumerate(segmentation.segments) if row in left)
    )


def _paint_errors(codes: NDArray[np.uint8], truth_rows: NDArray[np.int16], image: Tensor | None) -> Picture:
    """codes, truth_rows: (H, W). image: uint8 (3, H, W) or None."""
    colors = np.array(list(ERROR_COLORS.values()), np.float32)
    result = colors[codes]  # (H, W, 3)
    scored = codes != list(ERROR_COLORS).index("void")
    if image is not None:
        grey = cv2.cvtColor(_picture(image, codes.shape), cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
        depth = np.where(codes == 0, 0.4, 0.18)[..., None]  # (H, W, 1): how much of the image shows, most where correct
        shade = 1 - depth + depth * grey / 255
        result = np.where(scored[..., None], result * shade, result)
    edge = _inner_edges(truth_rows, _line_width(codes.shape)) & scored
    result[edge] *= 0.6
    return result.round().astype(np.uint8)


def _picture(image: Tensor, size: tuple[int, ...]) -> Picture:
    """uint8 (3, H, W) → contiguous (H, W, 3), checked against (H, W)."""
    if image.ndim != 3 or image.shape[0] != 3 or tuple(image.shape[1:]) != tuple(size):
        raise PansightError(where="image", expected=f"(3, {size[0]}, {size[1]}) as its map", found=tuple(image.shape))
    return np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy())


def _tensor(picture: Picture) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)  # (3, H, W), a view of (H, W, 3)


def _row_map(segmentation: PanopticSegmentation) -> NDArray[np.int16]:
    """(H, W): the row of each pixel's segment in the table, −1 on void. At most 32,767 segments are drawn."""
    ids = segmentation.ids.detach().cpu().numpy()
    table = np.array([VOID, *(s.id for s in segmentation.segments)], np.int32)
    order = np.argsort(table)
    place = np.minimum(np.searchsorted(table, ids.ravel(), sorter=order), len(table) - 1)
    rows = np.where(table[order[place]] == ids.ravel(), order[place] - 1, -1)
    return rows.reshape(ids.shape).astype(np.int16)


def _inner_edges(rows: NDArray[np.int16], width: int) -> NDArray[np.bool_]:
    """(H, W): True where another segment or void is at most `width` pixels away. The image's rim is no edge."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    return np.asarray(cv2.dilate(rows, kernel) != cv2.erode(rows, kernel))


def _line_width(size: tuple[int, ...]) -> int:
    return max(1, round(min(size) / 450))


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
    picture: Picture, rows: NDArray[np.int16], segmentation: PanopticSegmentation, labels: LabelSpace
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
        name = labels[segmentation.segments[row].category].name
        x, y, room = _inner_point(rows == row)
        size = full
        while size > max(9, full // 2) and pen.textlength(name, font=_font(size)) > 1.1 * room:
            size -= 1  # as large as the segment allows, but legible
        stroke = max(1, round(size / 9))
        left, top, right, bottom = pen.textbbox((0, 0), name, font=_font(size), anchor="mm", stroke_width=stroke)
        x = min(max(x, -left), max(width - right, -left))  # inside the image
        y = min(max(y, -top), max(height - bottom, -top))
        box = (x + left, y + top, x + right, y + bottom)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in placed):
            continue
        placed.append(box)
        pen.text((x, y), name, (255, 255, 255), _font(size), anchor="mm", stroke_width=stroke, stroke_fill=(20, 20, 20))
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


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold, as matplotlib ships it: Latin, Greek and Cyrillic names are legible."""
    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        raise PansightError(where="fonts", expected="the package matplotlib", found="none", hint="install it")
    return ImageFont.truetype(Path(package.origin).parent / "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf", size)
