"""Regions that may hold an object, proposed by any tool for the images of a data set: COCO results with boxes.

A row has an image, a box and perhaps a score; classes and masks are passed over. Rows stand in a bare list, where
``image_id`` is the id of the image or the name of its file, or in a file that lists its images as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pansight.data.dataset import Dataset, Subset
from pansight.data.formats.predictions.listing import ImageId, name_key, read_json_as
from pansight.errors import PansightError, shown
from pansight.types import Sample

WHAT = "proposals: COCO results with boxes"
COCO_DIGITS = 12
"""Of COCO's file names, which are the number of the image with zeros before it."""


class _Row(msgspec.Struct, gc=False):
    image_id: int | str
    bbox: list[float] | None = None
    score: float | None = None


class _Image(msgspec.Struct):
    id: int | str
    file_name: str = ""


class _File(msgspec.Struct):
    annotations: list[_Row]
    images: list[_Image] = []


class Proposals:
    """The boxes of one or more files, by image.

    Raises PansightError, naming the file, where one is missing or no such file, has no row, or a row without a box of
    four finite numbers x, y, width, height, of which the last two are 0 or more.
    """

    def __init__(self, paths: Sequence[str | Path]):
        self.source = ", ".join(str(path) for path in paths)
        rows: dict[ImageId, list[tuple[float, list[float]]]] = {}
        for path in map(Path, paths):
            file = read_json_as(path, list[_Row] | _File, WHAT)  # pyright: ignore[reportArgumentType] # a union of types
            given, images = (file, []) if isinstance(file, list) else (file.annotations, file.images)
            if not given:
                raise PansightError(where=path, expected=WHAT, found="no row")
            names = {image.id: image.file_name for image in images if image.file_name}
            for number, row in enumerate(given):
                box = _checked(row, number, path)
                for key in _keys_of_row(row.image_id, names):
                    rows.setdefault(key, []).append((1.0 if row.score is None else row.score, box))
        self._boxes = {key: _best_first(found) for key, found in rows.items()}

    def boxes(self, image_id: ImageId, file_name: str, size: tuple[int, int]) -> Tensor | None:
        """float32 (P, 4) as ``Sample.proposals`` has them, of the image with this id or name and this size (H, W).

        None where there are none.
        """
        found = next((self._boxes[key] for key in self._keys(image_id, file_name) if key in self._boxes), None)
        if found is None:
            return None
        corners = np.concatenate((found[:, :2], found[:, :2] + found[:, 2:]), axis=1)
        shares = (corners / ([size[1], size[0]] * 2)).clip(0, 1)
        kept = (shares[:, 2:] > shares[:, :2]).all(1)
        return torch.from_numpy(shares[kept]).float()

    def has(self, image_id: ImageId, file_name: str) -> bool:
        return any(key in self._boxes for key in self._keys(image_id, file_name))

    def _keys(self, image_id: ImageId, file_name: str) -> list[ImageId]:
        """An id, the same as a text or number, the path of the file without its suffix, its name alone, its number."""
        keys: list[ImageId] = [image_id, str(image_id)] if image_id != "" else []
        if isinstance(image_id, str) and image_id.isdecimal():
            keys.append(int(image_id))
        stem = PurePosixPath(name_key(file_name)).name
        keys += [key for key in (name_key(file_name), stem) if key]
        is_number_of_coco = len(stem) == COCO_DIGITS and stem.isdecimal()
        return [*keys, int(stem)] if is_number_of_coco else keys


def _keys_of_row(image_id: ImageId, names: dict[ImageId, str]) -> list[ImageId]:
    """What an image is known by: its name where the file lists it, since its number may then mean nothing elsewhere."""
    if image_id in names:
        return [name_key(names[image_id])]
    return list(dict.fromkeys((image_id, name_key(image_id)))) if isinstance(image_id, str) else [image_id]


def _checked(row: _Row, number: int, path: Path) -> list[float]:
    box = row.bbox
    if box is None or len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
        where = f"{path}: row {number} (image {shown(row.image_id, 60)})"
        raise PansightError(where=where, expected="bbox: x, y, width, height", found=f"{box!r:.80}")
    return box


def _best_first(rows: Sequence[tuple[float, list[float]]]) -> NDArray[np.float64]:
    """The boxes (P, 4) by falling score; those of one score in their order."""
    scores = np.array([score for score, _ in rows])
    return np.array([box for _, box in rows], np.float64)[np.argsort(-scores, kind="stable")]


class WithProposals(Subset):
    """All samples of `dataset`, each with the regions that were proposed for it; without any where there are none.

    Raises PansightError where nothing is proposed for any of the images: the file is that of other ones.
    """

    def __init__(self, dataset: Dataset, proposals: Proposals):
        super().__init__(dataset, range(len(dataset)))
        self.proposals = proposals
        found = [proposals.has(dataset.image_id(n), dataset.file_name(n)) for n in range(len(dataset))]
        self.lacking = len(found) - sum(found)
        if found and not any(found):
            example = f"{shown(dataset.image_id(0), 60)} ({shown(dataset.file_name(0), 60)})"
            raise PansightError(
                where=proposals.source,
                expected=f"proposals for the images of the data, such as {example}",
                found=f"none for any of {len(found)}",
            )

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        boxes = self.proposals.boxes(sample.image_id, self.file_name(index), sample.size)
        return replace(sample, proposals=torch.zeros(0, 4) if boxes is None else boxes)
