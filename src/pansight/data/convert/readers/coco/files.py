"""Find COCO JSONs and their kind, from the keys that occur in the text, without parsing it."""

from __future__ import annotations

import mmap
from pathlib import Path

from pansight.data.dataset import SPLITS, part_names
from pansight.errors import PansightError
from pansight.files import open_plain

PREFIX = {"coco_instances": "instances", "coco_panoptic": "panoptic", "coco_detection_panoptic": "panoptic"}
"""Kind → how the names of its files begin; a file so called is preferred to others of its kind."""

PLAIN_NAMES = ("_annotations.coco", "annotations", "result", "coco", "labels", "instances", "panoptic")
"""Names of files, without suffix, that do not name a part."""


def kind_of(file: Path) -> str | None:
    """The kind of a COCO JSON; None for other files. Cheap, never raises."""
    try:
        with open_plain(file) as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
            if not text[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                return None
            if any(text.find(key) < 0 for key in (b'"images"', b'"annotations"', b'"categories"')):
                return None
            if text.find(b'"segments_info"') >= 0:
                return "coco_panoptic"
            if text.find(b'"segmentation"') < 0:  # no annotations: the name tells
                named = [kind for kind in ("coco_instances", "coco_panoptic") if file.stem.startswith(PREFIX[kind])]
                return named[0] if named else None
            with_stuff = "panoptic" in file.stem or text.find(b'"isthing"') >= 0
            return "coco_detection_panoptic" if with_stuff else "coco_instances"
    except (OSError, ValueError):  # also: an empty file cannot be mapped
        return None


def coco_files(source: Path, kind: str) -> dict[str | None, list[Path]]:
    """Part → the files of one kind, in the usual places of a folder: there, in annotations/, in train/ and the like.

    The part is what follows the prefix ("train2017"), or the folder's; None for a file in one piece.
    """
    if source.is_file():
        return {part_of(source, kind): [source]} if kind_of(source) == kind else {}
    found: dict[str | None, list[Path]] = {}
    for place in (source / "annotations", source):
        for file in sorted(place.glob("*.json")):
            if kind_of(file) == kind:
                found.setdefault(part_of(file, kind), []).append(file)
    for name in [name for names in SPLITS.values() for name in names]:
        files = [f for f in sorted((source / name).glob("*.json")) if kind_of(f) == kind]
        if files:
            found.setdefault(name, []).extend(files)
    named = {part: [f for f in files if f.stem.startswith(PREFIX[kind])] for part, files in found.items()}
    named = {part: files for part, files in named.items() if files}
    return named or found


def part_of(file: Path, kind: str) -> str | None:
    """instances_train2017.json → "train2017"; train.json → "train"; result.json → None."""
    stem, prefix = file.stem, PREFIX[kind]
    if stem in PLAIN_NAMES:
        return next((name for names in SPLITS.values() for name in names if file.parent.name == name), None)
    return stem.removeprefix(prefix).lstrip("_-") or None


def parts_of(source: Path, kind: str) -> tuple[str, ...]:
    """The names of the parts; empty for a source in one piece. Never raises."""
    try:
        return tuple(part for part in coco_files(source, kind) if part is not None)
    except OSError:
        return ()


def choose_file(source: Path, kind: str, split: str | None, json: str | None) -> tuple[str | None, Path]:
    """(part, file) to read. Raises PansightError listing what was looked for, or among what to choose."""
    if json is not None:
        file = next((f for f in (Path(json), source / json) if f.is_file()), None)
        if file is None:
            raise PansightError(where=json, expected="an annotation file", found="none")
        return part_of(file, kind) if split is None else split, file
    if source.is_file():  # asked for by name: its reader says what is wrong with it
        return part_of(source, kind), source
    found = coco_files(source, kind)
    if split is not None:
        found = {part: files for part, files in found.items() if part is not None and names_part(part, split)}
    files = [(part, file) for part, several in found.items() for file in several]
    if not files:
        where = source if split is None else f"{source}, part {split!r}"
        names = f"annotations/{PREFIX[kind]}_*.json or another JSON of {kind}"
        raise PansightError(where=where, expected=names, found="none")
    exact = [row for row in files if row[0] == split]
    files = exact or files
    if len(files) > 1:
        names = ", ".join(str(file.relative_to(source)) for _, file in files)
        raise PansightError(
            where=source, expected="one annotation file", found=names, hint="name it (json=FILE or a split)"
        )
    return files[0]


def names_part(part: str, split: str) -> bool:
    """Whether "train2017" is meant by "train"; "training" is, too, "trainer" is not."""
    names = part_names(split)
    return part in names or any(part.startswith(name) and not part[len(name)].isalpha() for name in names)
