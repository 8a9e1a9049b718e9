"""The rows of tiles that are done, on disk beside the result: what a killed or interrupted prediction goes on from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.files import leftovers, read_json, replacing, write_json
from pansight.ops.tiling.stitchers import Arrays, Rows

SUFFIX = ".unfinished"


class Unfinished:
    """The folder ``NAME.unfinished``: job.json says what is predicted how, rows/ holds what `Stitcher.end_row` gives of
    each row of tiles that is done, below/ what the last tiles leave to those under them.

    A row counts as done from the moment at which its file stands there whole.
    """

    def __init__(self, result: Path):
        self.folder = result.with_name(result.name + SUFFIX)

    def begin(self, job: Mapping[str, Any], resume: bool, overwrite: bool) -> int:
        """The number of rows that are done already.

        Raises PansightError where there are some and neither is said, and where `job` is not the one they belong to.
        """
        self._check_ours()
        if self.folder.exists() and not resume and not overwrite:
            hint = "add --resume to go on with it, --overwrite to begin anew"
            raise PansightError(where=self.folder, expected="no unfinished prediction", found="one", hint=hint)
        if self.folder.exists() and not resume:
            self.remove()
        if not (self.folder / "job.json").is_file():
            self.remove()
            write_json(self.folder / "job.json", dict(job))
            return 0
        before = read_json(self.folder / "job.json")
        for name, value in job.items():
            if before.get(name) != value:
                found, expected = f"{value!r:.100}", f"{name} {before.get(name)!r:.100}, as before"
                hint = "begin anew with --overwrite"
                raise PansightError(where=self.folder, expected=expected, found=found, hint=hint)
        done = 0
        while self._row(done).is_file():
            done += 1
        return done

    def _check_ours(self) -> None:
        """Raises PansightError where something of the user's own has this name, which is never removed."""
        try:
            names = {path.name for path in self.folder.iterdir()} - {path.name for path in leftovers(self.folder)}
        except FileNotFoundError:
            return
        except OSError as error:
            raise PansightError("cannot be read", where=self.folder, reason=error.strerror or error) from error
        if other := sorted(names - {"job.json", "rows", "below"}):
            expected = "a folder of an unfinished prediction, or none"
            raise PansightError(where=self.folder, expected=expected, found=f"{other[0]} in it")

    def rows(self, count: int) -> Rows:
        return Rows(count, self.load)

    def load(self, row: int, names: Sequence[str]) -> Arrays:
        """These of the arrays of a row."""
        return _read(self._row(row), names)

    def save(self, row: int, arrays: Arrays) -> None:
        """A row is done; what the row above left to it goes. Raises PansightError where the disk is full."""
        with replacing(self._row(row)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        shutil.rmtree(self._below(row - 1, 0).parent, ignore_errors=True)

    def leave(self, row: int, column: int, arrays: Arrays) -> None:
        """What a tile leaves to the tile below. Raises PansightError where the disk is full."""
        with replacing(self._below(row, column)) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def above(self, row: int, column: int) -> Arrays:
        """What the tile above this one left; {} at the top."""
        return _read(self._below(row - 1, column)) if row else {}

    def remove(self) -> None:
        with suppress(OSError):
            shutil.rmtree(self.folder)

    def _row(self, row: int) -> Path:
        return self.folder / "rows" / f"{row:06d}.npz"

    def _below(self, row: int, column: int) -> Path:
        return self.folder / "below" / f"{row:06d}" / f"{column:06d}.npz"


def _read(path: Path, names: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Raises PansightError where a file of ours is damaged or gone."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names or file.files}
    except (OSError, ValueError, KeyError, EOFError) as error:
        hint = "begin anew with --overwrite"
        raise PansightError(
            where=path, expected="what a row of tiles left", reason=f"{error!s:.100}", hint=hint
        ) from error
