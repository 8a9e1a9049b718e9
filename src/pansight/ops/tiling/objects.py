"""Objects of tiles, which may overlap, joined over the seams: a mask is made of the parts that the tiles decide."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.ops.tiling.stitchers import PIECES, Arrays, Grid, Photo, Rows, Table
from pansight.ops.tiling.stitching import IntArray, Pieces, Tile, merge_pieces, one_to_one, pairs_of_masks
from pansight.types import Instances, LabelSpace

Masks = NDArray[np.bool_]


class Strip(NamedTuple):
    """The objects of a tile in the pixels that it shares with a neighbour: masks bool (N, h, w), those without a pixel
    there left out; numbers int64 (N,) of their pieces; categories int64 (N,)."""

    masks: Masks
    numbers: IntArray
    categories: IntArray

    def cut(self, y: slice, x: slice) -> Strip:
        masks = self.masks[:, y, x]
        seen = masks.any((1, 2))
        return Strip(masks[seen], self.numbers[seen], self.categories[seen])

    def links(self, other: Strip, threshold: float) -> IntArray:
        """int64 (K, 2): the pieces of both that are one object; the strips show the same pixels."""
        pairs = pairs_of_masks(self.masks, other.masks)
        same = self.categories[pairs.first - 1] == other.categories[pairs.second - 1]
        chosen = one_to_one(pairs.where(same), threshold) - 1
        return np.stack([self.numbers[chosen[:, 0]], other.numbers[chosen[:, 1]]], 1)


class ObjectStitcher:
    """See ``stitchers.Stitcher``. predict: photo → objects. threshold: as that of `MapStitcher`.

    A detector of boxes alone is treated as if every object filled its box; `is_filled` says so in what is kept.
    """

    def __init__(self, predict: Callable[[Photo], Instances], labels: LabelSpace, grid: Grid, threshold: float):
        self.predict, self.grid, self.threshold = predict, grid, threshold
        self.begin_row(0)

    def begin_row(self, number: int) -> None:
        self._table = Table(number)
        self._bits: list[NDArray[np.uint8]] = []
        self._left: tuple[Tile, Strip] | None = None
        self._filled = False

    def add(self, tile: Tile, photo: Photo | None, valid: NDArray[np.bool_], above: Arrays) -> Arrays:
        masks, categories, scores = self._predicted(photo, valid)
        y, x = tile.y, tile.x
        own = masks[:, y.own_start - y.start : y.own_stop - y.start, x.own_start - x.start : x.own_stop - x.start]
        area, boxes = own.sum((1, 2)), np.zeros((len(own), 4), np.int64)
        for n in np.flatnonzero(area):
            boxes[n] = box_of(own[n])
            left, top, right, bottom = boxes[n]
            self._bits.append(np.packbits(own[n, top:bottom, left:right]))
            boxes[n] += (x.own_start, y.own_start, x.own_start, y.own_start)
        number = self._table.add(Pieces(categories, scores, area.astype(np.int64), boxes))
        strip = Strip(masks, np.arange(1, len(masks) + 1) + number, categories)
        self._link(tile, strip, above)
        start = self.grid.next_start(tile.row) - y.start
        lower = strip.cut(slice(start, None), slice(None))
        count, height, width = lower.masks.shape
        packed = np.packbits(lower.masks.reshape(count, height * width), axis=1)
        return {
            "bits": packed,
            "shape": np.array(lower.masks.shape),
            "numbers": lower.numbers,
            "categories": lower.categories,
        }

    def _predicted(self, photo: Photo | None, valid: NDArray[np.bool_]) -> tuple[Masks, IntArray, NDArray[np.float64]]:
        """(masks (N, h, w) of pixels with a value, categories (N,), scores (N,))."""
        if photo is None:
            return np.zeros((0, *valid.shape), bool), np.zeros(0, np.int64), np.zeros(0)
        found = self.predict(photo)
        if found.masks is None:
            self._filled = True
            masks = np.zeros((len(found), *valid.shape), bool)
            for mask, box in zip(masks, found.boxes_xyxy.round().int().tolist()):
                mask[box[1] : box[3], box[0] : box[2]] = True
        else:
            masks = found.masks.numpy() & valid
        return masks, found.labels.numpy(), found.scores.numpy().astype(np.float64)

    def _link(self, tile: Tile, strip: Strip, above: Arrays) -> None:
        if self._left is not None:
            before, left = self._left
            mine = strip.cut(slice(None), slice(before.x.stop - tile.x.start))
            theirs = left.cut(slice(None), slice(tile.x.start - before.x.start, None))
            self._table.link(theirs.links(mine, self.threshold))
        if above:
            count, height, width = above["shape"].tolist()
            bits = np.unpackbits(above["bits"], axis=1, count=height * width)
            masks = bits.reshape(count, height, width).astype(bool)
            upper = Strip(masks, above["numbers"], above["categories"])
            self._table.link(upper.links(strip.cut(slice(height), slice(None)), self.threshold))
        self._left = tile, strip

    def end_row(self) -> dict[str, NDArray[Any]]:
        bits = np.concatenate([np.zeros(0, np.uint8), *self._bits])
        return {"bits": bits, "is_filled": np.array(self._filled), **self._table.arrays()}


def box_of(mask: Masks) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) around the pixels of a mask (h, w) that has some, x2 and y2 exclusive."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


class Whole(NamedTuple):
    """An object of the whole image: its id from 1, category, score, and box (x1, y1, x2, y2); mask: bool of the pixels
    of that box, None where the detector gives boxes alone."""

    id: int
    category: int
    score: float
    box_xyxy: tuple[int, int, int, int]
    mask: Masks | None


def joined_objects(rows: Rows, labels: LabelSpace) -> tuple[Pieces, Iterator[Whole]]:
    """The table of all objects, and each of them as soon as the last row that holds a part of it is read."""
    pieces, links = rows.pieces()
    table, whole = merge_pieces(pieces, links, np.zeros(len(labels), bool))
    return whole, _wholes(rows, table, whole)


def _wholes(rows: Rows, table: NDArray[np.uint32], whole: Pieces) -> Iterator[Whole]:
    counts = [len(rows.load(row, ["area"])["area"]) for row in range(rows.length)]
    starts = np.cumsum([1, *counts])  # number of the first piece of each row
    last = np.zeros(len(whole.area) + 1, np.int64)  # the row with the last piece of each object
    for row in range(rows.length):
        last[table[starts[row] : starts[row + 1]]] = row
    open_masks: dict[int, Masks] = {}
    for row in range(rows.length):
        arrays = rows.load(row, [*PIECES, "bits", "is_filled"])
        ids = table[starts[row] : starts[row + 1]].tolist()
        position = 0
        for id, box in zip(ids, arrays["boxes_xyxy"].tolist(), strict=True):
            if id == 0:
                continue
            height, width = box[3] - box[1], box[2] - box[0]
            length = -(-height * width // 8)
            if not arrays["is_filled"]:
                part = np.unpackbits(arrays["bits"][position : position + length], count=height * width)
                _paint(open_masks, id, whole.boxes_xyxy[id - 1].tolist(), box, part.reshape(height, width))
            position += length
        for id in np.unique(ids).tolist():
            if id and last[id] == row:
                left, top, right, bottom = whole.boxes_xyxy[id - 1].tolist()
                mask = open_masks.pop(id, None)
                category, score = int(whole.category[id - 1]), float(whole.score[id - 1])
                yield Whole(id, category, score, (left, top, right, bottom), mask)


def _paint(masks: dict[int, Masks], id: int, around: list[int], box: list[int], part: NDArray[np.uint8]) -> None:
    """Add a part in its box to the mask of an object, whose box is `around`."""
    if id not in masks:
        masks[id] = np.zeros((around[3] - around[1], around[2] - around[0]), bool)
    place = slice(box[1] - around[1], box[3] - around[1]), slice(box[0] - around[0], box[2] - around[0])
    masks[id][place] |= part.astype(bool)
