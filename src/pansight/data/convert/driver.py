"""Convert foreign annotations to COCO panoptic or another format, completely or not at all.

    summary = convert("export.zip", "mydata", things=["car", "person"])
    dataset = open_dataset("mydata")

A reader gives images with regions that may overlap; here their classes become one label space over all parts of the
source, `overlap` gives every pixel one owner, and a target writes what comes out. Memory holds one image at a time.
"""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial as bound
from pathlib import Path
from typing import Any, NamedTuple

from pansight.archives import unpacked
from pansight.data.convert.labels import Ask, Classes, decide_things, join_classes
from pansight.data.convert.overlap import DEFAULT_POLICY, POLICIES, Resolved, resolve
from pansight.data.convert.readers import READERS, Reader
from pansight.data.convert.source import Annotated, Source
from pansight.data.convert.summary import Summary, Tally
from pansight.data.convert.targets import TARGETS, Target
from pansight.data.dataset import split_of
from pansight.data.images import check_whole, read_bytes, read_header
from pansight.data.options import checked_options, known_options
from pansight.errors import PansightError, choice_error
from pansight.files import decode_json, read_plain, replacing_folder, safe_join, write_json
from pansight.parallel import in_order, workers

IMAGE_MODES = ("copy", "hardlink", "symlink", "none")

FATAL = ("cannot_write", "unknown_choice")
"""Codes of errors that the next image would meet too: of the place that is written to, or of what was asked for."""

RECEIPT = "convert.json"
"""Lies in every folder that `convert` wrote: what was done. Only a folder that has one is ever replaced."""


def convert(
    source: str | Path,
    to: str | Path,
    format: str = "auto",
    target: str = "coco_panoptic",
    split: str | None = None,
    overlap: str = DEFAULT_POLICY,
    things: Sequence[str] | None = None,
    fill: str | None = None,
    images: str = "copy",
    overwrite: bool = False,
    ask: Ask | None = None,
    progress: Callable[[float, str], None] | None = None,
    options: Mapping[str, Any] | None = None,
    stuff: Sequence[str] | None = None,
    strict: bool = False,
    jobs: int = 0,
) -> Summary:
    """Write the annotations at `source`, a folder, a file or a ZIP, into the new folder `to`.

    format: a key of READERS, or "auto". target: a key of TARGETS. split: only this part; else all that are found.
    overlap: a key of POLICIES. things: the names of all classes that are things ("all" and "none" are understood), over
    what the source says. fill: the stuff class, new or known, that takes the pixels without annotation; else they are
    void. images: a mode of IMAGE_MODES. ask: answers where neither source nor `things` does. progress: called with the
    share that is done, 0 … 1, and a line. options: those of the reader, by name. stuff: in place of `things`, the names
    of all classes that are stuff. strict: stop at the first image that cannot be read, instead of leaving it out.
    jobs: so many images at a time, 0: as many as there are cores; the files are the same, byte for byte.
    Raises PansightError, in one line, for bad input of any kind; then `to` is as it was before.
    """
    to = Path(to)
    for kind, name, known in (
        ("target format", target, TARGETS),
        ("overlap policy", overlap, POLICIES),
        ("image mode", images, IMAGE_MODES),
    ):
        if name not in known:
            raise choice_error(kind, name, known)
    workers(jobs)  # refused before anything is read
    with unpacked(source) as root:
        if root != Path(source) and images == "symlink":
            raise PansightError(where=source, expected="a folder to link images to", found="an archive (--images copy)")
        _check_place(Path(source), to, overwrite)
        name = detect(root) if format == "auto" else format
        if name not in READERS:
            raise choice_error("source format", name, READERS)
        opened = _open(READERS[name], name, root, split, things, ask, options or {})
        classes = join_classes([part.source for part in opened], fill)
        classes = decide_things(classes, things, ask, stuff)
        tally = Tally(str(source), name, target, overlap, str(to), classes.labels)
        tally.note(note for part in opened for note in part.source.notes)
        with replacing_folder(os.path.abspath(to)) as partial:
            writer = TARGETS[target](partial, classes.labels)
            _write(opened, classes, writer, tally, _Rules(overlap, images, strict, jobs), progress)
            writer.close()
            tally.note(writer.notes)
            summary = tally.summary()
            write_json(partial / RECEIPT, summary.to_json())
        return summary


