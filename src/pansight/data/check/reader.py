"""A tolerant reader of annotation files: where `coco_panoptic` stops at the first defect, this one notes it and goes
on.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pansight.data.check.defects import Defect, defect, one_line, shown, shown_value
from pansight.data.dataset import SPLITS, part_names
from pansight.data.formats.coco_files import best_folder, image_folders
from pansight.data.paths import locate_all
from pansight.errors import PansightError
from pansight.files import json_text, read_plain, safe_join

Kind = Literal["panoptic", "instances", "detection"]
"""instances: COCO instances. detection: the same shape with `isthing`, COCO's detection format of panoptic data."""


class Class(NamedTuple):
    """A category as far as the file says."""

    name: str
    is_thing: bool | None  # None: it does not say


class Record(NamedTuple):
    """One image of a file: its row and the rows of its annotations, of which the keys are checked later."""

    image_id: str | int
    row: dict[str, Any]
    annotations: tuple[dict[str, Any], ...]


@dataclass(frozen=True, eq=False)
class Part:
    """An annotation file and its folders. content: the rest of the JSON object, for the copy."""

    name: str  # "train2017", "val"; of a file without such a name its stem
    root: Path
    json: Path
    kind: Kind
    images: Path | None  # None: no image was found anywhere
    panoptic: Path | None
    classes: dict[int, Class]
    records: tuple[Record, ...]
    categories: tuple[dict[str, Any], ...]  # the usable rows of `categories`
    content: dict[str, Any]

    def show(self, path: Path | str) -> str:
        """A path as it is printed: relative to the data folder where it is in it."""
        return show_path(path, self.root)


def show_path(path: Path | str, root: Path) -> str:
    path = Path(path)
    return one_line(path.relative_to(root).as_posix() if path.is_relative_to(root) else path, 200)


def whole(value: object) -> int | None:
    """A JSON number that is whole, 5.0 too; None for anything else. true and false are no numbers."""
    if type(value) is int:
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


# --- files -----------------------------------------------------------------------------------------------------------


def find_files(source: str | Path) -> tuple[Path, list[Path]]:
    """(data folder, its annotation files): panoptic ones where there are some, else COCO instances.

    Raises PansightError listing where was looked.
    """
    path = Path(source)
    if path.is_file():
        return (path.parent.parent if path.parent.name == "annotations" else path.parent), [path]
    if not path.is_dir():
        raise PansightError(where=path, expected="a data folder or an annotation file", found="none")
    for prefix in ("panoptic", "instances"):
        places = (path / "annotations", path)
        found = [f for place in places for f in sorted(place.glob(f"{prefix}*.json")) if f.is_file()]
        for part in (name for names in SPLITS.values() for name in names):
            candidates = (
                path / part / name for name in (f"{prefix}.json", "_annotations.coco.json", "annotations.json")
            )
            found += [f for f in candidates if f.is_file()][:1]
        if found:
            return path, found
    looked = "annotations/panoptic_*.json, panoptic_*.json, train/_annotations.coco.json, annotations/instances_*.json"
    raise PansightError(f"expected one of {looked}; found none (other names: give the JSON file itself)", where=path)


def part_name(file: Path) -> str:
    """panoptic_train2017.json → train2017; train/_annotations.coco.json → train."""
    for prefix in ("panoptic_", "instances_"):
        if file.stem.startswith(prefix) and file.stem != prefix:
            return file.stem.removeprefix(prefix)
    if any(file.parent.name in names for names in SPLITS.values()):
        return file.parent.name
    return file.stem.lstrip("_.") or "data"


def load(file: Path) -> tuple[Any, list[str]]:
    """(content, what stood for a number and is none), NaN and infinities as null.

    Raises PansightError where the file is missing, no JSON, or nested deeper than Python goes.
    """
    odd: list[str] = []

    def constant(text: str) -> None:
        odd.append(text)

    def number(text: str) -> float | None:
        value = float(text)
        return value if math.isfinite(value) else constant(text)

    try:
        text = json_text(read_plain(file), file).decode("utf-8")
        return json.loads(text, parse_constant=constant, parse_float=number), odd
    except OSError as error:
        raise PansightError("cannot be read", where=file, reason=error.strerror or error, code="cannot_read") from error
    except RecursionError as error:
        raise PansightError(where=file, expected="JSON", found="hundreds of lists or objects in each other") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise PansightError(where=file, expected="JSON", found=" ".join(str(error).split())) from error


