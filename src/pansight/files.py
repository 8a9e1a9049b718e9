"""Writing that leaves the whole of a file or folder or nothing of it, and plain reading."""

from __future__ import annotations

import codecs
import errno
import itertools
import json
import os
import re
import secrets
import shutil
import stat
import time
import tomllib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, TypeVar

import msgspec

from pansight.errors import PansightError

T = TypeVar("T")

# --- names -----------------------------------------------------------------------------------------------------------

LONGEST_NAME = 200
"""Bytes of a file name that every file system takes, with room for temporary names beside it."""


def flat_name(file_name: str, suffix: str, taken: set[str]) -> str:
    """The name of the one file in a folder that belongs to the image `file_name`: folders flattened, another suffix.

    taken: the names given so far, in small letters, to which this one is added. A name that is taken (a.jpg and a.png,
    a/b.jpg and a_b.jpg, A.jpg and a.jpg) gets the first free number; letters that some systems refuse become "_".
    """
    path = PurePosixPath(file_name.replace("\\", "/"))
    stem = re.sub(r'[<>:"|?*\x00-\x1f]', "_", "_".join([*path.parts[:-1], path.stem])).lstrip("/") or "_"
    stem = stem.encode()[: LONGEST_NAME - len(suffix) - 8].decode(errors="ignore")
    numbers = itertools.count(2)
    name = f"{stem}{suffix}"
    while name.lower() in taken:
        name = f"{stem}_{next(numbers)}{suffix}"
    taken.add(name.lower())
    return name


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

    A process that is killed leaves at most its temporary names, and, between the two moves that a folder takes, the old
    folder as ``.NAME.old``, where `standing_folder` finds it. The temporary names never recur, so what is left stands
    in nobody's way; it is cleared away after a day (`FORGOTTEN`), in a run folder as soon as the run goes on.
    """

    def __init__(self, *places: str | Path):
        self.places = [Path(place) for place in places]
        mark = secrets.token_hex(4)  # not the number of the process: numbers recur, in containers at every start
        self.temporaries = [place.with_name(f".{place.name}.{mark}.tmp") for place in self.places]

    def begin(self) -> None:
        """Make the folders that the places lie in, and clear away what killed processes left long ago."""
        try:
            for place in self.places:
                place.parent.mkdir(parents=True, exist_ok=True)
                for left in leftovers(place.parent, place.name):
                    if _last_change(left) < time.time() - FORGOTTEN:
                        _remove(left)
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


FORGOTTEN = 24 * 3600
"""Seconds after which a temporary file is nobody's any more: a process that is alive would have written to it."""

_MARK = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{1,8}\.tmp")


def leftovers(folder: Path, name: str = "") -> list[Path]:
    """Temporary files and folders of a Publication in `folder`: of that place, or of all."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    found = [(path, _MARK.fullmatch(path.name)) for path in entries]
    return [path for path, match in found if match is not None and match["name"] == (name or match["name"])]


def clear_leftovers(folder: Path) -> None:
    """Remove all temporary files below `folder`. For a folder that nobody else writes to meanwhile."""
    for place, _, _ in os.walk(folder):
        for left in leftovers(Path(place)):
            _remove(left)


def _last_change(path: Path) -> float:
    """When something in a file or folder was last written, in seconds since 1970."""
    times = [path.lstat().st_mtime]
    for place, _, files in os.walk(path):
        times += [(Path(place) / name).lstat().st_mtime for name in files]
    return max(times)


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


def write_bytes(path: str | Path, data: bytes) -> None:
    """Whole or not at all. Raises PansightError, naming the file, where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


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
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "a pipe or device, no file", str(path))
    return open(path, "rb")


def read_plain(path: str | Path) -> bytes:
    """The bytes of a file. Raises OSError as `open_plain` does."""
    with open_plain(path) as file:
        return file.read()


def read_json(path: str | Path) -> Any:
    """Raises PansightError where the file is missing, unreadable or no JSON."""
    try:
        data = read_plain(path)
    except FileNotFoundError as error:
        raise PansightError("no such file", where=path, hint="expected JSON", code="missing_file") from error
    except OSError as error:
        raise PansightError("cannot be read", where=path, reason=error.strerror or error, code="cannot_read") from error
    return decode_json(data, object, path)


def value_at(record: object, path: Sequence[str]) -> Any:
    """What stands under these keys, one inside the other, of plain JSON; None where there is no such place."""
    for key in path:
        record = record.get(key) if isinstance(record, dict) else None  # pyright: ignore[reportUnknownVariableType]
    return record


