"""How large a photo becomes before a network sees it, and by which filter: pansight's arithmetic, without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from .values import Array


class ResizeRule(NamedTuple):
    """The size of a network's input for a photo of any size, as export.json has it. All lengths in pixels.

    Short side to `short` unless the long side would pass `long`; ``short=0`` keeps the size. Or, where `height` and
    `width` are given, the largest size of the photo's shape that fits into them; `stretched`: exactly them.
    multiple: a photo that is resized is stretched to the next multiples of it. divisor: it is padded (right, bottom) to
    multiples of it. size: or to exactly that (H, W).
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
    size: tuple[int, int] | None = None

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the resized photo, each at least 1."""
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
        """The size of the input for a resized photo."""
        return self.size or (-(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor)


def _detectron2(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    scale = short / min(height, width)
    sides = (float(short), scale * width) if height < width else (scale * height, float(short))
    if max(sides) > long:
        scale = long / max(sides)
        sides = (sides[0] * scale, sides[1] * scale)
    return int(sides[0] + 0.5), int(sides[1] + 0.5)


def _eomt(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    scale = min(short / min(height, width), long / max(height, width))
    return round(height * scale), round(width * scale)


def _torchvision(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    scale = min(short / min(height, width), long / max(height, width))
    return int(height * scale), int(width * scale)


def _detr(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    smaller, larger = min(height, width), max(height, width)
    if larger / smaller * short > long:
        short = round(long * smaller / larger)
    return _cut_long_side(height, width, short, short)


def _transformers(height: int, width: int, short: int, long: int) -> tuple[int, int]:
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
    "detectron2": _detectron2,
    "torchvision": _torchvision,
    "detr": _detr,
    "transformers": _transformers,
    "eomt": _eomt,
}
"""name → (height, width, short, long) → (height, width): whose arithmetic gives the sides."""


def resized_photo(photo: Array, height: int, width: int, filter: str) -> Array:
    """uint8 (H, W, 3) at (height, width): uint8, or float32 by the filter "plain"."""
    if filter != "plain" and photo.shape[:2] == (height, width):
        return photo
    return FILTERS[filter](photo, height, width)


def _pillow(photo: Array, height: int, width: int) -> Array:
    """The triangle filter of Pillow in two passes, columns first, each rounded to whole levels."""
    for size in ((width, photo.shape[0]), (width, height)):
        photo = np.array(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR))
    return photo


def _antialias(photo: Array, height: int, width: int) -> Array:
    """The same filter with weights of 16 bits, as torch has it for bytes: columns first, then rows."""
    columns = _by_weights(photo.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return np.ascontiguousarray(_by_weights(columns, height))


def _by_weights(photo: Array, count: int) -> Array:
    """uint8 (n, m, 3) → uint8 (count, m, 3), resized along the first axis."""
    if len(photo) == count:
        return photo
    first, weights, bits = _short_weights(len(photo), count)
    result = np.empty((count, *photo.shape[1:]), np.uint8)
    for place, (start, row) in enumerate(zip(first.tolist(), weights)):
        used = np.flatnonzero(row)
        total = np.full(photo.shape[1:], 1 << (bits - 1), np.int32)
        for step in used.tolist():
            total += photo[start + step] * row[step]
        result[place] = np.clip(total >> bits, 0, 255)
    return result


def _short_weights(old: int, new: int) -> tuple[Array, Array, int]:
    """(first source pixel int64 (new,), weights int32 (new, k), their bits) of a triangle as wide as a target pixel."""
    scale = old / new
    reach = max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + reach + 0.5).astype(np.int64), old) - first
    step = np.arange(int(np.ceil(reach)) * 2 + 1)
    exact = np.maximum(0.0, 1 - np.abs((step + first[:, None] - centre[:, None] + 0.5) / reach))
    exact = np.where(step < count[:, None], exact, 0.0)
    exact /= exact.sum(1, keepdims=True)
    bits = 0
    while bits < 22 and int(0.5 + exact.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return first, (0.5 + exact * (1 << bits)).astype(np.int32), bits


def _plain(photo: Array, height: int, width: int) -> Array:
    """Bilinear between the four nearest pixels, also where it shrinks: float32."""
    maps = photo.transpose(2, 0, 1).astype(np.float32)  # (H, W, 3) → (3, H, W)
    return np.ascontiguousarray(resized(maps, (height, width)).transpose(1, 2, 0))


FILTERS: dict[str, Callable[[Array, int, int], Array]] = {"pillow": _pillow, "antialias": _antialias, "plain": _plain}
"""name → (uint8 photo (H, W, 3), height, width) → photo: how a pixel is made of its neighbours."""

Axis = tuple[Array, Array, Array]
"""Of each target place: the lower neighbour, the upper one, and the way past the lower, float32 0 … 1."""


def axis_of(source: int, target: int, align_corners: bool = False) -> Axis | None:
    """How a side of `source` places becomes one of `target`, in torch's arithmetic; None: it is the same."""
    if source == target:
        return None
    place = np.arange(target, dtype=np.float32)
    if align_corners:
        at = place * np.float32((source - 1) / (target - 1) if target > 1 else 0)
    else:
        half = np.float32(0.5)
        at = np.maximum(np.float32(source) / np.float32(target) * (place + half) - half, np.float32(0))
    low = np.minimum(at.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), (at - low.astype(np.float32)).clip(0, 1)


def mixed(maps: Array, axis: Axis | None, of_rows: bool) -> Array:
    """float32 (…, h, w), resized along rows or columns."""
    if axis is None:
        return maps
    low, high, share = axis
    where = -2 if of_rows else -1
    weight = share[:, None] if of_rows else share
    result = maps.take(low, where)
    result *= 1 - weight
    upper = maps.take(high, where)
    upper *= weight
    result += upper
    return result


def resized(maps: Array, size: tuple[int, int], align_corners: bool = False) -> Array:
    """Bilinear float32 (…, h, w) → (…, *size); the maps themselves where the size is right already."""
    rows = axis_of(maps.shape[-2], size[0], align_corners)
    columns = axis_of(maps.shape[-1], size[1], align_corners)
    return mixed(mixed(maps, columns, False), rows, True)
