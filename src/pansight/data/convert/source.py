"""The result of a reader of foreign annotations: images with regions that may overlap, and classes of which it may be
unknown whether they are things. `convert` turns it into COCO panoptic; no reader decides overlaps, fills, or guesses
things.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.ops.idmap import IdArray


class SourceCategory(NamedTuple):
    """A class as the source knows it; its position in `Source.categories` is its index."""

    name: str
    source_id: int  # id in the output: the source's own where it has one, else 1, 2, 3 …
    is_thing: bool | None = None  # None: the source does not say; the user must
    color: tuple[int, int, int] | None = None  # RGB, 0..255; None: from the palette


class Region(NamedTuple):
    """One annotated region: a cut-out of the image, so that a small object costs little memory."""

    mask: NDArray[np.bool_]  # (h, w), the cut-out; at least one pixel is set
    top: int  # row of the cut-out's first row in the image
    left: int
    category: int  # index into Source.categories
    is_crowd: bool = False
    score: float = 1.0


@dataclass(frozen=True, eq=False)
class Annotated:
    """One image with its annotations, at the size of the image file.

    A pixel's owner: first `ids` (what the source gives as a disjoint map already), then `regions` over it, those that
    overlap each other by the policy the user chose. Regions of one stuff class are merged by `convert`, not here.
    """

    image_id: str | int
    file_name: str  # of the image in the output, e.g. "000000000139.jpg" or "aachen/aachen_000000_000019.png"
    image: Path | bytes | None  # the image file, or its content where it lies in another file; None: there is none
    size: tuple[int, int]  # (H, W)
    regions: tuple[Region, ...] = ()  # in the order of the source
    ids: IdArray | None = None  # int32 (H, W), 0 = not annotated
    segments: dict[int, tuple[int, bool]] = field(default_factory=dict)  # id in `ids` → (category index, is_crowd)
    empty: tuple[int, ...] = ()  # category indices of annotations that cover no pixel: told, not drawn


class Source(Protocol):
    """Foreign annotations, image by image. Bad files raise PansightError naming file and annotation."""

    @property
    def categories(self) -> tuple[SourceCategory, ...]: ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user must know of how it was read, one line each ("things are connected components", …)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Annotated: ...


class ListSource:
    """A Source whose images are functions, called as their turn comes: what a reader returns.

    return ListSource(categories, [lambda: read_one(path) …], notes)
    """

    def __init__(
        self,
        categories: Sequence[SourceCategory],
        images: Sequence[Callable[[], Annotated]],
        notes: Sequence[str] = (),
    ):
        self.categories, self.images, self.notes = tuple(categories), tuple(images), tuple(notes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Annotated:
        return self.images[index]()


class WithDamaged:
    """A source beside which lie files or annotations that cannot be used: each is an image that raises its error, so
    that whoever reads the images leaves these out, or stops, by one rule.
    """

    def __init__(self, source: Source, damaged: Sequence[PansightError]):
        self.source, self.damaged = source, tuple(damaged)
        self.categories, self.notes = source.categories, source.notes

    def __len__(self) -> int:
        return len(self.source) + len(self.damaged)

    def __getitem__(self, index: int) -> Annotated:
        if index >= len(self.source):
            raise self.damaged[index - len(self.source)]
        return self.source[index]


def with_damaged(source: Source, damaged: Sequence[PansightError]) -> Source:
    """`source` itself where nothing is damaged. Raises the first error where there is nothing else."""
    if damaged and not len(source):
        raise damaged[0]
    return WithDamaged(source, damaged) if damaged else source
