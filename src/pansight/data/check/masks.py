"""Examine one image with run lengths or polygons: COCO instances, whose objects may overlap, and COCO's detection
format of
panoptic data, whose segments may not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.data.check.defects import Defect, defect, shown
from pansight.data.check.examine import Examined, check_stated_size, is_crowd, read_image_file
from pansight.data.check.reader import Part, Record, whole
from pansight.data.formats.coco_instances import decode_segmentation
from pansight.data.images import MAX_PIXELS
from pansight.errors import PansightError
from pansight.ops.idmap import boxes_xyxy, present_ids

MAX_MASK_PIXELS = 10**11
"""Of all masks of an image together, some minutes of work: a file of some megabytes may ask for years."""


def examine_masks(part: Part, record: Record) -> Examined:
    """Every mask is decoded, one at a time."""
    defects: list[Defect] = []
    header, digest = read_image_file(part, record, defects)
    size = _size(part, record, defects)
    if header is not None:
        check_stated_size(part, record, header.turned_size, header, defects)
        size = size or header.turned_size
    if size is not None and size[0] * size[1] * len(record.annotations) > MAX_MASK_PIXELS:
        found = f"{len(record.annotations)} of {size[0]}×{size[1]}"
        defects.append(defect("mask", part.show(part.json), "masks that can be decoded", found, record.image_id))
        size = None
    if size is None:
        return Examined(tuple(defects), {}, None, digest)
    owner = np.zeros(size, np.int32)  # number of the last annotation on a pixel, counted from 1
    covered: list[tuple[int, int, bool]] = []
    numbers: set[int] = set()
    overlapping = 0
    for n, row in enumerate(record.annotations, 1):
        place = _place(row, n)
        if part.kind == "detection":
            _check_id(part, record, row, numbers, place, defects)
        category = whole(row.get("category_id"))
        if category not in part.classes or category is None:
            found = f"category_id {shown(row, 'category_id')}"
            where = part.show(part.json)
            defects.append(defect("unknown-category", where, "a listed category", found, record.image_id, place))
        if row.get("iscrowd") is not None and (row["iscrowd"] not in (0, 1) or isinstance(row["iscrowd"], float)):
            found, where = f"iscrowd {shown(row, 'iscrowd')}", part.show(part.json)
            defects.append(defect("crowd-flag", where, "iscrowd 0 or 1", found, record.image_id, place))
        mask = _mask(part, record, row, size, place, defects)
        if mask is None:
            continue
        area = int(np.count_nonzero(mask))
        _compare(part, record, row, mask, area, place, defects)
        shared = _shared(owner, mask, record.annotations)
        overlapping += bool(shared)
        if shared and part.kind == "detection":
            where, text = part.show(part.json), "pixels of its own"
            defects.append(defect("overlap", where, text, shared, record.image_id, place))
        owner[mask] = n
        if category is not None and category in part.classes:
            covered.append((category, area, is_crowd(row)))
    if overlapping and part.kind == "instances":
        found = f"{overlapping} of {len(covered)} that share pixels with another"
        where = part.show(part.json)
        defects.append(defect("objects-overlap", where, "objects apart", found, record.image_id))
    pixels = {0: int(np.count_nonzero(owner == 0))}
    return Examined(tuple(defects), pixels, size, digest, masks=tuple(covered))


def _place(row: dict[str, Any], n: int) -> int | str:
    number = row.get("id")
    return number if type(number) is int else f"object {n} of the image"


def _size(part: Part, record: Record, defects: list[Defect]) -> tuple[int, int] | None:
    height, width = record.row.get("height"), record.row.get("width")
    if type(height) is not int or type(width) is not int or height < 1 or width < 1 or height * width > MAX_PIXELS:
        found = f"{shown(record.row, 'height')} × {shown(record.row, 'width')}"
        where, text = part.show(part.json), f"height × width of at most {MAX_PIXELS // 10**6} million pixels"
        defects.append(defect("stated-size", where, text, found, record.image_id))
        return None
    return height, width


def _check_id(
    part: Part, record: Record, row: dict[str, Any], numbers: set[int], place: int | str, defects: list[Defect]
) -> None:
    number, where = row.get("id"), part.show(part.json)
    if type(number) is not int or number < 1:
        text = "a whole number 'id' from 1"
        defects.append(defect("segment-id", where, text, shown(row, "id"), record.image_id, place))
    elif number in numbers:
        defects.append(defect("duplicate-segment", where, "each id once", "it again", record.image_id, place))
    else:
        numbers.add(number)


def _mask(
    part: Part, record: Record, row: dict[str, Any], size: tuple[int, int], place: int | str, defects: list[Defect]
) -> NDArray[np.bool_] | None:
    where, segmentation = part.show(part.json), row.get("segmentation")
    if not isinstance(segmentation, list | dict) or not segmentation:
        found = shown(row, "segmentation")
        defects.append(defect("mask", where, "polygons or run lengths", found, record.image_id, place))
        return None
    try:
        mask = decode_segmentation(segmentation, size, "").astype(bool)
    except PansightError as error:
        defects.append(defect("mask", where, error.expected, error.found, record.image_id, place))
        return None
    if not mask.any():
        text = "at least one pixel"
        defects.append(defect("no-pixels", where, text, "an empty mask", record.image_id, place))
        return None
    return mask


def _compare(
    part: Part,
    record: Record,
    row: dict[str, Any],
    mask: NDArray[np.bool_],
    area: int,
    place: int | str,
    defects: list[Defect],
) -> None:
    """Area and box. COCO instances state those of the polygons, in real numbers, and the official files have crowds
    that are a pixel or a fifth off: there a clear difference is asked for, in the detection format an exact figure.
    """
    x1, y1, x2, y2 = boxes_xyxy(mask.astype(np.int32))[1]
    box, where = [x1, y1, x2 - x1, y2 - y1], part.show(part.json)
    exact = part.kind == "detection"
    prefix, about, slack = ("", "", 0) if exact else ("object-", "about ", 3)
    if not _close(row.get("area"), area, 0 if exact else area / 4 + box[2] + box[3]):
        found = shown(row, "area")
        defects.append(defect(f"{prefix}area", where, f"area {about}{area}", found, record.image_id, place))
    stated = row.get("bbox")
    if not (isinstance(stated, list) and len(stated) == 4 and all(_close(v, b, slack) for v, b in zip(stated, box))):
        found = shown(row, "bbox")
        defects.append(defect(f"{prefix}box", where, f"bbox {about}{box}", found, record.image_id, place))


def _close(stated: object, counted: int, slack: float) -> bool:
    if isinstance(stated, bool) or not isinstance(stated, int | float):
        return False
    return counted - slack <= stated <= counted + slack


def _shared(owner: NDArray[np.int32], mask: NDArray[np.bool_], rows: tuple[dict[str, Any], ...]) -> str:
    """What a mask has in common with those before it; "" where nothing."""
    under = owner[mask]
    shared = int(np.count_nonzero(under))
    if not shared:
        return ""
    others = [n for n in present_ids(under[None]).tolist() if n]
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"{shared} shared with {_place(rows[others[0] - 1], others[0])}{more}"
