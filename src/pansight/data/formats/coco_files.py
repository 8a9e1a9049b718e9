"""Find the JSON files of COCO's formats, their kind and their part, and the folders that their images lie in.

The kind is told from the keys that occur in the text, without parsing it. Files that are called `instances_train.json`
or `panoptic_train.json` are preferred to others. `train` and `convert` both look by these rules.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pansight.data.dataset import means_split, part_folders, part_names, split_of
from pansight.data.paths import locate_all
from pansight.errors import PansightError
from pansight.files import json_text, open_plain, safe_join

PREFIX = {"coco_instances": "instances", "coco_panoptic": "panoptic", "coco_detection_panoptic": "panoptic"}
"""Kind → how the names of its files begin; a file so called is preferred to others of its kind."""

PLAIN_NAMES = ("_annotations.coco", "annotations", "result", "coco", "labels", "instances", "panoptic", "default")
"""Names of files, without suffix, that do not name a part."""

IMAGE_FOLDERS = ("images", "input_images", "JPEGImages", "img", "imgs", "data", "")

MAX_DEPTH = 3
"""Folders below the data folder that are searched where the usual places have no annotations."""

MAX_FILES = 20
"""A folder with more JSON files than this holds one for each image, and none for all of them."""


def kind_of(file: Path) -> str | None:
    """The kind of a COCO JSON, a key of PREFIX; None for other files. Cheap, never raises."""
    try:
        with open_plain(file) as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            text = mapped if b"\0" not in mapped[:4] else json_text(mapped[:], file)  # UTF-16 has zeros
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
    except (OSError, ValueError, PansightError):  # also: an empty file cannot be mapped
        return None


def json_files(root: Path) -> list[Path]:
    """The JSON files in the usual places of a data folder: annotations/, the folder itself, the folders of its parts.

    Where these have none, those in folders below it. Raises OSError where a folder cannot be read.
    """
    parts = [place for name in part_folders(root) for place in (root / name, root / name / "annotations")]
    found = [file for place in (root / "annotations", root, *parts) for file in _jsons(place)]
    if found or not root.is_dir():
        return found
    for place, folders, _ in os.walk(root):
        folder = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        if len(folder.relative_to(root).parts) >= MAX_DEPTH:
            folders.clear()
        inside = _jsons(folder)
        found += inside if len(inside) <= MAX_FILES else []
    return found


def _jsons(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(".json"))
    return [folder / name for name in names if not name.startswith(".")]


def part_of(file: Path, prefix: str, root: Path) -> str | None:
    """The part that a file of a data folder is of: by its name behind the prefix, else by its folder.

    ``instances_train2017.json`` is "train2017", ``coco_train.json`` "coco_train", ``train/_annotations.coco.json``
    "train", ``instances_default.json`` "default", and ``result.json`` None: a file in one piece.
    """
    stem = file.stem
    rest = stem.removeprefix(prefix).lstrip("_-")
    if split_of(rest) is not None:
        return rest
    inside = file.relative_to(root).parts[:-1] if file.is_relative_to(root) else (file.parent.name,)
    folder = next((name for name in reversed(inside) if split_of(name) is not None), None)
    return folder or (None if stem in PLAIN_NAMES else rest or None)


def find_json(root: Path, prefix: str, split: str | None) -> Path | None:
    """The annotation file of a part: ``prefix_train2017.json`` and the like, or another name with that content.

    Without a split the only file is taken, else that of the training part. None where there is none. Raises
    PansightError where it is ambiguous.
    """
    files = json_files(root)
    found = [file for file in files if file.stem == prefix or file.stem.startswith(f"{prefix}_")]
    found = found or [file for file in files if kind_of(file) == f"coco_{prefix}"]
    if prefix == "panoptic" and split is None:  # its PNGs lie beside it
        found = [file for file in found if file.with_suffix("").is_dir()] or found
    if split is None and len(found) <= 1:
        return found[0] if found else None
    parts = {file: part_of(file, prefix, root) for file in found}
    meant = [file for file, part in parts.items() if part is not None and means_split(part, split or "train")]
    exact = [file for file in meant if parts[file] == split]
    if split is None and not meant:
        names = ", ".join(file.name for file in found)
        hint = "name it (json=FILE or split=NAME)"
        raise PansightError(where=root, expected=f"one {prefix}_*.json", found=names, hint=hint)
    return next(iter([*exact, *meant]), None)


def data_root(file: Path) -> Path:
    """The data folder that an annotation file belongs to."""
    return file.parent.parent if file.parent.name == "annotations" else file.parent


# --- images ----------------------------------------------------------------------------------------------------------


def image_folders(root: Path, json_file: Path, prefix: str, split: str | None) -> list[Path]:
    """Where the images of an annotation file may lie, likeliest first."""
    rest = json_file.stem.removeprefix(prefix).lstrip("_")
    part = split_of(rest) or split_of(split or "")
    alike = [name for name in part_folders(root, root / "images") if part is not None and split_of(name) == part]
    names = dict.fromkeys(n for n in (rest, rest.rstrip("0123456789"), *part_names(split), *alike) if n)
    places = [p for name in names for p in (root / name, root / "images" / name, root / name / "images")]
    common = [root / name for name in IMAGE_FOLDERS]
    around = [json_file.parent / name for name in ("", *IMAGE_FOLDERS)] + [json_file.parent.parent / "images"]
    return list(dict.fromkeys([*places, *common, *around]))


def best_folder(places: Iterable[Path], names: Sequence[str]) -> Path | None:
    """The first of the folders that hold most of some 50 of the names; those that have them by the letter go first.

    None where none of them holds any.
    """
    sample = list(names[:: max(1, len(names) // 50)])
    best: tuple[tuple[int, int], Path | None] = ((0, 0), None)
    for place in dict.fromkeys(places):
        if place.is_dir():
            files = [file for file in locate_all(sample, [place]).files if file is not None]
            hits = sum(file.as_written for file in files), len(files)
            best = max(best, (hits, place), key=lambda row: row[0])
    return best[1]


def expect_folder(places: Sequence[Path], names: Sequence[str], source: Path, what: str, option: str) -> Path:
    """As `best_folder`. Raises PansightError listing where was looked first where no folder holds any of the names.

    source: the file that gives them.
    """
    found = best_folder(places, names)
    if found is None:
        for name in names:
            safe_join(source.parent, name, source)
        looked = ", ".join(str(place) for place in places[:8]) + (", …" if len(places) > 8 else "")
        hint = f"found them in none (name the folder: {option}=DIR)"
        raise PansightError(f"expected {what} in one of {looked}; {hint}", where=f"{source}: {names[0]!r:.120}")
    return found


def names_in(folder: Path, names: Sequence[str], source: Path) -> tuple[list[str], tuple[str, ...]]:
    """(the name of each file below `folder`, notes). A file that is not there keeps its name: who reads it will say so.

    Raises PansightError where a name that leads outside has no file in the folder either, or is no text.
    """
    bad = next((name for name in names if not isinstance(name, str) or not name or "\0" in name), "")
    if bad != "" or "" in names:
        raise PansightError(where=source, expected="a file name", found=f"{bad!r:.60}")
    found = locate_all(names, [folder])
    for name, file in zip(names, found.files):
        if file is None:
            safe_join(folder, name, source)
    return [name if file is None else file.name for name, file in zip(names, found.files)], found.notes
