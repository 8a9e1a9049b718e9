"""Examine one image with its annotation: find every defect, and what remains of it without the defects."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.data.check.defects import Defect, defect, one_line, shown, shown_value
from pansight.data.check.reader import Part, Record, file_in, is_file, whole
from pansight.data.images import (
    PNG_GREY,
    PNG_PALETTE,
    Header,
    decode_image,
    open_pillow,
    read_bytes,
    read_header,
    read_index_png,
    read_rgb_ids,
)
from pansight.errors import PansightError
from pansight.ops.idmap import MAX_ID, IdArray, areas, boxes_xyxy, present_ids, rgb_to_ids
from pansight.types import read_flag

MANY_IDS = 100_000
"""A map with more ids than this is no id map; counting them would only cost memory."""

NAMED_IDS = 20
"""Up to so many undeclared ids of one PNG get a line each; more are one line, for they have one cause."""


class Declared(NamedTuple):
    """A row of `segments_info` that can be used."""

    id: int
    category: int  # the file's own category id
    is_crowd: bool
    row: dict[str, Any]


class Examined(NamedTuple):
    """What one image holds, defects aside."""

    defects: tuple[Defect, ...]
    pixels: dict[int, int]  # id in the map → area, void under 0
    size: tuple[int, int] | None  # (H, W) of the map, else of the image
    digest: bytes | None  # of the image file
    declared: tuple[Declared, ...] = ()  # ids valid and unique, categories listed; not all have pixels
    ids: IdArray | None = None  # int32 (H, W); None where the PNG is of no use
    is_usable: bool = False  # image and map are whole and of one size
    is_as_stored: bool = False  # the PNG may be copied as it is, if its ids stay
    masks: tuple[tuple[int, int, bool], ...] = ()  # (category, pixels, is_crowd) of run lengths and polygons


def examine(part: Part, record: Record, image: bool = True) -> Examined:
    """Image and PNG are decoded whole, the image only where `image` is set."""
    defects: list[Defect] = []
    png, declared, named = read_record(part, record, defects)
    ids, as_stored = _read_map(part, record, png, named, defects)
    found, digest = read_image_file(part, record, defects) if image else (None, None)
    size = ids.shape[:2] if ids is not None else None
    usable = ids is not None and (found is not None or not image or part.images is None)
    if part.images and size and found and size not in (found.turned_size, (found.height, found.width)):
        where, text = part.show(part.images / str(record.row["file_name"])), _by(*found.turned_size)
        defects.append(defect("size-mismatch", where, f"{_by(*size)} as its PNG", text, record.image_id))
        usable = False
    if size is None and found is not None:
        size = found.turned_size
    if size is not None:
        check_stated_size(part, record, size, found if ids is None else None, defects)
    pixels: dict[int, int] = {}
    if ids is not None and png is not None:
        pixels = areas(ids)
        _compare(part, record, part.show(png), declared, named, ids, pixels, defects)
    return Examined(tuple(defects), pixels, size, digest, declared, ids, usable, as_stored)


def _by(height: int, width: int) -> str:
    return f"{height}×{width}"


# --- the JSON's side -------------------------------------------------------------------------------------------------


def read_record(
    part: Part, record: Record, defects: list[Defect]
) -> tuple[Path | None, tuple[Declared, ...], set[int]]:
    """(PNG, segments that can be used, ids of all segments that have one), from the JSON alone."""
    png, rows = _annotation(part, record, defects)
    return png, *_declared(part, record, rows, defects)


def _annotation(part: Part, record: Record, defects: list[Defect]) -> tuple[Path | None, list[Any]]:
    """(PNG, rows of its segments): of the first annotation, joined by others of the same PNG."""
    if not record.annotations:
        return None, []
    where, first = part.show(part.json), record.annotations[0]
    if len(record.annotations) > 1:
        found = f"{len(record.annotations)}"
        defects.append(defect("several-annotations", where, "one annotation per image", found, record.image_id))
    rows: list[Any] = []
    has_rows = isinstance(first.get("segments_info"), list)
    for annotation in record.annotations:
        segments = annotation.get("segments_info")
        if not isinstance(segments, list):
            text = "a list 'segments_info'"
            found = shown(annotation, "segments_info")
            defects.append(defect("structure", where, text, found, record.image_id, fixable=annotation is not first))
        elif annotation.get("file_name") == first.get("file_name"):
            rows += segments
    name = first.get("file_name")
    if not isinstance(name, str) or not name:
        defects.append(
            defect(
                "structure",
                where,
                "a text 'file_name' of a PNG",
                shown(first, "file_name"),
                record.image_id,
                fixable=False,
            )
        )
        return None, rows
    folder = part.panoptic or part.json.with_suffix("")
    png = file_in(folder, name)
    if png is None:
        defects.append(defect("path", where, "a PNG inside the data folder", shown_value(name), record.image_id))
    return png if has_rows else None, rows


def _declared(
    part: Part, record: Record, rows: list[Any], defects: list[Defect]
) -> tuple[tuple[Declared, ...], set[int]]:
    """(rows that can be used, ids of all rows that have one)."""
    where, image_id = part.show(part.json), record.image_id
    good: dict[int, Declared] = {}
    ambiguous: set[int] = set()
    for n, row in enumerate(rows):
        if not isinstance(row, dict):
            found = shown_value(row)
            defects.append(defect("structure", where, "an object", found, image_id, f"segments_info[{n}]"))
            continue
        number, category, crowd = whole(row.get("id")), whole(row.get("category_id")), row.get("iscrowd")
        if number is None or not 1 <= number <= MAX_ID or type(row["id"]) is not int:
            place, text = f"segments_info[{n}]", f"a whole number 'id' 1 … {MAX_ID}"
            defects.append(defect("segment-id", where, text, shown(row, "id"), image_id, place))
        if number is None or not 1 <= number <= MAX_ID:
            continue
        if category not in part.classes or type(row["category_id"]) is not int:
            found = f"category_id {shown(row, 'category_id')}"
            defects.append(defect("unknown-category", where, "a listed category", found, image_id, number))
        if crowd not in (0, 1) or isinstance(crowd, float):
            found = f"iscrowd {shown(row, 'iscrowd')}"
            defects.append(defect("crowd-flag", where, "iscrowd 0 or 1", found, image_id, number))
        if number in good or number in ambiguous:
            defects.append(defect("duplicate-segment", where, "each segment id once", "it again", image_id, number))
            if number in good and good[number].category != category:
                ambiguous.add(number)
                del good[number]
        elif category is not None and category in part.classes:
            good[number] = Declared(number, category, is_crowd(row), row)
        else:
            ambiguous.add(number)  # of unknown class: a second row does not make it known
    _check_stuff(part, record, good, defects)
    return tuple(good.values()), good.keys() | ambiguous


def is_crowd(row: dict[str, Any]) -> bool:
    """As the readers take `iscrowd`; what they refuse is no crowd."""
    try:
        return bool(read_flag(row.get("iscrowd"), "segment", "iscrowd"))
    except PansightError:
        return False


def _check_stuff(part: Part, record: Record, good: dict[int, Declared], defects: list[Defect]) -> None:
    first: dict[tuple[int, bool], int] = {}
    for segment in good.values():
        if part.classes[segment.category].is_thing is not False:
            continue
        key = segment.category, segment.is_crowd
        if key in first:
            expected = f"one segment of stuff '{one_line(part.classes[segment.category].name)}'"
            found = f"another beside {first[key]}"
            defects.append(defect("stuff-split", part.show(part.json), expected, found, record.image_id, segment.id))
        first.setdefault(key, segment.id)


def check_stated_size(
    part: Part, record: Record, size: tuple[int, int], image: Header | None, defects: list[Defect]
) -> None:
    """size: (H, W) of the map; without a map, `image` may be meant turned or as stored."""
    stated = record.row.get("height"), record.row.get("width")
    if stated in (size, (image.height, image.width) if image else size) and all(type(v) is int for v in stated):
        return
    found = " × ".join(shown(record.row, key) for key in ("height", "width"))
    where = part.show(part.json)
    defects.append(defect("stated-size", where, f"height × width {size[0]} × {size[1]}", found, record.image_id))


# --- the files' side -------------------------------------------------------------------------------------------------


def read_image_file(part: Part, record: Record, defects: list[Defect]) -> tuple[Header | None, bytes | None]:
    """(header, digest) of the image, decoded whole; None where it is of no use."""
    name, where, image_id = record.row.get("file_name"), part.show(part.json), record.image_id
    if not isinstance(name, str) or not name:
        text = "a text 'file_name' of an image"
        defects.append(defect("structure", where, text, shown(record.row, "file_name"), image_id, fixable=False))
        return None, None
    path = file_in(part.images or part.json.parent, name)
    if path is None:
        defects.append(defect("path", where, "an image inside the data folder", shown_value(name), image_id))
        return None, None
    if part.images is None:
        return None, None
    where = part.show(path)
    if not is_file(path):
        defects.append(defect("missing-image", where, "an image file", "no such file", image_id))
        return None, None
    try:
        data = read_bytes(path)
        header = read_header(data, path)
        decode_image(data, path)
    except PansightError as error:
        expected, found = said(error)
        defects.append(defect("unreadable-image", where, expected, found, image_id))
        return None, None
    if header.orientation != 1:
        found = f"orientation {header.orientation}"
        defects.append(defect("exif", where, "pixels stored as they are seen", found, image_id))
    return header, hashlib.blake2b(data, digest_size=16).digest()


def said(error: PansightError) -> tuple[str, str]:
    """(expected, found) of a reader's error about a file."""
    if error.expected:
        return error.expected, error.found or error.reason
    return "a readable file", error.what


