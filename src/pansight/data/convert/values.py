"""Read PNGs whose pixel values are labels, with the bit depth that their format requires."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pansight.data.convert.lookup import walk_images
from pansight.data.images import read_bytes, read_header, read_index_png
from pansight.errors import PansightError
from pansight.files import read_plain
from pansight.ops.idmap import IdArray, present_ids, relabel


def read_values(path: Path, bits: int, what: str) -> IdArray:
    """A one-channel PNG of 16 bits, or where `bits` is 8, of at most 8 or palette indices, as int32 (H, W).

    Tools that make files small store few values in 1, 2 or 4 bits; 8 bits instead of 16 have lost numbers.

    Raises PansightError, naming `what` the file should be, where it is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise PansightError(where=path, expected=what, found="no such file", code="missing_file")
    header = read_header(read_bytes(path), path)
    fits = header.bits == 16 if bits == 16 else header.bits <= 8
    if header.kind == "png" and header.channels == 1 and not fits:
        raise PansightError(where=path, expected=f"{what} as a PNG of {bits} bits", found=f"{header.bits} bits")
    return read_index_png(path)


def read_annotation(path: Path, what: str) -> bytes:
    """A file that is no image. Raises PansightError, naming `what` it should be, where it is missing or unreadable."""
    try:
        return read_plain(path)
    except FileNotFoundError as error:
        raise PansightError(where=path, expected=what, found="no such file", code="missing_file") from error
    except OSError as error:
        raise PansightError(where=path, expected=what, found=f"it unreadable: {error.strerror or error}") from error


def segments_of(
    values: IdArray, meaning: Callable[[int], tuple[int, int, bool] | None]
) -> tuple[IdArray, dict[int, tuple[int, bool]]]:
    """A map of values → (its map of segment ids, {segment id: (category index, is_crowd)}) as `Annotated` wants them.

    meaning: value → (segment id, category index, is_crowd), None where it stands for nothing; called once per value.
    """
    new_ids: dict[int, int] = {}
    segments: dict[int, tuple[int, bool]] = {}
    for value in present_ids(values).tolist():
        found = meaning(value)
        if found is not None:
            new_ids[value] = found[0]
            segments[found[0]] = (found[1], found[2])
    return relabel(values, new_ids), segments


def expect_size(path: Path, found: tuple[int, int], expected: tuple[int, int], other: str | Path) -> None:
    """Raises PansightError unless two files of one image have the same size (H, W)."""
    if found != expected:
        sizes = f"{expected[0]}×{expected[1]} like {Path(other).name}, found {found[0]}×{found[1]}"
        raise PansightError(f"expected a size of {sizes} (height × width)", where=path)


def unannotated(images: Path, stems: Iterable[str], suffix: str = "") -> list[str]:
    """A note where images of a folder (name: stem + `suffix`) have no annotation; nothing where all have one."""
    known = {stem + suffix for stem in stems}
    bare = sorted(file.stem for file in walk_images(images) if file.stem not in known)
    return [f"{len(bare)} images of {images} have no annotation and are left out: {bare[0]}, …"] if bare else []
