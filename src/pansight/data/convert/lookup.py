"""Find the files of foreign annotations, read the sizes of their images and the content of their JSON."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from pansight.data.dataset import SPLITS, part_names
from pansight.data.images import IMAGE_SUFFIXES, read_bytes, read_header
from pansight.errors import PansightError

T = TypeVar("T")

PARTS = tuple(name for names in SPLITS.values() for name in names)
"""All names under which the parts of a data set are looked for."""

DRIVE = re.compile("[A-Za-z]:")


def image_size(path: Path, stated: tuple[int, int] | None = None) -> tuple[int, int]:
    """(H, W) of an image file as annotation tools show it: turned by its EXIF tag, unless `stated`, the size that the
    annotation gives, is that of the stored pixels. Only the header is decoded.

    Raises PansightError where the file is missing or no image, or `stated` is neither.
    """
    header = read_header(read_bytes(path), path)
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
    """Name below `folder` without its suffix, with "/" → file. Raises PansightError where two images share a name."""
    found: dict[str, Path] = {}
    for file in walk_images(folder):
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise PansightError(where=file, expected="one image of this name", found=f"{found[stem].name} beside it")
        found[stem] = file
    return found


def find_tail(places: Sequence[Path], text: str) -> Path | None:
    """The longest tail of a path, as a foreign file writes it, that exists in one of `places`; None where none does.

    ``../train/images`` and ``C:\\data\\train\\images`` are ``train/images``, or ``images``; nothing outside `places` is
    ever looked at. A path of dots alone is the first place itself.
    """
    parts = [p for p in text.strip().replace("\\", "/").split("/") if p not in ("", ".", "..") and not DRIVE.match(p)]
    if not parts:
        return places[0]
    tails = ([*parts[start:]] for start in range(max(0, len(parts) - 20), len(parts)))
    try:
        return next((path for tail in tails for place in places if (path := place.joinpath(*tail)).exists()), None)
    except (OSError, ValueError):  # a name too long to be one, or with a zero byte
        return None


def image_root(root: Path, folder: str | None) -> Path:
    """Where the images are: `root`, or the folder that the user names, below `root` or as it stands.

    Raises PansightError where it is no folder.
    """
    if folder is None:
        return root
    places = root / folder, Path(folder)
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise PansightError(where=places[0], expected="a folder of images", found="none")
    return found


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
        found = next((name for name in (split, *part_names(split)) if name in names), None)
        if found is None:
            raise PansightError(where=where, expected=f"a part {split!r}", found=", ".join(names) or "none")
        return found, None
    if not names:
        return None, None
    chosen = next((name for name in SPLITS["train"] if name in names), names[0])
    others = ", ".join(name for name in names if name != chosen)
    return chosen, f"part {chosen!r} is read; there is also {others} (--split)" if others else None


def decode_json(data: bytes, kind: type[T], source: str | Path) -> T:
    """JSON as a msgspec type; keys that it does not name are skipped, and their values never built.

    Raises PansightError, naming the place in the file, where it is no JSON or of another shape.
    """
    try:
        return msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=kind)  # Windows tools write that mark
    except msgspec.ValidationError as error:  # "Expected `str`, got `int` - at `$.shapes[3].label`"
        text = " ".join(str(error).split()).replace("Expected ", "expected ", 1).replace(", got ", ", found ", 1)
        expected = "" if text.startswith("expected ") else "expected another content, found: "
        raise PansightError(f"{expected}{text:.200}", where=source) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PansightError(where=source, expected="JSON", reason=f"{' '.join(str(error).split()):.200}") from error
