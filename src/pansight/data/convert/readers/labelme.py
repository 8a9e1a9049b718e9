"""LabelMe: one JSON beside each image, or in a folder of its own (github.com/wkentaro/labelme; X-AnyLabeling's too).

Polygons, rectangles, circles and masks are regions; shapes of one label and one group_id are one object. Points, lines
and strips have no pixels. The image is the file that imagePath names, wherever its folders went; where there is none,
it is taken from imageData. Versions before 4 have no shape_type and no group_id: polygons, each an object.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections import Counter
from pathlib import Path
from typing import Any

import imagecodecs
import msgspec
import numpy as np
from numpy.typing import NDArray

from pansight.data.convert.class_table import read_classes
from pansight.data.convert.lookup import (
    choose_part,
    files_ending,
    fitting_size,
    image_beside,
    image_size,
    short_names,
    walk_images,
)
from pansight.data.convert.polygons import expect_short, region_of_polygons
from pansight.data.convert.shapes import cut_to, ellipse_points, joined, rectangle_points
from pansight.data.convert.source import Annotated, Region, Source, SourceCategory, with_damaged
from pansight.data.dataset import part_folders
from pansight.data.images import IMAGE_SUFFIXES, check_png, read_header
from pansight.data.paths import locate_all
from pansight.errors import PansightError
from pansight.files import decode_json, read_plain

OUTLINES = ("polygon", "rotation", "oriented_rectangle")
REGIONS = (*OUTLINES, "rectangle", "circle", "mask")
LINES = ("point", "points", "line", "linestrip")
IGNORED_LABEL = "__ignore__"  # of LabelMe's own examples: not to be learned from


class _Outline(msgspec.Struct):
    """What is needed of every shape before any is drawn."""

    label: str | int
    shape_type: str | None = "polygon"


class _Looks(msgspec.Struct):
    """What tells the kind of a file; its values may be anything."""

    shapes: list[Any] | None = None
    imagePath: Any = None
    imageHeight: Any = None
    version: Any = None


class _Head(msgspec.Struct):
    """A file without coordinates and pixels."""

    shapes: list[_Outline] | None = None  # where it lacks, the file is another tool's
    imagePath: str | None = None


class _Shape(_Outline):
    points: list[list[float]] = []
    group_id: int | str | float | None = None
    mask: str | None = None


class _File(msgspec.Struct):
    shapes: list[_Shape]
    imageHeight: float | None = None
    imageWidth: float | None = None


class _ImageData(msgspec.Struct):
    imageData: str | None = None


class _LabelMe:
    """Entries are (JSON, image file or None where it is in the JSON, name in the output)."""

    def __init__(self, root: Path, entries: list[tuple[Path, Path | None, str]], labels: list[str], notes: list[str]):
        self.categories = tuple(SourceCategory(label, index + 1) for index, label in enumerate(labels))
        self.notes = tuple(notes)
        self._root, self._entries = root, entries
        self._known = {label: index for index, label in enumerate(labels)}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Annotated:
        file, image, name = self._entries[index]
        data = _read(file)
        expect_short(data, b",", file)
        content = decode_json(data, _File, file)
        stated = _stated_size(content, file)
        within = _image_within(data, file) if image is None else None
        if image is not None:
            size = image_size(image, stated)
        else:
            assert within is not None
            size = fitting_size(read_header(within, f"{file}: imageData"), f"{file}: imageData", stated)
        groups: dict[Any, list[Region]] = {}
        empty: list[int] = []
        for number, shape in enumerate(content.shapes, 1):
            if shape.shape_type in LINES or shape.label == IGNORED_LABEL:
                continue
            where = f"{file}: shape {number} ({shape.label!r:.40})"
            category = self._known[str(shape.label)]
            region = _region(shape, size, category, where)
            if region is None:
                empty.append(category)
            else:
                alone = shape.group_id is None
                groups.setdefault(number if alone else (category, shape.group_id), []).append(region)
        regions = tuple(joined(parts) for parts in groups.values())
        image_id = file.relative_to(self._root).with_suffix("").as_posix()
        return Annotated(image_id, name, within or image, size, regions, empty=tuple(empty))


def _image_within(data: bytes, file: Path) -> bytes:
    """The content of the image file that a JSON holds. Raises PansightError where that is none."""
    return _from_base64(decode_json(data, _ImageData, file).imageData or "", f"{file}: imageData")


def open_labelme(source: Path, split: str | None = None) -> Source:
    """LabelMe: a folder with JSON files beside the images, or in another folder of the same tree, or one JSON file.

    Classes are the labels that occur, by name, or as labels.txt lists them. Raises PansightError, naming file and
    shape, where a shape is none; an image raises it where its file is missing or damaged.
    """
    source = Path(source)
    notes: list[str] = []
    if source.is_file():
        root, files = source.parent, [source]
    else:
        part, note = choose_part(splits_labelme(source), split, source)
        root = source if part is None else source / part
        notes += [] if note is None else [note]
        files = files_ending(root, ".json", recursive=True)
    stated: dict[Path, str | None] = {}  # file → imagePath
    left_out: Counter[str] = Counter()
    labels: set[str] = set()
    strangers: list[Path] = []
    damaged: list[PansightError] = []
    for file in files:
        try:
            head = _head(_read(file), file)
        except PansightError as error:
            damaged.append(error.with_traceback(None))
            continue
        if head is None:
            strangers.append(file)
            continue
        outlines = head.shapes or []
        labels.update(str(shape.label) for shape in outlines if shape.shape_type not in LINES)
        left_out.update(_left_out(outlines, file))
        stated[file] = head.imagePath
    if not stated and damaged:
        raise damaged[0]
    if not stated:
        raise PansightError(where=root, expected="LabelMe's JSON files (shapes, imagePath)", found="none")
    entries, told, missing = _with_images(stated, source if source.is_dir() else root)
    damaged += missing
    notes += [*told, *_notes(root, entries, strangers, left_out)]
    names = short_names([place for _, _, place in entries])
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise PansightError(where=root, expected="one JSON an image", found=f"several of {twice}")
    ordered = _ordered(labels - {IGNORED_LABEL}, source)
    found = _LabelMe(root, [(f, image, name) for (f, image, _), name in zip(entries, names)], ordered, notes)
    return with_damaged(found, damaged)


def splits_labelme(source: Path) -> tuple[str, ...]:
    """The parts that have folders of their own, where no JSON lies outside of them."""
    if files_ending(source, ".json"):
        return ()
    return tuple(part for part in part_folders(source) if next((source / part).rglob("*.[jJ][sS][oO][nN]"), None))


def is_labelme(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    try:
        files = [source] if source.suffix.lower() == ".json" and source.is_file() else _first_jsons(source)
        return any(map(_looks_so, files))
    except (OSError, PansightError):
        return False


# --- files -----------------------------------------------------------------------------------------------------------


def _first_jsons(root: Path) -> list[Path]:
    """Some JSONs of the places where LabelMe's lie: the first of all may be of another kind."""
    folders = [root, *sorted(f for f in root.glob("*") if f.is_dir())[:20]] if root.is_dir() else []
    found = [file for folder in folders for file in files_ending(folder, ".json")[:20]]
    return [file for file in found if file.stat().st_size < 2**26][:60]


