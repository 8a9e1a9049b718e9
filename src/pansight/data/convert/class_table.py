"""Read the tables of classes that accompany class maps: lists of names, CSV, colour tables, JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pansight.data.dataset import expect
from pansight.errors import PansightError
from pansight.files import decode_json, read_plain, read_text
from pansight.types import read_flag

CLASS_FILES = (
    *("classes.json", "classes.txt", "classes.csv", "class_dict.csv", "_classes.csv", "class_names.txt"),
    *("label_colors.txt", "labelmap.txt", "label_map.txt", "labels.txt", "codes.txt", "classes.names", "obj.names"),
    *("class_list.txt", "class_labels.txt", "label_names.txt", "names.txt", "labels.json", "class_names.json"),
)
"""Names under which such tables are looked for, whichever case their letters have."""

BACKGROUND = ("background", "_background_", "__background__")
"""How tables call the pixels of no class."""

MAX_CLASSES = 65536
MAX_BYTES = 10_000_000

COLOR_NAME = re.compile(r"(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)")  # "64 128 64  Animal" (CamVid)
NAME_COLOR = re.compile(r"([^:]+):(\d+),(\d+),(\d+)(?::.*)?")  # "car:64,0,128::" (CVAT)
CSV_COLOR = re.compile(r"([^,]+),\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)(?:,.*)?")  # "Animal,64,128,64"
NUMBER_NAME = re.compile(r"(\d+)\s*[,:;\t]\s*(\S.*)")  # "3, car", "3: car"
HEADER = re.compile(
    r"#.*|(name|class)\s*,\s*r\s*,\s*g\s*,\s*b.*|(pixel value|id|index|value)\s*,\s*(class|name).*", re.I
)


class PixelClass(NamedTuple):
    """A class as the pixels of a PNG tell it."""

    name: str
    value: int  # ≥ 0; its position in the table unless that says otherwise
    color: tuple[int, int, int] | None = None  # RGB, 0..255
    is_thing: bool | None = None


def find_class_table(places: Iterable[Path], names: Sequence[str] = CLASS_FILES) -> Path | None:
    """The first table of classes in the first of some folders that has one; None where none has.

    A JSON of annotations may be called labels.json, too: only one that is short enough for a table is taken.
    """
    for place in dict.fromkeys(places):
        if not place.is_dir():
            continue
        files = {file.name.lower(): file for file in sorted(place.iterdir(), reverse=True)}
        for name in names:
            file = files.get(name)
            if file is not None and file.is_file() and not _is_coco(file):
                return file
    return None


def _is_coco(file: Path) -> bool:
    return file.suffix.lower() == ".json" and b'"annotations"' in read_plain(file)[:MAX_BYTES]


def read_classes(path: Path) -> list[PixelClass]:
    """The classes of a table, in its order. JSON: a list of names or of objects (name, id, color, isthing), such a list
    under "categories" or "classes", or an object number → name. Else lines: a name; number and name; name and colour.

    Raises PansightError, naming file and row, where it is malformed, or a name, number or colour occurs twice.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PansightError(
                where=path, expected="a table of classes", found=f"a file of {path.stat().st_size} bytes"
            )
        rows = _json_rows(path) if path.suffix.lower() == ".json" else _text_rows(path)
    except OSError as error:
        raise PansightError("cannot be read", where=path, reason=error.strerror or error, code="cannot_read") from error
    return checked_classes(rows, path)


def classes_of_names(names: Sequence[str]) -> list[PixelClass]:
    """Names in the order of their values, from 0."""
    return checked_classes([PixelClass(name.strip(), value) for value, name in enumerate(names)], "classes")


def checked_classes(classes: list[PixelClass], source: str | Path) -> list[PixelClass]:
    """Themselves. Raises PansightError where there is none, too many, or a name, value or colour occurs twice."""
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise PansightError(where=source, expected=f"1 … {MAX_CLASSES} classes", found=len(classes))
    for field in ("name", "value", "color"):
        seen: set[Any] = set()
        for row in classes:
            value = getattr(row, field)
            if value is not None and value in seen:
                raise PansightError(where=source, expected=f"each {field} of a class once", found=f"{value!r} twice")
            seen.add(value)
    bad = next((row for row in classes if not row.name or not 0 <= row.value < 2**24), None)
    expect(bad is None, source, "classes with a name and a number 0 … 2²⁴ − 1", bad and (bad.name, bad.value))
    return classes


def _text_rows(path: Path) -> list[PixelClass]:
    lines = [line.strip() for line in read_text(path, "names").splitlines()]
    rows = [row for row in lines if row and not HEADER.fullmatch(row)]
    if rows and rows[0] == "__ignore__":  # LabelMe gives it the number −1, and the next one 0
        rows = rows[1:]
    return [_text_row(row, value, path) for value, row in enumerate(rows)]


def _text_row(row: str, value: int, path: Path) -> PixelClass:
    if match := COLOR_NAME.fullmatch(row):
        *color, name = match.groups()
    elif match := NAME_COLOR.fullmatch(row) or CSV_COLOR.fullmatch(row):
        name, *color = match.groups()[:4]
    elif match := NUMBER_NAME.fullmatch(row):
        expect(len(match[1]) < 9, path, "class numbers below 2²⁴", row)
        return PixelClass(match[2].strip(), int(match[1]))
    else:
        return PixelClass(row, value)
    return PixelClass(name.strip(), value, _color([int(c[:4]) for c in color], path))


def _json_rows(path: Path) -> list[PixelClass]:
    content: Any = decode_json(read_plain(path), object, path)
    if isinstance(content, dict):
        listed = next((content[key] for key in ("categories", "classes", "names") if key in content), None)
        if listed is None:
            listed = [{"id": key, "name": name} for key, name in content.items()]
        content = listed
    expect(isinstance(content, list), path, "a list of classes", content)
    return [_json_row(row, value, path) for value, row in enumerate(content)]


def _json_row(row: Any, value: int, path: Path) -> PixelClass:
    if isinstance(row, str):
        return PixelClass(row.strip(), value)
    expect(isinstance(row, dict) and isinstance(row.get("name"), str), path, "names, or objects with a name", row)
    number = row.get("id", row.get("value", value))
    if not re.fullmatch("[0-9]{1,8}", str(number)):
        raise PansightError(where=path, expected=f"a whole number as id of {row['name']!r}", found=f"{number!r:.60}")
    thing = read_flag(row.get("isthing"), f"{path}: class {row['name']!r:.60}", "isthing")
    color = None if row.get("color") is None else _color(row["color"], path)
    return PixelClass(row["name"].strip(), int(number), color, thing)


def _color(value: Any, path: Path) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in value):
        raise PansightError(where=path, expected="colours of three numbers 0 … 255", found=f"{value!r:.60}")
    return value[0], value[1], value[2]
