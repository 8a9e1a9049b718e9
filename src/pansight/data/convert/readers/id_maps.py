"""Id maps with a table of segments, as Hugging Face's post-processing and Detectron2 give them.

Accepted, for an image called NAME, in the folder itself or in its parts (train/, val/, …):

    NAME.json   {"segmentation": [[…]], "segments_info": […]}                the map in the JSON, H rows of W ids
    NAME.json   {"segments_info": […]}  +  NAME.png or NAME.npy              the map beside it
    NAME.json   {"segmentation": "FILE", "segments_info": […]}               the map in FILE (.png, .npy)
    TABLE.json  {"NAME": {"segments_info": […]}, …}, or [{"file_name": "NAME.png", "segments_info": […]}, …]
                                                                             one table for all maps

A PNG has one channel of 8 or 16 bits or palette indices, which are the ids, or RGB with COCO's coding; an array has
whole numbers, (H, W) or (1, H, W). A segment has `id` and `label_id` (or `category_id`), and may have `isthing`,
`was_fused`, `iscrowd`. −1 is void, and so is 0, unless it is in the table.
Classes: {"id2label": {…}} in config.json, or a table of classes (see class_table), in the folder or as classes=FILE;
else class_N. Things: by `isthing`; else by the table's; else, where any segment was fused, those whose segments were
not; else as published, where all names are those of COCO, ADE20K or Cityscapes. Images: of the same name, beside the
maps, in images/, or in the folder images=DIR.
"""

from __future__ import annotations

import math
import mmap
import re
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pansight.data.categories import category_table
from pansight.data.convert.class_table import CLASS_FILES, find_class_table, read_classes
from pansight.data.convert.lookup import choose_part, either_case, files_ending, images_by_stem
from pansight.data.convert.source import Annotated, ListSource, Source, SourceCategory, with_damaged
from pansight.data.convert.values import read_annotation
from pansight.data.dataset import expect, part_folders
from pansight.data.formats.coco_files import kind_of
from pansight.data.images import MAX_PIXELS, read_bytes, read_header, read_index_png, read_rgb_ids
from pansight.data.paths import named_file, named_folder
from pansight.errors import PansightError
from pansight.files import decode_json, json_text, open_plain, safe_join
from pansight.ops.idmap import MAX_ID, IdArray, present_ids
from pansight.types import Flag, read_flag

MAPS = (".png", ".npy")
KNOWN = ("coco_panoptic", "ade20k_panoptic", "cityscapes_panoptic")


NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|](?:[iu][1248]|f[248]|b1))', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9]{1,9}(?:, ?[0-9]{1,9}){0,3}),?\)"
)


class _Segment(msgspec.Struct):
    id: int
    label_id: int | None = None
    category_id: int | None = None
    isthing: Flag = None
    was_fused: Flag = None
    iscrowd: Flag = None

    @property
    def label(self) -> int | None:
        return self.category_id if self.label_id is None else self.label_id


class _Entry(msgspec.Struct):
    segments_info: list[_Segment]
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    file_name: str | None = None


class _Row(NamedTuple):
    """An image: where its table and its map are."""

    name: str
    entry: _Entry  # without the map
    where: str  # for errors
    file: Path | None  # a JSON that has the map itself
    map_file: Path | None


class _Labels(msgspec.Struct):
    id2label: dict[str, str] | None = None


