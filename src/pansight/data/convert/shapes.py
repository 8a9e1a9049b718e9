"""The shapes of annotation tools as outlines, and the joining of an object's parts to one region."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pansight.data.convert.polygons import region_of_mask
from pansight.data.convert.source import Region
from pansight.errors import PansightError

MAX_SIDE = 10_000_000.0
"""Pixels; larger numbers are a mistake, and no longer exact in what is computed of them."""


def rectangle_points(
    x: float, y: float, width: float, height: float, degrees: float = 0.0, pivot: tuple[float, float] | None = None
) -> NDArray[np.float64]:
    """(4, 2) corners x, y in pixels of the rectangle whose first corner is (x, y), turned clockwise about `pivot`
    (its first corner unless given)."""
    corners = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], np.float64)
    return turned(corners, degrees, (x, y) if pivot is None else pivot)


def ellipse_points(
    x: float, y: float, radius_x: float, radius_y: float, degrees: float, where: str
) -> NDArray[np.float64]:
    """(N, 2) outline of the ellipse about (x, y), turned clockwise; nowhere farther than 0.05 pixels from it.

    Raises PansightError, beginning with `where`, for radii that are negative or no finite numbers.
    """
    if not (0 <= radius_x <= MAX_SIDE and 0 <= radius_y <= MAX_SIDE):
        raise PansightError(where=where, expected="radii of 0 or more pixels", found=f"{radius_x:g} and {radius_y:g}")
    count = max(16, math.ceil(math.pi * math.sqrt(10 * max(radius_x, radius_y))))  # sagitta = r·(1 − cos(π/N))
    angles = np.arange(count) * (2 * math.pi / count)
    outline = np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)  # (N, 2)
    return turned(outline, degrees, (x, y))


def turned(points: NDArray[np.float64], degrees: float, pivot: tuple[float, float]) -> NDArray[np.float64]:
    """(N, 2) points turned about `pivot`, clockwise as seen on a screen (y points down)."""
    if not math.isfinite(degrees):
        return np.full_like(points, np.nan)  # refused where it is drawn
    if not degrees % 360:
        return points
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    with np.errstate(invalid="ignore", over="ignore"):
        return (points - pivot) @ np.array([[cosine, sine], [-sine, cosine]]) + pivot


def cut_to(mask: NDArray[np.bool_], top: int, left: int, size: tuple[int, int], category: int) -> Region | None:
    """The region of a bool (h, w) mask whose first pixel is at (top, left), which may lie outside of the image."""
    height, width = size
    inside = mask[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    return region_of_mask(inside, category, max(0, top), max(0, left))


def joined(regions: Sequence[Region]) -> Region:
    """The union of one object's parts; category and crowd are those of the first, the score is the highest."""
    if len(regions) == 1:
        return regions[0]
    top, left = min(r.top for r in regions), min(r.left for r in regions)
    bottom = max(r.top + r.mask.shape[0] for r in regions)
    right = max(r.left + r.mask.shape[1] for r in regions)
    mask = np.zeros((bottom - top, right - left), np.bool_)
    for r in regions:
        mask[r.top - top :, r.left - left :][: r.mask.shape[0], : r.mask.shape[1]] |= r.mask
    return regions[0]._replace(mask=mask, top=top, left=left, score=max(r.score for r in regions))
