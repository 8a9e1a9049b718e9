"""Objects over their photo: masks where there are any, boxes, names and scores on plates of the object's colour."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pansight.drawing.pixels import Color, Picture, font, picture_of, tensor_of
from pansight.drawing.segments import class_colors, overlay, segment_colors
from pansight.ops.maps.regions import surer_than
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Segment

MOST_PLATES = 0.2
"""The share of the picture that plates may cover; further names are left out, since they would hide the objects."""

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels, the last column and row not included."""


def draw_objects(
    image: Tensor,
    instances: Instances,
    labels: LabelSpace,
    score: float = 0.0,
    *,
    opacity: float = 0.5,
    names: bool = True,
    by_class: bool = False,
) -> Tensor:
    """Masks, boxes, names and scores over uint8 (3, H, W); objects under `score` are left out.

    by_class: objects of one class have one colour, instead of one each.

    Of overlapping masks the smaller is in front. Each object has one colour for mask, box and plate. A plate lies
    inside the picture, at a corner of its box where no plate of a surer object lies; where all corners are taken, or
    plates cover a fifth of the picture already, the name is left out and the box stays.
    Raises PansightError where image and masks differ in size.
    """
    size = (image.shape[1], image.shape[2])
    instances = surer_than(instances, score)
    segments = [Segment(n + 1, category) for n, category in enumerate(instances.labels.tolist())]
    colors = class_colors(segments, labels) if by_class else segment_colors(segments, labels)
    if instances.masks is not None:
        regions = _regions(instances.masks, segments)
        image = overlay(image, regions, labels, opacity=opacity, names=False, colors=colors)
    picture = picture_of(image, size).copy()
    boxes = [_whole_pixels(box, size) for box in instances.boxes_xyxy.tolist()]
    width = max(1, round(min(size) / 300))
    for segment, (x1, y1, x2, y2) in zip(reversed(segments), reversed(boxes), strict=True):  # the surest in front
        cv2.rectangle(picture, (x1, y1), (x2 - 1, y2 - 1), colors[segment.id], width)
    if names:
        texts = [
            f"{labels[category].name} {confidence:.2f}"
            for category, confidence in zip(instances.labels.tolist(), instances.scores.tolist(), strict=True)
        ]
        picture = _with_plates(picture, boxes, texts, [colors[segment.id] for segment in segments])
    return tensor_of(picture)


def _regions(masks: Tensor, segments: list[Segment]) -> PanopticSegmentation:
    """Masks bool (N, H, W) as one map, the smaller ones in front; each pixel has the id of its segment."""
    ids = torch.zeros(masks.shape[1:], dtype=torch.int32)
    for n in torch.argsort(masks.sum((1, 2)), descending=True, stable=True).tolist():
        ids[masks[n]] = segments[n].id
    return PanopticSegmentation(ids, tuple(segments))


def _whole_pixels(box: list[float], size: tuple[int, int]) -> Box:
    """A box of at least one pixel inside an image of `size` (H, W)."""
    height, width = size
    x1, y1, x2, y2 = (round(value) for value in box)
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    return x1, y1, max(x1 + 1, min(x2, width)), max(y1 + 1, min(y2, height))


def _with_plates(picture: Picture, boxes: list[Box], texts: list[str], colors: list[Color]) -> Picture:
    """Names on plates over a copy of the picture, the first ones first."""
    height, width = picture.shape[:2]
    letters = font(round(min(max(0.024 * (height * width) ** 0.5, 9), 44)))  # pixels, with the size of the image
    drawing = Image.fromarray(picture)
    pen = ImageDraw.Draw(drawing)
    placed: list[Box] = []
    covered = 0
    for box, text, color in zip(boxes, texts, colors, strict=True):
        left, top, right, bottom = (round(v) for v in pen.textbbox((0, 0), text, font=letters, anchor="lt"))
        plate = right - left + 4, bottom - top + 4  # (w, h), two pixels around the letters
        covered += plate[0] * plate[1]
        if covered > MOST_PLATES * height * width and placed:
            break
        place = _free_place(box, plate, (height, width), placed)
        if place is None:
            continue
        placed.append(place)
        pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=color)
        dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140  # luminance (ITU-R BT.601)
        pen.text((place[0] + 2, place[1] + 2), text, (0, 0, 0) if dark else (255, 255, 255), letters, anchor="lt")
    return np.array(drawing)


def _free_place(box: Box, plate: tuple[int, int], size: tuple[int, int], placed: list[Box]) -> Box | None:
    """Where a plate (w, h) lies: above the box, inside it, or below it; None where all of that is taken."""
    (x1, y1, x2, y2), (w, h), (height, width) = box, plate, size
    for x, y in ((x1, y1 - h), (x1, y1), (x2 - w, y1 - h), (x2 - w, y1), (x1, y2), (x1, y2 - h), (x2 - w, y2)):
        x, y = min(max(x, 0), max(width - w, 0)), min(max(y, 0), max(height - h, 0))
        place = (x, y, x + w, y + h)
        if not any(place[0] < p[2] and p[0] < place[2] and place[1] < p[3] and p[1] < place[3] for p in placed):
            return place
    return None
