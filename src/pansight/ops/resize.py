"""How large a photo becomes before a network sees it, and by which filter: the arithmetic of each official code."""

# torch and torchvision leave some of their types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from pansight.errors import choice_error
from pansight.ops.fast import use_plain
from pansight.ops.fast.kernels.resize import pillow_bilinear

Photo = NDArray[Any]  # (H, W, 3), uint8, or float32 0 … 255


class ResizeRule(NamedTuple):
    """The size of a network's input for a photo of any size, and the filter that takes it there. All lengths in pixels.

    Short side to `short` unless the long side would pass `long`; ``short=0`` keeps the size. `rounding` (a key of
    ROUNDINGS) turns the two sides into integers. Or, where `height` and `width` are given (`short`, `long` and
    `rounding` say nothing then): the largest size of the photo's shape that fits into them, cut to integers;
    `stretched`: exactly them, whatever the photo's shape.
    multiple: a photo that is resized is stretched to the next multiples of it (transformers' `size_divisor`).
    divisor: batches are padded (right, bottom) to multiples of it. filter: a key of FILTERS.
    """

    short: int
    long: int
    divisor: int = 32
    rounding: str = "detectron2"
    filter: str = "pillow"
    height: int = 0
    width: int = 0
    stretched: bool = False
    multiple: int = 1

    def checked(self) -> ResizeRule:
        """The rule itself. Raises PansightError for an unknown rounding or filter, ValueError for impossible sizes."""
        for name, value, known in (("rounding", self.rounding, ROUNDINGS), ("filter", self.filter, FILTERS)):
            if not isinstance(value, str) or value not in known:  # pyright: ignore[reportUnnecessaryIsInstance] # from a file
                raise choice_error(f"{name} of a resize rule:", f"{value}", known)
        sides, positive = (self.short, self.long, self.height, self.width), (self.divisor, self.multiple)
        if not all(type(value) is int for value in (*sides, *positive)) or type(self.stretched) is not bool:
            raise ValueError(f"sizes as whole numbers, not {self}")
        if not all(0 <= side <= 2**16 for side in sides) or not all(1 <= side <= 2**16 for side in positive):
            raise ValueError(f"sizes of 0 … {2**16} pixels, not {self}")
        if (self.short > 0 and self.long < 1) or bool(self.height) != bool(self.width):
            raise ValueError(f"both of two sizes or none, not {self}")
        return self

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the resized image, each at least 1."""
        if self.height:
            fit = min(self.height / height, self.width / width)
            size = (self.height, self.width) if self.stretched else (int(height * fit), int(width * fit))
        elif self.short:
            size = ROUNDINGS[self.rounding](height, width, self.short, self.long)
        else:
            return height, width
        new_height, new_width = (-(-max(1, side) // self.multiple) * self.multiple for side in size)
        return new_height, new_width

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The next multiples of the divisor: ``(640, 600)`` → ``(640, 608)``."""
        return -(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor


def round_as_detectron2(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Both sides to the nearest integer, half up (ResizeShortestEdge.get_output_shape)."""
    scale = short / min(height, width)
    sides = (float(short), scale * width) if height < width else (scale * height, float(short))
    if max(sides) > long:
        scale = long / max(sides)
        sides = (sides[0] * scale, sides[1] * scale)
    return int(sides[0] + 0.5), int(sides[1] + 0.5)


def round_as_eomt(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Both sides to the nearest integer, half to even (scale_img_size_instance_panoptic and …_semantic)."""
    scale = min(short / min(height, width), long / max(height, width))
    return round(height * scale), round(width * scale)


def round_as_torchvision(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Both sides down (GeneralizedRCNNTransform)."""
    scale = min(short / min(height, width), long / max(height, width))
    return int(height * scale), int(width * scale)


def round_as_detr(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """The short side to the nearest integer, then the long side down (DETR, datasets/transforms.py)."""
    smaller, larger = min(height, width), max(height, width)
    if larger / smaller * short > long:
        short = round(long * smaller / larger)
    return _cut_long_side(height, width, short, short)


def round_as_transformers(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """As DETR, but the long side follows from the short one before that is rounded (get_size_with_aspect_ratio)."""
    smaller, larger = min(height, width), max(height, width)
    exact: float = short
    if larger / smaller * short > long:
        exact = long * smaller / larger
        short = round(exact)
    return _cut_long_side(height, width, short, exact)


def _cut_long_side(height: int, width: int, short: int, exact: float) -> tuple[int, int]:
    if min(height, width) == short:
        return height, width
    if width < height:
        return int(exact * height / width), short
    return short, int(exact * width / height)


ROUNDINGS: dict[str, Callable[[int, int, int, int], tuple[int, int]]] = {
    "detectron2": round_as_detectron2,
    "torchvision": round_as_torchvision,
    "detr": round_as_detr,
    "transformers": round_as_transformers,
    "eomt": round_as_eomt,
}
"""name → (height, width, short, long) → (height, width): whose arithmetic gives the sides. They differ by a pixel."""


def resize_photo(photo: Photo, height: int, width: int, filter: str) -> Photo:
    """A photo (H, W, 3) at (height, width); the one function that evaluation, prediction and training resize with.

    uint8 of uint8; float32 by the filter "plain", and of float32, which may be resized once more. Same size: as it is.
    """
    if photo.dtype == np.uint8:
        if filter != "plain" and photo.shape[:2] == (height, width):
            return photo
        return FILTERS[filter](photo, height, width)
    if photo.shape[:2] == (height, width):
        return photo
    return _float(photo, height, width, antialias=filter != "plain")


def pillow(photo: Photo, height: int, width: int) -> Photo:
    """Image.resize with BILINEAR: the average below the filter's triangle, in two passes rounded to whole levels."""
    if not use_plain():
        return pillow_bilinear(photo, height, width)
    for size in ((width, photo.shape[0]), (width, height)):  # columns first: Pillow 13 would choose by the shape
        photo = np.array(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR))
    return photo


def antialias(photo: Photo, height: int, width: int) -> Photo:
    """torchvision's resize of a uint8 tensor: Pillow's filter with shorter integers; some levels differ by 1 or 2."""
    from torchvision.transforms.v2 import functional  # pyright: ignore[reportMissingTypeStubs] # late: a third of a second

    tensor = torch.from_numpy(photo).permute(2, 0, 1)  # (H, W, 3) → (3, H, W)
    resized = functional.resize(tensor, [height, width], antialias=True)
    return np.ascontiguousarray(resized.permute(1, 2, 0).numpy())  # (3, H, W) → (H, W, 3)


def plain(photo: Photo, height: int, width: int) -> Photo:
    """Bilinear between the four nearest pixels, also where it shrinks; float32, as torchvision's detectors do it."""
    return _float(photo, height, width, antialias=False)


def _float(photo: Photo, height: int, width: int, antialias: bool) -> Photo:
    tensor = torch.from_numpy(photo).permute(2, 0, 1)[None].float()  # (H, W, 3) → (1, 3, H, W)
    if photo.shape[:2] != (height, width):
        tensor = F.interpolate(tensor, (height, width), mode="bilinear", align_corners=False, antialias=antialias)
    return np.ascontiguousarray(tensor[0].permute(1, 2, 0).numpy())  # (1, 3, H, W) → (H, W, 3)


FILTERS: dict[str, Callable[[Photo, int, int], Photo]] = {"pillow": pillow, "antialias": antialias, "plain": plain}
"""name → (uint8 photo (H, W, 3), height, width) → photo: how a pixel is made of its neighbours."""

TORCHVISION = ResizeRule(800, 1333, rounding="torchvision", filter="plain")
"""Of torchvision's detectors, which normalise first and resize then: one way or the other, the means are the same."""
