"""Split a data set into train, val and test: stratified by class, groups stay together, files are copied unchanged."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pansight.data.check import Progress, open_parts
from pansight.data.check.examine import read_record
from pansight.data.check.foreign import as_coco
from pansight.data.check.output import new_folder, place_file, require_new, write_annotations
from pansight.data.check.reader import Part, file_in, is_file, whole
from pansight.data.check.stratify import stratify
from pansight.errors import PansightError
from pansight.files import read_plain, write_json
from pansight.parallel import in_order, workers

SIDES = ("train", "val", "test")
RECORD = "split.json"
"""How the folder was made."""


class ClassSplit(NamedTuple):
    """A class on all sides: (train, val), or (train, val, test)."""

    name: str
    images: tuple[int, ...]
    segments: tuple[int, ...]


class Split(NamedTuple):
    """What was written. images: (train, val), or (train, val, test). groups: units that stayed together; images where
    nothing was grouped. notes: how data that is not COCO was read."""

    folder: Path
    images: tuple[int, ...]
    groups: int
    classes: tuple[ClassSplit, ...]
    notes: tuple[str, ...] = ()

    @property
    def sides(self) -> tuple[str, ...]:
        return SIDES[: len(self.images)]


class _Item(NamedTuple):
    """An image as it is copied."""

    position: int
    image: Path
    png: Path | None
    counts: dict[int, int]  # category id → segments


def split(
    source: str | Path,
    out: str | Path,
    val: float = 0.2,
    seed: int = 0,
    group: str | None = None,
    part: str | None = None,
    link: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    test: float = 0.0,
    things: Sequence[str] | None = None,
    jobs: int = 0,
) -> Split:
    """Write ``out/annotations/panoptic_{train,val,test}.json`` with PNGs and images; COCO instances likewise.

    source: COCO panoptic or instances, or any format that `convert` reads, which becomes COCO panoptic. val, test:
    shares of the images; without `test` there are two parts. things: the classes that are things, for a source that is
    not COCO and does not say so. group: what images that must stay together have in common: see `group_key`; images of
    the same bytes stay together in any case. part: which part to split, where the source has several. link: hard links
    instead of copies. The same seed gives the same split. jobs: so many images at a time, 0: as many as there are
    cores; the files are the same. Raises PansightError where the annotations have errors (see `check`), a file is
    missing, or there is nothing to split.
    """
    if test != 0 and not (0 < test < 1 and 0 < val < 1 and val + test < 1):
        found = f"{val} and {test}"
        raise PansightError(where="split", expected="shares for val and test above 0 and below 1 together", found=found)
    workers(jobs)  # refused before anything is read
    require_new(Path(out), RECORD, overwrite)
    with as_coco(source, things, jobs=jobs) as (folder, notes, left_out):
        chosen = _choose(folder, part)
        result = _split(chosen, Path(out), val, test, seed, group, link, overwrite, progress, jobs)
    return result._replace(notes=(*notes, *(f"left out: {line}" for line in left_out)))


def _split(
    chosen: Part,
    out: Path,
    val: float,
    test: float,
    seed: int,
    group: str | None,
    link: bool,
    overwrite: bool,
    progress: Progress | None,
    jobs: int,
) -> Split:
    items = list(_items(chosen))
    names = [chosen.records[item.position].row["file_name"] for item in items]
    units = _units(items, [group_key(name, group) for name in names] if group else [])
    sides = _sides(items, units, val, test, seed)
    inputs = {f for f in (chosen.images, chosen.panoptic) if f is not None and f != chosen.root}
    done = 0
    with new_folder(out, RECORD, tuple(inputs), overwrite) as folder:
        for name, side in zip(SIDES, sides):
            for _ in in_order(partial(_copy, chosen, folder, name, link), [items[n] for n in side], jobs):
                done += 1
                if progress is not None:
                    progress(done, len(items))
            _write(chosen, [items[n] for n in side], folder, name)
        record = {"val": val, "test": test, "seed": seed, "group": group, "images": dict(zip(SIDES, map(len, sides)))}
        write_json(folder / RECORD, record)
    return Split(out, tuple(map(len, sides)), len(units), _table(chosen, items, sides))


def _sides(items: list[_Item], units: list[list[int]], val: float, test: float, seed: int) -> list[list[int]]:
    """The indices of the items of train, val and, where `test` is not 0, test: test is set aside first."""
    sides = list[list[int]]()
    for share in (test, val / (1 - test)) if test else (val,):
        classes = [_class_images(items, unit) for unit in units]
        chosen = stratify([len(unit) for unit in units], classes, share, seed)
        sides.append(sorted(n for unit, is_in in zip(units, chosen) if is_in for n in unit))
        units = [unit for unit, is_in in zip(units, chosen) if not is_in]
    return [sorted(n for unit in units for n in unit), *reversed(sides)]


def group_key(name: str, group: str) -> str:
    """What images of one group have in common.

    group: a number takes so many characters of the file name; text with parentheses is a regular expression of which
    the first group counts; other text is a mark: the name up to its first occurrence (``_``: "a_1.jpg" → "a"). Where
    the mark or the expression does not occur, the image is a group of its own.
    """
    if group.isdigit():
        return name[: int(group)]
    if "(" in group:
        try:
            found = re.search(group, name)
            return (found.group(1) or "") if found else name
        except (re.error, IndexError) as error:
            raise PansightError(
                where="--group", expected="a regular expression with a group", found=f"{group!r}"
            ) from error
    return name.partition(group)[0]


def _choose(source: str | Path, name: str | None) -> Part:
    """The one part to split, sound as far as its lists go."""
    root, parts, findings, _ = open_parts(source)
    fatal = [d for d in findings.defects if d.severity == "error" and d.code not in ("isthing", "duplicate-name")]
    if fatal:
        hint = f"pansight check {source} lists all {len(fatal)}" if len(fatal) > 1 else "see pansight check"
        raise PansightError(f"{fatal[0].line()} ({hint})")
    chosen = [part for part in parts if name is None or part.name == name]
    listed = ", ".join(part.name for part in parts)
    if not chosen:
        raise PansightError(where="--part", expected=f"one of {listed}", found=f"{name!r}")
    if len(chosen) > 1:
        raise PansightError(where=root, expected="one part to split", found=listed, hint="name one (--part NAME)")
    if chosen[0].kind == "detection":
        raise PansightError(
            where=chosen[0].json, expected="COCO panoptic or instances", found="masks", hint="see pansight convert"
        )
    return chosen[0]


def _items(part: Part) -> Iterator[_Item]:
    if part.images is None:
        raise PansightError(where=part.json, expected="its images in the usual folders", found="none")
    for position, record in enumerate(part.records):
        where = f"{part.json}: image {record.image_id}"
        png, counts = None, dict[int, int]()
        if part.kind == "panoptic":
            defects = []
            png, declared, _ = read_record(part, record, defects)
            if png is None or not is_file(png):
                line = (
                    defects[0].line() if png is None and defects else f"{where}: expected its PNG, found no such file"
                )
                raise PansightError(f"{line} (see pansight check)")
            categories = [segment.category for segment in declared]
        else:
            categories = [c for row in record.annotations if (c := whole(row.get("category_id"))) in part.classes]
        for category in categories:
            counts[category] = counts.get(category, 0) + 1
        image = file_in(part.images, record.row.get("file_name"))
        if image is None or not is_file(image):
            raise PansightError(where=where, expected="its image file", found="none (see pansight check)")
        yield _Item(position, image, png, counts)


def _units(items: Sequence[_Item], keys: Sequence[str]) -> list[list[int]]:
    """Indices of items that stay together: of one key, of one file, or of the same bytes; in the order of the items."""
    leader = list(range(len(items)))

    def find(n: int) -> int:
        while leader[n] != n:
            leader[n] = leader[leader[n]]
            n = leader[n]
        return n

    first: dict[tuple[str, Any], int] = {}
    sizes: dict[int, list[int]] = {}
    for n, item in enumerate(items):
        if keys:
            leader[find(n)] = find(first.setdefault(("key", keys[n]), n))
        sizes.setdefault(item.image.stat().st_size, []).append(n)
    for same in sizes.values():
        for n in same if len(same) > 1 else ():
            digest = hashlib.blake2b(read_plain(items[n].image), digest_size=16).digest()
            leader[find(n)] = find(first.setdefault(("bytes", digest), n))
    units: dict[int, list[int]] = {}
    for n in range(len(items)):
        units.setdefault(find(n), []).append(n)
    return list(units.values())


def _class_images(items: Sequence[_Item], unit: list[int]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for n in unit:
        for category in items[n].counts:
            counts[category] = counts.get(category, 0) + 1
    return counts


def _copy(part: Part, folder: Path, side: str, link: bool, item: _Item) -> None:
    record = part.records[item.position]
    place_file(item.image, folder / side / record.row["file_name"], link)
    if item.png is not None:
        name = record.annotations[0]["file_name"]
        place_file(item.png, folder / "annotations" / f"panoptic_{side}" / name, link)


def _write(part: Part, items: list[_Item], folder: Path, side: str) -> None:
    """The rows as they were, the categories whole on both sides."""
    records = [part.records[item.position] for item in items]
    rows = {"images": [r.row for r in records], "annotations": [a for r in records for a in r.annotations]}
    prefix = "panoptic" if part.kind == "panoptic" else "instances"
    content = {**part.content, **rows, "categories": list(part.categories)}
    write_annotations(folder / "annotations" / f"{prefix}_{side}.json", content)


def _table(part: Part, items: list[_Item], sides: list[list[int]]) -> tuple[ClassSplit, ...]:
    """Classes that occur, the most frequent first."""
    rows: list[ClassSplit] = []
    for number, row in part.classes.items():
        counts = [np.array([items[n].counts.get(number, 0) for n in side], np.int64) for side in sides]
        images, segments = [int((c > 0).sum()) for c in counts], [int(c.sum()) for c in counts]
        if sum(segments):
            rows.append(ClassSplit(row.name, tuple(images), tuple(segments)))
    return tuple(sorted(rows, key=lambda row: -sum(row.images)))
