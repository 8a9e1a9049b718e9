"""What prediction files have in common: JSONs of COCO's kinds, the images that they list, and their tables of classes.

COCO results are a bare list of rows, in which images and classes are numbers alone. Other files name both, as
annotation files do, and so does what ``pansight predict`` writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

import msgspec

from pansight.errors import PansightError, shown
from pansight.files import decode_json, read_plain
from pansight.types import Category, Flag, LabelSpace, palette_color, read_flag

ImageId = int | str
T = TypeVar("T")


class ListedImage(NamedTuple):
    """An image that a file names. size: (H, W), None where the file does not say."""

    id: ImageId
    file_name: str
    size: tuple[int, int] | None = None


class ClassRow(NamedTuple):
    """A class that a file names, by the number that stands for it there. is_thing: None where the file does not say."""

    number: int
    name: str
    is_thing: bool | None = None
    color: tuple[int, int, int] | None = None


class Row(msgspec.Struct, gc=False):
    """A row of COCO results or annotations. segmentation: still packed."""

    image_id: int | str
    category_id: int
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    score: float | None = None


class _Image(msgspec.Struct):
    id: int | str
    file_name: str = ""
    height: int | None = None
    width: int | None = None
    semantic: str = ""  # the PNG, in semantic.json


class _Category(msgspec.Struct):
    id: int
    name: str
    isthing: Flag = None
    color: list[int] | None = None


class File(msgspec.Struct):
    """A JSON that names what it is about."""

    images: list[_Image] = []
    annotations: list[msgspec.Raw] | None = None
    categories: list[_Category] | None = None
    void: int | None = None


def read_json_as(path: Path, kind: type[T], what: str) -> T:
    """The file as a msgspec type. Raises PansightError, naming it and `what` it should be."""
    try:
        return decode_json(read_plain(path), kind, path)
    except PansightError as error:
        raise PansightError(where=path, expected=what, reason=error.what) from error
    except FileNotFoundError as error:
        raise PansightError(where=path, expected=what, found="no such file", code="missing_file") from error
    except OSError as error:
        raise PansightError("cannot be read", where=path, reason=error.strerror or error, code="cannot_read") from error


def read_rows(path: Path, what: str) -> tuple[list[Row], File | None]:
    """(the rows of COCO results or annotations, the file around them, None: a bare list). Raises PansightError."""
    if _is_list(path, what):
        return read_json_as(path, list[Row], what), None
    file = read_json_as(path, File, what)
    if file.annotations is None:
        raise PansightError(where=path, expected=what, found="no list of annotations")
    return [decode_json(bytes(row), Row, path) for row in file.annotations], file


def _is_list(path: Path, what: str) -> bool:
    try:
        return read_plain(path)[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    except FileNotFoundError as error:
        raise PansightError(where=path, expected=what, found="no such file", code="missing_file") from error
    except OSError as error:
        raise PansightError("cannot be read", where=path, reason=error.strerror or error, code="cannot_read") from error


def listed_images(file: File, path: Path) -> list[ListedImage]:
    """The images of a file, in its order. Raises PansightError where an id stands there twice."""
    seen: set[ImageId] = set()
    images: list[ListedImage] = []
    for row in file.images:
        if row.id in seen:
            raise PansightError(where=path, expected="each image id once", found=f"{shown(row.id, 60)} twice")
        seen.add(row.id)
        size = None if row.height is None or row.width is None else (row.height, row.width)
        images.append(ListedImage(row.id, row.file_name, size))
    return images


def listed_classes(file: File, path: Path) -> list[ClassRow] | None:
    """The classes of a file, None where it names none. Raises PansightError where a number or name stands twice."""
    if not file.categories:
        return None
    rows: list[ClassRow] = []
    for row in file.categories:
        is_thing = read_flag(row.isthing, f"{path}: category {shown(row.name, 60)}", "isthing")
        color = (row.color[0], row.color[1], row.color[2]) if row.color and len(row.color) == 3 else None
        rows.append(ClassRow(row.id, row.name, is_thing, color))
    return checked(rows, path)


def checked(rows: list[ClassRow], path: Path) -> list[ClassRow]:
    """Themselves. Raises PansightError where a number or a name stands twice."""
    for name in ("number", "name"):
        values = [getattr(row, name) for row in rows]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise PansightError(where=path, expected=f"each {name} of a class once", found=f"{shown(twice, 60)} twice")
    return rows


def label_space(rows: Sequence[ClassRow], default_thing: bool, path: Path) -> LabelSpace:
    """Classes in the order of a file. default_thing: of those of which the file does not say whether they are things.

    Raises PansightError for a colour out of range.
    """
    categories: Iterable[Category] = (
        Category(
            index,
            row.name,
            default_thing if row.is_thing is None else row.is_thing,
            row.color or palette_color(index),
            row.number,
        )
        for index, row in enumerate(rows)
    )
    try:
        return LabelSpace(categories)
    except PansightError as error:
        raise error.at(path) from error


def name_key(file_name: str) -> str:
    """What the name of an image, of its PNG and of other files about it share: the path without its suffix."""
    return PurePosixPath(file_name.replace("\\", "/")).with_suffix("").as_posix() if file_name else ""
