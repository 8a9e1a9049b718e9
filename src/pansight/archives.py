"""ZIP archives, opened with care: they may be damaged, or made to fill the disk or to write outside their folder."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pansight.errors import PansightError

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

DOCUMENTS = ("readme", "license", "licence", "notice", "changelog", "citation", "about")
DOCUMENT_SUFFIXES = (".md", ".pdf", ".html", ".htm", ".rst", ".url", ".docx")
"""Files that may lie beside the folder of the data: their names begin or end so."""

LAYOUT = re.compile(
    "images?|annotations?|labels?|masks?|instances|semantic|gtfine|gtcoarse|leftimg8bit|imagesets|jpegimages|"
    r"(train(ing)?|val(id(ation)?)?|test(ing)?|dev)[\W\d_]*"
)
"""Folders, in small letters, that are a part of a data set rather than the whole of it."""


@contextmanager
def unpacked(source: str | Path) -> Iterator[Path]:
    """`source` itself where it is a folder or any file but a ZIP; of a ZIP, its content in a temporary folder.

    A ZIP whose data lie in one folder, or in one within another, yields that folder; documents beside it, and what
    macOS and Windows add, do not matter. Names may be written with backslashes. The temporary folder goes when the
    block ends; errors that name it in the block are told with the archive's name instead.
    Raises PansightError where `source` does not exist, and where the archive is damaged, encrypted, too large, packed
    too tightly to be honest, or holds links or names that lead outside.
    """
    source = Path(source)
    try:
        is_archive = source.is_file() and zipfile.is_zipfile(source)
        if not is_archive and not source.exists():
            hint = "these shapes are generated while a model trains on them: pansight train --data shapes"
            raise PansightError(
                where=source, expected="a folder or file", found="none", hint=hint if str(source) == "shapes" else ""
            )
    except OSError as error:
        raise PansightError(
            "cannot be read", where=source, reason=error.strerror or error, code="cannot_read"
        ) from error
    if not is_archive and source.is_file() and source.suffix.lower() == ".zip":
        raise PansightError(where=source, expected="a whole ZIP archive", found="a damaged one or another kind of file")
    if not is_archive:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="pansight-", ignore_cleanup_errors=True) as temporary:
        root = Path(temporary).resolve()
        _unpack(source, root)
        try:
            yield _inner_folder(root)
        except PansightError as error:
            raise error.renamed(root, source) from error


def plain_name(name: str) -> str:
    """The name of an entry with "/" between its folders: some tools of Windows write backslashes."""
    name = name.replace("\\", "/")
    return name.replace(":", "_") if os.name == "nt" else name


def is_system_file(name: str) -> bool:
    """Whether an entry is none of the user's: what macOS and Windows store beside the files."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini")


def _inner_folder(root: Path) -> Path:
    """The folder that holds the data: `root`, or the only one in it that is no document and no part of a data set."""
    while True:
        inside = [entry for entry in root.iterdir() if not _is_document(entry)]
        if len(inside) != 1 or not inside[0].is_dir() or LAYOUT.fullmatch(inside[0].name.lower()):
            return root
        root = inside[0]


def _is_document(entry: Path) -> bool:
    name = entry.name.lower()
    told = name.startswith(DOCUMENTS) or name.endswith(DOCUMENT_SUFFIXES)
    return name.startswith(".") or (told and entry.is_file())


def _unpack(source: Path, root: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            _check_entries(source, entries, shutil.disk_usage(root).free)
            for entry in entries:
                name = plain_name(entry.filename)
                if is_system_file(name):
                    continue
                target = root / name
                if name.endswith("/"):
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as packed, target.open("xb") as file:
                    shutil.copyfileobj(packed, file, 2**20)  # at most as many bytes as the entry states
    except BROKEN_ZIP as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PansightError(where=source, expected="a whole ZIP archive", reason=reason) from error
    except OSError as error:
        raise PansightError("cannot be unpacked", where=source, reason=error.strerror or error) from error


def _check_entries(source: Path, entries: list[zipfile.ZipInfo], free: int) -> None:
    """Everything that can be known before a byte is written."""
    size, packed = sum(entry.file_size for entry in entries), sum(entry.compress_size for entry in entries)
    if len(entries) > MAX_ENTRIES:
        raise PansightError(where=source, expected=f"at most {MAX_ENTRIES} files in an archive", found=len(entries))
    if size > MAX_UNPACKED or (size > RATIO_FROM and size > MAX_RATIO * packed):
        found = f"{size / 2**30:.1f} GiB out of {packed / 2**20:.1f} MiB"
        raise PansightError(
            where=source, expected="an archive of data", found=found, hint="unpack it yourself if you trust it"
        )
    if size > free:
        found = f"{free / 2**30:.1f} GiB in {tempfile.gettempdir()} (TMPDIR sets another folder)"
        raise PansightError(where=source, expected=f"{size / 2**30:.1f} GiB of free space to unpack", found=found)
    seen: set[str] = set()
    for entry in entries:
        name = plain_name(entry.filename)
        plain = PurePosixPath(name)
        outside = plain.is_absolute() or ".." in plain.parts or not plain.parts or re.match("[A-Za-z]:/", name)
        if outside or "\0" in name:
            raise PansightError(where=source, expected="names inside the archive's folder", found=f"{name!r:.120}")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise PansightError(
                where=source, expected="files and folders only", found=f"a link or device {name!r:.120}"
            )
        if entry.flag_bits & 1:
            raise PansightError(
                where=source, expected="an archive without a password", found=f"{name!r:.120} encrypted"
            )
        if name in seen:
            raise PansightError(where=source, expected="each file once", found=f"{name!r:.120} twice")
        seen.add(name)
