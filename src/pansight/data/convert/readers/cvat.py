"""CVAT for images 1.1: annotations.xml beside a folder images/ (docs.cvat.ai, "XML annotation format").

Polygons, boxes, ellipses and masks are regions, in the order of z_order (a higher one lies above); shapes of one label
and one group_id are one object. Points, polylines, cuboids, skeletons and tags have no pixels. A mask's run lengths go
along the rows of its box, background first; boxes and ellipses turn clockwise about their centre.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

import numpy as np

from pansight.data.convert.lookup import choose_part, files_ending, image_size, short_names, stems
from pansight.data.convert.polygons import expect_short, region_of_polygons
from pansight.data.convert.shapes import cut_to, ellipse_points, joined, rectangle_points
from pansight.data.convert.source import Annotated, Region, Source, SourceCategory, with_damaged
from pansight.data.dataset import split_of
from pansight.data.images import MAX_PIXELS
from pansight.data.paths import locate_all, named_folder, path_parts
from pansight.errors import PansightError
from pansight.files import open_plain

REGIONS = ("polygon", "box", "ellipse", "mask")
LEFT_OUT = ("polyline", "points", "cuboid", "skeleton", "tag")
MAX_TEXT = 1000  # of a label's name
CHUNK = 2**22  # bytes: the parser begins anew with each one that a long attribute takes


class _Shape(NamedTuple):
    kind: str
    attributes: dict[str, str]


class _Image(NamedTuple):
    name: str
    size: tuple[int, int]  # (H, W)
    subset: str
    shapes: list[_Shape]


class _Cvat:
    def __init__(
        self,
        file: Path,
        images: list[_Image],
        paths: list[Path | None],
        categories: tuple[SourceCategory, ...],
        notes: tuple[str, ...],
    ):
        self.categories, self.notes = categories, notes
        self._file, self._images, self._paths = file, images, paths
        self._known = {category.name: index for index, category in enumerate(categories)}
        found = [path for path in paths if path is not None]
        self._names = short_names(found) if found else ["/".join(path_parts(image.name)) for image in images]
        self._image_ids = stems(self._names)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Annotated:
        image, path = self._images[index], self._paths[index]
        size = image.size if path is None else image_size(path, image.size)
        groups: dict[object, list[Region]] = {}
        empty: list[int] = []
        place = f"{self._file}: {image.name}"
        heights = [_number(shape.attributes, "z_order", place, "0") for shape in image.shapes]
        drawn = sorted(enumerate(image.shapes, 1), key=lambda row: heights[row[0] - 1])
        for number, shape in drawn:
            where = f"{place}: {shape.kind} {number}"
            category = self._known[shape.attributes["label"]]
            region = _region(shape, size, category, where)
            if region is None:
                empty.append(category)
            else:
                group = shape.attributes.get("group_id", "0")
                key = number if group == "0" else (category, group)
                parts = groups.pop(key, [])
                groups[key] = parts  # last: at the height of its highest part
                parts.append(region)
        regions = tuple(joined(parts) for parts in groups.values())
        return Annotated(self._image_ids[index], self._names[index], path, size, regions, empty=tuple(empty))


def open_cvat(source: Path, split: str | None = None, *, image_folder: str | None = None) -> Source:
    """CVAT for images 1.1: a folder with annotations.xml and images/, or the XML file itself. split: a subset's name.

    image_folder: that of the images where it is not the file's own or images/ in it. Where no image is found at all,
    maps are made at the sizes that the XML gives. Raises PansightError, naming image and shape, where a file is damaged
    or holds a DTD, or a shape is none; an image raises it where its file is missing or of another size.
    """
    source = Path(source)
    file = _xml_of(source)
    if file is None:
        raise PansightError(
            where=source, expected="annotations.xml (CVAT for images 1.1)", found="none, or several others"
        )
    parser = _Parser(file)
    if not parser.images:
        raise PansightError(where=file, expected="images (CVAT for images 1.1)", found="none")
    by_subset = _by_subset(parser.images)
    chosen, note = choose_part(by_subset, None if split is None else split.lower(), file)
    rows = by_subset[str(chosen)]
    notes = [] if note is None else [note]
    root = named_folder(file.parent, image_folder)
    rows, paths, told, missing = _paths(rows, root, source if source.is_dir() and image_folder is None else root, file)
    notes += told
    if all(path is None for path in paths):
        notes.append(f"no image was found in {root.name} or its images/: sizes are those of the XML")
    if any(shape.attributes.get("z_order", "0") != "0" for image in rows for shape in image.shapes):
        notes.append("where shapes overlap, CVAT shows the one of higher z_order: that is --overlap later-on-top")
    if parser.left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(parser.left_out.items()))
        notes.append(f"shapes that are no regions are left out: {kinds}")
    return with_damaged(_Cvat(file, rows, paths, _categories(parser), tuple(notes)), missing)


def is_cvat(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    try:
        return _xml_of(source) is not None
    except (OSError, ValueError):
        return False


def splits_cvat(source: Path) -> tuple[str, ...]:
    """The subsets, in small letters, where there are several or the only one has the name of a split."""
    try:
        file = _xml_of(source)
        subsets = tuple(_by_subset(_Parser(file).images)) if file is not None else ()
    except (OSError, ValueError, PansightError):
        return ()
    return subsets if len(subsets) > 1 or any(split_of(subset) for subset in subsets) else ()


# --- the file --------------------------------------------------------------------------------------------------------


def _xml_of(source: Path) -> Path | None:
    """annotations.xml, else the only XML file whose root is <annotations>; where there is none, in the sub-folders."""
    if source.is_file():
        found = [source]
    else:
        usual = source / "annotations.xml"
        found = [usual] if usual.is_file() else files_ending(source, ".xml")[:20]
        inner = (path for path in sorted(source.glob("*")) if path.is_dir() and not path.name.startswith("."))
        found = found or [file for folder in islice(inner, 20) for file in files_ending(folder, ".xml")[:20]]
    found = [file for file in found if file.suffix.lower() == ".xml" and _begins_like_cvat(file)]
    return found[0] if len(found) == 1 else None


def _begins_like_cvat(file: Path) -> bool:
    with open_plain(file) as opened:
        begin = opened.read(4096).replace(b"\0", b"")  # of UTF-16, which XML may be written in
        return re.search(rb"<annotations[\s>/]", begin) is not None


class _Parser:
    """One pass over the file without building a tree. DTDs are refused: only they can name files or multiply text."""

    def __init__(self, file: Path):
        self.images: list[_Image] = []
        self.labels: dict[str, tuple[str, str]] = {}  # name → (color, type)
        self.left_out: Counter[str] = Counter()
        self._file, self._path, self._text = file, list[str](), ""
        self._label: dict[str, str] = {}
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._refuse
        try:
            with open_plain(file) as opened:
                while data := opened.read(CHUNK):
                    parser.Parse(data, False)
                parser.Parse(b"", True)
        except OSError as error:
            raise PansightError(
                "cannot be read", where=file, reason=error.strerror or error, code="cannot_read"
            ) from error
        except (expat.ExpatError, ValueError, LookupError) as error:
            raise PansightError(where=file, expected="XML", reason=error) from error

    def _refuse(self, name: str, *_: object) -> None:
        raise PansightError(where=self._file, expected="XML without a DTD", found=f"<!DOCTYPE {name:.40}>")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        depth, self._text = len(self._path), ""
        self._path.append(name)
        if depth == 0 and name != "annotations":
            raise PansightError(where=self._file, expected="<annotations> (CVAT for images 1.1)", found=f"<{name:.40}>")
        if depth == 1 and name == "track":
            raise PansightError(
                where=self._file,
                expected="images",
                found="tracks of a video",
                hint="export it from CVAT as 'CVAT for images 1.1'",
            )
        if depth == 1 and name == "image":
            self.images.append(self._image(attributes))
        if depth == 2 and self._path[1] == "image":
            self._shape(name, attributes)
        if name == "label":
            self._label = {}

    def _end(self, name: str) -> None:
        self._path.pop()
        if self._path[1:2] == ["meta"]:
            if self._path[-1] == "label":
                self._label[name] = self._text.strip()
            if name == "label" and self._label.get("name") and not self._label.get("parent"):  # no part of a skeleton
                self.labels[self._label["name"]] = self._label.get("color", ""), self._label.get("type", "any")
        self._text = ""

    def _characters(self, text: str) -> None:
        if self._path[1:2] == ["meta"] and len(self._text) < MAX_TEXT:
            self._text += text[:MAX_TEXT]

    def _image(self, attributes: dict[str, str]) -> _Image:
        name = attributes.get("name", "")
        sides = [attributes.get(key, "") for key in ("height", "width")]
        if not name or not all(re.fullmatch("[1-9][0-9]{0,8}", side) for side in sides):
            found = f"name {name!r:.60}, height {sides[0]!r:.20}, width {sides[1]!r:.20}"
            raise PansightError(where=self._file, expected="a name and a size in pixels of every image", found=found)
        height, width = int(sides[0]), int(sides[1])
        if height * width > MAX_PIXELS:
            expected, found = f"at most {MAX_PIXELS // 10**6} million pixels", f"{height}×{width}"
            raise PansightError(where=f"{self._file}: {name}", expected=expected, found=found)
        return _Image(name, (height, width), attributes.get("subset", "default"), [])

    def _shape(self, kind: str, attributes: dict[str, str]) -> None:
        image = self.images[-1]
        if kind in LEFT_OUT:
            self.left_out[kind] += 1
        elif kind not in REGIONS:
            known = ", ".join(REGIONS + LEFT_OUT)
            raise PansightError(f"expected shapes {known}; found <{kind:.40}>", where=f"{self._file}: {image.name}")
        elif not attributes.get("label"):
            where = f"{self._file}: {image.name}: {kind} {len(image.shapes) + 1}"
            raise PansightError(where=where, expected="a label", found="none")
        else:
            image.shapes.append(_Shape(kind, attributes))


def _by_subset(images: list[_Image]) -> dict[str, list[_Image]]:
    found: dict[str, list[_Image]] = {}
    for image in images:
        found.setdefault(image.subset.lower(), []).append(image)
    return found


def _categories(parser: _Parser) -> tuple[SourceCategory, ...]:
    """The labels of the project in their order, without those of points and lines; behind them what else occurs."""
    used = dict.fromkeys(shape.attributes["label"] for image in parser.images for shape in image.shapes)
    named = [name for name, (_, kind) in parser.labels.items() if name in used or kind not in LEFT_OUT]
    names = list(dict.fromkeys([*named, *used]))
    colors = [parser.labels.get(name, ("", ""))[0] for name in names]
    return tuple(
        SourceCategory(name, index + 1, None, _color(color)) for index, (name, color) in enumerate(zip(names, colors))
    )


def _color(text: str) -> tuple[int, int, int] | None:
    match = re.fullmatch("#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", text)
    return None if match is None else (int(match[1], 16), int(match[2], 16), int(match[3], 16))


def _paths(
    images: list[_Image], root: Path, outer: Path, file: Path
) -> tuple[list[_Image], list[Path | None], tuple[str, ...], list[PansightError]]:
    """(images, the file of each below `root`, else below `outer`; notes; an error for every image that has none).

    Where no image has a file at all, they all stay, with None. Raises PansightError where a file is that of several.
    """
    subsets = dict.fromkeys(i.subset if re.fullmatch(r"\w[\w .-]*", i.subset) else "default" for i in images)
    homes = (root / "images", root, outer / "images", outer)
    places = [place for home in homes for place in (*(home / subset for subset in subsets), home)]
    found = locate_all([image.name for image in images], places)
    paths = [None if located is None else located.path for located in found.files]
    if all(path is None for path in paths) and not found.ambiguous:
        return images, paths, found.notes, []
    twice = next((path for path, count in Counter(filter(None, paths)).items() if count > 1), None)
    if twice is not None:
        raise PansightError(where=file, expected="a file for every image", found=f"{twice} for several")
    missing: list[PansightError] = []
    for image, path in zip(images, paths):
        if path is None:
            other = found.ambiguous.get(image.name)
            told = "none" if other is None else f"only {other.name}, which may be another picture"
            expected = f"{image.name!r:.120} in {root} or its images/"
            missing.append(PansightError(where=file, expected=expected, found=told))
    there = [(image, path) for image, path in zip(images, paths) if path is not None]
    return [image for image, _ in there], [path for _, path in there], found.notes, missing


# --- shapes ----------------------------------------------------------------------------------------------------------


def _number(attributes: dict[str, str], key: str, where: str, default: str = "") -> float:
    text = attributes.get(key, default)
    try:
        return float(text)
    except ValueError as error:
        raise PansightError(where=where, expected=f"a number {key}", found=f"{text!r:.40}") from error


def _numbers(text: str, separators: str, where: str, what: str) -> list[float]:
    try:
        return [float(word) for word in re.split(f"[{separators}]", text)]
    except ValueError as error:
        raise PansightError(where=where, expected=what, found=f"{text!r:.60}") from error


def _region(shape: _Shape, size: tuple[int, int], category: int, where: str) -> Region | None:
    kind, attributes = shape
    if kind == "mask":
        return _mask_region(attributes, size, category, where)
    if kind == "polygon":
        text = attributes.get("points", "")
        expect_short(text, ",", where)
        values = _numbers(text, ",;", where, "points x,y;x,y;…")
        if len(values) % 2 or text.count(",") * 2 != len(values):
            raise PansightError(where=where, expected="points x,y;x,y;…", found=f"{text!r:.60}")
        outline = list(zip(values[::2], values[1::2]))
    elif kind == "box":
        left, top, right, bottom = (_number(attributes, key, where) for key in ("xtl", "ytl", "xbr", "ybr"))
        if right < left or bottom < top:
            found = f"x {left:g} … {right:g}, y {top:g} … {bottom:g}"
            raise PansightError(where=where, expected="a box from its top left to its bottom right corner", found=found)
        degrees = _number(attributes, "rotation", where, "0")
        outline = rectangle_points(
            left, top, right - left, bottom - top, degrees, ((left + right) / 2, (top + bottom) / 2)
        )
    else:
        x, y, radius_x, radius_y = (_number(attributes, key, where) for key in ("cx", "cy", "rx", "ry"))
        outline = ellipse_points(x, y, radius_x, radius_y, _number(attributes, "rotation", where, "0"), where)
    return region_of_polygons([outline], size, category, where)


def _mask_region(attributes: dict[str, str], size: tuple[int, int], category: int, where: str) -> Region | None:
    left, top, width, height = (_number(attributes, key, where) for key in ("left", "top", "width", "height"))
    if not all(v % 1 == 0 and abs(v) < 2**31 for v in (left, top, width, height)) or min(width, height) < 1:
        found = f"left {left:g}, top {top:g}, width {width:g}, height {height:g}"
        raise PansightError(where=where, expected="the box of a mask in whole pixels", found=found)
    expect_short(attributes.get("rle", ""), ",", where)
    lengths = _numbers(attributes.get("rle", ""), ",", where, "run lengths")
    pixels = int(width) * int(height)
    if not all(v >= 0 and v % 1 == 0 for v in lengths) or sum(lengths) != pixels or pixels > MAX_PIXELS:
        found = f"{sum(lengths):g} in {len(lengths)} runs"
        raise PansightError(where=where, expected=f"run lengths of {pixels} pixels ({width:g}×{height:g})", found=found)
    values = np.arange(len(lengths)) % 2 == 1  # background first
    mask = np.repeat(values, np.array(lengths, np.int64)).reshape(int(height), int(width))  # (h·w,) → (h, w)
    return cut_to(mask, int(top), int(left), size, category)
