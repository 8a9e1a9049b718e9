"""One process at a time trains into a run folder: a lock of the operating system, which ends with its process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pansight.errors import PansightError
from pansight.files import clear_leftovers

LOCK = ".lock"
"""The file, in a run folder, that is locked while a training lives. It says nothing by being there."""


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """The run folder is this process's alone; what killed processes left half written in it is cleared away.

    A folder that was made for the lock and stays empty is removed. Raises PansightError where another process trains
    into the folder, and where it cannot be written.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise PansightError(
            "another training writes into this folder",
            where=folder,
            hint="wait for it or stop it, or give another --out",
        ) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise PansightError(where=folder, expected="a folder for the run", found="a file") from error
    except OSError as error:
        raise PansightError(
            "cannot be written", where=folder, reason=error.strerror or error, code="cannot_write"
        ) from error
    except NotImplementedError:  # a file system without locks, over some networks: nothing can be noticed there
        yield
        return
    try:
        clear_leftovers(folder)
        yield
    finally:
        if folder.is_dir() and all(path.name == LOCK for path in folder.iterdir()):
            with suppress(OSError):  # Windows removes no open file
                (folder / LOCK).unlink(missing_ok=True)
                if made:
                    folder.rmdir()
        lock.release()
