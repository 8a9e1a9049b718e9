"""Find the files that annotations name, whichever way the tool that wrote them spells a path.

Tools write absolute paths of the computer they ran on, with ``/`` or ``\\``, paths that climb out of their own folder,
``file://`` and web addresses, and links to a server's storage. Of each path the longest tail that exists below the
given folders is taken; nothing outside of these folders is ever looked at. Letter case, the Unicode form of accents and
the two spellings of ``.jpg`` and ``.tif`` are passed over where exactly one file differs in nothing else.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from pansight.errors import PansightError

DRIVE = re.compile("[A-Za-z]:")
UPLOAD = re.compile("[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""

NO_IMAGES = (".json", ".xml", ".txt", ".csv", ".yaml", ".yml")
"""A file of these kinds is never the image, although some tools name the annotation file itself."""

MAX_TAILS = 20


class Located(NamedTuple):
    """A file that was found for a name."""

    path: Path
    name: str  # below the folder in which it was found, with "/"
    as_written: bool  # whether the name was taken by the letter


class Found(NamedTuple):
    """What was found for each of several names, and a line for the user where names were not taken by the letter."""

    files: list[Located | None]
    notes: tuple[str, ...]


def locate_all(names: Sequence[str], places: Sequence[Path], others: Sequence[Sequence[str]] = ()) -> Found:
    """The image file of every name, looked for in `places`, in their order.

    others: for each name further spellings that are tried after it. A tail that several of the names share is not
    taken, nor is a file that belongs to another name by the letter: it may be another picture of the same name.
    """
    finder = _Finder(places)
    spelled = [list(dict.fromkeys((name, *(others[n] if others else ())))) for n, name in enumerate(names)]
    files = [next(filter(None, map(finder.locate, texts)), None) for texts in spelled]
    odd = {name: file for name, file in zip(names, files) if file is not None and not file.as_written}
    if not odd:
        return Found(files, ())
    shared = _shared_tails(names, {len(file.name.split("/")) for file in odd.values()})
    owners = Counter(file.path for file in dict(zip(names, files)).values() if file is not None)
    refused = {
        name
        for name, file in odd.items()
        if owners[file.path] > 1 or shared[_folded(file.name.split("/"))] > 1
    }
    files = [None if name in refused else file for name, file in zip(names, files)]
    taken = {name: file for name, file in odd.items() if name not in refused}
    if not taken:
        return Found(files, ())
    name, file = next(iter(taken.items()))
    count = f"{len(taken)} of {len(names)} images are" if len(names) > 1 else "the image is"
    return Found(files, (f"{count} read under another path than the annotations give: {name!r:.120} is {file.name}",))


def find_tail(places: Sequence[Path], text: str) -> Path | None:
    """The file or folder in one of `places` that a path means; None where there is none.

    A path of dots alone is the first place itself.
    """
    if not path_parts(text):
        return places[0]
    found = _Finder(places, folders=True).locate(text)
    return None if found is None else found.path


def path_parts(text: str) -> tuple[str, ...]:
    """The names in a path, without its drive and without dots: what is left lies inside of any folder it is joined to."""
    words = text.strip().replace("\\", "/").split("/")
    return tuple(word for word in words if word not in ("", ".", "..") and not DRIVE.fullmatch(word))


def spellings(text: str) -> Iterator[str]:
    """The paths that a text may mean, likeliest first: in a link, in a web address, as it stands, without escapes."""
    try:
        parts = urlsplit(text)
        query = parse_qs(parts.query)
        if "d" in query:  # /data/local-files/?d=folder/name.jpg
            yield query["d"][0]
        if "fileuri" in query:  # /tasks/1/resolve/?fileuri=<base64 of s3://…>
            yield urlsplit(base64.b64decode(query["fileuri"][0], validate=True).decode()).path
        if "://" in text or parts.query:
            yield unquote(parts.path)
    except (ValueError, binascii.Error):
        pass
    yield text
    if "%" in text:
        yield unquote(text)
    folder, _, name = text.replace("\\", "/").rpartition("/")
    if UPLOAD.match(name):
        yield f"{folder}/{UPLOAD.sub('', name, count=1)}"


class _Folder(NamedTuple):
    """The names in a folder, as they are and as they compare."""

    is_dir: dict[str, bool]
    alike: dict[str, list[str]]


class _Finder:
    """Looks names up in lists of the folders, each read once: faster than asking the disk for every file."""

    def __init__(self, places: Sequence[Path], folders: bool = False):
        self._places, self._folders = list(dict.fromkeys(places)), folders
        self._known: dict[Path, _Folder] = {}

    def locate(self, text: str) -> Located | None:
        if "\0" in text:
            return None
        words = tuple(word for word in text.split("/") if word not in ("", "."))
        if words and ".." not in words and not text.startswith("/"):
            for place in self._places:
                path = self._walk(place, words, exact=True)
                if path is not None:
                    return Located(path, "/".join(words), True)
        for parts in dict.fromkeys(path_parts(spelled) for spelled in spellings(text)):
            for start in range(max(0, len(parts) - MAX_TAILS), len(parts)):
                for place in self._places:
                    path = self._walk(place, parts[start:], exact=False)
                    if path is not None:
                        return Located(path, path.relative_to(place).as_posix(), False)
        return None

    def _walk(self, place: Path, parts: Sequence[str], exact: bool) -> Path | None:
        """The file at the end of `parts` below a folder."""
        for number, part in enumerate(parts, 1):
            folder = self._listing(place)
            name = part if part in folder.is_dir else None
            if name is None and not exact:
                alike = folder.alike.get(fold(part), [])
                name = alike[0] if len(alike) == 1 else None
            if name is None or (number < len(parts) and not folder.is_dir[name]):
                return None
            if number == len(parts) and not self._folders:
                if folder.is_dir[name] or name.lower().endswith(NO_IMAGES):
                    return None
            place = place / name
        return place

    def _listing(self, folder: Path) -> _Folder:
        if folder not in self._known:
            try:
                with os.scandir(folder) as entries:
                    is_dir = {entry.name: entry.is_dir() for entry in entries}
            except (OSError, ValueError):  # no folder, or a name that is none
                is_dir = {}
            alike: dict[str, list[str]] = {}
            for name in is_dir:
                alike.setdefault(fold(name), []).append(name)
            self._known[folder] = _Folder(is_dir, alike)
        return self._known[folder]


def fold(name: str) -> str:
    """A file name as it is compared where the spelling differs: without letter case, accents in one Unicode form."""
    plain = unicodedata.normalize("NFC", name).casefold()
    for long, short in ((".jpeg", ".jpg"), (".tiff", ".tif")):
        plain = plain.removesuffix(long) + short if plain.endswith(long) else plain
    return plain


def _folded(parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(fold(part) for part in parts)


def _shared_tails(names: Iterable[str], lengths: set[int]) -> Counter[tuple[str, ...]]:
    """How many different names end in the same folders and file, for tails of these lengths."""
    ends = Counter[tuple[str, ...]]()
    for name in dict.fromkeys(names):
        spelled = {_folded(path_parts(text)) for text in spellings(name)}
        ends.update({parts[-length:] for parts in spelled for length in lengths if len(parts) >= length})
    return ends


def named_folder(root: Path, folder: str | Path | None, what: str = "a folder of images") -> Path:
    """`root`, or the folder that the user names, below `root` or as it stands. what: it holds, for the error.

    Raises PansightError where it is no folder.
    """
    if folder is None:
        return root
    places = root / folder, Path(folder)
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise PansightError(where=places[0], expected=what, found="none")
    return found
