"""Choose the COCO JSON of one kind and part among those that a folder holds."""

from __future__ import annotations

from pathlib import Path

from pansight.data.dataset import means_split
from pansight.data.formats.coco_files import PREFIX, data_root, json_files, kind_of, part_of
from pansight.data.paths import named_file
from pansight.errors import PansightError


def coco_files(source: Path, kind: str) -> dict[str | None, list[Path]]:
    """Part → the files of one kind in a folder; None for a file in one piece. Files that are called like the kind are
    preferred to all others.
    """
    prefix = PREFIX[kind]
    if source.is_file():
        return {part_of(source, prefix, data_root(source)): [source]} if kind_of(source) == kind else {}
    files = [file for file in json_files(source) if kind_of(file) == kind]
    files = [file for file in files if file.stem.startswith(prefix)] or files
    found: dict[str | None, list[Path]] = {}
    for file in files:
        found.setdefault(part_of(file, prefix, source), []).append(file)
    return found


def parts_of(source: Path, kind: str) -> tuple[str, ...]:
    """The names of the parts; empty for a source in one piece. Never raises."""
    try:
        return tuple(part for part in coco_files(source, kind) if part is not None)
    except OSError:
        return ()


def choose_file(source: Path, kind: str, split: str | None, json: str | None) -> tuple[str | None, Path]:
    """(part, file) to read. Raises PansightError listing what was looked for, or among what to choose."""
    prefix = PREFIX[kind]
    if json is not None:
        root = data_root(source) if source.is_file() else source
        file = named_file(root, json, "an annotation file")
        return part_of(file, prefix, root) if split is None else split, file
    if source.is_file():  # asked for by name: its reader says what is wrong with it
        return part_of(source, prefix, data_root(source)), source
    found = coco_files(source, kind)
    if split is not None:
        found = {part: files for part, files in found.items() if part is not None and means_split(part, split)}
    files = [(part, file) for part, several in found.items() for file in several]
    if not files:
        where = source if split is None else f"{source}, part {split!r}"
        names = f"annotations/{prefix}_*.json or another JSON of {kind}"
        raise PansightError(where=where, expected=names, found="none")
    exact = [row for row in files if row[0] == split]
    files = exact or files
    if len(files) > 1:
        names = ", ".join(str(file.relative_to(source)) for _, file in files)
        raise PansightError(
            where=source, expected="one annotation file", found=names, hint="name it (json=FILE or a split)"
        )
    return files[0]
