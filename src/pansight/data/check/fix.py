"""Write a repaired copy of a COCO panoptic data set. Where the repair is certain it is made, otherwise the part is left
out, and both are reported.

RULES (`defects`) says what becomes of each defect. The principles: the PNG decides areas, boxes, sizes and
which segments exist; the JSON decides what they are; a pixel of which the two do not agree is void; an image whose
files are missing, damaged or of different sizes is left out; whether a class is a thing is never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pansight.data.check import Progress, Report
from pansight.data.check.defects import RULES, one_line
from pansight.data.check.examine import Examined, examine
from pansight.data.check.output import Names, folder_name, new_folder, place_file, write_annotations
from pansight.data.check.reader import Class, Part, Record, is_color
from pansight.data.images import write_png
from pansight.errors import PansightError
from pansight.files import write_json
from pansight.ops.idmap import IdArray, areas, boxes_xyxy, ids_to_rgb, relabel
from pansight.parallel import in_order

REPAIRS = "repairs.json"
"""The list of what was done, in the copy."""


class Repaired(NamedTuple):
    """The copy. dropped: (part, image id, file name) of every image that was left out."""

    folder: Path
    images: int
    dropped: tuple[tuple[str, str | int, str], ...]
    done: dict[str, int]  # code → how often its remedy was applied


def fix(
    report: Report,
    out: str | Path,
    things: Iterable[str] | None = None,
    link: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    jobs: int = 0,
) -> Repaired:
    """Write a repaired copy of what `check` has read, with a list of all that was done in ``repairs.json``.

    report: of `check`. things: the names of the categories that are things, among those that do not say; the rest of
    them becomes stuff. link: hard links instead of copies of the images. jobs: as for `check`. Raises PansightError
    where something is wrong that only a person can settle, where nothing is left, and as `new_folder` does.
    """
    if not report.root.exists():  # it was converted into a temporary folder
        raise PansightError(
            where=out, expected="COCO annotations to repair", found="another format", hint="see pansight convert"
        )
    classes = _settle(report, things)
    parts = [checked for checked in report.parts if len(checked.part.records) > len(checked.lost)]
    inputs = {f for c in parts for f in (c.part.images, c.part.panoptic) if f is not None and f != report.root}
    total, done = sum(len(c.part.records) - len(c.lost) for c in parts), 0
    names, dropped = Names(), [_dropped(c.part, c.part.records[n]) for c in report.parts for n in sorted(c.lost)]
    with new_folder(Path(out), REPAIRS, tuple(inputs), overwrite) as folder:
        for checked in parts:
            part, name = checked.part, folder_name(checked.part.name, names)
            kept = [record for n, record in enumerate(part.records) if n not in checked.lost]
            copy = _Copy(part, classes[part.name], folder, name, link)
            for record, image in zip(kept, in_order(partial(examine, part, image=False), kept, jobs)):
                copy.add(record, image)
                done += 1
                if progress is not None:
                    progress(done, total)
            copy.close()
        counts = {code: report.findings.counts[code] for code, rule in RULES.items() if rule.remedy}
        counts = {code: count for code, count in counts.items() if count}
        _write_list(folder / REPAIRS, report, dropped, counts)
    return Repaired(Path(out), total, tuple(dropped), counts)


def _dropped(part: Part, record: Record) -> tuple[str, str | int, str]:
    return part.name, record.image_id, one_line(record.row.get("file_name", ""), 200)


def _write_list(path: Path, report: Report, dropped: list[tuple[str, str | int, str]], counts: dict[str, int]) -> None:
    remedies = {code: {"found": count, "remedy": RULES[code].remedy} for code, count in counts.items()}
    images = [dict(zip(("part", "image_id", "file_name"), row)) for row in dropped]
    defects = [found._asdict() for found in report.findings.defects]
    write_json(path, {"remedies": remedies, "dropped_images": images, "defects": defects})


def _settle(report: Report, things: Iterable[str] | None) -> dict[str, dict[int, Class]]:
    """The classes of each part with every thing decided. Raises PansightError where the copy would not be sound."""
    parts = [checked.part for checked in report.parts]
    if any(part.kind != "panoptic" for part in parts):
        raise PansightError(
            where=report.root, expected="COCO panoptic to repair", found="masks (pansight convert makes it)"
        )
    blocking = {code: d for code, d in report.findings.blocking.items() if code != "isthing" or things is None}
    if blocking:
        first = next(iter(blocking.values()))
        hint = " (name the things: --things A,B,C)" if first.code == "isthing" else ""
        raise PansightError(first.line(), hint=f"cannot be repaired without you{hint}")
    if not any(len(checked.part.records) > len(checked.lost) for checked in report.parts):
        raise PansightError(
            where=report.root, expected="images that can be kept", found="none", hint="nothing was written"
        )
    named = set(things or ())
    known = {row.name for part in parts for row in part.classes.values()}
    if named - known:
        listed = ", ".join(one_line(name) for name in sorted(known)[:20])
        raise PansightError(
            where="--things", expected=f"names of categories ({listed})", found=f"{min(named - known)!r}"
        )
    return {part.name: {n: _settled(row, named) for n, row in part.classes.items()} for part in parts}


def _settled(row: Class, things: set[str]) -> Class:
    return Class(row.name, row.name in things if row.is_thing is None else row.is_thing)


class _Copy:
    """One part as it is written. classes: with every thing decided."""

    def __init__(self, part: Part, classes: dict[int, Class], folder: Path, name: str, link: bool):
        self.part, self.classes, self.link = part, classes, link
        self.json = folder / "annotations" / f"panoptic_{name}.json"
        self.pngs, self.pictures = self.json.with_suffix(""), folder / name
        self.pngs.mkdir(parents=True)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.names = Names()

    def add(self, record: Record, image: Examined) -> None:
        """Raises PansightError where the PNG has gone since it was checked."""
        annotation, file_name = record.annotations[0], str(record.row["file_name"])
        if image.ids is None or image.size is None or self.part.panoptic is None or self.part.images is None:
            raise PansightError(
                where=f"{self.part.json}: image {record.image_id}", expected="a PNG as before", found="it changed"
            )
        ids, rows = repaired_segments(image, image.ids, self.classes)
        source = self.part.panoptic / annotation["file_name"]
        name = self.names.take(str(Path(annotation["file_name"]).with_suffix(".png").as_posix()))
        if image.is_as_stored and ids is image.ids:
            place_file(source, self.pngs / name, self.link)
        else:
            write_png(self.pngs / name, ids_to_rgb(ids))
        place_file(self.part.images / file_name, self.pictures / file_name, self.link)
        height, width = image.size
        self.images.append({**record.row, "id": record.image_id, "height": height, "width": width})
        self.annotations.append({**annotation, "image_id": record.image_id, "file_name": name, "segments_info": rows})

    def close(self) -> None:
        categories: list[dict[str, Any]] = []
        for row, (number, known) in zip(self.part.categories, self.classes.items()):
            rest = {key: value for key, value in row.items() if key != "color" or is_color(value)}
            categories.append({**rest, "id": number, "name": known.name, "isthing": int(bool(known.is_thing))})
        lists = {"images": self.images, "annotations": self.annotations, "categories": categories}
        write_annotations(self.json, {**self.part.content, **lists})


def repaired_segments(image: Examined, ids: IdArray, classes: dict[int, Class]) -> tuple[IdArray, list[dict[str, Any]]]:
    """(map, rows of `segments_info`): only segments with pixels, one a stuff class, the rest void; all counted anew.

    The map is `ids` itself where nothing changes.
    """
    first: dict[tuple[int, bool], int] = {}
    mapping: dict[int, int] = {}
    kept: list[int] = []
    by_id = {segment.id: segment for segment in image.declared}
    for segment in image.declared:
        if segment.id not in image.pixels:
            continue
        key = segment.category, segment.is_crowd
        is_stuff = classes[segment.category].is_thing is False
        mapping[segment.id] = first.setdefault(key, segment.id) if is_stuff else segment.id
        kept += [segment.id] if mapping[segment.id] == segment.id else []
    if any(number and mapping.get(number) != number for number in image.pixels):
        ids = relabel(ids, mapping)
    pixels, boxes = areas(ids), boxes_xyxy(ids)
    rows: list[dict[str, Any]] = []
    for number in kept:
        segment, (x1, y1, x2, y2) = by_id[number], boxes[number]
        counted = {"area": pixels[number], "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(segment.is_crowd)}
        rows.append({**segment.row, "id": number, "category_id": segment.category, **counted})
    return ids, rows