def detect(source: Path) -> str:
    """The key in READERS of what lies at `source`. Raises PansightError where no reader knows it."""
    found = next((name for name, reader in READERS.items() if reader.detect(source)), None)
    if found is not None:
        return found
    for damaged in _damaged(source):
        raise damaged
    raise PansightError(
        "expected annotations in a known format, recognised none",
        where=source,
        hint=f"name one (--from): {', '.join(READERS)}",
    )


def _damaged(source: Path) -> Iterator[PansightError]:
    """The errors of annotation files that cannot even be decoded: one of them may be what hides the format."""
    files = [source] if source.is_file() else sorted(source.glob("*")) + sorted(source.glob("*/*"))
    for file in [f for f in files if f.suffix.lower() == ".json" and f.is_file() and not f.name.startswith(".")][:50]:
        try:
            decode_json(read_plain(file), object, file)
        except PansightError as error:
            yield error
        except OSError as error:
            yield PansightError("cannot be read", where=file, reason=error.strerror or error, code="cannot_read")


# --- opening ---------------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    name: str  # of the split in the output
    source: Source


def _open(
    reader: Reader,
    name: str,
    root: Path,
    split: str | None,
    things: Sequence[str] | None,
    ask: Ask | None,
    options: Mapping[str, Any],
) -> list[_Part]:
    """The parts of the source, at least one, each with at least one image."""
    chosen = checked_options(name, reader.open, options, hidden=("things",))
    parts = (split,) if split is not None else reader.splits(root) or (None,)
    outputs = _output_names(parts)
    opened = [_Part(output, reader.open(root, part, **chosen)) for output, part in zip(outputs, parts)]
    if "things" in inspect.signature(reader.open).parameters:  # it cuts things into components, and must know them
        classes = decide_things(join_classes([part.source for part in opened], None), things, ask)
        names = tuple(category.name for category in classes.labels.things)
        opened = [
            _Part(part.name, reader.open(root, split, **chosen, things=names)) for part, split in zip(opened, parts)
        ]
    opened = [part for part in opened if len(part.source)]
    if not opened:
        raise PansightError(where=root, expected=f"images ({name})", found="an empty data set")
    twice = [name for name, count in Counter(part.name for part in opened).items() if count > 1]
    if twice:
        raise PansightError(
            where=root, expected=f"one part called {twice[0]!r}", found="several", hint="name one (--split)"
        )
    return opened


def _output_names(parts: Sequence[str | None]) -> list[str]:
    """ "coco_train" → "train", "validation" → "val"; names of several parts that are all for training stay as they are.

    A part without a name is to be trained on.
    """
    usual = ["train" if part is None else split_of(part) or part for part in parts]
    counts = Counter(usual)
    names = [plain if counts[plain] == 1 else part or plain for part, plain in zip(parts, usual)]
    kept = ["".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name) for name in names]
    return [name.lstrip(".") or "part" for name in kept]  # a file may call its part ".."


# --- writing ---------------------------------------------------------------------------------------------------------


class _Rules(NamedTuple):
    overlap: str
    images: str
    strict: bool
    jobs: int


class _Picture(NamedTuple):
    """An image file as it is to be placed. data: its bytes where they are copied."""

    data: bytes | None = None
    fits: tuple[bool, bool] | None = None  # (turned, stored) where an EXIF tag asks to turn it
    damage: PansightError | None = None


class _Ready(NamedTuple):
    """An image of which only files remain to be written."""

    image: Annotated
    picture: _Picture
    result: Resolved
    drawn: Any  # by the target


def _write(
    opened: list[_Part],
    classes: Classes,
    writer: Target,
    tally: Tally,
    rules: _Rules,
    progress: Callable[[float, str], None] | None,
) -> None:
    """An image that cannot be read, of which the file is missing or damaged, or that does not fit its annotation, is
    left out and told, unless all of them are. Threads read and draw; this one writes, in the order of the source.
    """
    total, done = sum(len(part.source) for part in opened), 0
    for n, part in enumerate(opened):
        seen: set[tuple[str, str | int]] = set()
        ready = bound(_ready, part.source, classes, classes.of_source[n], writer, tally, rules)
        for index, found in enumerate(in_order(ready, range(len(part.source)), rules.jobs)):
            done += 1
            if progress is not None:
                progress(done / total, f"{part.name} {index + 1}/{len(part.source)}")
            try:
                if isinstance(found, PansightError):
                    raise found
                image, picture, result, drawn = found
                _place_image(image, picture, writer.image_file(part.name, image.file_name), rules.images, tally)
            except PansightError as error:
                if rules.strict or error.code in FATAL:
                    raise
                tally.skip(error)
                continue
            for key in (("id", image.image_id), ("file", image.file_name)):
                if key in seen:
                    raise PansightError(
                        where=part.name, expected=f"each image {key[0]} once", found=f"{key[1]!r} twice"
                    )
                seen.add(key)
            writer.add(part.name, image, drawn)
            tally.add(part.name, image, result)
    if not tally.converted:
        raise tally.nothing_converted(total)