def _read_map(
    part: Part, record: Record, png: Path | None, listed: set[int], defects: list[Defect]
) -> tuple[IdArray | None, bool]:
    """(id map, whether its PNG is as the format wants it)."""
    if png is None or part.panoptic is None:
        return None, False
    where, image_id = part.show(png), record.image_id
    if not is_file(png):
        defects.append(defect("missing-png", where, "a panoptic PNG", "no such file", image_id))
        return None, False
    try:
        ids = read_rgb_ids(png)
    except PansightError as error:
        expected, found = said(error)
        ids = _recode(png, listed)
        code = "png-mode" if ids is not None or error.code == "wrong_format" else "unreadable-png"
        defects.append(defect(code, where, expected, found, image_id, fixable=ids is not None))
        return ids, False
    with png.open("rb") as file:
        has_alpha = file.read(26)[25] == 6
    if has_alpha:
        defects.append(defect("png-alpha", where, "an 8-bit RGB PNG of segment ids", "RGB with alpha", image_id))
    if ids.size > MANY_IDS and np.count_nonzero(ids[:, 1:] != ids[:, :-1]) > MANY_IDS:
        number = len(present_ids(ids))
        if number > MANY_IDS:
            found = f"{number:,} different ids"
            defects.append(defect("unreadable-png", where, "a map of segment ids", found, image_id))
            return None, False
    return ids, not has_alpha


