"""Find the files and parts of foreign annotations, and read the sizes of their images."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from pansight.data.dataset import means_split, split_of
from pansight.data.images import IMAGE_SUFFIXES, Header, read_bytes, read_header
from pansight.errors import PansightError

SYSTEM_FILES = (".", "Thumbs.db", "desktop.ini")
"""How the names of files begin that no user put there."""


def image_size(path: Path, stated: tuple[int, int] | None = None) -> tuple[int, int]:
    """(H, W) of an image file as annotation tools show it: turned by its EXIF tag, unless `stated`, the size that the
    annotation gives, is that of the stored pixels. Only the header is decoded.

    Raises PansightError where the file is missing or no image, or `stated` is neither.
    """
    return fitting_size(read_header(read_bytes(path), path), path, stated)


def fitting_size(header: Header, path: str | Path, stated: tuple[int, int] | None = None) -> tuple[int, int]:
    """As `image_size`, of a header that is known already; `path` is for error messages."""
    if stated is None or stated == header.turned_size:
        return header.turned_size
    if stated != (header.height, header.width):
        (height, width), expected = header.turned_size, f"{stated[0]}×{stated[1]} (its annotation)"
        raise PansightError(where=path, expected=f"an image of {expected}", found=f"{height}×{width} (height × width)")
    return stated


def walk_images(folder: Path) -> Iterator[Path]:
    """All image files below `folder`, sorted within each folder; hidden ones and links to folders are left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield Path(place, name)


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Name below `folder` without its suffix, with "/" → file. Raises PansightError where two images share a name.

    Accents have one Unicode form, so that a photo and its PNG are a pair whichever system their names come from.
    """
    found: dict[str, Path] = {}
    for file in walk_images(folder):
        stem = unicodedata.normalize("NFC", file.relative_to(folder).with_suffix("").as_posix())
        if stem in found:
            raise PansightError(where=file, expected="one image of this name", found=f"{found[stem].name} beside it")
        found[stem] = file
    return found


def files_ending(folder: Path, ending: str, recursive: bool = False) -> list[Path]:
    """The files of a folder whose names end in `ending`, in any letter case, sorted; `recursive`: also those below it.

    Hidden files and folders are left out. A folder that does not exist has none.
    """
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith((".", "__MACOSX")))
        found += [Path(place, name) for name in names if name.lower().endswith(ending.lower())]
    return sorted(file for file in found if not file.name.startswith(SYSTEM_FILES))


def either_case(file: Path) -> Path:
    """`file`, or the one whose suffix has capital letters where only that is there."""
    capital = file.with_suffix(file.suffix.upper())
    return capital if not file.is_file() and capital.is_file() else file


def image_beside(folder: Path, stem: str) -> Path | None:
    """The image file called `stem` in a folder, its suffix in small or capital letters; None where there is none."""
    suffixes = (spelled for suffix in IMAGE_SUFFIXES for spelled in (suffix, suffix.upper()))
    return next((file for suffix in suffixes if (file := folder / f"{stem}{suffix}").is_file()), None)


def short_names(images: Sequence[Path]) -> list[str]:
    """The name of each file below the deepest folder that holds all of them, with "/"; two files never share one."""
    shared = os.path.commonpath([image.parent for image in images]) if images else ""
    return [image.relative_to(shared).as_posix() for image in images]


def stems(names: Sequence[str]) -> list[str]:
    """Names without their suffixes; those that would be alike keep them."""
    short = [PurePosixPath(name).with_suffix("").as_posix() for name in names]
    counts = Counter(short)
    return [name if counts[stem] > 1 else stem for name, stem in zip(names, short)]


def choose_part(parts: Iterable[str], split: str | None, where: str | Path) -> tuple[str | None, str | None]:
    """(the part to read, a note for the user) of the parts of a data set that exist, by name.

    Without a split the training part is taken, else the first one, and the note says so where there are others.
    Raises PansightError where the split is none of them.
    """
    names = list(dict.fromkeys(parts))
    if split is not None:
        meant = [name for name in names if means_split(name, split)]
        if not meant:
            raise PansightError(where=where, expected=f"a part {split!r}", found=", ".join(names) or "none")
        return (split if split in meant else meant[0]), None
    if not names:
        return None, None
    chosen = next((name for name in names if split_of(name) == "train"), names[0])
    others = ", ".join(name for name in names if name != chosen)
    return chosen, f"part {chosen!r} is read; there is also {others} (--split)" if others else None
