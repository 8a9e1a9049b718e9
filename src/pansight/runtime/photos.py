"""Photos as arrays, and as the input of a network: what pansight makes of them, with Pillow alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import RuntimeFault
from .resizing import ResizeRule, resized_photo
from .values import Array

MAX_PIXELS = 2**28
"""A larger photo is refused before its pixels are decoded."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what turns the stored pixels upright."""

BACK = TURNS | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""EXIF orientation → what undoes the turn."""


class Input(NamedTuple):
    """images: uint8 or float32 0 … 255 (1, 3, H, W), RGB; valid: bool (1, H, W), False on padding."""

    images: Array
    valid: Array


def read_photo(path: str | Path) -> Array:
    """A photo as uint8 (H, W, 3), RGB, turned upright as its EXIF tag says; that of a TIFF is passed over.

    Grey is repeated, alpha is dropped, of 16 bits the upper 8 are kept.
    Raises RuntimeFault, naming the file, where it is missing, truncated, too large, or no photo.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    found = f"{image.height}×{image.width}"
                    raise RuntimeFault(path, f"at most {MAX_PIXELS} pixels", found)
                return _upright(image)
    except FileNotFoundError as error:
        raise RuntimeFault(path, "a photo", "no such file") from error
    except UnidentifiedImageError as error:
        raise RuntimeFault(path, "a photo", "a file of another kind") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RuntimeFault(path, "a whole photo", f"one that cannot be read ({error!s:.100})") from error


def _upright(image: Image.Image) -> Array:
    orientation = int(image.getexif().get(0x0112, 1))
    is_tiff = image.format == "TIFF"
    image.load()  # which turns a TIFF, and no other file
    turn = (BACK if is_tiff else TURNS).get(orientation)
    deep = image.mode.startswith("I")
    if deep:
        levels = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        turned = Image.fromarray(levels)
    else:
        turned = image
    turned = turned if turn is None else turned.transpose(turn)
    return np.array(turned.convert("RGB"))


def checked_photo(photo: Array) -> Array:
    """The array itself. Raises RuntimeFault for anything but uint8 (H, W, 3)."""
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
        raise RuntimeFault("photo", "uint8 (H, W, 3), RGB", f"{photo.dtype} {photo.shape}")
    return photo


def input_of(photo: Array, rule: ResizeRule) -> Input:
    """uint8 (H, W, 3) → what the network sees: resized by its rule, and padded with zeros at the right and bottom.

    Raises RuntimeFault where a graph of one size is too small for what the rule makes of the photo.
    """
    resized = resized_photo(photo, *rule.target(*photo.shape[:2]), rule.filter)
    height, width = resized.shape[:2]
    padded = rule.padded(height, width)
    if height > padded[0] or width > padded[1]:
        expected = f"a photo that fits into {padded[0]}×{padded[1]}"
        raise RuntimeFault("photo", expected, f"{height}×{width}", "export for a larger size")
    images = np.zeros((1, 3, *padded), resized.dtype)
    images[0, :, :height, :width] = resized.transpose(2, 0, 1)  # (h, w, 3) → (3, h, w)
    valid = np.zeros((1, *padded), np.bool_)
    valid[0, :height, :width] = True
    return Input(images, valid)
