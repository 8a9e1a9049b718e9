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

    place: Path  # the folder in which it was found
    name: str  # below that folder, with "/"
    as_written: bool  # whether the name was taken by the letter

    @property
    def path(self) -> Path:
        return self.place / self.name


_ByName = dict[tuple[str, Path | None], Located]
"""Files by the name that stands for them, and the folder of the file that gives it."""


class Found(NamedTuple):
    """What was found for each of several names."""

    files: list[Located | None]
    notes: tuple[str, ...]  # lines for the user where names were not taken by the letter
    ambiguous: dict[str, Located]  # files that were not taken, since they may be those of other names


def locate_all(
    names: Sequence[str],
    places: Sequence[Path],
    others: Sequence[Sequence[str]] = (),
    starts: Sequence[Path] = (),
) -> Found:
    """The image file of every name, looked for in `places`, in their order.

    others: for each name further spellings that are tried after it. starts: for each name the folder of the file that
    gives it, below the first place; there and in the folders above it is looked first. A tail that several of the names
    share is not taken, nor is a file that belongs to another name by the letter: it may be another picture of the same
    name.
    """
    finder = _Finder()
    files: list[Located | None] = []
    for n, name in enumerate(names):
        texts = dict.fromkeys((name, *(others[n] if others else ())))
        start = starts[n] if starts else None
        files.append(next(filter(None, (finder.locate(text, places, start) for text in texts)), None))
    keys = list(zip(names, starts or [None] * len(names)))
    odd = {key: file for key, file in zip(keys, files) if file is not None and not file.as_written}
    if not odd:
        return Found(files, (), {})
    lengths = set[int]() if starts else {len(file.name.split("/")) for file in odd.values()}
    shared = _shared_tails(names, lengths)
    owners = Counter(file.path for file in dict(zip(keys, files)).values() if file is not None)
    refused = {
        key: file for key, file in odd.items() if owners[file.path] > 1 or shared[_folded(file.name.split("/"))] > 1
    }
    files = [None if key in refused else file for key, file in zip(keys, files)]
    taken = {key: file for key, file in odd.items() if key not in refused}
    return Found(files, tuple(_notes(taken, refused, len(names))), {name: file for (name, _), file in refused.items()})


def _notes(taken: _ByName, refused: _ByName, count: int) -> Iterator[str]:
    for (name, _), file in list(taken.items())[:1]:
        told = f"{name!r:.120} is {file.name}"
        yield f"{len(taken)} of {count} images are read under another path than the annotations give: {told}"
    for (name, _), file in list(refused.items())[:1]:
        told = f"{name!r:.120} is not {file.name}"
        yield f"{len(refused)} of {count} images are only there as pictures of that name elsewhere: {told}"


def find_tail(places: Sequence[Path], text: str) -> Path | None:
    """The file or folder in one of `places` that a path means; None where there is none.

    A path of dots alone is the first place itself.
    """
    if not path_parts(text):
        return places[0]
    found = _Finder(folders=True).locate(text, places)
    return None if found is None else found.path


def path_parts(text: str) -> tuple[str, ...]:
    """The names in a path, without its drive and dots: what is left lies inside of any folder that it is joined to."""
    words = text.strip().replace("\\", "/").split("/")
    return tuple(word for word in words if word not in ("", ".", "..") and not DRIVE.fullmatch(word))


def spellings(text: str) -> Iterator[str]:
    """The paths that a text may mean, likeliest first: in a link, in a web address, as it stands, without escapes; then
    all of these without what an upload puts before the name.
    """
    found: list[str] = []
    if "?" in text or "://" in text:
        found += _in_address(text)
    found += [text, unquote(text)] if "%" in text else [text]
    yield from found
    for path in found:
        folder, _, name = path.replace("\\", "/").rpartition("/")
        if UPLOAD.match(name):
            yield f"{folder}/{UPLOAD.sub('', name, count=1)}"


def _in_address(text: str) -> list[str]:
    """The paths that a link or a web address may mean; none where it is damaged."""
    found: list[str] = []
    try:
        parts = urlsplit(text)
        query = parse_qs(parts.query)
        found += query.get("d", [])[:1]  # /data/local-files/?d=folder/name.jpg
        for link in query.get("fileuri", [])[:1]:  # /tasks/1/resolve/?fileuri=<base64 of s3://…>
            found.append(urlsplit(base64.b64decode(link, validate=True).decode()).path)
        if "://" in text or parts.query:
            found.append(unquote(parts.path))
    except (ValueError, binascii.Error):
        return []
    return found


class _Folder(NamedTuple):
    """The names in a folder, as they are and as they compare."""

    is_dir: dict[str, bool]
    alike: dict[str, list[str]]


class _Finder:
    """Looks names up in lists of the folders, each read once: faster than asking the disk for every file."""

    def __init__(self, folders: bool = False):
        self._folders = folders
        self._known: dict[str, _Folder] = {}

    def locate(self, text: str, places: Sequence[Path], start: Path | None = None) -> Located | None:
        """See `locate_all`; the names of files are those below the place in which they were found."""
        if "\0" in text:
            return None
        for place, words in self._by_letter(text, places, start):
            name = self._walk(place, words, exact=True)
            if name is not None:
                return Located(place, name, True)
        if start is not None:
            above = [folder for folder in (start, *start.parents) if folder.is_relative_to(places[0])]
            places = list(dict.fromkeys([*above, *places]))
        for parts in dict.fromkeys(path_parts(spelled) for spelled in spellings(text)):
            for first in range(max(0, len(parts) - MAX_TAILS), len(parts)):
                for place in places:
                    name = self._walk(place, parts[first:], exact=False)
                    if name is not None:
                        return Located(place, name, False)
        return None

    def _by_letter(
        self, text: str, places: Sequence[Path], start: Path | None
    ) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """(place, names of folders and file below it) that a path means where it is taken as it stands."""
        if start is not None:
            path, root = Path(os.path.normpath(start / text)), places[0]
            if path.is_relative_to(root):
                yield root, path.relative_to(root).parts
        elif not text.startswith("/") and ".." not in text.split("/"):
            words = tuple(word for word in text.split("/") if word not in ("", "."))
            yield from ((place, words) for place in places)

    def _walk(self, place: Path, parts: Sequence[str], exact: bool) -> str | None:
        """The name, below a folder, of the file that `parts` lead to; None where there is none, or no parts."""
        if not parts:
            return None
        path, names = str(place), list[str]()  # Path objects would take most of the time
        for number, part in enumerate(parts, 1):
            folder = self._listing(path)
            name = part if part in folder.is_dir else None
            if name is None and not exact:
                alike = folder.alike.get(fold(part), [])
                name = alike[0] if len(alike) == 1 else None
            if name is None or (number < len(parts) and not folder.is_dir[name]):
                return None
            last = number == len(parts) and not self._folders
            if last and (folder.is_dir[name] or name.lower().endswith(NO_IMAGES)):
                return None
            names.append(name)
            path = f"{path}/{name}"
        return "/".join(names)

    def _listing(self, folder: str) -> _Folder:
        if folder not in self._known:
            _, folders, files = next(os.walk(folder), ("", [], []))  # nothing where it is no folder
            is_dir = dict.fromkeys(folders, True) | dict.fromkeys(files, False)
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


def named_file(root: Path, name: str | Path, what: str) -> Path:
    """The file that the user names, below `root` or as it stands. Raises PansightError, with `what`, where none is."""
    found = next((file for file in (root / name, Path(name)) if file.is_file()), None)
    if found is None:
        raise PansightError(where=name, expected=what, found="none", code="missing_file")
    return found