def _recode(png: Path, listed: set[int]) -> IdArray | None:
    """The map of a PNG in another mode, where its values or its colours are exactly the listed ids."""
    try:
        data = read_bytes(png)
        header = read_header(data, png)
        if header.kind != "png" or not listed:
            return None
        candidates = [_index_ids(png, header), _color_ids(data, header)]
    except (PansightError, OSError, SyntaxError, ValueError):
        return None
    for ids in candidates:
        if ids is not None and set(present_ids(ids).tolist()) - {0} == listed:
            return ids
    return None


def _index_ids(png: Path, header: Header) -> IdArray | None:
    return read_index_png(png) if header.png_color in (PNG_GREY, PNG_PALETTE) else None


def _color_ids(data: bytes, header: Header) -> IdArray | None:
    if header.png_color != PNG_PALETTE:
        return None
    with open_pillow(data) as image:
        rgb: NDArray[np.uint8] = np.asarray(image.convert("RGB"))
    return rgb_to_ids(np.ascontiguousarray(rgb))


# --- both sides ------------------------------------------------------------------------------------------------------


def _compare(
    part: Part,
    record: Record,
    where: str,
    declared: tuple[Declared, ...],
    named: set[int],
    ids: IdArray,
    pixels: dict[int, int],
    defects: list[Defect],
) -> None:
    """Ids, areas and boxes of the JSON against the map's."""
    json_file, image_id = part.show(part.json), record.image_id
    strange = [number for number in pixels if number != 0 and number not in named]
    if len(strange) > NAMED_IDS:
        found = f"{len(strange)} others, such as {strange[0]} and {strange[1]} (resized or stored with loss?)"
        defects.append(defect("undeclared-id", where, "only ids that the JSON lists", found, image_id))
    else:
        for number in strange:
            found = f"{pixels[number]} pixels of {number}"
            defects.append(defect("undeclared-id", where, "only ids that the JSON lists", found, image_id, number))
    boxes = boxes_xyxy(ids)
    for segment in declared:
        area = pixels.get(segment.id, 0)
        if not area:
            found = f"none in {where}"
            defects.append(defect("no-pixels", json_file, "pixels of every segment", found, image_id, segment.id))
            continue
        stated = segment.row.get("area")
        if not same_number(stated, area):
            found = shown(segment.row, "area")
            defects.append(defect("area", json_file, f"area {area}", found, image_id, segment.id))
        x1, y1, x2, y2 = boxes[segment.id]
        box, stated = [x1, y1, x2 - x1, y2 - y1], segment.row.get("bbox")
        if not (isinstance(stated, list) and len(stated) == 4 and all(map(same_number, stated, box))):
            found = shown(segment.row, "bbox")
            defects.append(defect("box", json_file, f"bbox {box}", found, image_id, segment.id))


def same_number(stated: object, counted: int) -> bool:
    return isinstance(stated, int | float) and not isinstance(stated, bool) and stated == counted