def open_id_maps(
    source: Path, split: str | None = None, *, images: str | None = None, classes: str | None = None
) -> Source:
    """Id maps with a table of segments; see the head of this file for what is understood.

    Raises PansightError, naming the file, where a map lacks its table, or the two disagree.
    """
    root = Path(source)
    base = root.parent if root.is_file() else root
    part, note = choose_part(splits_id_maps(root), split, root)
    folder = base / part if part is not None else base
    rows: list[_Row] = []
    damaged: list[PansightError] = []
    for file in [root] if root.is_file() else _tables(folder):
        try:
            rows += _table(file, base if root.is_file() else folder)
        except PansightError as error:
            damaged.append(error.with_traceback(None))
    if damaged and not rows:
        raise damaged[0]
    if not rows:
        raise PansightError(where=folder, expected="NAME.json with segments_info (id maps)", found="none")
    categories, notes = _categories(rows, base, folder, classes)
    index = {category.source_id: n for n, category in enumerate(categories)}
    files = _images(base, folder, images)
    notes = ([] if note is None else [note]) + notes

    def one(row: _Row) -> Annotated:
        ids, segments = _numbered(_map_of(row), row, index)
        image = files.get(row.name)
        file_name = f"{row.name}.png" if image is None else f"{row.name}{image.suffix}"
        return Annotated(row.name, file_name, image, (ids.shape[0], ids.shape[1]), (), ids, segments)

    return with_damaged(ListSource(categories, [partial(one, row) for row in rows], notes), damaged)