def kind_of(content: dict[str, Any]) -> Kind:
    """By the first annotations that tell."""
    annotations, categories = (
        [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        for rows in (content.get("annotations"), content.get("categories"))
    )
    for row in annotations:
        if "segments_info" in row:
            return "panoptic"
        if "segmentation" in row:
            return "detection" if any("isthing" in c for c in categories) else "instances"
    return "panoptic"


def read_part(
    file: Path, root: Path, images: Path | None = None, panoptic: Path | None = None
) -> tuple[Part | None, list[Defect]]:
    """A file with every defect of its lists; None for the part where it is no JSON object.

    images, panoptic: the folders, where they are not to be looked for. Raises PansightError as `load` does.
    """
    where = show_path(file, root)
    content, odd = load(file)
    defects = [defect("not-a-number", where, "numbers that JSON has", f"{odd[0]:.20} ({len(odd)} such)")] if odd else []
    if not isinstance(content, dict):
        return None, [*defects, _list_defect(where, "a JSON object with images, annotations and categories", content)]
    kind = kind_of(content)
    lists = {key: _rows(content, key, where, defects) for key in ("categories", "images", "annotations")}
    categories, classes = _categories(lists["categories"], where, kind, defects)
    records = _records(lists["images"], lists["annotations"], where, kind, defects)
    if images is None:
        places = image_folders(root, file, "instances" if kind == "instances" else "panoptic", part_name(file))
        images = _folder(places, [record.row.get("file_name") for record in records])
    if panoptic is None and kind == "panoptic":
        places = [
            file.with_suffix(""),
            root / file.stem,
            root / "annotations" / file.stem,
            root / "panoptic",
            file.parent,
        ]
        panoptic = _folder(places, [a.get("file_name") for record in records for a in record.annotations[:1]])
    records = _with_files(records, images, panoptic, where, defects)
    rest = {key: value for key, value in content.items() if key not in lists}
    name = part_name(file)
    return Part(name, root, file, kind, images, panoptic, classes, tuple(records), tuple(categories), rest), defects


def _list_defect(where: str, expected: str, found: object) -> Defect:
    return defect("structure", where, expected, shown_value(found), fixable=False)


def _rows(content: dict[str, Any], key: str, where: str, defects: list[Defect]) -> list[dict[str, Any]]:
    """The objects in a list of the file."""
    rows = content.get(key)
    if not isinstance(rows, list):
        defects.append(defect("structure", where, f"a list under {key!r}", shown(content, key), fixable=False))
        return []
    bad = [(n, row) for n, row in enumerate(rows) if not isinstance(row, dict)]
    defects += [defect("structure", where, "an object", shown_value(row), None, f"{key}[{n}]") for n, row in bad]
    good = [row for row in rows if isinstance(row, dict)] if bad else rows
    if not good and key != "annotations":
        defects.append(defect("empty", where, f"at least one of {key!r}", "none"))
    return good


def _folder(places: Iterable[Path], names: Sequence[object]) -> Path | None:
    """The place that holds most of the files, by the rule of all readers; None where none holds any."""
    return best_folder(places, [name for name in names if isinstance(name, str) and name])


def _with_files(
    records: list[Record], images: Path | None, pngs: Path | None, where: str, defects: list[Defect]
) -> list[Record]:
    """The same records with the names of the files that are read: by the rule of all readers, of a path that leads
    elsewhere the longest tail.
    """
    of_image = _other_names([record.row.get("file_name") for record in records], images)
    of_png = _other_names([a.get("file_name") for record in records for a in record.annotations], pngs)
    if not of_image and not of_png:
        return records
    found: list[Record] = []
    for record in records:
        row = _renamed(record.row, of_image, where, record.image_id, defects)
        rows = tuple(_renamed(a, of_png, where, record.image_id, defects) for a in record.annotations)
        found.append(Record(record.image_id, row, rows))
    return found


def _other_names(names: Sequence[object], folder: Path | None) -> dict[str, str]:
    """Name → the name below `folder` of the file that it means, where it does not say so by the letter."""
    texts = [name for name in names if isinstance(name, str) and name]
    if folder is None:
        return {}
    files = locate_all(texts, [folder]).files
    return {name: file.name for name, file in zip(texts, files) if file is not None and not file.as_written}


def _renamed(
    row: dict[str, Any], names: dict[str, str], where: str, image_id: str | int, defects: list[Defect]
) -> dict[str, Any]:
    stated = row.get("file_name")
    name = names.get(stated) if isinstance(stated, str) else None
    if name is None:
        return row
    defects.append(defect("path-tail", where, f"the path {one_line(name)}", shown_value(stated), image_id))
    return {**row, "file_name": name}


def file_in(folder: Path, name: object) -> Path | None:
    """folder/name; None where that is no file name, leaves the folder, or holds half a character."""
    try:
        path = safe_join(folder, name, folder)
        os.fsencode(path)
    except (PansightError, ValueError):
        return None
    return path


def is_file(path: Path) -> bool:
    """Whether there is a regular file: no folder, no pipe that would be waited for, no name that is too long."""
    try:
        return path.is_file()
    except OSError:
        return False


# --- lists -----------------------------------------------------------------------------------------------------------


def _categories(
    rows: list[dict[str, Any]], where: str, kind: Kind, defects: list[Defect]
) -> tuple[list[dict[str, Any]], dict[int, Class]]:
    usable: list[dict[str, Any]] = []
    classes: dict[int, Class] = {}
    names: set[str] = set()
    for row in rows:
        number, name, thing = whole(row.get("id")), row.get("name"), row.get("isthing")
        place = f"category {one_line(row.get('id', '?'))}"
        if type(row.get("id")) is not int:
            defects.append(defect("structure", where, "a whole number 'id'", shown(row, "id"), None, place))
        if not isinstance(name, str) or not name:
            defects.append(defect("structure", where, "a text 'name'", shown(row, "name"), None, place))
        if row.get("color") and not is_color(row["color"]):
            defects.append(defect("structure", where, "'color' [0…255] × 3", shown(row, "color"), None, place))
        if number is None:
            continue
        name = name if isinstance(name, str) and name else f"category {_short(number)}"
        if number in classes:
            found = f"'{one_line(classes[number].name)}' and '{one_line(name)}'"
            defects.append(defect("duplicate-category", where, "each category id once", found, None, place))
            continue
        if name in names:
            defects.append(defect("duplicate-name", where, "each name once", f"'{one_line(name)}' again", None, place))
            name = f"{name} {_short(number)}"
        if kind == "instances":
            thing = 1
        elif thing not in (0, 1) or isinstance(thing, float):
            place = f"{place} ({one_line(name)})"
            defects.append(defect("isthing", where, "'isthing' 0 or 1", shown(row, "isthing"), None, place))
            thing = None
        names.add(name)
        classes[number] = Class(name, None if thing is None else bool(thing))
        usable.append(row)
    if rows and not usable:
        defects.append(defect("empty", where, "at least one category with an id", "none"))
    _gap(classes, where, defects)
    return usable, classes


def _short(number: int) -> str:
    return one_line(number, 24)


def _gap(classes: dict[int, Class], where: str, defects: list[Defect]) -> None:
    if not classes:
        return
    low, high = min(classes), max(classes)
    missing = high - low + 1 - len(classes)
    if missing:
        first = next(n for n in range(low, high) if n not in classes)
        found = f"{len(classes)} of {_short(low)} … {_short(high)}; the first that is missing is {_short(first)}"
        defects.append(defect("category-gap", where, "contiguous category ids", found))


def is_color(value: object) -> bool:
    """[r, g, b], each 0 … 255."""
    return isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)


