"""Read files and pieces of files wherever they lie: on a disk, or in any store that fsspec reaches (s3://, memory://).

A place is a path, or an address with "://". A store is asked for anew at each read: fsspec keeps its connections apart
for each process, which a data loader that forks relies on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pansight.errors import PansightError
from pansight.files import open_plain


def is_address(place: str | Path) -> bool:
    """Whether a place is one of a store, not of the file system."""
    return "://" in str(place)


class Piece(NamedTuple):
    """`size` bytes of the file at `place` from byte `start` on; of size −1: all that follow."""

    place: str
    start: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Raises PansightError where the file cannot be read, or ends before the piece does."""
        with telling(self.place):
            data = self._read()
        if 0 <= self.size != len(data):
            expected = f"{self.size} bytes from byte {self.start} on"
            raise PansightError(where=self.place, expected=expected, found=f"{len(data)} (cut off?)")
        return data

    def _read(self) -> bytes:
        if is_address(self.place):
            store, path = store_of(self.place)
            return store.cat_file(path, self.start, None if self.size < 0 else self.start + self.size)
        with open_plain(self.place) as file:
            file.seek(self.start)
            return file.read(self.size)

    def ends(self, length: int) -> bytes:
        """The first and the last `length` bytes; all of a piece that is no longer than both."""
        if self.size <= 2 * length:
            return self.read()
        last = Piece(self.place, self.start + self.size - length, length)
        return Piece(self.place, self.start, length).read() + last.read()


def store_of(address: str) -> tuple[Any, str]:
    """(the file system of an address, the path in it)."""
    from fsspec.core import url_to_fs

    return url_to_fs(address)


@contextmanager
def telling(place: str) -> Iterator[None]:
    """What goes wrong inside as one PansightError that names `place`."""
    try:
        yield
    except PansightError:
        raise
    except FileNotFoundError as error:
        raise PansightError("no such file", where=place, code="missing_file") from error
    except ImportError as error:  # fsspec says which package a store needs
        raise PansightError("needs another package", where=place, reason=" ".join(str(error).split())) from error
    except OSError as error:
        raise PansightError(
            "cannot be read", where=place, reason=error.strerror or error, code="cannot_read"
        ) from error
    except Exception as error:  # each store has errors of its own
        if not is_address(place):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PansightError("cannot be read", where=place, reason=reason, code="cannot_read") from error


def joined(folder: str, name: str) -> str:
    """The place of `name` in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_address(folder) else str(Path(folder) / name)


def parent_of(place: str) -> str:
    """The folder that a place lies in."""
    return place.rstrip("/").rpartition("/")[0] if is_address(place) else str(Path(place).parent)


def listing(folder: str) -> dict[str, int]:
    """The names in a folder in their order, each with the size of the file in bytes, −1 for a folder; hidden ones are
    left out. {} where there is no such folder.

    Raises PansightError where it cannot be read.
    """
    with telling(folder):
        if is_address(folder):
            store, path = store_of(folder)
            rows = store.ls(path, detail=True) if store.isdir(path) else []
            found = {row["name"].rstrip("/").rpartition("/")[2]: _size(row) for row in rows}
        elif os.path.isdir(folder):
            found = {entry.name: -1 if entry.is_dir() else entry.stat().st_size for entry in _entries(folder)}
        else:
            found = {}
    return {name: found[name] for name in sorted(found) if name and not name.startswith(".")}


def _size(row: dict[str, Any]) -> int:
    return -1 if row["type"] == "directory" else int(row["size"] or 0)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is there: a link that leads nowhere is not."""
    return [entry for entry in os.scandir(folder) if os.path.exists(entry.path)]


def file_size(place: str) -> int:
    """The bytes of a file; −1 where there is none. Raises PansightError where the store cannot be asked."""
    with telling(place):
        if is_address(place):
            store, path = store_of(place)
            return int(store.size(path)) if store.isfile(path) else -1
        return os.path.getsize(place) if os.path.isfile(place) else -1


@contextmanager
def opened(place: str) -> Iterator[BinaryIO]:
    """A file to read from and to move about in. Raises PansightError where it cannot be opened."""
    with telling(place):
        if is_address(place):
            store, path = store_of(place)
            file = store.open(path, "rb")
        else:
            file = open_plain(place)
    with file:
        yield file
