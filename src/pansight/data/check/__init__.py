"""Find every defect of a data set at once, describe what it holds, and write a repaired copy.

report = check("coco", progress=print)
report.findings.defects, report.parts[0].statistics
fix("coco", "coco_fixed")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pansight.data.check.defects import RULES, Defect, Findings, defect, one_line
from pansight.data.check.examine import Examined, examine
from pansight.data.check.foreign import as_coco
from pansight.data.check.learnable import unlearnable
from pansight.data.check.masks import examine_masks
from pansight.data.check.reader import Class, Part, Record, find_files, read_part, show_path, split_of
from pansight.data.check.statistics import QUERIES, Statistics
from pansight.errors import PansightError
from pansight.parallel import in_order, workers

__all__ = ["QUERIES", "RULES", "Checked", "Defect", "Findings", "Report", "Statistics", "check"]

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


class Place(NamedTuple):
    """Where an image is."""

    part: int
    position: int  # in the part's records


@dataclass(frozen=True, eq=False)
class Checked:
    """A part with what it holds. lost: positions of the records that `fix` must leave out."""

    part: Part
    statistics: Statistics
    lost: set[int]


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that `check` found. skipped: files of another kind beside those that were checked. notes: how data
    that is not COCO was read. left_out: a line for each file or image of it that cannot be read."""

    root: Path
    parts: tuple[Checked, ...]
    findings: Findings
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        return sum(checked.statistics.images for checked in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Of kept defects; the counts are those of all."""
        counts = {code: self.findings.counts[code] for code in RULES if self.findings.counts[code]}
        parts = {
            c.part.name: {"file": c.part.show(c.part.json), "kind": c.part.kind, **c.statistics.to_json()}
            for c in self.parts
        }
        rows = [found._asdict() for found in self.findings.defects]
        return {
            "errors": self.findings.number("error"),
            "counts": counts,
            "defects": rows,
            "parts": parts,
            "notes": list(self.notes),
            "left_out": list(self.left_out),
        }


def check(
    source: str | Path,
    images: Path | None = None,
    panoptic: Path | None = None,
    keep: int | None = None,
    progress: Progress | None = None,
    jobs: int = 0,
) -> Report:
    """Read all of a data set and note all that is wrong with it.

    source: a folder or an annotation file: COCO panoptic, COCO instances or COCO's detection format; any other format
    that `convert` reads is converted into a temporary folder and checked there, so `fix` cannot follow. Of a folder
    all parts are checked, and the leaks between them. images, panoptic: the folders of a single file, where they are
    not to be looked for. keep: how many defects of each code are kept; the counts are always complete.
    jobs: so many images at a time, 0: as many as there are cores; the report is the same.
    Raises PansightError where nothing is found or nothing can be read.
    """
    workers(jobs)  # refused before anything is read
    with as_coco(source, guess=True, jobs=jobs) as (folder, notes, left_out):
        report = _check(folder, images, panoptic, keep, progress, jobs)
        return replace(report, notes=notes, left_out=left_out)


def _check(
    source: Path, images: Path | None, panoptic: Path | None, keep: int | None, progress: Progress | None, jobs: int
) -> Report:
    """`check` of COCO annotations."""
    root, parts, findings, skipped = open_parts(source, images, panoptic, keep)
    total, done = sum(len(part.records) for part in parts), 0
    results: list[Checked] = []
    places: dict[bytes, list[Place]] = {}
    for part in parts:
        _check_folders(part, findings)
        checked = Checked(part, Statistics(part.classes), set())
        results.append(checked)
        for position, image in enumerate(in_order(partial(_examine, part), part.records, jobs)):
            findings.add(image.defects)
            checked.statistics.add(image)
            if not image.is_usable:
                checked.lost.add(position)
            if image.digest is not None:
                places.setdefault(image.digest, []).append(Place(len(results) - 1, position))
            done += 1
            if progress is not None:
                progress(done, total)
    _check_twins(results, places, findings)
    _compare_categories(parts, findings)
    for checked in results:
        findings.add(unlearnable(checked.part, checked.statistics))
    return Report(root, tuple(results), findings, tuple(skipped))


def _examine(part: Part, record: Record) -> Examined:
    return examine(part, record) if part.kind == "panoptic" else examine_masks(part, record)


def open_parts(
    source: str | Path, images: Path | None = None, panoptic: Path | None = None, keep: int | None = None
) -> tuple[Path, list[Part], Findings, list[str]]:
    """(root, parts, defects of the files and their lists, files of another kind)."""
    root, files = find_files(source)
    if len(files) > 1 and (images or panoptic):
        raise PansightError(where=source, expected="one annotation file where folders are given", found=len(files))
    findings, read, unread = Findings(keep), list[tuple[Part | None, list[Defect]]](), list[PansightError]()
    for file in files:
        try:
            part, defects = read_part(file, root, images, panoptic)
        except PansightError as error:
            unread.append(error)
            found = error.found or error.what
            findings.add([defect("not-json", show_path(file, root), "JSON", one_line(found, 160))])
            continue
        read.append((part, defects))
    if len(unread) == len(files):
        raise unread[0]
    kinds = {part.kind for part, _ in read if part is not None}
    wanted = "panoptic" if "panoptic" in kinds else min(kinds, default="panoptic")
    parts: list[Part] = []
    names: set[str] = set()
    skipped: list[str] = []
    for part, defects in read:
        if part is not None and part.kind != wanted:
            skipped.append(part.show(part.json))
            continue
        findings.add(defects)
        if part is not None:
            parts.append(part if part.name not in names else replace(part, name=f"{part.name}_{len(names) + 1}"))
            names.add(parts[-1].name)
    return root, parts, findings, skipped


def _check_folders(part: Part, findings: Findings) -> None:
    """One line where nothing is found at all, for a line an image would hide the cause."""
    if not part.records:
        return
    for folder, what in ((part.images, "images"), (part.panoptic, "PNGs")):
        if folder is None and (what == "images" or part.kind == "panoptic"):
            found = f"none of {len(part.records)}"
            findings.add([defect("no-folder", part.show(part.json), f"{what} in the usual folders", found)])


def _check_twins(results: list[Checked], places: dict[bytes, list[Place]], findings: Findings) -> None:
    """Images of the same bytes: a leak where they are in different parts, and the one for training is lost."""
    for twins in places.values():
        if len(twins) < 2:
            continue
        twins.sort(key=lambda p: (p.position in results[p.part].lost, -_rank(results[p.part].part)))
        kept = results[twins[0].part]
        name = _image_file(kept.part, twins[0].position)
        for twin in twins[1:]:
            checked = results[twin.part]
            is_leak = twin.part != twins[0].part
            code, expected = (
                ("leak", "an image of this part alone") if is_leak else ("duplicate-image", "another image")
            )
            if is_leak:
                checked.lost.add(twin.position)
            where, image_id = _image_file(checked.part, twin.position), checked.part.records[twin.position].image_id
            findings.add([defect(code, where, expected, f"the bytes of {name}", image_id)])


def _rank(part: Part) -> int:
    """An image stays where it is measured, not where it is trained on."""
    return {"train": 0, None: 1, "val": 2, "test": 3}[split_of(part.name)]


def _image_file(part: Part, position: int) -> str:
    return part.show((part.images or part.root) / str(part.records[position].row["file_name"]))


def _compare_categories(parts: list[Part], findings: Findings) -> None:
    """The categories of the other parts against the first one's."""
    for part in parts[1:]:
        first, where = parts[0], part.show(part.json)
        for number in sorted(part.classes.keys() | first.classes.keys()):
            here, there = part.classes.get(number), first.classes.get(number)
            if here == there:
                continue
            expected = f"{_describe(there)} as in {first.name}"
            place = f"category {one_line(number, 24)}"
            findings.add([defect("categories-differ", where, expected, _describe(here), None, place)])


def _describe(row: Class | None) -> str:
    if row is None:
        return "no such category"
    kind = {True: "thing", False: "stuff", None: "unknown whether thing or stuff"}[row.is_thing]
    return f"'{one_line(row.name)}' ({kind})"
