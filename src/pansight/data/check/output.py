"""Write a new data folder completely or not at all, and replace nothing but an earlier folder of the same kind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pansight.errors import PansightError
from pansight.files import replacing_folder, write_text


def require_new(out: Path, marker: str, overwrite: bool) -> None:
    """Raises PansightError where `out` exists, unless it may be replaced: it holds `marker`."""
    if os.path.lexists(out) and not (overwrite and (out / marker).is_file() and not out.is_symlink()):
        hint = f"--overwrite replaces only a folder with {marker}" if overwrite else "nothing was written"
        raise PansightError(where=out, expected="no such folder yet", found="one", hint=hint)


@contextmanager
def new_folder(out: Path, marker: str, inputs: tuple[Path, ...], overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder beside `out` that takes its place when the block succeeds and goes when it fails.

    marker: a file that the block writes; a folder without it is never replaced. inputs: folders that are read.
    Raises PansightError where `out` exists and may not be replaced, lies in one of `inputs`, or cannot be written.
    """
    out = Path(os.path.abspath(out))
    require_new(out, marker, overwrite)
    for folder in inputs:
        inside, outside = Path(os.path.realpath(out)), Path(os.path.realpath(folder))
        if inside.is_relative_to(outside) or outside.is_relative_to(inside):
            raise PansightError(where=out, expected="a folder apart from the data", found=f"it in or around {folder}")
    with replacing_folder(out) as partial:
        yield partial


def place_file(source: Path, target: Path, link: bool) -> None:
    """A copy, or a hard link where asked for and possible. A target that exists is the same file by another row."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        try:
            os.link(source.resolve(), target)
        except FileExistsError:  # another thread had the other row
            return
        except OSError:  # another file system, or one without links
            pass
        else:
            return
    shutil.copyfile(source, target)


class Names:
    """File names that occur once. Raises nothing: a second use gets a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, name: str) -> str:
        """`name` without ./ and doubled slashes, or name_2 where it is taken."""
        path = PurePosixPath(name)
        name, count = path.as_posix(), 1
        while name in self._taken:
            count += 1
            name = path.with_name(f"{path.stem}_{count}{path.suffix}").as_posix()
        self._taken.add(name)
        return name


def write_annotations(path: Path, content: dict[str, Any]) -> None:
    """Raises PansightError where the values are nested too deeply to be written."""
    try:
        write_text(path, json.dumps(content))
    except RecursionError as error:
        raise PansightError(
            where=path.name, expected="plain values", found="hundreds of lists in each other"
        ) from error


def folder_name(name: str, taken: Names) -> str:
    """The name of a part as it is used for its folders and files."""
    return taken.take("data" if name in ("", "annotations") else name)
