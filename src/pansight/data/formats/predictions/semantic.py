"""Predicted semantic maps of any tool: a folder of PNGs, whose pixels are numbers of classes, or COCO-stuff results, a
run-length mask for each class of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pansight.data.convert.class_table import find_class_table, read_classes
from pansight.data.formats.predictions.listing import (
    ClassRow,
    File,
    ImageId,
    ListedImage,
    Row,
    listed_classes,
    listed_images,
    name_key,
    read_json_as,
    read_rows,
)
from pansight.data.formats.predictions.objects import mask_of, region_of
from pansight.data.images import read_index_png
from pansight.errors import PansightError
from pansight.files import decode_json, flat_name, safe_join
from pansight.ops.idmap import present_ids

WHAT = "a folder of PNGs, semantic.json, or COCO-stuff results"
NAME = "semantic.json"
"""As ``pansight predict`` calls the file that names the PNGs of its folder."""
MAX_DIGITS = 12
"""Of COCO's file names, which are the image's number with zeros before it."""


class ClassMask(NamedTuple):
    """The pixels of one class of an image, by the number that stands for it in the file."""

    number: int
    mask: NDArray[np.bool_]  # (H, W)


class SemanticPredictions(Protocol):
    """Semantic maps, image by image. classes: None where nothing names them. images: all that there are, in order;
    names_images: whether a file lists them by id and name, else they are what PNGs or rows are called.
    """

    path: Path
    classes: list[ClassRow] | None
    images: list[ListedImage]
    names_images: bool

    def has(self, image: ListedImage) -> bool:
        """Whether there is a prediction of this image, by its id and its name."""
        ...

    def read(self, image: ListedImage) -> tuple[tuple[int, int] | None, list[ClassMask]]:
        """((H, W), the masks of its classes in the order in which they are painted). Size None: of an image without
        any mask, whose size nobody said. Raises PansightError for a damaged file and a mask of another size.
        """
        ...


def open_semantic(path: str | Path, class_table: str | Path | None = None) -> SemanticPredictions:
    """A folder of PNGs, alone or with the semantic.json that ``pansight predict`` writes, or COCO-stuff results.

    class_table: a file that names the classes of the PNGs; by default the table that lies in their folder, if any.
    Raises PansightError, in one line, for anything else.
    """
    path = Path(path)
    if not path.exists():
        raise PansightError(where=path, expected=WHAT, found="no such file or folder", code="missing_file")
    if path.is_dir():
        beside = next((file for file in (path / NAME, path.parent / NAME) if file.is_file()), None)
        if beside is not None and (beside.parent == path or path.name == beside.stem):
            path = beside
        else:
            return SemanticPngs(path, class_table)
    rows_follow = path.suffix.lower() == ".json" and not _names_pngs(path)
    return StuffResults(path) if rows_follow else ListedPngs(path, class_table)


def _names_pngs(path: Path) -> bool:
    data = path.read_bytes()
    return data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and b'"semantic"' in data


class SemanticPngs:
    """A folder of PNGs that are called like their images, or by their numbers."""

    def __init__(self, folder: Path, class_table: str | Path | None):
        self.path = folder
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() == ".png")
        if not files:
            raise PansightError(where=folder, expected=WHAT, found="no PNG in it")
        self._files = {name_key(file.relative_to(folder).as_posix()): file for file in files}
        table = find_class_table([folder, folder.parent]) if class_table is None else Path(class_table)
        self.classes = None if table is None else rows_of_table(table)
        self.images = [ListedImage(_number_or_name(key), f"{key}.png") for key in self._files]
        self.names_images = False

    def has(self, image: ListedImage) -> bool:
        return self._file_of(image) is not None

    def read(self, image: ListedImage) -> tuple[tuple[int, int], list[ClassMask]]:
        file = self._file_of(image)
        assert file is not None
        return read_map(file, None)

    def _file_of(self, image: ListedImage) -> Path | None:
        key = name_key(image.file_name)
        flat = name_key(flat_name(image.file_name, ".png", set())) if image.file_name else ""
        number = f"{image.id}"
        for name in (key, flat, key.rpartition("/")[2], number, number.zfill(MAX_DIGITS)):
            if name and name in self._files:
                return self._files[name]
        return None


class ListedPngs:
    """PNGs that a semantic.json names, with its images, classes and the number of void."""

    def __init__(self, path: Path, class_table: str | Path | None):
        self.path = path
        file = read_json_as(path, File, WHAT)
        self.classes = listed_classes(file, path) if class_table is None else rows_of_table(Path(class_table))
        self.images, self.names_images = listed_images(file, path), True
        if not self.images or any(not row.semantic for row in file.images):
            raise PansightError(where=path, expected=WHAT, found="images without the name of their PNG")
        folder = path.with_suffix("")
        self._files = {row.id: safe_join(folder, row.semantic, path) for row in file.images}
        self._ids = {name_key(row.file_name): row.id for row in file.images}
        self._void = file.void

    def _id_of(self, image: ListedImage) -> ImageId | None:
        by_name = self._ids.get(name_key(image.file_name)) if image.file_name else None
        return by_name if by_name is not None else image.id if image.id in self._files else None

    def has(self, image: ListedImage) -> bool:
        return self._id_of(image) is not None

    def read(self, image: ListedImage) -> tuple[tuple[int, int], list[ClassMask]]:
        own = self._id_of(image)
        assert own is not None
        return read_map(self._files[own], self._void)


class StuffResults:
    """COCO-stuff results: rows of a bare list, or of a file that names images and classes.

    Rows of one class and image are one mask; the order is that in which a class is first named.
    """

    def __init__(self, path: Path):
        self.path = path
        rows, file = read_rows(path, WHAT)
        self.classes = None if file is None else listed_classes(file, path)
        self._rows: dict[ImageId, list[Row]] = {}
        for row in rows:
            self._rows.setdefault(row.image_id, []).append(row)
        listed = [] if file is None else listed_images(file, path)
        self.names_images = bool(listed)
        self.images = listed or [ListedImage(image_id, "") for image_id in self._rows]
        self._ids = {name_key(image.file_name): image.id for image in listed if image.file_name}
        self._sizes = {image.id: image.size for image in listed}

    def _id_of(self, image: ListedImage) -> ImageId:
        by_name = self._ids.get(name_key(image.file_name)) if image.file_name else None
        return image.id if by_name is None else by_name

    def has(self, image: ListedImage) -> bool:
        own = self._id_of(image)
        return own in self._rows or own in self._sizes

    def read(self, image: ListedImage) -> tuple[tuple[int, int] | None, list[ClassMask]]:
        own = self._id_of(image)
        rows = self._rows.get(own, [])
        size = image.size or self._sizes.get(own) or size_of(rows)
        masks: dict[int, NDArray[np.bool_]] = {}
        for row in rows:
            if size is None:
                break
            number = row.category_id
            region = region_of(row, size, f"{self.path}: image {own}: category_id {number}")
            if region is not None:
                mask = mask_of(region, size)
                masks[number] = masks[number] | mask if number in masks else mask
        return size, [ClassMask(*pair) for pair in masks.items()]


def _number_or_name(key: str) -> ImageId:
    """COCO's images are numbers, which their files are called by."""
    return int(key) if key.isdecimal() and len(key) < 19 else key


def size_of(rows: Sequence[Row]) -> tuple[int, int] | None:
    """(H, W) that the first mask of run lengths states; None where there is none."""
    for row in rows:
        packed = decode_json(bytes(row.segmentation), object, "segmentation")
        size = packed.get("size") if isinstance(packed, dict) else None
        if isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
            return size[0], size[1]
    return None


def read_map(file: Path, void: int | None) -> tuple[tuple[int, int], list[ClassMask]]:
    """A PNG of numbers of classes: its size, and a mask for each number but that of void, in rising order."""
    values = read_index_png(file)
    numbers = [number for number in present_ids(values).tolist() if number != void]
    return (values.shape[0], values.shape[1]), [ClassMask(number, values == number) for number in numbers]


def rows_of_table(path: Path) -> list[ClassRow]:
    """The classes of a table (names, CSV, JSON). Raises PansightError where it is missing or malformed."""
    return [ClassRow(row.value, row.name, row.is_thing, row.color) for row in read_classes(path)]
