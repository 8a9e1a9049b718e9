"""One map of an image that is predicted in overlapping tiles: where tiles lie, and which of their segments are one.

Along each axis two neighbours share a strip of pixels, and each of them decides the half of it that is farther from its
own border, where it sees more of the surroundings. An object that both have found is one object if its two masks
agree in the strip: their intersection over union (IoU), counted there alone, reaches a threshold. Each segment is
joined with at most one of a neighbour, the best pairs first; joined pairs form groups (union-find), so that an object
which crosses several tiles is one, and so is one that leaves a tile and comes back. Stuff of one class is one segment
of the whole image wherever it lies.

Only the strips and a table with one row a piece are looked at here, never the whole map.
"""

# torch and NumPy leave some of their return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.ops.maps.overlap import overlaps_of

IntArray = NDArray[np.int64]


class Span(NamedTuple):
    """The pixels start … stop − 1 of an axis that a tile sees, and own_start … own_stop − 1, those that it decides."""

    start: int
    stop: int
    own_start: int
    own_stop: int


class Tile(NamedTuple):
    """A window of an image, by its number in the grid and its two axes."""

    row: int
    column: int
    y: Span
    x: Span

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.y.stop - self.y.start, self.x.stop - self.x.start


def tile_spans(length: int, side: int, overlap: int, align: int = 1) -> list[Span]:
    """As few tiles as cover an axis of `length` pixels, neighbours sharing at least `overlap` pixels.

    Each is `side` long; all begin at multiples of `align`, for which the last may be up to align − 1 pixels shorter. A
    network that works on a grid of `align` pixels then sees the same grid in every tile. An axis shorter than a tile
    has one tile of its own length. The strip that two neighbours share is halved between them.
    Raises ValueError unless 0 ≤ overlap ≤ side − align and align ≥ 1.
    """
    if not (align >= 1 and 0 <= overlap <= side - align):
        raise ValueError(f"an overlap of 0 … {side - align}, not {overlap}")
    step = (side - overlap) // align * align
    last = max(0, math.ceil((length - side) / align) * align)
    starts = [min(index * step, last) for index in range(math.ceil(last / step) + 1)]
    stops = [min(start + side, length) for start in starts]
    middles = [(start + stop) // 2 for start, stop in zip(starts[1:], stops[:-1], strict=True)]
    return [Span(*values) for values in zip(starts, stops, [0, *middles], [*middles, length], strict=True)]


class Pairs(NamedTuple):
    """Two segments of neighbours that share pixels, a pair a row: ids on either side, int64 (P,); IoU, float64 (P,)."""

    first: IntArray
    second: IntArray
    iou: NDArray[np.float64]

    def where(self, kept: NDArray[np.bool_]) -> Pairs:
        """The rows that `kept`, bool (P,), names."""
        return Pairs(self.first[kept], self.second[kept], self.iou[kept])


def pairs_of_maps(first: NDArray[Any], second: NDArray[Any]) -> Pairs:
    """The pairs of two id maps of the same strip, integer (h, w), 0 where there is no segment."""
    first_ids, second_ids, pixels = overlaps_of(first, second)
    return _pairs(first_ids, second_ids, pixels, *(_areas(ids, pixels) for ids in (first_ids, second_ids)))


def pairs_of_masks(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Pairs:
    """The pairs of two sets of masks of the same strip, bool (N, h, w) and (M, h, w), which may overlap.

    Their ids are their numbers from 1 on.
    """
    # float32 counts exactly up to 2²⁴ pixels, more than a strip has
    flat = [masks.reshape(len(masks), math.prod(masks.shape[1:])).astype(np.float32) for masks in (first, second)]
    shared = flat[0] @ flat[1].T  # (N, M)
    a, b = np.nonzero(shared)
    areas = [np.append(0, masks.sum(1)).astype(np.int64) for masks in flat]
    return _pairs(a + 1, b + 1, shared[a, b].astype(np.int64), areas[0][a + 1], areas[1][b + 1])


def _areas(ids: IntArray, pixels: IntArray) -> IntArray:
    """int64 (P,): the pixels of all pairs that have the same id."""
    _, inverse = np.unique(ids, return_inverse=True)
    return np.bincount(inverse, pixels).astype(np.int64)[inverse]


def _pairs(first: IntArray, second: IntArray, pixels: IntArray, first_areas: IntArray, second_areas: IntArray) -> Pairs:
    real = (first > 0) & (second > 0)
    iou = pixels[real] / (first_areas + second_areas - pixels)[real]
    return Pairs(first[real], second[real], iou)


def one_to_one(pairs: Pairs, threshold: float) -> IntArray:
    """int64 (K, 2): the pairs of at least `threshold`, best first, leaving out those with a side that is taken.

    Above 0.5 no segment of a map has two partners; below it, the better one is taken. Of equals the lower ids win.
    """
    chosen: list[tuple[int, int]] = []
    taken: tuple[set[int], set[int]] = set(), set()
    for row in np.lexsort((pairs.second, pairs.first, -pairs.iou)).tolist():
        a, b = int(pairs.first[row]), int(pairs.second[row])
        if pairs.iou[row] < threshold or a in taken[0] or b in taken[1]:
            continue
        chosen.append((a, b))
        taken[0].add(a)
        taken[1].add(b)
    return np.array(chosen, np.int64).reshape(-1, 2)


def group_roots(count: int, links: Iterable[tuple[int, int]]) -> IntArray:
    """int64 (count,): of each of the elements 0 … count − 1 the least element that links join it with (union-find)."""
    roots = list(range(count))

    def root(element: int) -> int:
        while roots[element] != element:
            roots[element] = roots[roots[element]]  # halves the way for those who come after
            element = roots[element]
        return element

    for a, b in links:
        low, high = sorted((root(a), root(b)))
        roots[high] = low
    return np.array([root(element) for element in range(count)], np.int64)


class Pieces(NamedTuple):
    """The table of segments: of what each tile decides, or of the whole image. N rows.

    category int64 (N,), indices into the label space; score float64 (N,); area int64 (N,) in pixels; boxes_xyxy int64
    (N, 4) in pixels of the image, x2 and y2 exclusive, (0, 0, 0, 0) where the area is 0.
    """

    category: IntArray
    score: NDArray[np.float64]
    area: IntArray
    boxes_xyxy: IntArray

    def part(self, start: int, stop: int) -> Pieces:
        """The rows start … stop − 1, or as far as there are any."""
        rows = slice(start, stop)
        return Pieces(self.category[rows], self.score[rows], self.area[rows], self.boxes_xyxy[rows])

    @classmethod
    def joined(cls, tables: Iterable[Pieces]) -> Pieces:
        """Several tables as one, in their order."""
        columns = list(zip(cls.none(), *tables, strict=True))
        return cls(*(np.concatenate(parts) for parts in columns))

    @classmethod
    def none(cls) -> Pieces:
        """A table without rows."""
        empty = np.zeros(0, np.int64)
        return cls(empty, np.zeros(0), empty, np.zeros((0, 4), np.int64))


def merge_pieces(pieces: Pieces, links: IntArray, is_stuff: NDArray[np.bool_]) -> tuple[NDArray[np.uint32], Pieces]:
    """The segments of the whole image, and which of them each piece belongs to.

    links: int64 (K, 2), numbers of pieces from 1 on, that are one object. is_stuff: bool (C,), by category.
    Returns a table uint32 (N + 1,), number of a piece → id of its segment, 0 for 0 and for pieces without a pixel; and
    the segments, whose ids are 1, 2, 3 … in the order of their first piece. A segment has the sum of the areas, the box
    around all boxes, and the mean of the scores weighted by area.
    """
    roots = group_roots(len(pieces.area), (links - 1).tolist())
    stuff = is_stuff[pieces.category] if len(pieces.category) else np.zeros(0, bool)
    key = np.where(stuff, pieces.category - len(is_stuff), roots)  # stuff below 0, by its class
    kept = np.flatnonzero(pieces.area > 0)
    _, first, inverse = np.unique(key[kept], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    number = rank[inverse]  # of the segment of each piece that is kept, from 0
    table = np.zeros(len(pieces.area) + 1, np.uint32)
    table[kept + 1] = number + 1
    area = np.bincount(number, pieces.area[kept], len(first)).astype(np.int64)
    score = np.bincount(number, pieces.area[kept] * pieces.score[kept], len(first)) / np.maximum(area, 1)
    low, high = np.full((len(first), 2), np.iinfo(np.int64).max), np.zeros((len(first), 2), np.int64)
    np.minimum.at(low, number, pieces.boxes_xyxy[kept, :2])
    np.maximum.at(high, number, pieces.boxes_xyxy[kept, 2:])
    category = pieces.category[kept][np.sort(first)]
    return table, Pieces(category, score, area, np.hstack([low, high]))
