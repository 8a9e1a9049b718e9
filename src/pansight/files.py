"""Writing that leaves the whole of a file or folder or nothing of it, and plain reading."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tomllib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from pansight.errors import PansightError

# --- writing, whole or not at all ------------------------------------------------------------------------------------


class Publication:
    """Files and folders that appear in their places together, or none of them does.

        publication = Publication("out.html", "out_files")
        publication.begin()
        ...  # write to publication.temporaries, names beside the two places
        publication.publish()
        publication.discard()  # in a `finally`: what was not published goes

    What stood in the places goes when the new stands there, and is put back where that fails. A place whose temporary
    name holds nothing in the end becomes empty: a smaller set replaces a larger one whole, too. A file replaces a file
    in one move that cannot be taken back and therefore comes last: of several places one may be that of a file.
    Errors are PansightErrors that name the first place.

    A process that is killed leaves at most its temporary names, which a later one of the same number clears away, and,
    between the two moves that a folder takes, the old folder as ``.NAME.old``, where `standing_folder` finds it.
    """

    def __init__(self, *places: str | Path):
        self.places = [Path(place) for place in places]
        self.temporaries = [place.with_name(f".{place.name}.{os.getpid()}.tmp") for place in self.places]

    def begin(self) -> None:
        """Make the folders that the places lie in, and clear away what a killed process left at the temporary names."""
        self.discard()
        try:
            for place in self.places:
                place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.failure(error) from error

    def publish(self) -> None:
        """Put everything in its place."""
        pairs = list(zip(self.places, self.temporaries, strict=True))
        files = [(place, temporary) for place, temporary in pairs if temporary.is_file()]
        folders = [pair for pair in pairs if pair not in files]
        moves: list[tuple[Path, Path]] = []  # those that can be taken back, from → to
        try:
            if not any(temporary.exists() for temporary in self.temporaries):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            for place, temporary in folders:
                _replace_folder(place, temporary, moves)
            for place, temporary in files:
                temporary.replace(place)
        except BaseException as error:
            for source, target in reversed(moves):
                with suppress(OSError):
                    target.rename(source)
            if isinstance(error, OSError):
                raise self.failure(error) from error
            raise
        for place, _ in folders:
            _remove(_old(place))

    def discard(self) -> None:
        """Remove what was written and not published."""
        for temporary in self.temporaries:
            _remove(temporary)

    def failure(self, error: OSError) -> PansightError:
        """What the user is told of an error of the disk."""
        return PansightError(
            "cannot be written", where=self.places[0], reason=error.strerror or error, code="cannot_write"
        )


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, moved onto it when the block succeeds and removed when it fails.

    Raises PansightError, naming the file, where it cannot be written (full disk, no permission).
    """
    publication = Publication(path)
    try:
        publication.begin()
        yield publication.temporaries[0]
        publication.publish()
    except OSError as error:
        raise publication.failure(error) from error
    finally:
        publication.discard()


@contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`; it takes its place when the block succeeds and is removed when it fails.

    Raises PansightError, naming the folder, where it cannot be written.
    """
    with replacing(folder) as temporary:
        temporary.mkdir()
        yield temporary


def standing_folder(folder: str | Path) -> Path:
    """`folder`, or where a process was killed while replacing it, the folder that stood there before."""
    folder = Path(folder)
    return _old(folder) if not folder.exists() and _old(folder).is_dir() else folder


def _replace_folder(place: Path, temporary: Path, moves: list[tuple[Path, Path]]) -> None:
    """Move aside what stands at `place`, then `temporary` there if it exists; note each move as soon as it is made."""
    if os.path.lexists(place):
        _remove(_old(place))
        place.rename(_old(place))
        moves.append((place, _old(place)))
    if temporary.exists():
        temporary.rename(place)
        moves.append((temporary, place))


def _old(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _remove(path: Path) -> None:
    """A file, a link or a whole folder; what is not there or cannot be removed is left."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Whole or not at all. What holds only plain values stands on one line: a row of a table, a column of numbers."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_json_pieces(value, 0))
        file.write("\n")


def _json_pieces(value: Any, depth: int) -> Iterator[str]:
    """The text of `json.dumps` in pieces, so that a large record does not stand in memory a second time."""
    members = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if not any(isinstance(member, dict | list | tuple) for member in members):
        yield json.dumps(value, allow_nan=False)
        return
    indent = "\n" + " " * (depth + 1)
    opening, closing = ("{", "}") if isinstance(value, dict) else ("[", "]")
    keys = [json.dumps(str(key)) + ": " for key in value] if isinstance(value, dict) else [""] * len(members)
    yield opening
    for number, (key, member) in enumerate(zip(keys, members)):
        yield ("," if number else "") + indent + key
        yield from _json_pieces(member, depth + 1)
    yield "\n" + " " * depth + closing


# --- reading ---------------------------------------------------------------------------------------------------------


def open_plain(path: str | Path) -> BinaryIO:
    """A file to read bytes from. Raises OSError, also for a pipe or device, which one might wait for without end."""
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "a pipe or device, no file", str(path))
    return Path(path).open("rb")


def read_plain(path: str | Path) -> bytes:
    """The bytes of a file. Raises OSError as `open_plain` does."""
    with open_plain(path) as file:
        return file.read()


def read_json(path: str | Path) -> Any:
    """Raises PansightError where the file is missing, unreadable or no JSON."""
    try:
        return json.loads(read_plain(path).decode("utf-8"))
    except FileNotFoundError as error:
        raise PansightError("no such file", where=path, hint="expected JSON", code="missing_file") from error
    except OSError as error:
        raise PansightError("cannot be read", where=path, reason=error.strerror or error, code="cannot_read") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        raise PansightError(where=path, expected="JSON", found=error) from error


def safe_join(folder: Path, name: object, source: str | Path) -> Path:
    """folder/name for a file name found in `source`. Raises PansightError where it is absolute or climbs out (``..``).

    Both POSIX and Windows spellings are refused on every system, so that a file is as safe here as there.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise PansightError(where=source, expected="a file name", found=f"{name!r}")
    if not any(mark in name for mark in "/\\:") and name not in (".", ".."):
        return folder / name  # the common case, twenty times as fast
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.drive or windows.root or ".." in posix.parts or ".." in windows.parts:
        raise PansightError(where=source, expected="a file name inside the data folder", found=f"{name!r}")
    return folder / name


# --- lists, as people write them -------------------------------------------------------------------------------------


def listed(value: Any, known: Collection[str] = ()) -> list[Any]:
    """The parts of a list in any of its spellings: ``a,b``, ``[a, b]``, ``["a", "b"]``, several of these, one value.

    Every setting, flag and option that is a list is read by this function. A text of `known` names is one part,
    whatever stands in it. Blanks around the parts are dropped, and so are empty parts; numbers of a text stay texts.
    """
    if isinstance(value, list | tuple):
        return [part for one in value for part in listed(one, known)]
    if not isinstance(value, str):
        return [value]
    text = value.strip()
    if text in known:
        return [text]
    if text.startswith("[") and text.endswith("]"):
        with suppress(ValueError):
            return [part for part in tomllib.loads(f"list = {text}")["list"] if part != ""]
        text = text[1:-1]
    return [part for part in (one.strip().strip("\"'") for one in text.split(",")) if part]
