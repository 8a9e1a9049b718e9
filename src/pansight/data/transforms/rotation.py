"""Rotation by any angle, and zoom, about the middle of the image; the size of the image stays."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pansight.data.dataset import image_array
from pansight.data.transforms.geometry import apply_warp
from pansight.errors import PansightError
from pansight.types import Sample

FILLS = ("zero", "mean")
"""What a photo shows where it has no pixel of its own: black, or the mean of its pixels."""


class RotateAndZoom:
    """Turn by an angle from `degrees` (counter-clockwise) and enlarge by a factor from `zoom`, in one warp.

    Both are (least, largest); the angle is uniform, the factor log-uniform, so that halving is as likely as doubling.
    The photo is interpolated bilinearly; ids and masks take the nearest pixel. Outside of the image ids are void, masks
    false and the photo has the colour of `fill`. Objects that leave the image leave the truth, and boxes are those of
    the moved masks.
    Raises PansightError for limits that are not ordered, a factor of 0 or less, or another fill.
    """

    def __init__(
        self, degrees: tuple[float, float] = (0.0, 0.0), zoom: tuple[float, float] = (1.0, 1.0), fill: str = "zero"
    ):
        if not (degrees[0] <= degrees[1] and 0 < zoom[0] <= zoom[1] and fill in FILLS):
            expected = f"least and largest angle, least and largest factor above 0, a fill of {', '.join(FILLS)}"
            raise PansightError(where="RotateAndZoom", expected=expected, found=f"{degrees}, {zoom}, {fill}")
        self.degrees, self.zoom, self.fill = degrees, zoom, fill

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        angle = rng.uniform(*self.degrees)
        factor = math.exp(rng.uniform(*np.log(self.zoom)))
        if angle == 0 and factor == 1:
            return sample
        x, y = _source_places(sample.truth.size, math.radians(angle), factor)  # float64 (H, W) each
        colour = (0.0,) * 3 if self.fill == "zero" else image_array(sample.image).mean((0, 1)).tolist()
        height, width = sample.truth.size
        # the nearest pixel is gathered, because cv2.remap knows no int32
        column, row = np.rint(x).astype(np.intp), np.rint(y).astype(np.intp)
        outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
        column, row = column.clip(0, width - 1), row.clip(0, height - 1)
        map_x, map_y = x.astype(np.float32), y.astype(np.float32)

        def turn(array: NDArray[Any], photo: bool) -> NDArray[Any]:
            if photo:
                limits: Any = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": colour}
                return cv2.remap(array, map_x, map_y, cv2.INTER_LINEAR, **limits)
            moved = array[row, column]
            moved[outside] = 0
            return moved

        return apply_warp(sample, turn)


def _source_places(
    size: tuple[int, int], angle: float, factor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(x, y) of the pixel, float64 (H, W) each, that every pixel of the result is taken from.

    angle: in radians, counter-clockwise as seen, with y pointing down.
    """
    height, width = size
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    x = np.arange(width) - middle_x
    y = (np.arange(height) - middle_y)[:, None]
    cosine, sine = math.cos(angle) / factor, math.sin(angle) / factor
    # rounded, so that a quarter turn, whose sine and cosine are not exact, takes whole pixels
    return np.round(cosine * x - sine * y + middle_x, 9), np.round(sine * x + cosine * y + middle_y, 9)
