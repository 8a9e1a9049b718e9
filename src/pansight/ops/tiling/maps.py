"""Panoptic maps of tiles, joined to one: each tile decides its part, and objects are matched across the seams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.ops.idmap import relabel
from pansight.ops.maps.regions import class_regions
from pansight.ops.tiling.stitchers import Arrays, Grid, Photo, Rows, Table, pieces_of_map
from pansight.ops.tiling.stitching import IntArray, Pieces, Tile, merge_pieces, one_to_one, pairs_of_maps
from pansight.types import LabelSpace, PanopticSegmentation, Prediction


class Strip(NamedTuple):
    """What a tile says of the pixels that it shares with a neighbour.

    ids: int32 (h, w), its objects from 1, 0 elsewhere, stuff included. number: of pieces before those of the tile.
    categories: int64 (N,), of its pieces.
    """

    ids: NDArray[np.int32]
    number: int
    categories: IntArray

    def links(self, other: Strip, threshold: float) -> IntArray:
        """int64 (K, 2): the pieces of both that are one object; the strips show the same pixels."""
        pairs = pairs_of_maps(self.ids, other.ids)
        same = self.categories[pairs.first - 1] == other.categories[pairs.second - 1]
        return one_to_one(pairs.where(same), threshold) + np.array([self.number, other.number])


class MapStitcher:
    """See ``stitchers.Stitcher``.

    predict: photo → prediction, of which the panoptic map is taken, else the semantic one; its classes are then stuff
    altogether. threshold: least IoU of two halves of an object, in the strip that both tiles see.
    """

    def __init__(
        self, predict: Callable[[Photo], Prediction], labels: LabelSpace, grid: Grid, threshold: float, panoptic: bool
    ):
        self.predict, self.grid, self.threshold, self.panoptic = predict, grid, threshold, panoptic
        self.is_thing = np.array([panoptic and category.is_thing for category in labels])
        self.begin_row(0)

    def begin_row(self, number: int) -> None:
        self._table = Table(number)
        self._left: tuple[Tile, Strip] | None = None
        self._band: NDArray[np.uint32] | None = None

    def add(self, tile: Tile, photo: Photo | None, valid: NDArray[np.bool_], above: Arrays) -> Arrays:
        ids, categories, scores = self._predicted(photo, valid)
        y, x = tile.y, tile.x
        own = ids[y.own_start - y.start : y.own_stop - y.start, x.own_start - x.start : x.own_stop - x.start]
        number = self._table.add(pieces_of_map(own, y.own_start, x.own_start, categories, scores))
        if self._band is None:
            self._band = np.zeros((y.own_stop - y.own_start, self.grid.size[1]), np.uint32)
        self._band[:, x.own_start : x.own_stop] = np.where(own > 0, own.astype(np.uint32) + np.uint32(number), 0)
        is_thing = np.append(False, self.is_thing[categories])
        things = Strip(np.where(is_thing[ids], ids, 0).astype(np.int32), number, categories)
        self._link(tile, things, above)
        start = self.grid.next_start(tile.row) - y.start
        return {"ids": things.ids[start:], "number": np.array(number), "categories": categories}

    def _predicted(
        self, photo: Photo | None, valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int32], IntArray, NDArray[np.float64]]:
        """(segments int32 (h, w) from 1, 0 where there is none or no value; categories (N,); scores (N,))."""
        if photo is None:
            return np.zeros(valid.shape, np.int32), np.zeros(0, np.int64), np.zeros(0)
        found = map_of(self.predict(photo), self.panoptic)
        numbers = {segment.id: n for n, segment in enumerate(found.segments, 1)}
        ids = relabel(found.ids.numpy(), numbers)
        ids[~valid] = 0
        categories = np.array([segment.category for segment in found.segments], np.int64)
        return ids, categories, np.array([segment.score for segment in found.segments], np.float64)

    def _link(self, tile: Tile, things: Strip, above: Arrays) -> None:
        if self._left is not None:
            before, left = self._left
            mine, theirs = things.ids[:, : before.x.stop - tile.x.start], left.ids[:, tile.x.start - before.x.start :]
            self._table.link(left._replace(ids=theirs).links(things._replace(ids=mine), self.threshold))
        if above:
            upper = Strip(above["ids"], int(above["number"]), above["categories"])
            self._table.link(upper.links(things._replace(ids=things.ids[: len(upper.ids)]), self.threshold))
        self._left = tile, things

    def end_row(self) -> dict[str, NDArray[Any]]:
        assert self._band is not None
        return {"ids": self._band, **self._table.arrays()}


def map_of(prediction: Prediction, panoptic: bool) -> PanopticSegmentation:
    """The panoptic map, or that of the semantic classes."""
    if panoptic:
        assert prediction.panoptic is not None
        return prediction.panoptic
    assert prediction.semantic is not None
    return class_regions(prediction.semantic)


def joined_map(
    rows: Rows, labels: LabelSpace, panoptic: bool, void: int
) -> tuple[Pieces, IntArray, Iterator[NDArray[Any]]]:
    """The segments of the whole image, their ids, and the map in parts (h, W), top to bottom, from all rows of tiles.

    A panoptic map has ids from 1, uint32. A map of classes has the data set's own category ids, in the least type that
    holds them all, and `void` where none is known.
    """
    pieces, links = rows.pieces()
    is_stuff = np.array([not (panoptic and category.is_thing) for category in labels])
    table, segments = merge_pieces(pieces, links, is_stuff)
    ids = np.arange(1, len(segments.area) + 1)
    if not panoptic:
        source = np.array([category.source_id for category in labels], np.int64)
        ids = source[segments.category]
        values = np.append(void, ids).astype(np.uint8 if void < 2**8 else np.uint16)
        table = values[table]
    return segments, ids, (table[rows.load(row, ["ids"])["ids"]] for row in range(rows.length))


def void_of(labels: LabelSpace, panoptic: bool) -> int:
    """The value of pixels that belong to nothing: 0, in a map of classes the largest number of its type."""
    if panoptic:
        return 0
    ids = [category.source_id for category in labels]
    if not 0 <= min(ids) <= max(ids) < 2**16 - 1:
        found = f"{min(ids)} … {max(ids)}"
        raise PansightError(where="semantic map", expected="category ids of 0 … 65534", found=found)
    return 2**8 - 1 if max(ids) < 2**8 - 1 else 2**16 - 1
