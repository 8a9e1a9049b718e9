"""Pixels for drawing: tensors as pictures, maps as rows of their table, edges, and the font of all names."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageFont
from torch import Tensor

from pansight.errors import PansightError
from pansight.types import VOID, PanopticSegmentation

Color = tuple[int, int, int]
Picture = NDArray[Any]  # uint8 (H, W, 3), contiguous


def picture_of(image: Tensor, size: tuple[int, ...]) -> Picture:
    """uint8 (3, H, W) → contiguous (H, W, 3), checked against (H, W)."""
    if image.ndim != 3 or image.shape[0] != 3 or tuple(image.shape[1:]) != tuple(size):
        raise PansightError(where="image", expected=f"(3, {size[0]}, {size[1]}) as its map", found=tuple(image.shape))
    return np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy())


def tensor_of(picture: Picture) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)  # (3, H, W), a view of (H, W, 3)


def row_map(segmentation: PanopticSegmentation) -> NDArray[np.int16]:
    """(H, W): the row of each pixel's segment in the table, −1 on void. At most 32,767 segments are drawn."""
    ids = segmentation.ids.detach().cpu().numpy()
    table = np.array([VOID, *(s.id for s in segmentation.segments)], np.int32)
    order = np.argsort(table)
    place = np.minimum(np.searchsorted(table, ids.ravel(), sorter=order), len(table) - 1)
    rows = np.where(table[order[place]] == ids.ravel(), order[place] - 1, -1)
    return rows.reshape(ids.shape).astype(np.int16)


def inner_edges(rows: NDArray[np.int16], width: int) -> NDArray[np.bool_]:
    """(H, W): True where another segment or void is at most `width` pixels away. The image's rim is no edge."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    return np.asarray(cv2.dilate(rows, kernel) != cv2.erode(rows, kernel))


def line_width(size: tuple[int, ...]) -> int:
    """Pixels, for an image of size (H, W)."""
    return max(1, round(min(size) / 450))


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold, as matplotlib ships it: Latin, Greek and Cyrillic names are legible."""
    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        raise PansightError(where="fonts", expected="the package matplotlib", found="none", hint="install it")
    return ImageFont.truetype(Path(package.origin).parent / "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf", size)
