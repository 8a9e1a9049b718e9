"""Let `check` and `split` read every format that `convert` reads: what is not COCO is converted for the moment."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pansight.archives import unpacked
from pansight.data import DATASETS
from pansight.data.check.reader import find_files
from pansight.data.convert import convert, detect
from pansight.data.convert.summary import Summary
from pansight.errors import PansightError

NEEDS_CONVERSION = "training needs it converted: pansight convert"


class Readable(NamedTuple):
    """COCO annotations. notes: what must be known of a conversion; empty where there was none. left_out: a line for
    each file or image that the conversion could not use."""

    source: Path
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@contextmanager
def as_coco(
    source: str | Path,
    things: Sequence[str] | None = None,
    guess: bool = False,
    progress: Callable[[float, str], None] | None = None,
    jobs: int = 0,
) -> Iterator[Readable]:
    """`source` itself where it holds COCO annotations; else COCO panoptic in a temporary folder with links to images.

    A ZIP is unpacked first. things: the classes that are things, as `convert` takes them; only for a source that is
    converted. guess: classes that do not say count as things, instead of the error that asks for them. progress: called
    with the share that is converted, 0 … 1, and a line. jobs: as for `convert`. Errors name the source, never the
    temporary folder. Raises PansightError where nothing is recognised and where the conversion stops.
    """
    with unpacked(source) as root:
        format = _foreign_format(root)
        if format is None:
            if things is not None:
                raise PansightError(
                    where=source, expected="--things for data that is not COCO only", found="COCO annotations"
                )
            yield Readable(root)
            return
        with tempfile.TemporaryDirectory(prefix="pansight-", ignore_cleanup_errors=True) as temporary:
            guessed: list[str] = []

            def all_of(names: Sequence[str]) -> Sequence[str]:
                guessed.extend(names)
                return names

            folder = Path(temporary).resolve() / "data"
            images = "symlink" if os.name == "posix" else "copy"
            ask = all_of if guess else None
            summary = convert(root, folder, format, things=things, images=images, ask=ask, progress=progress, jobs=jobs)
            left_out = tuple(map(str, summary.skipped))
            try:
                yield Readable(folder, _notes(summary, list(dict.fromkeys(guessed))), left_out)
            except PansightError as error:
                raise error.renamed(folder, Path(source)) from error


def _foreign_format(source: Path) -> str | None:
    """The key in READERS of what must be converted first; None for COCO annotations that are read as they are."""
    if source.is_file():
        try:
            found = detect(source)
        except PansightError:
            return None  # the reader of COCO files says what is wrong with it
        return None if found.startswith("coco_") else found
    try:
        find_files(source)
    except PansightError as not_coco:
        try:
            return detect(source)
        except PansightError:
            raise not_coco from None
    return None


def _notes(summary: Summary, guessed: Sequence[str]) -> tuple[str, ...]:
    lines = [f"read as {summary.format}; files and ids are named as pansight convert writes them"]
    if guessed:
        shown = ", ".join(guessed[:10]) + (" …" if len(guessed) > 10 else "")
        lines.append(f"classes that do not say count as things here: {shown}")
    if summary.vanished:
        lines.append(f"segments without a pixel, or covered by others: {len(summary.vanished):,}")
    if summary.format not in DATASETS:
        lines.append(NEEDS_CONVERSION)
    return (*lines, *summary.notes)
