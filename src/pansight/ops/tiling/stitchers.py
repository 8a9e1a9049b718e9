"""What a row of tiles leaves behind: the pixels that it decides, a table of pieces, and what the row below needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pansight.ops.idmap import areas, boxes_xyxy
from pansight.ops.tiling.stitching import IntArray, Pieces, Span, Tile

Arrays = Mapping[str, NDArray[Any]]
"""What is kept on disk, by name."""

Photo = NDArray[np.uint8]
"""RGB uint8 (h, w, 3) of a tile."""

PIECES = ("category", "score", "area", "boxes_xyxy")


class Grid(NamedTuple):
    """The tiles of an image of `size` (H, W): the spans of their rows and columns."""

    size: tuple[int, int]
    ys: Sequence[Span]
    xs: Sequence[Span]

    def tile(self, row: int, column: int) -> Tile:
        return Tile(row, column, self.ys[row], self.xs[column])

    def next_start(self, row: int) -> int:
        """The first row of pixels that the tiles below see; the height of the image where there are none."""
        return self.ys[row + 1].start if row + 1 < len(self.ys) else self.size[0]


class Stitcher(Protocol):
    """Predicts tiles one by one, in reading order, and joins them; `MapStitcher` and its like."""

    def begin_row(self, number: int) -> None:
        """number: of pieces in all rows above."""
        ...

    def add(self, tile: Tile, photo: Photo | None, valid: NDArray[np.bool_], above: Arrays) -> Arrays:
        """valid: bool (h, w), where the tile has a value; photo: None where it has none at all. above: what the tile
        above left, {} at the top; returned is what this one leaves to the tile below.
        """
        ...

    def end_row(self) -> dict[str, NDArray[Any]]:
        """After the last tile of a row: what is kept of it to the end, the columns of `Table.arrays` among it."""
        ...


class Rows(NamedTuple):
    """The rows of tiles that are done: read again one at a time."""

    length: int
    load: Callable[[int, Sequence[str]], Arrays]
    """(number of the row, names) → these of the arrays that `end_row` gave."""

    def pieces(self) -> tuple[Pieces, IntArray]:
        """The table of all pieces, and the links between them, int64 (K, 2), numbers from 1."""
        tables: list[Pieces] = []
        links = [np.zeros((0, 2), np.int64)]
        for row in range(self.length):
            arrays = self.load(row, [*PIECES, "links"])
            tables.append(Pieces(*(arrays[name] for name in PIECES)))
            links.append(arrays["links"])
        return Pieces.joined(tables), np.concatenate(links)


class Table:
    """The pieces and links of a row while it is made. number: of pieces before it."""

    def __init__(self, number: int):
        self.number = number
        self._pieces: list[Pieces] = []
        self._links = [np.zeros((0, 2), np.int64)]

    def add(self, pieces: Pieces) -> int:
        """Returns the number of pieces before these: the n-th of them, from 1, has this number plus n."""
        before = self.number
        self._pieces.append(pieces)
        self.number += len(pieces.area)
        return before

    def link(self, pairs: IntArray) -> None:
        self._links.append(pairs)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {**Pieces.joined(self._pieces)._asdict(), "links": np.concatenate(self._links)}


def pieces_of_map(
    ids: NDArray[np.int32], top: int, left: int, categories: IntArray, scores: NDArray[np.float64]
) -> Pieces:
    """The table of what a map of segments 1 … N, whose upper left corner lies at (top, left) of the image, holds."""
    table = Pieces(categories, scores, np.zeros(len(categories), np.int64), np.zeros((len(categories), 4), np.int64))
    for number, area in areas(ids).items():
        if number:
            table.area[number - 1] = area
    for number, box in boxes_xyxy(ids).items():
        table.boxes_xyxy[number - 1] = np.add(box, (left, top, left, top))
    return table