def _looks_so(file: Path) -> bool:
    """Whether a JSON has what LabelMe's have, be its shapes damaged or not."""
    try:
        looks = decode_json(_read(file), _Looks, file)
    except PansightError:
        return False
    return looks.shapes is not None and any(v is not None for v in (looks.imagePath, looks.version, looks.imageHeight))


def _read(file: Path) -> bytes:
    try:
        return read_plain(file)
    except OSError as error:
        raise PansightError("cannot be read", where=file, reason=error.strerror or error, code="cannot_read") from error


def _head(data: bytes, file: Path) -> _Head | None:
    """None where the file is JSON, but not LabelMe's."""
    kind: Any = _Head | list[msgspec.Raw]
    head = decode_json(data, kind, file)
    return None if isinstance(head, list) or head.shapes is None else head


def _left_out(shapes: list[_Outline], file: Path) -> list[str]:
    """The kinds of shapes that are not read. Raises PansightError for kinds that are not known."""
    bad = next((shape.shape_type for shape in shapes if shape.shape_type not in (*REGIONS, *LINES, None)), None)
    if bad is not None:
        raise PansightError(where=file, expected=f"shapes of type {', '.join(REGIONS + LINES)}", found=f"{bad!r:.40}")
    kinds = [str(shape.shape_type) for shape in shapes if shape.shape_type in LINES]
    return kinds + [IGNORED_LABEL for shape in shapes if shape.label == IGNORED_LABEL]


def _with_images(
    stated: dict[Path, str | None], source: Path
) -> tuple[list[tuple[Path, Path | None, Path]], tuple[str, ...], list[PansightError]]:
    """[(JSON, image file or None where it is in the JSON, where the image lies or would lie)], notes, and an error for
    every JSON whose image is nowhere.

    An image is the file that imagePath names, beside the JSON or above it within `source`; else one called as the JSON
    is. stated: the imagePath of each JSON.
    """
    found = locate_all([name or "" for name in stated.values()], [source], starts=[file.parent for file in stated])
    entries: list[tuple[Path, Path | None, Path]] = []
    missing: list[PansightError] = []
    for (file, name), located in zip(stated.items(), found.files):
        image = image_beside(file.parent, file.stem) if located is None else located.path
        try:
            entries.append((file, image, image or _virtual_image(name, file)))
        except PansightError as error:
            missing.append(error.with_traceback(None))
    return entries, found.notes, missing