def _ready(
    source: Source, classes: Classes, of_source: Sequence[int], writer: Target, tally: Tally, rules: _Rules, index: int
) -> _Ready | PansightError:
    """Read and draw an image, or say why it is left out. Called by several threads; nothing is changed or written."""
    try:
        image = _with_classes(source[index], of_source)
        safe_join(Path(), image.file_name, tally.source)
        picture = _read_picture(image, rules.images, tally.format)
    except PansightError as error:
        return error
    result = resolve(image, classes.labels, rules.overlap, classes.fill)
    return _Ready(image, picture, result, writer.draw(image, result))


def _with_classes(image: Annotated, index: Sequence[int]) -> Annotated:
    """The categories of a source → those of the output."""
    if all(old == new for old, new in enumerate(index)):
        return image
    return replace(
        image,
        regions=tuple(region._replace(category=index[region.category]) for region in image.regions),
        segments={number: (index[category], crowd) for number, (category, crowd) in image.segments.items()},
        empty=tuple(index[category] for category in image.empty),
    )


def _read_picture(image: Annotated, mode: str, format: str) -> _Picture:
    """Raises PansightError where the file cannot be read, or its size is not that of the annotation."""
    if mode == "none":
        return _Picture()
    if image.image is None:
        raise PansightError(where=image.file_name, expected="an image file", found="none (--images none does without)")
    data = _content_of(image.image, format)
    place = image.file_name if isinstance(image.image, bytes) else image.image
    header = read_header(data, place)
    fits_turned, fits_stored = image.size == header.turned_size, image.size == (header.height, header.width)
    if not fits_turned and not fits_stored:
        expected, (height, width) = f"{image.size[0]}×{image.size[1]} (its annotation)", header.turned_size
        raise PansightError(where=place, expected=f"an image of {expected}", found=f"{height}×{width} (height × width)")
    damage: PansightError | None = None
    try:
        check_whole(data, header, image.file_name)
    except PansightError as error:
        damage = error
    is_copied = mode == "copy" or isinstance(image.image, bytes)  # what lies in another file has none to link to
    fits = (fits_turned, fits_stored) if header.orientation != 1 else None
    return _Picture(data if is_copied else None, fits, damage)


def _place_image(image: Annotated, picture: _Picture, to: Path, mode: str, tally: Tally) -> None:
    """The file as it is, byte for byte."""
    if picture.damage is not None:
        tally.damaged(picture.damage)
    if picture.fits is not None:
        tally.turned(*picture.fits)
    if mode == "none":
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    if picture.data is not None:
        to.write_bytes(picture.data)
        return
    assert isinstance(image.image, Path)
    if mode == "symlink":
        to.symlink_to(image.image.resolve())
        return
    try:
        os.link(image.image.resolve(), to)
    except OSError as error:
        reason = error.strerror or error
        raise PansightError("cannot be hard-linked", where=image.image, reason=f"{reason} (--images copy)") from error


def _content_of(image: Path | bytes, format: str) -> bytes:
    """The bytes of an image file. Raises PansightError, naming the option that helps, where it is missing."""
    if isinstance(image, bytes):
        return image
    if not image.is_file():
        options = known_options(READERS[format].open)
        option = next((name for name in ("images", "image_folder") if name in options), None)
        hint = f"name the folder: --option.{option} DIR; or do without" if option else "do without"
        found = f"no such file ({hint}: --images none)"
        raise PansightError(where=image, expected="an image file", found=found, code="missing_file")
    return read_bytes(image)


def _check_place(source: Path, to: Path, overwrite: bool) -> None:
    """Raises PansightError where `to` is taken, or where writing it could touch the source."""
    inside, outside = Path(os.path.realpath(to)), Path(os.path.realpath(source))
    if inside == outside or inside in outside.parents:
        raise PansightError(where=to, expected="a folder apart from the source", found="the source in it")
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return
    if not overwrite:
        raise PansightError(
            where=to, expected="no such folder yet", found="one", hint="nothing was written (--overwrite)"
        )
    if not (to / RECEIPT).is_file():
        raise PansightError(
            where=to, expected=f"to replace only what convert wrote (with {RECEIPT})", found="something else"
        )
