"""Semantic maps of tiles: where tiles overlap, the class scores of all of them are averaged."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pansight.ops.maps.regions import class_regions
from pansight.ops.tiling.stitchers import Arrays, Grid, Photo, Table, pieces_of_map
from pansight.ops.tiling.stitching import Tile
from pansight.types import IGNORE, LabelSpace, PanopticSegmentation


class ScoreStitcher:
    """See ``stitchers.Stitcher``. scores: photo → class scores, float32 (C, h, w).

    A tile ends the sum of the pixels that no later tile sees; what it adds to those of the tile on its right and of the
    tiles below is handed on to these. Of the sums only the strips are kept.
    """

    def __init__(self, scores: Callable[[Photo], Tensor], labels: LabelSpace, grid: Grid):
        self.scores, self.labels, self.grid = scores, labels, grid
        self.begin_row(0)

    def begin_row(self, number: int) -> None:
        self._table = Table(number)
        self._left: Tensor | None = None
        self._band: NDArray[np.uint32] | None = None

    def add(self, tile: Tile, photo: Photo | None, valid: NDArray[np.bool_], above: Arrays) -> Arrays:
        height, width = tile.size
        sums = torch.zeros(len(self.labels), height, width) if photo is None else self.scores(photo).clone()
        if self._left is not None:
            sums[:, :, : self._left.shape[2]] += self._left
        columns, rows = self._columns(tile), self.grid.next_start(tile.row) - tile.y.start
        self._left = sums[:, :, columns:].clone()
        ended = sums[:, :, :columns]
        if above:
            ended[:, : above["sums"].shape[1]] += torch.from_numpy(above["sums"])
        classes = ended[:, :rows].max(0).indices
        classes[torch.from_numpy(~valid[:rows, :columns])] = IGNORE
        self._add(class_regions(classes), tile)
        return {"sums": ended[:, rows:].numpy()}

    def _add(self, regions: PanopticSegmentation, tile: Tile) -> None:
        ids, categories = regions.ids.numpy(), np.array([s.category for s in regions.segments], np.int64)
        table = pieces_of_map(ids, tile.y.start, tile.x.start, categories, np.ones(len(categories)))
        number = self._table.add(table)
        if self._band is None:
            self._band = np.zeros((len(ids), self.grid.size[1]), np.uint32)
        place = slice(tile.x.start, tile.x.start + ids.shape[1])
        self._band[:, place] = np.where(ids > 0, ids.astype(np.uint32) + np.uint32(number), 0)

    def _columns(self, tile: Tile) -> int:
        """How many columns of the tile no later tile sees."""
        xs = self.grid.xs
        stop = xs[tile.column + 1].start if tile.column + 1 < len(xs) else self.grid.size[1]
        return stop - tile.x.start

    def end_row(self) -> dict[str, NDArray[Any]]:
        assert self._band is not None
        return {"ids": self._band, **self._table.arrays()}