def _virtual_image(stated: str | None, file: Path) -> Path:
    """Where the image within a JSON would lie. Raises PansightError where there is none in it either."""
    text = decode_json(_read(file), _ImageData, file).imageData
    if not text:
        raise PansightError(
            f"expected the image {stated!r:.120} in this folder, or imageData; found neither", where=file
        )
    header = read_header(_from_base64(text, f"{file}: imageData"), f"{file}: imageData")
    suffix = {"jpeg": ".jpg", "png": ".png"}.get(header.kind, Path(stated or "").suffix.lower())
    if suffix not in IMAGE_SUFFIXES:
        raise PansightError(where=file, expected="imagePath with the suffix of an image", found=f"{stated!r:.120}")
    return file.with_suffix(suffix)


def _notes(
    root: Path, entries: list[tuple[Path, Path | None, Path]], strangers: list[Path], shapes: Counter[str]
) -> list[str]:
    notes: list[str] = []
    if strangers:
        notes.append(f"{len(strangers)} JSON files are not LabelMe's and are left out: {strangers[0].name}, …")
    if shapes:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(shapes.items()))
        notes.append(f"shapes that are no regions are left out: {kinds}")
    packed = sum(image is None for _, image, _ in entries)
    if packed:
        notes.append(f"{packed} images are taken from imageData: their files are not there")
    used = {image for _, image, _ in entries}
    bare = [image for image in walk_images(root) if image not in used]
    if bare:
        notes.append(f"{len(bare)} images have no annotation file and are left out, the first is {bare[0].name}")
    return notes


def _ordered(labels: set[str], source: Path) -> list[str]:
    """By labels.txt where there is one, what it lacks behind it; else by name."""
    table = (source if source.is_dir() else source.parent) / "labels.txt"
    listed = [row.name for row in read_classes(table)] if table.is_file() else []
    listed = [name for name in listed if not (name.startswith("__") or (name == "_background_" and name not in labels))]
    return listed + sorted(labels - set(listed))


# --- shapes ----------------------------------------------------------------------------------------------------------


def _stated_size(content: _File, file: Path) -> tuple[int, int] | None:
    height, width = content.imageHeight, content.imageWidth
    if height is None or width is None:
        return None
    if height % 1 or width % 1 or not (1 <= height < 2**31 and 1 <= width < 2**31):
        raise PansightError(
            where=file, expected="imageHeight and imageWidth in pixels", found=f"{height:g} and {width:g}"
        )
    return int(height), int(width)


def _region(shape: _Shape, size: tuple[int, int], category: int, where: str) -> Region | None:
    if any(len(point) != 2 for point in shape.points):
        raise PansightError(where=where, expected="points of two numbers", found=f"{shape.points!r:.60}")
    points, kind = shape.points, shape.shape_type
    if kind == "rectangle" and len(points) == 4:  # turned ones, as some versions write them
        kind = "polygon"
    if kind in ("rectangle", "circle", "mask") and len(points) != 2:
        raise PansightError(where=where, expected=f"2 points of a {kind}", found=len(points))
    if kind == "mask":
        return _mask_region(shape, size, category, where)
    outline: Any = points
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points
        outline = rectangle_points(x1, y1, x2 - x1, y2 - y1)
    elif kind == "circle":
        (x, y), (edge_x, edge_y) = points
        radius = math.hypot(edge_x - x, edge_y - y)
        outline = ellipse_points(x, y, radius, radius, 0.0, where)
    return region_of_polygons([outline], size, category, where)


def _mask_region(shape: _Shape, size: tuple[int, int], category: int, where: str) -> Region | None:
    """A PNG in base64 and the box that it fills, last row and column included."""
    box = np.array(shape.points, np.float64)
    if not np.isfinite(box).all() or np.abs(box).max() > 2**31:
        raise PansightError(
            where=where, expected="the corners of the mask's box in pixels", found=f"{shape.points!r:.60}"
        )
    (left, top), (right, bottom) = np.rint(box).astype(int).tolist()
    mask = _png_mask(_from_base64(shape.mask or "", f"{where}: mask"), f"{where}: mask")
    expected = abs(bottom - top) + 1, abs(right - left) + 1
    if max(abs(a - b) for a, b in zip(mask.shape, expected)) > 1:  # tools round the corners either way
        found = f"{mask.shape[0]}×{mask.shape[1]}"
        raise PansightError(where=where, expected=f"a mask of {expected[0]}×{expected[1]} as its box", found=found)
    return cut_to(mask, min(top, bottom), min(left, right), size, category)


def _png_mask(data: bytes, where: str) -> NDArray[np.bool_]:
    """bool (h, w): the pixels of a PNG that are not zero, in any of its colours."""
    header = read_header(data, where)
    try:
        if header.kind != "png":
            raise ValueError("another kind of file")
        check_png(data, header, where)
        pixels: NDArray[Any] = imagecodecs.png_decode(data)
    except (RuntimeError, ValueError) as error:
        raise PansightError(where=where, expected="a PNG", found=f"{' '.join(str(error).split()):.80}") from error
    if pixels.ndim == 2:
        return pixels != 0
    colors = pixels.shape[2] - (pixels.shape[2] in (2, 4))  # without alpha
    return (pixels[..., :colors] != 0).any(axis=2)


def _from_base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PansightError(where=where, expected="base64", found=f"{error} in {text[:20]!r}") from error
