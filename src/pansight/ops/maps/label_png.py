"""Read the id PNGs of COCO panoptic (8-bit RGB, id = R + 256·G + 65536·B) as id maps, or count the pairs of ids that
two files have at the same pixel without making a map.

`decode_index` reads the other kind of id PNG: one channel whose values are the numbers. RGB files that are not
interlaced are read by compiled code (`ops.fast.png`), others by an ordinary decoder.
"""

from __future__ import annotations

import logging
import struct
import zlib
from typing import NamedTuple, cast

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.ops.fast import use_plain
from pansight.ops.fast.png import PairTable, ids_by_rows
from pansight.ops.idmap import IdArray, rgb_to_ids
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
        raise _other_kind(name, found)
    if data[12:16] != b"IHDR":
        raise PansightError(where=name, expected="a whole PNG", found="no header (damaged)")
    try:
        width, height, bits, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
        if height < 1 or width < 1 or height * width > MAX_PIXELS:
            limit = f"1 … {MAX_PIXELS // 10**6} million pixels"
            raise PansightError(where=name, expected=f"an image of {limit}", found=f"{height}×{width} (height × width)")
        if bits != 8 or kind not in (2, 6):
            raise _other_kind(name, f"{bits}-bit {KINDS.get(kind, 'pixels of an unknown kind')}")
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
        raise PansightError(where=name, expected="a whole PNG", found="no end chunk (truncated)") from error
    packed = parts[0] if len(parts) == 1 else b"".join(parts)
    if not packed:
        raise PansightError(where=name, expected="a whole PNG", found="no pixels")
    if interlaced and len(packed) > 2 * height * (4 * width + 1) + 2**16:  # its decoder would unpack the whole image
        raise PansightError(
            where=name, expected=f"a PNG of {height}×{width}", found=f"{len(packed)} bytes of packed pixels"
        )
    packed = b"" if interlaced else packed
    return LabelPng(height, width, 3 if kind == 2 else 4, packed, data, name)


def _other_kind(name: str, found: str) -> PansightError:
    return PansightError(where=name, expected="an 8-bit RGB PNG of segment ids", found=found, code="wrong_format")


WORTH_COMPILED = 30_000_000
"""From so many pixels on, those of all images of a side together, compiled code is worth the time of loading it."""


class PairCounter:
    """Counts the pixels of every pair of ids of two id PNGs. Keeps its memory from call to call: one for each thread.

    expected: how many pairs there will be, where that is known: few small ones are read without compiled code.

    >>> PairCounter().count(open_label_png(truth, "a.png"), open_label_png(prediction, "b.png"))
    """

    def __init__(self, expected: int | None = None) -> None:
        self._expected = expected
        self._table: PairTable | None = None

    def count(self, first: LabelPng, second: LabelPng) -> Overlaps:
        """The pairs in rising order, as `overlaps_of` the two maps.

        Raises PansightError where the sizes differ or a file is damaged.
        """
        if (first.height, first.width) != (second.height, second.width):
            expected, found = f"{first.height}×{first.width} of {first.name}", f"{second.height}×{second.width}"
            raise PansightError(where=second.name, expected=f"the size {expected}", found=f"{found} (height × width)")
        if first.packed and second.packed and self._is_compiled(first):
            self._table = self._table or PairTable()
            pairs = self._table.count(first, second)
            if pairs is not None:
                return Overlaps(*pairs)
        return overlaps_of(self.decode(first), self.decode(second))

    def decode(self, png: LabelPng) -> IdArray:
        """`decode_ids` of one of the files, in the same way as they are counted."""
        return decode_ids(png) if self._is_compiled(png) else ids_by_decoder(png)

    def _is_compiled(self, png: LabelPng) -> bool:
        if use_plain():
            return False
        if self._table is not None or self._expected is None:
            return True
        return self._expected * png.height * png.width >= WORTH_COMPILED


def decode_ids(png: LabelPng) -> IdArray:
    """The id map, int32 (H, W). Raises PansightError where the file is damaged."""
    return ids_by_rows(png) if png.packed and not use_plain() else ids_by_decoder(png)


def ids_by_decoder(png: LabelPng) -> IdArray:
    """The plain form, by an ordinary decoder; it also reads interlaced files."""
    try:
        rgb = cast(NDArray[np.uint8], imagecodecs.png_decode(png.data))
    except (RuntimeError, ValueError) as error:  # its words are left out: now and then they are stray bytes of memory
        kind = "" if png.packed else " (interlaced)"
        raise PansightError(where=png.name, expected="a whole PNG", found=f"damaged pixels{kind}") from error
    return rgb_to_ids(np.ascontiguousarray(rgb[..., :3]))


def decode_index(data: bytes, name: str) -> IdArray:
    """The raw samples of a grey PNG of 1 to 16 bits, or the indices of a palette, as int32 (H, W). name: for errors.

    A decoder for viewing stretches 2 bits to 0 … 255 and turns transparency into a channel; here 3 stays 3, and what
    says of transparency is passed over. Red, green and blue are read as one grey where they are equal in every pixel.
    Raises PansightError where they are not, and where the file is damaged.
    """
    try:
        bits, kind = data[24], data[25]
        samples = cast(NDArray[np.uint8 | np.uint16], imagecodecs.png_decode(_bare_png(data)))
    except (RuntimeError, ValueError, IndexError, struct.error) as error:
        raise PansightError(where=name, expected="a whole PNG", found="damaged pixels") from error
    if samples.ndim == 3:  # (H, W, C); an even number of channels ends with alpha
        colors = samples[..., : samples.shape[2] - 1 + samples.shape[2] % 2]
        if (colors != colors[..., :1]).any():
            found = f"a {bits}-bit {KINDS.get(kind, 'odd')} PNG"
            raise PansightError(where=name, expected="a PNG with one channel of ids", found=found, code="wrong_format")
        samples = colors[..., 0]
    scale = 255 // (2**bits - 1) if bits < 8 else 1  # the decoder stretches 1, 2 and 4 bits to eight
    return np.ascontiguousarray(samples // scale, dtype=np.int32)


def _bare_png(data: bytes) -> bytes:
    """The same PNG with nothing but its header and its pixels; the indices of a palette become samples of grey.

    A decoder then has neither colours to look up nor transparency to apply (PNG specification, 5.3: a chunk is its
    length, kind, content and checksum).
    """
    parts, position = [data[:8]], 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + 12 + length]
        if kind == b"IHDR" and chunk[17] == 3:  # the colour type follows width, height and bit depth
            content = chunk[4:17] + b"\0" + chunk[18:21]
            chunk = chunk[:4] + content + struct.pack(">I", zlib.crc32(content))
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            parts.append(chunk)
        position += 12 + length
    return b"".join(parts)
