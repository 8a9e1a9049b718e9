"""The compiled part of `contest`: logits are resized to full size only where it is not yet clear which query wins.

Bilinear interpolation never leaves the range of the pixels that it reads, and the sigmoid preserves order. So the
smallest and the largest logit of a query around a tile bound its values inside the tile. A query whose upper bound is
below the lower bound of another one cannot win; if one query remains, the whole tile is its own. Only the other tiles
are resized, for the remaining queries. The bounds are widened by more than rounding errors can be, so the result equals
that of resizing everything; the arithmetic of the resized tiles is torch's own, in its order (rows, then columns, a
fused sum).
"""

# numba's decorator leaves its results without a type, and an entry of an array is an int only to numba
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedFunctionDecorator=false, reportMissingTypeStubs=false, reportArgumentType=false
from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from pansight.ops.fast.kernels.compiled import compiled

fused = functools.partial(compiled, fuse_products=True)

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Codes = NDArray[np.int16]

TILE = 16
"""The side, in pixels, of the tiles that are decided as a whole."""

NEVER, BETWEEN, LAST = 0, 1, 2
"""Where logits become probabilities: not at all, after the first resize, after the second."""

SLACK = 1e-6
"""How far rounding may move an interpolated value, as a part of the values around it (float32: 6e-8 a step)."""

SIGMOID_SLACK = 1e-4
"""The same of a probability: its logit (up to 100) may be off by 100 · SLACK, beyond that it is 0 or 1."""


@compiled
def _sigmoid(values: Floats, rows: int, columns: int) -> None:
    one = np.float32(1)
    for y in range(rows):
        for x in range(columns):
            values[y, x] = one / (one + math.exp(-values[y, x]))


@fused
def _resize(
    source: Floats,
    target: Floats,
    scratch: Floats,
    low_y: Indices,
    far_y: Floats,
    low_x: Indices,
    far_x: Floats,
    box: tuple[int, int, int, int],
    origin: tuple[int, int],
    extent: tuple[int, int],
) -> None:
    """target[: y1 − y0, : x1 − x0] = the pixels box (y0, y1, x0, x1) of the resized map.

    source: the map from row, column `origin` on; extent: its full size. Output row y mixes rows low_y[y] and the next.
    """
    y0, y1, x0, x1 = box
    one = np.float32(1)
    top, left = origin
    last_y, last_x = extent[0] - 1, extent[1] - 1
    first = low_y[y0]
    stop = min(low_y[y1 - 1] + 1, last_y) + 1
    for y in range(first, stop):
        line, out = source[y - top], scratch[y - first]
        for x in range(x0, x1):
            a, b = low_x[x], min(low_x[x] + 1, last_x)
            out[x - x0] = line[a - left] * (one - far_x[x]) + line[b - left] * far_x[x]
    for y in range(y0, y1):
        above, below = scratch[low_y[y] - first], scratch[min(low_y[y] + 1, last_y) - first]
        far, near, out = far_y[y], one - far_y[y], target[y - y0]
        for x in range(x1 - x0):
            out[x] = above[x] * near + below[x] * far


@compiled
def _bounds_of_rows(maps: Floats, top: int, bottom: int, low: Floats, high: Floats) -> None:
    """Least and greatest value of each column over the rows top … bottom: (K, h, w) → (K, w) each."""
    for k in range(maps.shape[0]):
        low[k], high[k] = maps[k, top], maps[k, top]
        for y in range(top + 1, bottom + 1):
            for x in range(maps.shape[2]):
                value = maps[k, y, x]
                low[k, x] = min(low[k, x], value)
                high[k, x] = max(high[k, x], value)


@compiled
def _bounds_of_tile(
    low: Floats, high: Floats, left: int, right: int, scores: Floats, mode: int, least: Floats, most: Floats
) -> float:
    """The bounds of each query's values in a tile, and the largest lower bound."""
    best = -np.inf
    for k in range(len(scores)):
        a, b = low[k, left], high[k, left]
        for x in range(left + 1, right + 1):
            a, b = min(a, low[k, x]), max(b, high[k, x])
        if mode == NEVER:
            slack = SLACK * (abs(a) + abs(b))
            a, b = (a - slack) * scores[k], (b + slack) * scores[k]
        else:
            a, b = a * scores[k] * (1 - SIGMOID_SLACK), b * scores[k] * (1 + SIGMOID_SLACK) + 1e-35
        least[k], most[k] = a, b
        best = max(best, a)
    return best


@compiled
def _span(low: Indices, size: int) -> int:
    """The most source pixels that a tile of output pixels reads."""
    most = 1
    for start in range(0, len(low), TILE):
        stop = min(start + TILE, len(low)) - 1
        most = max(most, min(low[stop] + 1, size - 1) - low[start] + 1)
    return most