def decode_json(data: bytes, kind: type[T], source: str | Path) -> T:
    """JSON as a msgspec type, or as plain values where `kind` is object. Keys that the type does not name are skipped.

    A byte order mark, UTF-16 and UTF-32 are understood. Raises PansightError, naming the place in the file, where it is
    no JSON or of another shape; NaN and infinities, which JSON does not have, and repeated keys, of which all but one
    would be lost, are refused, too.
    """
    text = json_text(data, source)
    try:
        if kind is object:
            return json.loads(text.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
        content = msgspec.json.decode(text, type=kind)
        if any(text.count(b'"%s"' % name.encode()) > 1 for name in getattr(kind, "__struct_fields__", ())):
            json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys)
        return content
    except _RepeatedKey as error:
        raise PansightError(where=source, expected="each key of an object once", found=f"{error} twice") from error
    except msgspec.ValidationError as error:  # "Expected `str`, got `int` - at `$.shapes[3].label`"
        words = " ".join(str(error).split()).replace("Expected ", "expected ", 1).replace(", got ", ", found ", 1)
        expected = "" if words.startswith("expected ") else "expected another content, found: "
        raise PansightError(f"{expected}{words:.200}", where=source) from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise PansightError(where=source, expected="JSON", found=_json_fault(text, error)) from error


def json_text(data: bytes, source: str | Path) -> bytes:
    """The bytes of a JSON file as UTF-8 without a byte order mark, whichever Unicode encoding they are written in."""
    encoding = json.detect_encoding(data)
    if encoding == "utf-8":
        return data
    if encoding == "utf-8-sig":
        return data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode(encoding).encode("utf-8")
    except UnicodeError as error:
        raise PansightError(where=source, expected="JSON", found=f"damaged {encoding.upper()} text") from error


class _RepeatedKey(Exception):
    """A key that stands twice in one object."""


def _refuse_constant(text: str) -> None:
    raise ValueError(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        raise _RepeatedKey(f"{next(key for key, _ in pairs if key in seen or seen.add(key))!r:.60}")
    return members


_NO_NUMBER = re.compile(rb'"(?:[^"\\]++|\\.)*+"|(-?Infinity|NaN)', re.DOTALL)
"""A text between quotes, which is passed over, or a constant of other languages outside of any."""


def _json_fault(text: bytes, error: Exception) -> str:
    """What is wrong with a text that is no JSON, and where. The text is searched anew: only damaged files come here."""
    if not text.strip():
        return "an empty file"
    try:
        words = text.decode("utf-8")
    except UnicodeDecodeError as fault:
        return f"the byte 0x{text[fault.start]:02x} at {_place(text, fault.start)}, which is not UTF-8"
    try:
        json.loads(words, parse_constant=_refuse_constant)
    except json.JSONDecodeError as fault:
        if fault.pos >= len(words.rstrip()) or fault.msg.startswith("Unterminated string"):
            return f"an early end in line {words.count(chr(10)) + 1} (cut off?)"
        return f"{fault.msg} at line {fault.lineno}, column {fault.colno}"
    except RecursionError:
        return "hundreds of lists or objects in each other"
    except ValueError as fault:
        odd = next((match for match in _NO_NUMBER.finditer(text) if match[1]), None)
        if odd is None:
            return f"{fault!s:.100}"  # a number of thousands of digits
        key = re.search(rb'"([^"\\]{1,60})"\s*:\s*$', text[max(0, odd.start() - 200) : odd.start()])
        named = f" as {key[1].decode('utf-8', 'replace')!r}" if key else ""
        return f"{odd[1].decode()}{named} at {_place(text, odd.start())}, which JSON does not have (null is none)"
    return f"{' '.join(str(error).split()):.200}"


def _place(text: bytes, position: int) -> str:
    before = text[:position].split(b"\n")
    return f"line {len(before)}, column {len(before[-1]) + 1}"


def read_text(path: str | Path, what: str) -> str:
    """A text file in UTF-8, or in UTF-16 where it begins with a byte order mark, as some editors save it.

    Raises PansightError, naming `what` the file should be, where it is missing, unreadable or no such text.
    """
    try:
        data = read_plain(path)
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if marked else "utf-8-sig")
    except FileNotFoundError as error:
        raise PansightError(where=path, expected=what, found="no such file", code="missing_file") from error
    except OSError as error:
        raise PansightError("cannot be read", where=path, reason=error.strerror or error, code="cannot_read") from error
    except UnicodeError as error:
        raise PansightError(where=path, expected=f"text in UTF-8 ({what})", found="other bytes") from error


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