def _records(
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    where: str,
    kind: Kind,
    defects: list[Defect],
) -> list[Record]:
    rows: dict[str | int, dict[str, Any]] = {}
    for n, row in enumerate(images):
        image_id = _image_id(row.get("id"))
        if image_id is None or isinstance(row.get("id"), float):
            text = "a whole number or text 'id'"
            defects.append(defect("structure", where, text, shown(row, "id"), None, f"images[{n}]"))
        if image_id is None:
            continue
        if image_id in rows:
            found = f"it again in images[{n}]"
            defects.append(defect("duplicate-image-id", where, "each image id once", found, image_id))
            continue
        rows[image_id] = row
    if images and not rows:
        defects.append(defect("empty", where, "at least one image with an id", "none"))
    own: dict[str | int, list[dict[str, Any]]] = {image_id: [] for image_id in rows}
    for n, annotation in enumerate(annotations):
        image_id, place = _image_id(annotation.get("image_id")), f"annotations[{n}]"
        if image_id not in own:
            found = f"image_id {shown(annotation, 'image_id')}"
            defects.append(defect("unknown-image", where, "annotations of listed images", found, None, place))
            continue
        if isinstance(annotation["image_id"], float):
            text = "a whole number or text 'image_id'"
            defects.append(defect("structure", where, text, shown(annotation, "image_id"), image_id, place))
        own[image_id].append(annotation)
    for image_id, mine in own.items():
        if kind == "panoptic" and not mine:
            defects.append(defect("missing-annotation", where, "an annotation for every image", "none", image_id))
    return [Record(image_id, row, tuple(own[image_id])) for image_id, row in rows.items()]


def _image_id(value: object) -> str | int | None:
    return value if isinstance(value, str) else whole(value)


def split_of(name: str) -> str | None:
    """train2017 → train, validation → val; None for another name."""
    stem = name.rstrip("0123456789")
    return next((split for split in SPLITS if stem in part_names(split)), None)
