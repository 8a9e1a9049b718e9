"""Read the id PNGs of COCO panoptic (8-bit RGB, id = R + 256·G + 65536·B) as id maps, or count the pairs of ids that
two files have at the same pixel without making a map.

The bytes are inflated by libdeflate and unfiltered in compiled code (`png_kernels`). Files that this does not read
(interlaced ones) go through an ordinary decoder; both ways give the same numbers.
"""

from __future__ import annotations

import logging
import struct
from typing import Any, NamedTuple, cast

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.ops.idmap import IdArray, rgb_to_ids
from pansight.ops.maps import png_kernels
from pansight.ops.maps.overlap import Overlaps, overlaps_of

MAX_PIXELS = 100_000_000
"""Larger images are refused after reading their header: a file of some kilobytes may ask for gigabytes."""

# Its decoder's remarks about odd chunks ("Too much image data") must not stand among the lines of a command.
logging.getLogger("imagecodecs").addHandler(logging.NullHandler())

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


class LabelPng(NamedTuple):
    """An id PNG whose header has been checked and whose pixels are still packed."""

    height: int
    width: int
    step: int  # bytes per pixel: 3, or 4 with an alpha channel that is passed over
    packed: bytes  # the zlib stream; empty for an interlaced file, which is left to an ordinary decoder
    data: bytes  # the whole file
    name: str


def open_label_png(data: bytes, name: str) -> LabelPng:
    """Check the header and gather the packed pixels. name: for error messages.

    Raises PansightError for anything but a whole 8-bit RGB PNG of 1 … MAX_PIXELS pixels.
    """
    if data[:8] != SIGNATURE:
        found = "an empty file" if not data else "a JPEG" if data[:2] == b"\xff\xd8" else "another format"
        raise PansightError(f"{name}: expected an 8-bit RGB PNG of segment ids, found {found}")
    if data[12:16] != b"IHDR":
        raise PansightError(f"{name}: expected a whole PNG, found no header (damaged)")
    try:
        width, height, bits, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
        if height < 1 or width < 1 or height * width > MAX_PIXELS:
            limit = f"1 … {MAX_PIXELS // 10**6} million pixels"
            raise PansightError(f"{name}: expected an image of {limit}, found {height}×{width} (height × width)")
        if bits != 8 or kind not in (2, 6):
            found = f"{bits}-bit {KINDS.get(kind, 'pixels of an unknown kind')}"
            raise PansightError(f"{name}: expected an 8-bit RGB PNG of segment ids, found {found}")
        parts: list[bytes] = []
        position = 8
        while True:
            length, chunk = struct.unpack_from(">I4s", data, position)
            if chunk == b"IDAT":
                parts.append(data[position + 8 : position + 8 + length])
            elif chunk == b"IEND":
                break
            position += 12 + length
    except struct.error as error:
        raise PansightError(f"{name}: expected a whole PNG, found no end chunk (truncated)") from error
    packed = parts[0] if len(parts) == 1 else b"".join(parts)
    if not packed:
        raise PansightError(f"{name}: expected a whole PNG, found no pixels")
    if interlaced and len(packed) > 2 * height * (4 * width + 1) + 2**16:  # its decoder would unpack the whole image
        raise PansightError(f"{name}: expected a PNG of {height}×{width}, found {len(packed)} bytes of packed pixels")
    packed = b"" if interlaced else packed
    return LabelPng(height, width, 3 if kind == 2 else 4, packed, data, name)


class _Pixels:
    """A buffer for the filtered bytes of one image; it grows with the largest one."""

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
            raise PansightError(f"{png.name}: expected a whole PNG, found damaged pixels ({found})") from error
        if len(unpacked) != size:
            raise PansightError(f"{png.name}: expected {size} bytes of pixels, found {len(unpacked)}")


class PairCounter:
    """Counts the pixels of every pair of ids of two id PNGs. Keeps its memory from call to call: one for each thread.

    >>> PairCounter().count(open_label_png(truth, "a.png"), open_label_png(prediction, "b.png"))
    """

    def __init__(self) -> None:
        self._first, self._second = _Pixels(), _Pixels()
        self._rows = np.zeros((2, 1), np.uint32)
        self._runs = np.zeros((2, 0), np.int64)
        self._keys = np.full(png_kernels.SLOTS, png_kernels.EMPTY, np.uint64)
        self._counts = np.zeros(png_kernels.SLOTS, np.int64)
        self._used = np.zeros(png_kernels.SLOTS, np.int64)

    def count(self, first: LabelPng, second: LabelPng) -> Overlaps:
        """The pairs in rising order, as `overlaps_of` the two maps.

        Raises PansightError where the sizes differ or a file is damaged.
        """
        height, width = first.height, first.width
        if (height, width) != (second.height, second.width):
            expected, found = f"{height}×{width} of {first.name}", f"{second.height}×{second.width}"
            raise PansightError(f"{second.name}: expected the size {expected}, found {found} (height × width)")
        if not first.packed or not second.packed:
            return overlaps_of(decode_ids(first), decode_ids(second))
        self._first.inflate(first)
        self._second.inflate(second)
        if len(self._rows[0]) != width + 1:
            self._rows, self._runs = np.zeros((2, width + 1), np.uint32), np.zeros((2, width), np.int64)
        n = png_kernels.count_pairs(
            self._first.raw, self._first.words, first.step, self._second.raw, self._second.words, second.step,
            height, width, self._rows[0], self._rows[1], self._keys, self._counts, self._used, *self._runs,
        )  # fmt: skip
        filled = self._used[1 : 1 + int(self._used[0])]
        keys, pixels = self._keys[filled], self._counts[filled]
        self._keys[filled] = png_kernels.EMPTY
        if n == png_kernels.TOO_MANY_PAIRS:
            return overlaps_of(decode_ids(first), decode_ids(second))
        if n < 0:
            raise PansightError(f"{first.name} or {second.name}: expected a PNG, found an unknown row filter")
        order = np.argsort(keys)
        keys = keys[order].astype(np.int64)
        return Overlaps(keys >> 24, keys & 0xFFFFFF, pixels[order])


def decode_ids(png: LabelPng) -> IdArray:
    """The id map, int32 (H, W). Raises PansightError where the file is damaged."""
    if not png.packed:
        return _decode_plainly(png)
    pixels = _Pixels()
    pixels.inflate(png)
    ids = np.empty((png.height, png.width), np.int32)
    if png_kernels.fill_ids(pixels.raw, pixels.words, png.step, np.zeros(png.width + 1, np.uint32), ids) < 0:
        raise PansightError(f"{png.name}: expected a PNG, found an unknown row filter")
    return ids


def _decode_plainly(png: LabelPng) -> IdArray:
    try:
        rgb = cast(NDArray[np.uint8], imagecodecs.png_decode(png.data))
    except (RuntimeError, ValueError) as error:  # its words are left out: now and then they are stray bytes of memory
        raise PansightError(f"{png.name}: expected a whole PNG, found damaged pixels (interlaced)") from error
    return rgb_to_ids(np.ascontiguousarray(rgb[..., :3]))
