"""A PNG encoder that does what tests ask for: any filter in any row, any chunks, interlaced; and damaged files."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from pansight.ops.maps.label_png import SIGNATURE

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, step of rows, step of columns of each pass."""


def rgb_of(ids: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
    """uint8 (H, W, 3), or (H, W, 4) with an alpha channel."""
    channels = [ids & 255, ids >> 8 & 255, ids >> 16, *([] if alpha is None else [alpha])]
    return np.stack(channels, axis=2).astype(np.uint8)


def paeth(left: int, above: int, corner: int) -> int:
    estimate = left + above - corner
    return min((left, above, corner), key=lambda value: abs(estimate - value))  # the first of equal ones


def filtered(pixels: np.ndarray, filters: Sequence[int]) -> bytes:
    """The bytes of uint8 (H, W, C) before they are deflated; filters: 0 … 4 of each row, from the start again."""
    rows, step = pixels.reshape(len(pixels), -1).astype(int), pixels.shape[2]
    above = np.zeros(rows.shape[1], int)
    result = bytearray()
    for y, row in enumerate(rows):
        kind = filters[y % len(filters)]
        left, corner = (np.concatenate([np.zeros(step, int), each[:-step]]) for each in (row, above))
        guess = {
            0: lambda: 0,
            1: lambda left=left: left,
            2: lambda above=above: above,
            3: lambda left=left, above=above: (left + above) // 2,
            4: lambda left=left, above=above, corner=corner: np.array(
                [paeth(*each) for each in zip(left.tolist(), above.tolist(), corner.tolist())], int
            ),
        }[min(kind, 4)]()
        result += bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        above = row
    return bytes(result)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(height: int, width: int, bits: int = 8, kind: int = 2, interlaced: int = 0) -> bytes:
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced))


def png(
    pixels: np.ndarray, filters: Sequence[int] = (0,), parts: int = 1, empty: bool = False, level: int = 6
) -> bytes:
    """parts: number of IDAT chunks; empty: an empty one before and after each."""
    return packed_png(header(*pixels.shape[:2], kind=_kind(pixels)), filtered(pixels, filters), parts, empty)


def packed_png(head: bytes, raw: bytes, parts: int = 1, empty: bool = False) -> bytes:
    data = zlib.compress(raw)
    cuts = [len(data) * k // parts for k in range(parts + 1)]
    pieces = [data[a:b] for a, b in itertools.pairwise(cuts)]
    if empty:
        pieces = [piece for each in pieces for piece in (b"", each, b"")]
    text = chunk(b"tEXt", b"Comment\0ids")
    return head + text + b"".join(chunk(b"IDAT", piece) for piece in pieces) + chunk(b"IEND", b"")


def interlaced_png(pixels: np.ndarray, filters: Sequence[int] = (0,)) -> bytes:
    passes = (pixels[y::dy, x::dx] for y, x, dy, dx in ADAM7)
    raw = b"".join(filtered(each, filters) for each in passes if each.size)
    return packed_png(header(*pixels.shape[:2], kind=_kind(pixels), interlaced=1), raw)


def _kind(pixels: np.ndarray) -> int:
    return {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]


def structured_ids(rng: np.random.Generator, height: int, width: int, most: int = 12) -> np.ndarray:
    """int32 (H, W): rectangles of ids of one, two and three bytes, with void between."""
    ids = np.zeros((height, width), np.int32)
    for _ in range(rng.integers(0, most)):
        y, x = rng.integers(0, height), rng.integers(0, width)
        number = int(rng.integers(1, 256 ** rng.integers(1, 4)))
        ids[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = number
    return ids
