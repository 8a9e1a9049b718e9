"""Which photos are meant: files, folders with all that lies in them, and patterns; and what is left out of folders."""

from __future__ import annotations

import difflib
import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pansight.apps.photos.collections import collected, is_collection
from pansight.apps.photos.video import is_video
from pansight.data.formats.webdataset.storage import Piece, joined
from pansight.data.images import IMAGE_SUFFIXES
from pansight.errors import PansightError

SYSTEM_FILES = ("thumbs.db", "desktop.ini", "icon\r")
"""What Windows and macOS leave in folders under names without a dot at the start."""


class Photo(NamedTuple):
    """A file, and the one name that it has in every result: its path below the folder that was given.

    piece: where its bytes lie, in a shard or in a store; `file` is what it is called then.
    """

    file: Path
    name: str
    piece: Piece | None = None


class Found(NamedTuple):
    photos: list[Photo]
    left_out: Counter[str]  # what was not taken from folders: kind → number of files


def find_photos(
    paths: Sequence[str | Path], recursive: bool = True, without: Path | None = None, pieces: bool = False
) -> Found:
    """The photos that `paths` name, each once, in order: files, folders, and patterns such as ``shots/*.jpg``.

    recursive: look into sub-folders. without: a folder that is not looked into, that of the results. pieces: take what
    lies in tar shards, in stores, and in Parquet lists of paths, too (photos/collections.py).
    Raises PansightError where a path does not exist, or nothing is found.
    """
    photos: list[Photo] = []
    left_out: Counter[str] = Counter()
    for given in paths:
        found = collected(str(given), recursive) if pieces else None
        if found is not None:
            photos += [Photo(Path(joined(piece.place, name)), name, piece) for name, piece in found]
    for path in _expanded([path for path in paths if not pieces or not is_collection(str(path))]):
        if path.is_dir():
            for file in _walk(path, recursive, without, left_out):
                kind = _left_out_as(file)
                if kind:
                    left_out[kind] += 1
                else:
                    photos.append(Photo(file, file.relative_to(path).as_posix()))
        else:
            photos.append(Photo(path, path.name))
    if not photos:
        given = ", ".join(map(str, paths))
        found = "none" + (f" ({_counted(left_out)})" if left_out else "")
        raise PansightError(
            where=given or "predict", expected=f"at least one image ({' '.join(IMAGE_SUFFIXES)})", found=found
        )
    return Found(_named(photos), left_out)


def left_out_line(left_out: Counter[str]) -> str:
    """A line for people, "" where nothing was left out."""
    return f"left out   {_counted(left_out)}" if left_out else ""


def _counted(left_out: Counter[str]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in sorted(left_out.items()))


def _expanded(paths: Sequence[str | Path]) -> Iterator[Path]:
    """Patterns as what they match; a shell that knows patterns has done this already, that of Windows has not."""
    for path in map(Path, paths):
        if path.exists():
            yield path
            continue
        matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []
        if not matches:
            near = _near(path)
            raise PansightError(
                where=path,
                expected="an image or a folder of images",
                found="no such file",
                hint=f"did you mean {near}?" if near else "",
                code="missing_file",
            )
        yield from map(Path, matches)


def _near(path: Path) -> Path | None:
    """What lies in the same folder under nearly this name."""
    names = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, 1)
    return path.parent / close[0] if close else None


def _walk(folder: Path, recursive: bool, without: Path | None, left_out: Counter[str]) -> Iterator[Path]:
    """The files below a folder in order of their names; links to folders are followed once."""
    seen: set[Path] = set() if without is None else {without.resolve()}
    for place, folders, files in os.walk(folder, followlinks=True):
        inner = [name for name in sorted(folders) if not name.startswith(".")]
        if recursive:
            inner = [name for name in inner if (Path(place) / name).resolve() not in seen]
            seen.update((Path(place) / name).resolve() for name in inner)
            folders[:] = inner
        else:
            left_out["sub-folders (--no-recursive)"] += len(inner)
            folders.clear()
        yield from (Path(place) / name for name in sorted(files))
    if not left_out["sub-folders (--no-recursive)"]:
        del left_out["sub-folders (--no-recursive)"]


def _left_out_as(file: Path) -> str:
    """The kind under which a file is left out; "" for an image."""
    if file.name.startswith("."):
        return "hidden"
    if file.name.lower() in SYSTEM_FILES:
        return "of the system"
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return "" if file.is_file() else "that are no files"
    if is_video(file):
        return f"{file.suffix.lower()} (a video is predicted where it is given by its name)"
    return file.suffix.lower() or "without a suffix"


def _named(photos: Sequence[Photo]) -> list[Photo]:
    """Each file once; where two would have one name, the later takes folders above it into its name."""
    named: list[Photo] = []
    files: set[Path] = set()
    names: set[str] = set()
    for file, name, piece in photos:
        resolved = file.resolve()
        if resolved in files:
            continue
        files.add(resolved)
        parts, length = resolved.parts, len(Path(name).parts)
        while name in names and length < len(parts) - 1:
            length += 1
            name = "/".join(parts[-length:])
        names.add(name)
        named.append(Photo(file, name, piece))
    return named
