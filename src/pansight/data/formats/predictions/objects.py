"""Predicted objects of any tool: COCO results, a bare list of rows or a file that names images and classes, with masks
as run lengths or polygons.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.data.convert.polygons import expect_short, region_of_polygons, region_of_rle
from pansight.data.convert.source import Region
from pansight.data.formats.predictions.listing import (
    ClassRow,
    ImageId,
    ListedImage,
    Row,
    listed_classes,
    listed_images,
    read_rows,
)
from pansight.errors import PansightError
from pansight.files import decode_json

WHAT = "COCO results with masks, or a folder with instances.json"
NAME = "instances.json"
"""As ``pansight predict`` and ``pansight evaluate`` call the file."""


class ObjectPredictions:
    """The rows of a file, by image. classes, images: None where the file names none.

    Raises PansightError, in one line, where it is missing, is no such file, or has boxes alone.
    """

    def __init__(self, path: str | Path):
        self.path = file_in(Path(path), NAME)
        rows, file = read_rows(self.path, WHAT)
        self.classes: list[ClassRow] | None = None if file is None else listed_classes(file, self.path)
        self.images: list[ListedImage] | None = None if file is None else listed_images(file, self.path) or None
        self._rows: dict[ImageId, list[Row]] = {}
        for row in rows:
            self._rows.setdefault(row.image_id, []).append(row)
        if rows and all(bytes(row.segmentation) in (b"null", b"[]") for row in rows):
            raise PansightError(where=self.path, expected=WHAT, found="boxes alone")

    @property
    def image_ids(self) -> list[ImageId]:
        """Of the images that have any row, in the order of the file."""
        return list(self._rows)

    def rows(self, image_id: ImageId) -> list[Row]:
        """In the order of the file."""
        return self._rows.get(image_id, [])

    def category_ids(self) -> dict[int, int]:
        """Each category id that occurs → its rows."""
        counts: dict[int, int] = {}
        for rows in self._rows.values():
            for row in rows:
                counts[row.category_id] = counts.get(row.category_id, 0) + 1
        return counts


def file_in(path: Path, name: str) -> Path:
    """`path`, or the file of that name in it where it is a folder that has one."""
    return path / name if path.is_dir() and (path / name).is_file() else path


def region_of(row: Row, size: tuple[int, int], where: str) -> Region | None:
    """The mask of a row in an image of `size` (H, W); None where it covers no pixel.

    Raises PansightError, beginning with `where`, for a mask that is malformed or of another size.
    """
    expect_short(bytes(row.segmentation), b",", where)
    packed: Any = decode_json(bytes(row.segmentation), object, where)
    if isinstance(packed, dict):
        return region_of_rle(packed, size, 0, where)
    return region_of_polygons(_outlines(packed, where), size, 0, where)


def mask_of(region: Region, size: tuple[int, int]) -> NDArray[np.bool_]:
    """bool (H, W), the whole image."""
    mask = np.zeros(size, np.bool_)
    height, width = region.mask.shape
    mask[region.top : region.top + height, region.left : region.left + width] = region.mask
    return mask


def _outlines(packed: Any, where: str) -> list[NDArray[np.float64]]:
    """[[x1, y1, x2, y2, …], …], or one such list → float64 (N, 2) each."""
    if not isinstance(packed, list) or not packed:
        raise PansightError(where=where, expected="polygons or run lengths in 'segmentation'", found=f"{packed!r:.60}")
    outlines: list[NDArray[np.float64]] = []
    for part in packed if isinstance(packed[0], list) else [packed]:
        good = isinstance(part, list) and len(part) % 2 == 0 and all(type(v) in (int, float) for v in part)
        if not good:
            raise PansightError(where=where, expected="polygons of x, y pairs", found=f"{part!r:.60}")
        outlines.append(np.array(part, np.float64).reshape(-1, 2))  # (2N,) → (N, 2)
    return outlines