@compiled
def _take(
    k: int,
    tile: Floats,
    score: float,
    limit: float,
    weighted: bool,
    running: bool,
    best: Floats,
    code: Codes,
    pixels: Indices,
) -> None:
    """Give query k the pixels of a tile at which it exceeds all queries before it, unless its bound rules it out."""
    for y in range(code.shape[0]):
        for x in range(code.shape[1]):
            value = tile[y, x] * score
            inside = (value if weighted else tile[y, x]) >= limit
            pixels[k, 2] += inside
            if running and value > best[y, x]:
                best[y, x] = value
                code[y, x] = 2 * k + inside


@compiled
def _count(code: Codes, pixels: Indices) -> None:
    for y in range(code.shape[0]):
        for x in range(code.shape[1]):
            pixels[code[y, x] >> 1, 0] += 1
            pixels[code[y, x] >> 1, 1] += code[y, x] & 1


@compiled
def run_contest(
    maps: Floats,
    bounds: Floats,
    scores: Floats,
    limit: float,
    weighted: bool,
    axes: tuple[Indices, Floats, Indices, Floats, Indices, Floats, Indices, Floats],
    mode: int,
    rows: tuple[int, int],
    code: Codes,
    pixels: Indices,
) -> None:
    """Tile rows rows[0] … rows[1] of the map `code` (H, W) of 2 · winner + inside; counts are added to `pixels`.

    maps (K, h, w): what is resized. bounds (K, h, w): what is bounded, the maps themselves or their probabilities.
    scores (K,): factors of the values. A resized value, times its score where `weighted`, is inside from `limit` on.
    axes: (low, far) of the first resize down and across, then of the second; the first maps to the cut extent.
    pixels int64 (K, 3): won, won and inside, mask.
    """
    a_low_y, a_far_y, a_low_x, a_far_x, b_low_y, b_far_y, b_low_x, b_far_x = axes
    count, height, width = maps.shape
    extent = (len(a_low_y), len(a_low_x))
    span_y, span_x = _span(b_low_y, extent[0]), _span(b_low_x, extent[1])
    between = np.empty((span_y, span_x), np.float32)
    # the rows that one tile reads of the first map: no more than there are, nor than the rows made of them allow
    scratch = np.empty((max(height, span_y), max(span_x, TILE)), np.float32)
    tile, best = np.empty((TILE, TILE), np.float32), np.empty((TILE, TILE), np.float32)
    low, high = np.empty((count, width), np.float32), np.empty((count, width), np.float32)
    least, most = np.empty(count, np.float32), np.empty(count, np.float32)
    for row in range(rows[0], rows[1]):
        y0, y1 = row * TILE, min((row + 1) * TILE, code.shape[0])
        p0, p1 = b_low_y[y0], min(b_low_y[y1 - 1] + 1, extent[0] - 1) + 1
        _bounds_of_rows(bounds, a_low_y[p0], min(a_low_y[p1 - 1] + 1, height - 1), low, high)
        for x0 in range(0, code.shape[1], TILE):
            x1 = min(x0 + TILE, code.shape[1])
            q0, q1 = b_low_x[x0], min(b_low_x[x1 - 1] + 1, extent[1] - 1) + 1
            sure = _bounds_of_tile(
                low, high, a_low_x[q0], min(a_low_x[q1 - 1] + 1, width - 1), scores, mode, least, most
            )
            candidates, area = 0, (y1 - y0) * (x1 - x0)
            for k in range(count):
                candidates += most[k] >= sure
            best[:] = -np.inf
            for k in range(count):
                running = most[k] >= sure or (k == 0 and candidates == 0)
                edge = limit if weighted else limit * scores[k]
                inside = least[k] >= edge
                known = inside or most[k] < edge
                if known and not (running and candidates > 1):
                    pixels[k, 2] += area * inside
                    if running:
                        code[y0:y1, x0:x1] = 2 * k + inside
                    continue
                _resize(
                    maps[k], between, scratch, a_low_y, a_far_y, a_low_x, a_far_x,
                    (p0, p1, q0, q1), (0, 0), (height, width),
                )  # fmt: skip
                if mode == BETWEEN:
                    _sigmoid(between, p1 - p0, q1 - q0)
                _resize(between, tile, scratch, b_low_y, b_far_y, b_low_x, b_far_x, (y0, y1, x0, x1), (p0, q0), extent)
                if mode == LAST:
                    _sigmoid(tile, y1 - y0, x1 - x0)
                _take(k, tile, scores[k], limit, weighted, running, best, code[y0:y1, x0:x1], pixels)
            _count(code[y0:y1, x0:x1], pixels)


@compiled
def paint(code: Codes, table: NDArray[np.int32], ids: NDArray[np.int32]) -> None:
    """ids = table[code], all flat."""
    for n in range(len(code)):
        ids[n] = table[code[n]]