def is_id_maps(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    try:
        if source.is_file():
            return _is_table(source)
        return bool(_has_tables(source)) or bool(splits_id_maps(source))
    except OSError:
        return False


def splits_id_maps(source: Path) -> tuple[str, ...]:
    """The parts that have tables; none where the folder itself has."""
    try:
        if source.is_file() or _has_tables(source):
            return ()
        return tuple(part for part in part_folders(source) if _has_tables(source / part))
    except OSError:
        return ()


# --- tables ----------------------------------------------------------------------------------------------------------


def _has_tables(folder: Path) -> bool:
    return any(_is_table(file) for file in files_ending(folder, ".json")[:20])


def _is_table(file: Path) -> bool:
    try:
        with open_plain(file) as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
            told = b"\0" in text[:4] and '"segments_info"'.encode("utf-16-le") in text[:]  # some editors write UTF-16
            return (told or text.find(b'"segments_info"') >= 0) and kind_of(file) is None
    except (OSError, ValueError):  # also: an empty file cannot be mapped
        return False


def _tables(folder: Path) -> list[Path]:
    return [file for file in files_ending(folder, ".json") if _is_table(file)]


def _table(file: Path, folder: Path) -> list[_Row]:
    """The images that a JSON tells of; the maps stay where they are."""
    data = json_text(read_annotation(file, "a table of segments"), file)
    start = data.lstrip(b" \t\r\n")[:1]
    if start == b"[":
        entries = decode_json(data, list[_Entry], file)
        missing = next((n for n, entry in enumerate(entries) if entry.file_name is None), None)
        expect(missing is None, file, "a file_name in every row", f"none in row {missing}")
        named = [(str(entry.file_name), entry) for entry in entries]
    elif bytes(decode_json(data, _Head, file).segments_info) == b"null":
        named = list(decode_json(data, dict[str, _Entry], file).items())
    else:
        entry = decode_json(data, _Entry, file)
        inside = bytes(entry.segmentation)[:1] == b"["
        name = decode_json(bytes(entry.segmentation), str, file) if bytes(entry.segmentation)[:1] == b'"' else None
        map_file = None if inside else _map_file(folder, name or file.stem, file)
        return [_Row(file.stem, _light(entry), str(file), file if inside else None, map_file)]
    rows: list[_Row] = []
    for name, entry in named:
        safe_join(folder, name, file)
        stem = PurePosixPath(name).with_suffix("").as_posix() if name.lower().endswith(MAPS) else name
        rows.append(_Row(stem, _light(entry), f"{file}: {name}", None, _map_file(folder, name, file)))
    return rows


class _Head(msgspec.Struct):
    segments_info: msgspec.Raw = msgspec.Raw(b"null")


def _light(entry: _Entry) -> _Entry:
    return _Entry(entry.segments_info, msgspec.Raw(b"null"), entry.file_name)


def _map_file(folder: Path, name: str, file: Path) -> Path:
    names = [name] if name.lower().endswith(MAPS) else [name + suffix for suffix in MAPS]
    places = [either_case(safe_join(place, n, file)) for place in (folder, folder / "maps") for n in names]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise PansightError(where=file, expected=f"a map {' or '.join(names)} in {folder}", found="none")
    return found


# --- maps ------------------------------------------------------------------------------------------------------------


def _map_of(row: _Row) -> IdArray:
    """int32 (H, W), −1 and 0 as in the file."""
    if row.map_file is None:
        assert row.file is not None
        raw = decode_json(read_annotation(row.file, "a table of segments"), _Entry, row.file).segmentation
        rows = decode_json(bytes(raw), list[list[int | float]], row.file)
        width = len(rows[0]) if rows else 0
        expect(width > 0 and all(len(r) == width for r in rows), row.file, "a map of rows of one length", len(rows))
        return _whole_numbers(np.array(rows, np.float64), row.file)
    if row.map_file.suffix.lower() == ".npy":
        return _array(row.map_file)
    header = read_header(read_bytes(row.map_file), row.map_file)
    return read_rgb_ids(row.map_file) if header.channels >= 3 else read_index_png(row.map_file)


def _array(file: Path) -> IdArray:
    """A .npy file (NumPy's NEP 1). Its header is matched, not evaluated as NumPy does, which fails in many ways."""
    data = read_annotation(file, "an array of ids")
    large = data[6:7] != b"\1"  # from version 2 on, the header's length has 4 bytes
    start = 12 if large else 10
    end = start + int.from_bytes(data[8:start], "little")
    header = NPY_HEADER.match(data[start : min(end, start + 1000)])
    expect(data[:6] == b"\x93NUMPY" and header is not None, file, "an array of whole numbers (.npy)", data[:40])
    assert header is not None
    kind, by_column, sides = header.groups()
    shape = tuple(int(side) for side in sides.replace(b",", b" ").split())
    shape = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    size = math.prod(shape) if len(shape) == 2 else 0
    expect(0 < size <= MAX_PIXELS, file, f"an array (H, W) of at most {MAX_PIXELS // 10**6} million ids", shape)
    dtype = np.dtype(kind.decode())
    expect(len(data) - end == size * dtype.itemsize, file, f"{size * dtype.itemsize} bytes of ids", len(data) - end)
    values = np.frombuffer(data, dtype, offset=end)
    return _whole_numbers(values.reshape(shape, order="F" if by_column == b"True" else "C"), file)  # (H·W,) → (H, W)


def _whole_numbers(values: np.ndarray, file: Path) -> IdArray:
    inside = bool(((values >= -1) & (values <= MAX_ID)).all())  # not so of what is no number
    expect(inside and bool((values == np.floor(values)).all()), file, f"ids −1 … {MAX_ID}", "other numbers")
    return values.astype(np.int32)


def _numbered(ids: IdArray, row: _Row, index: dict[int, int]) -> tuple[IdArray, dict[int, tuple[int, bool]]]:
    """With 0 as void: ids move up by one where the table has a 0."""
    segments: dict[int, tuple[int, bool]] = {}
    shift = int(any(segment.id == 0 for segment in row.entry.segments_info))
    for segment in row.entry.segments_info:
        where = f"{row.where}: segment {segment.id}"
        expect(0 <= segment.id <= MAX_ID - shift, where, f"an id 0 … {MAX_ID - shift}", segment.id)
        expect(segment.id + shift not in segments, where, "each id once", "it twice")
        segments[segment.id + shift] = (
            index[int(segment.label or 0)],
            bool(read_flag(segment.iscrowd, where, "iscrowd")),
        )
    ids = np.where(ids < 0, 0, ids + np.int32(shift)) if shift or (ids < 0).any() else ids
    strange = set(present_ids(ids).tolist()) - segments.keys() - {0}
    expect(not strange, row.map_file or row.where, "only ids that the table lists", min(strange, default=0) - shift)
    return ids, segments


# --- classes ---------------------------------------------------------------------------------------------------------


def _categories(
    rows: list[_Row], base: Path, folder: Path, classes: str | None
) -> tuple[tuple[SourceCategory, ...], list[str]]:
    said: dict[int, bool] = {}
    fused: dict[int, bool] = {}
    seen: dict[int, None] = {}
    for row in rows:
        for segment in row.entry.segments_info:
            where = f"{row.where}: segment {segment.id}"
            if segment.label is None:
                raise PansightError(where=where, expected="a label_id", found="none")
            seen[segment.label] = None
            is_thing = read_flag(segment.isthing, where, "isthing")
            was_fused = read_flag(segment.was_fused, where, "was_fused")
            if is_thing is not None:
                said[segment.label] = is_thing
            if was_fused is not None:
                fused[segment.label] = was_fused or fused.get(segment.label, False)
    named, notes = _names(base, folder, classes)
    unnamed = [label for label in seen if label not in named]
    if named and unnamed:
        raise PansightError(where=base, expected="a name for every label_id", found=f"none for {min(unnamed)}")
    if not named:
        notes.append("no names of classes (config.json with id2label, or classes=FILE): class_N has label_id N")
        named = {label: SourceCategory(f"class_{label}", label) for label in sorted(seen)}
    tells_fused = any(fused.values())
    if tells_fused and not said:
        notes.append("stuff are the classes whose segments were fused (was_fused)")
    published, table = _published({category.name for category in named.values()})
    result: list[SourceCategory] = []
    for label, category in named.items():
        thing = said.get(label, category.is_thing)
        if thing is None and tells_fused and label in fused:
            thing = not fused[label]
        if thing is None and category.name in published:
            thing = published[category.name]
            notes.append(f"things and stuff of {table}, whose classes these are")
        result.append(category._replace(is_thing=thing))
    silent = {label for label, c in zip(named, result) if c.is_thing is None and label not in seen}
    if silent:
        notes.append(f"{len(silent)} classes that never occur are left out")
    kept = tuple(category for label, category in zip(named, result) if label not in silent)
    return kept, list(dict.fromkeys(notes))


def _names(base: Path, folder: Path, classes: str | None) -> tuple[dict[int, SourceCategory], list[str]]:
    """label_id → class, of the file that is named or found; empty where there is none."""
    if classes is None:
        file = find_class_table((folder, base), ("config.json", "id2label.json", *CLASS_FILES))
    else:
        file = named_file(base, classes, "a file with the names of the classes")
    if file is not None:
        if file.suffix.lower() == ".json" and b'"id2label"' in (
            data := json_text(read_annotation(file, "classes"), file)
        ):
            labels = decode_json(data, _Labels, file).id2label or {}
            bad = next((key for key in labels if not key.isdecimal() or len(key) > 8), None)
            expect(bad is None, file, "whole numbers as keys of id2label", bad)
            found = {int(key): SourceCategory(name, int(key)) for key, name in labels.items()}
        else:
            found = {c.value: SourceCategory(c.name, c.value, c.is_thing, c.color) for c in read_classes(file)}
        return found, [f"names of the classes are those of {file.name}"]
    return {}, []


def _published(names: set[str]) -> tuple[dict[str, bool], str]:
    """({name: is a thing}, the set) of the published set that has all of these names; ({}, "") where none has."""
    for table in KNOWN:
        rows: list[dict[str, Any]] = category_table(table)
        if names and names <= {row["name"] for row in rows}:
            return {row["name"]: bool(row["isthing"]) for row in rows}, table
    return {}, ""


def _images(base: Path, folder: Path, images: str | None) -> dict[str, Path]:
    """Name → image file."""
    if images is not None:
        return images_by_stem(named_folder(base, images))
    places = (base / "images" / folder.name, folder / "images", base / "images")
    place = next((p for p in places if p.is_dir()), None)
    if place is not None:
        return images_by_stem(place)
    return {file.stem: file for ending in (".jpeg", ".jpg") for file in files_ending(folder, ending)}
