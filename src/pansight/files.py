"""Writing files completely or not at all, and opening archives safely."""

from __future__ import annotations

import errno
import json
import lzma
import os
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from pansight.errors import PansightError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, moved onto it when the block succeeds and removed when it fails.

    Raises PansightError, naming the file, where it cannot be written (full disk, no permission).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise PansightError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # a parent that is a file
            temporary.unlink(missing_ok=True)


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
        raise PansightError(f"{path}: no such file; expected JSON") from error
    except OSError as error:
        raise PansightError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        raise PansightError(f"{path}: expected JSON, found {error}") from error


# --- archives --------------------------------------------------------------------------------------------------------

MAX_UNPACKED = 64 * 2**30
"""Bytes that an archive may hold."""

MAX_ENTRIES = 1_000_000

BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)
"""What zipfile and its decoders raise over damaged archives."""

MAX_RATIO, RATIO_FROM = 250, 256 * 2**20
"""An archive that holds more than RATIO_FROM bytes may not be packed tighter than MAX_RATIO: masks pack to 1 : 100."""


@contextmanager
def unpacked(source: str | Path) -> Iterator[Path]:
    """`source` itself where it is a folder or any file but a ZIP; of a ZIP, its content in a temporary folder.

    A ZIP that holds one folder and nothing else yields that folder. The temporary folder goes when the block ends;
    errors that name it in the block are told with the archive's name instead.
    Raises PansightError where `source` does not exist, and where the archive is damaged, encrypted, too large, packed
    too tightly to be honest, or holds links or names that lead outside.
    """
    source = Path(source)
    try:
        is_archive = source.is_file() and zipfile.is_zipfile(source)
        if not is_archive and not source.exists():
            raise PansightError(f"{source}: expected a folder or file, found none")
    except OSError as error:
        raise PansightError(f"{source}: cannot be read: {error.strerror or error}") from error
    if not is_archive and source.is_file() and source.suffix.lower() == ".zip":
        raise PansightError(f"{source}: expected a whole ZIP archive, found a damaged one or another kind of file")
    if not is_archive:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="pansight-", ignore_cleanup_errors=True) as temporary:
        root = Path(temporary).resolve()
        _unpack(source, root)
        inside = [entry for entry in root.iterdir() if entry.name != "__MACOSX"]
        only = inside[0] if len(inside) == 1 and inside[0].is_dir() else root
        try:
            yield only
        except PansightError as error:
            if str(root) not in str(error):
                raise
            raise PansightError(str(error).replace(str(root), str(source))) from error


def _unpack(source: Path, root: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            _check_entries(source, entries, shutil.disk_usage(root).free)
            for entry in entries:
                target = root / entry.filename
                if entry.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as packed, target.open("xb") as file:
                    shutil.copyfileobj(packed, file, 2**20)  # at most as many bytes as the entry states
    except BROKEN_ZIP as error:
        raise PansightError(f"{source}: expected a whole ZIP archive, found: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise PansightError(f"{source}: cannot be unpacked: {error.strerror or error}") from error


def _check_entries(source: Path, entries: list[zipfile.ZipInfo], free: int) -> None:
    """Everything that can be known before a byte is written."""
    size, packed = sum(entry.file_size for entry in entries), sum(entry.compress_size for entry in entries)
    if len(entries) > MAX_ENTRIES:
        raise PansightError(f"{source}: expected at most {MAX_ENTRIES} files in an archive, found {len(entries)}")
    if size > MAX_UNPACKED or (size > RATIO_FROM and size > MAX_RATIO * packed):
        found = f"{size / 2**30:.1f} GiB out of {packed / 2**20:.1f} MiB"
        raise PansightError(f"{source}: expected an archive of data, found {found}; unpack it yourself if you trust it")
    if size > free:
        found = f"{free / 2**30:.1f} GiB in {tempfile.gettempdir()} (TMPDIR sets another folder)"
        raise PansightError(f"{source}: expected {size / 2**30:.1f} GiB of free space to unpack, found {found}")
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        plain = PurePosixPath(name)
        if plain.is_absolute() or ".." in plain.parts or any(mark in name for mark in "\\:\0") or not plain.parts:
            raise PansightError(f"{source}: expected names inside the archive's folder, found {name!r:.120}")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise PansightError(f"{source}: expected files and folders only, found a link or device {name!r:.120}")
        if entry.flag_bits & 1:
            raise PansightError(f"{source}: expected an archive without a password, found {name!r:.120} encrypted")
        if name in seen:
            raise PansightError(f"{source}: expected each file once, found {name!r:.120} twice")
        seen.add(name)


def safe_join(folder: Path, name: object, source: str | Path) -> Path:
    """folder/name for a file name found in `source`. Raises PansightError where it is absolute or climbs out (``..``).

    Both POSIX and Windows spellings are refused on every system, so that a file is as safe here as there.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise PansightError(f"{source}: expected a file name, found {name!r}")
    if not any(mark in name for mark in "/\\:") and name not in (".", ".."):
        return folder / name  # the common case, twenty times as fast
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.drive or windows.root or ".." in posix.parts or ".." in windows.parts:
        raise PansightError(f"{source}: expected a file name inside the data folder, found {name!r}")
    return folder / name


@contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`; it takes its place when the block succeeds and is removed when it fails.

    Raises PansightError, naming the folder, where it cannot be written.
    """
    folder = Path(folder)
    temporary, old = folder.with_name(f".{folder.name}.{os.getpid()}.tmp"), _old(folder)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, old)
        os.rename(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise PansightError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def standing_folder(folder: str | Path) -> Path:
    """`folder`, or where a process was killed while replacing it, the folder that stood there before."""
    folder = Path(folder)
    return _old(folder) if not folder.exists() and _old(folder).is_dir() else folder


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
