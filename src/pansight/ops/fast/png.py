"""Id PNGs by libdeflate and compiled loops (`kernels.png`): to id maps, and to counts of pairs without any map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError

if TYPE_CHECKING:
    from pansight.ops.maps.label_png import LabelPng

IntArray = NDArray[np.int64]


def _kernels() -> Any:
    """The compiled loops, loaded with the first file: numba takes longer to load than all else that `check` needs."""
    from pansight.ops.fast.kernels import png

    return png


def ids_by_rows(png: LabelPng) -> NDArray[np.int32]:
    """The id map (H, W) of a file that is not interlaced. Raises PansightError where it is damaged."""
    pixels = _Pixels()
    pixels.inflate(png)
    ids = np.empty((png.height, png.width), np.int32)
    rows = np.zeros((3, png.width + _kernels().MARGIN), np.uint32)
    _check_filters(_kernels().fill_ids(pixels.raw, pixels.words, png.step, rows, ids), png)
    return ids


class _Pixels:
    """Room for the filtered bytes of one image; grows with the largest one."""

    def __init__(self) -> None:
        self.raw = np.zeros(0, np.uint8)
        self.words = self.raw.view(np.uint64)

    def inflate(self, png: LabelPng) -> None:
        size = png.height * (png.width * png.step + 1)
        if size > len(self.raw):
            self.raw = np.zeros((size + 63) // 8 * 8, np.uint8)  # whole words, a few beyond the end
            self.words = self.raw.view(np.uint64)
        try:
            unpacked = cast(Any, imagecodecs.deflate_decode(png.packed, out=cast(Any, self.raw[:size])))
        except (RuntimeError, ValueError) as error:
            found = " ".join(str(error).split())
            raise PansightError(where=png.name, expected="a whole PNG", found=f"damaged pixels ({found})") from error
        if len(unpacked) != size:
            raise PansightError(where=png.name, expected=f"{size} bytes of pixels", found=len(unpacked))


class PairTable:
    """Counts the pixels of every pair of ids of two files, row by row. Keeps its memory from call to call.

    Of the first file only the changes from row to row are kept, so that a single image at a time is unpacked: it stays
    in the caches of the processor.
    """

    def __init__(self) -> None:
        self._pixels = _Pixels()
        self._rows = np.zeros((_kernels().ROWS, 0), np.uint32)
        self._pairs = np.zeros(0, np.uint64)
        self._ends = np.zeros(0, np.int64)
        self._changes = np.zeros((2, 0), np.uint32)
        slots = _kernels().SLOTS
        self._keys = np.full(slots, _kernels().EMPTY, np.uint64)
        self._counts = np.zeros(slots, np.int64)
        self._used = np.zeros(slots, np.int64)

    def count(self, first: LabelPng, second: LabelPng) -> tuple[IntArray, IntArray, IntArray] | None:
        """(first, second, pixels), int64 (P,), in rising order of the pairs; None where there are too many.

        The files have one size and are not interlaced. Raises PansightError where one is damaged.
        """
        height, width = first.height, first.width
        if (len(self._ends), len(self._pairs)) != (height, width + _kernels().MARGIN):
            self._ends, self._pairs = np.zeros(height, np.int64), np.zeros(width + _kernels().MARGIN, np.uint64)
            self._rows = np.zeros((len(self._rows), len(self._pairs)), np.uint32)
            self._changes = np.empty((2, height * width // 2 + width), np.uint32)  # memory that nobody writes is none
        pixels = self._pixels
        pixels.inflate(first)
        changes = self._ends, *self._changes
        n = _kernels().list_changes(pixels.raw, pixels.words, first.step, height, width, self._rows, *changes)
        if n == _kernels().TOO_MANY_CHANGES:
            return None
        _check_filters(n, first)
        pixels.inflate(second)
        n = _kernels().count_pairs(
            *changes, pixels.raw, pixels.words, second.step, height, width,
            self._rows, self._pairs, self._keys, self._counts, self._used,
        )  # fmt: skip
        filled = self._used[1 : 1 + int(self._used[0])]
        keys, pixels_of = self._keys[filled], self._counts[filled]
        self._keys[filled] = _kernels().EMPTY
        if n == _kernels().TOO_MANY_PAIRS:
            return None
        _check_filters(n, second)
        order = np.argsort(keys)
        keys = keys[order].astype(np.int64)
        return keys >> 24, keys & 0xFFFFFF, pixels_of[order]


def _check_filters(n: int, png: LabelPng) -> None:
    """Raises PansightError where a loop ended with BAD_FILTER."""
    if n < 0:
        raise PansightError(where=png.name, expected="a PNG", found="an unknown row filter")
