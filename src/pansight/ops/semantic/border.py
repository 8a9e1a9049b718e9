"""U-Net's weight map: background between neighbouring objects counts more, so that they are kept apart.

Source: Ronneberger, Fischer, Brox: U-Net, MICCAI 2015, equation 2: w(x) = w_c(x) + w₀ · exp(−(d₁(x) + d₂(x))² / 2σ²),
where d₁ and d₂ are the distances from x to the nearest and to the second nearest cell. The second term is computed
here; w_c are class weights. It holds for background alone: pixels that belong to no object, be they stuff or void.
"""

# torch and OpenCV leave some of their return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import math
from collections.abc import Collection

import cv2
import numpy as np
from numpy.typing import NDArray

from pansight.ops.fast import use_plain
from pansight.ops.idmap import IdArray, boxes_xyxy

Distances = NDArray[np.float32]

REACH = 6
"""Distances are looked at up to so many σ: a term further away is below e⁻¹⁸ · w₀."""


def border_weights(ids: IdArray, objects: Collection[int], weight: float, sigma: float) -> Distances:
    """The second term of the weight map, float32 (H, W), 0 on objects and where there are fewer than two.

    ids int32 (H, W), objects: the ids of the cells; all other pixels are background. weight: w₀, 10 in the paper;
    sigma: in pixels, 5 in the paper. Distances are those between the centres of pixels.
    """
    known = boxes_xyxy(ids)
    boxes = {number: known[number] for number in objects if number in known}
    if len(boxes) < 2 or weight == 0:
        return np.zeros(ids.shape, np.float32)
    reach = math.ceil(REACH * sigma)
    first, second = (plain_distances if use_plain() else near_distances)(ids, boxes, reach)
    terms = (weight * np.exp(-np.square(first + second) / (2 * sigma**2))).astype(np.float32)
    terms[np.isin(ids, list(boxes))] = 0
    return terms


def near_distances(
    ids: IdArray, boxes: dict[int, tuple[int, int, int, int]], reach: int
) -> tuple[Distances, Distances]:
    """(d₁, d₂), float32 (H, W): the distances to the nearest and second nearest object, infinite beyond `reach` pixels.

    One exact distance transform for each object, in its box grown by `reach`.
    """
    height, width = ids.shape
    first = np.full(ids.shape, np.inf, np.float32)
    second = first.copy()
    for number, (x1, y1, x2, y2) in boxes.items():
        place = slice(max(0, y1 - reach), min(height, y2 + reach)), slice(max(0, x1 - reach), min(width, x2 + reach))
        outside = (ids[place] != number).astype(np.uint8)
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).reshape(outside.shape)
        second[place] = np.minimum(second[place], np.maximum(first[place], distance))
        first[place] = np.minimum(first[place], distance)
    return first, second


def plain_distances(
    ids: IdArray, boxes: dict[int, tuple[int, int, int, int]], reach: int
) -> tuple[Distances, Distances]:
    """The twin of `near_distances`: from every pixel to every pixel of every object, at any distance."""
    places = np.indices(ids.shape).reshape(2, -1)  # (2, H·W) y, x
    rows: list[Distances] = []
    for number in boxes:
        own = np.stack(np.nonzero(ids == number))  # (2, P)
        square = np.full(places.shape[1], np.inf)
        for y, x in own.T:
            square = np.minimum(square, (places[0] - y) ** 2 + (places[1] - x) ** 2)
        rows.append(np.sqrt(square).astype(np.float32).reshape(ids.shape))
    nearest = np.sort(np.stack(rows), axis=0)  # (N, H, W)
    return nearest[0], nearest[1]


def touching(ids: IdArray, objects: Collection[int]) -> NDArray[np.bool_]:
    """bool (H, W): pixels of an object that touch one of a larger id, also at a corner.

    Objects without them are separated by at least one pixel, as the paper separates touching cells before it computes
    its weight map: there would be no background between them otherwise.
    """
    cells = np.where(np.isin(ids, list(objects)), ids, 0)
    largest = cv2.dilate(cells.astype(np.float32), np.ones((3, 3), np.uint8)).reshape(ids.shape)  # ids are below 2²⁴
    return (cells > 0) & (largest > cells)
