"""Mapillary Vistas v1.2 and v2.0: 16-bit instance PNGs, label · 256 + number, and the config with its labels.

Which labels are things, which are left out, and the category ids come from the user's own download: first from the
panoptic JSON (panoptic_2018.json, panoptic_2020.json), else from the config (``instances``, ``evaluate``), else, for
v1.2 only, from the built-in table. For v2.0 with neither nobody says what is a thing, and neither do we. Crowds are
marked in the panoptic files only; `pansight train --data` reads those without conversion.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pansight.data.categories import category_table
from pansight.data.convert.lookup import choose_part, files_ending, image_beside, image_size
from pansight.data.convert.source import Annotated, Source, SourceCategory
from pansight.data.convert.values import read_annotation, read_values, segments_of, unannotated
from pansight.data.formats.official import VISTAS_JSON, VISTAS_PARTS, vistas_jsons
from pansight.errors import PansightError, choice_error
from pansight.files import decode_json
from pansight.types import Flag, read_flag

Color = tuple[int, int, int]


class _Label(msgspec.Struct):
    """A row of the config; its position is the value in the PNGs."""

    name: str
    readable: str = ""
    instances: Flag = None
    evaluate: Flag = True
    color: Color | None = None


class _Config(msgspec.Struct):
    labels: list[_Label]


class _Category(msgspec.Struct):
    id: int
    name: str
    isthing: Flag
    supercategory: str = ""
    color: Color | None = None


class _Panoptic(msgspec.Struct):
    """Of a file of some hundred megabytes only this is kept."""

    categories: list[_Category]


class _Classes(NamedTuple):
    categories: tuple[SourceCategory, ...]
    by_label: dict[int, int | None]  # label in the PNGs → index of its category; None: left void
    note: str


class Vistas:
    """One part of one version. Segment ids: value in the PNG + 256, as 0 is the first bird."""

    def __init__(self, instances: Path, images: Path, classes: _Classes, notes: list[str]):
        self.instances, self.images = instances, images
        self.categories, self._by_label = classes.categories, classes.by_label
        self._files = files_ending(instances, ".png")
        if not self._files:
            raise PansightError(where=instances, expected="16-bit PNGs of instances", found="none")
        if not images.is_dir():
            raise PansightError(where=images, expected="the images", found="no such folder", code="missing_file")
        self.notes = (*notes, classes.note, *unannotated(images, (file.stem for file in self._files)))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Annotated:
        file = self._files[index]
        values = read_values(file, 16, "instances of Vistas")
        size = values.shape[0], values.shape[1]
        ids, segments = segments_of(values, lambda value: self._meaning(value, file))
        image = image_beside(self.images, file.stem)
        if image is None:
            raise PansightError(
                where=f"{self.images / file.stem}.jpg",
                expected=f"the image of {file.name}",
                found="no such file",
                code="missing_file",
            )
        image_size(image, size)
        return Annotated(file.stem, image.name, image, size, ids=ids, segments=segments)

    def _meaning(self, value: int, file: Path) -> tuple[int, int, bool] | None:
        label = value >> 8
        if label not in self._by_label:
            raise PansightError(
                where=file, expected=f"labels 0 … {max(self._by_label)}", found=f"{label} (value {value})"
            )
        category = self._by_label[label]
        return None if category is None else (value + 256, category, False)


def _classes(root: Path, version: str, split: str) -> _Classes:
    config_file = next((f for f in (root / f"config_v{version}.json", root / "config.json") if f.is_file()), None)
    labels = (
        None
        if config_file is None
        else decode_json(read_annotation(config_file, "the config of Vistas"), _Config, config_file).labels
    )
    jsons = vistas_jsons(root, version)
    if jsons and (labels is not None or version == "2.0"):
        file = jsons.get(split) or next(iter(jsons.values()))
        names = labels if labels is not None else [_Label(row["name"]) for row in category_table("vistas_v2_0_labels")]
        return _from_panoptic(
            names, decode_json(read_annotation(file, "panoptic annotations"), _Panoptic, file).categories, file
        )
    if labels is not None and config_file is not None:
        return _from_config(labels, config_file)
    if version == "1.2":
        rows = category_table("vistas_v1_2_panoptic")
        categories = tuple(_category(row, bool(row["isthing"]), row["id"]) for row in rows)
        return _Classes(categories, {**{n: n for n in range(65)}, 65: None}, "classes of v1.2 as built in: no config")
    rows = category_table("vistas_v2_0_labels")
    kept = [row for row in rows if not row["voidOrCrowd"]]
    index = {row["labelId"]: n for n, row in enumerate(kept)}
    left_out = ", ".join(row["name"] for row in rows if row["voidOrCrowd"])
    note = f"no config_v2.0.json: nothing says which classes are things; left void: {left_out}"
    categories = tuple(_category(row, None, row["labelId"] + 1) for row in kept)
    return _Classes(categories, {row["labelId"]: index.get(row["labelId"]) for row in rows}, note)


def _category(row: dict[str, Any], is_thing: bool | None, number: int) -> SourceCategory:
    return SourceCategory(row["name"], number, is_thing, tuple(row["color"]))


def _from_panoptic(labels: list[_Label], rows: list[_Category], file: Path) -> _Classes:
    """The categories of the panoptic file; labels find theirs by name, those without one are left void."""
    by_name = {name: n for n, row in enumerate(rows) for name in (row.supercategory, row.name) if name}
    for n, row in enumerate(rows):
        by_name[row.name] = n  # a name goes before the same supercategory
    found = {i: by_name.get(label.name, by_name.get(label.readable)) for i, label in enumerate(labels)}
    lost = set(range(len(rows))) - set(found.values())
    if lost:
        raise PansightError(
            where=file, expected="categories that are labels of the config", found=f"{rows[min(lost)].name!r}"
        )
    things = [read_flag(row.isthing, f"{file}: category {row.id}", "isthing") for row in rows]
    categories = tuple(SourceCategory(row.name, row.id, thing, row.color) for row, thing in zip(rows, things))
    return _Classes(categories, found, f"things and stuff as in {file.name}; {_left_out(labels, found)}")


def _from_config(labels: list[_Label], file: Path) -> _Classes:
    """Labels that are evaluated; ids as in the panoptic files of v1.2, label + 1."""
    kept = [n for n, label in enumerate(labels) if read_flag(label.evaluate, f"{file}: label {n}", "evaluate")]
    found = {n: kept.index(n) if n in kept else None for n in range(len(labels))}
    names = [labels[n].readable or labels[n].name for n in kept]
    if len(set(names)) < len(names):
        names = [labels[n].name for n in kept]
    things = [read_flag(labels[n].instances, f"{file}: label {n}", "instances") for n in kept]
    categories = tuple(
        SourceCategory(name, n + 1, thing, labels[n].color) for n, name, thing in zip(kept, names, things)
    )
    return _Classes(categories, found, f"things and stuff as in {file.name}; {_left_out(labels, found)}")


def _left_out(labels: list[_Label], found: dict[int, int | None]) -> str:
    names = [labels[n].readable or labels[n].name for n, category in found.items() if category is None]
    return f"left void: {', '.join(names) or 'nothing'}"


def open_vistas(source: Path, split: str | None = None, version: str | None = None) -> Source:
    """Mapillary Vistas v1.2 and v2.0.

    version: "1.2" or "2.0"; without one, the newest that is there. Raises PansightError listing what was looked for.
    """
    if version is not None and version not in VISTAS_JSON:
        raise choice_error("version of Vistas", version, VISTAS_JSON)
    root, only = _root_and_part(source)
    split = split or only
    places = {number: _instances(root, number) for number in (VISTAS_JSON if version is None else (version,))}
    number = next((number for number, folders in places.items() if folders), None)
    if number is None:
        raise PansightError(
            where=source,
            expected=f"training/[v{version or '2.0'}/]instances",
            found="no such folder",
            code="missing_file",
        )
    part, note = choose_part(places[number], split, root)
    assert part is not None  # there are places
    classes = _classes(root, number, VISTAS_PARTS[part])
    return Vistas(places[number][part], root / part / "images", classes, [note] if note else [])


def _instances(root: Path, version: str) -> dict[str, Path]:
    """Part → folder of its instance PNGs: by version in the zip of v2.0, without in that of v1.2."""
    found: dict[str, Path] = {}
    for part in VISTAS_PARTS:
        places = [root / part / f"v{version}" / "instances"]
        if version == "1.2":
            places.append(root / part / "instances")
        folder = next((place for place in places if place.is_dir()), None)
        if folder is not None:
            found[part] = folder
    return found


def splits_vistas(source: Path) -> tuple[str, ...]:
    root, only = _root_and_part(source)
    if only is not None:
        return (only,)
    return next((tuple(folders) for folders in (_instances(root, v) for v in VISTAS_JSON) if folders), ())


def _root_and_part(source: Path) -> tuple[Path, str | None]:
    """(the root, None), or (the root above, training or validation) where `source` is only that part."""
    if source.name in VISTAS_PARTS and _has_parts(source.parent):
        return source.parent, source.name
    return source, None


def _has_parts(root: Path) -> bool:
    return any((root / p / "images").is_dir() and _instances(root, v) for p in VISTAS_PARTS for v in VISTAS_JSON)


def is_vistas(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return _has_parts(_root_and_part(source)[0])
