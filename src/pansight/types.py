"""The types that all parts of pansight share.

Categories are contiguous from 0, things and stuff alike; the ids of a data set live in ``Category.source_id`` only.
The truth and a prediction of an image are the same type, ``PanopticSegmentation``: one id map and a small table.

This file does not import torch, so that scores can be computed from files without loading it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, overload

from pansight.errors import PansightError, shown

if TYPE_CHECKING:
    from torch import Tensor

VOID = 0
"""The segment id of a pixel that belongs to no segment."""

IGNORE = -1
"""The value of a semantic map (int64) where no class is known; never trained on, never scored. No class has it."""


class Category(NamedTuple):
    """A class of a label space."""

    id: int  # contiguous from 0; equals its index in the LabelSpace
    name: str
    is_thing: bool
    color: tuple[int, int, int]  # RGB, 0..255
    source_id: int  # id in the data set's own files


class LabelSpace:
    """An immutable sequence of categories; index = id.

    Line breaks and other control characters in names, which files may hold, are escaped ("\\x1b"), so that a name is
    one line wherever it is shown.
    Raises PansightError where ids are not 0, 1, 2 … or a name or a source id occurs twice.
    """

    def __init__(self, categories: Iterable[Category]):
        self._categories = tuple(c._replace(name=shown(c.name, 1 + 10 * len(c.name))) for c in categories)
        for index, category in enumerate(self._categories):
            if category.id != index:
                raise PansightError(
                    where=f"label space: category {category.name!r}", expected=f"id {index}", found=category.id
                )
            if len(category.color) != 3 or not all(0 <= value <= 255 for value in category.color):
                found = (
                    f"{category.name!r:.60}: expected a colour [r, g, b], each 0 … 255, found {category.color!r:.60}"
                )
                raise PansightError(f"category {found}", where="label space")
        for field in ("name", "source_id"):
            counts = Counter(getattr(c, field) for c in self._categories)
            twice = next((value for value, count in counts.items() if count > 1), None)
            if twice is not None:
                raise PansightError(
                    where="label space", expected=f"each {field} once", found=f"{twice!r} more than once"
                )

    @classmethod
    def from_names(cls, things: Iterable[str], stuff: Iterable[str] = ()) -> LabelSpace:
        """Things first, then stuff; source ids from 1; colours from a fixed palette."""
        names = [(name, True) for name in things] + [(name, False) for name in stuff]
        return cls(Category(i, name, thing, palette_color(i), i + 1) for i, (name, thing) in enumerate(names))

    @overload
    def __getitem__(self, index: int) -> Category: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Category, ...]: ...
    def __getitem__(self, index: int | slice) -> Category | tuple[Category, ...]:
        return self._categories[index]

    def __len__(self) -> int:
        return len(self._categories)

    def __iter__(self) -> Iterator[Category]:
        return iter(self._categories)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelSpace) and self._categories == other._categories

    def __hash__(self) -> int:
        return hash(self._categories)

    def __repr__(self) -> str:
        return f"LabelSpace({len(self.things)} things, {len(self.stuff)} stuff)"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self)

    @property
    def things(self) -> tuple[Category, ...]:
        return tuple(c for c in self if c.is_thing)

    @property
    def stuff(self) -> tuple[Category, ...]:
        return tuple(c for c in self if not c.is_thing)

    def by_source_id(self) -> dict[int, Category]:
        return {c.source_id: c for c in self}

    def by_name(self) -> dict[str, Category]:
        return {c.name: c for c in self}

    def to_json(self) -> list[dict[str, object]]:
        """COCO panoptic ``categories``: id (the source id), name, isthing, color."""
        return [{"id": c.source_id, "name": c.name, "isthing": int(c.is_thing), "color": list(c.color)} for c in self]

    @classmethod
    def from_json(cls, categories: Iterable[dict[str, object]]) -> LabelSpace:
        """From COCO panoptic ``categories``, in the order given. A missing colour is taken from the palette.

        Raises PansightError where id, name or isthing is missing.
        """
        result: list[Category] = []
        for index, row in enumerate(categories):
            missing = [key for key in ("id", "name", "isthing") if key not in row]
            if missing:
                raise PansightError(
                    "expected keys id, name, isthing", where=f"category {row!r}", hint=f"{missing[0]!r} is missing"
                )
            is_thing = read_flag(row["isthing"], f"category {row['name']!r:.60}", "isthing")
            if is_thing is None:
                raise PansightError(where=f"category {row['name']!r:.60}", expected="isthing 0 or 1", found="nothing")
            color = row.get("color") or palette_color(index)
            red, green, blue = (int(v) for v in color)  # type: ignore[attr-defined]
            result.append(
                Category(index, str(row["name"]), is_thing, (red, green, blue), int(row["id"]))  # type: ignore[call-overload]
            )
        return cls(result)


Flag = bool | int | float | str | None
"""A yes or no as files write it; `read_flag` says which it is."""


def read_flag(value: object, where: object, name: str) -> bool | None:
    """Yes or no of an annotation file: true, 1, 1.0, "1", "true", and likewise for no; None where it is null or empty.

    Python itself calls the text "0" true, as tables turned into JSON have it. name: of the key, for the error message.
    Raises PansightError, beginning with `where`, for any other value: nobody can tell what it means.
    """
    if value is True or value is False or value is None:
        return value
    word = value.strip().lower() if isinstance(value, str) else value
    if word in (0, "0", "0.0", "false"):
        return False
    if word in (1, "1", "1.0", "true"):
        return True
    if word == "":
        return None
    raise PansightError(where=where, expected=f"{name} 0 or 1", found=f"{value!r:.60}")


def palette_color(index: int) -> tuple[int, int, int]:
    """The index-th colour of an endless palette of well-separated, saturated colours (golden-ratio hues)."""
    import colorsys

    hue = (0.61803398875 * index + 0.02) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6, 0.75)[index % 3], (0.9, 0.75, 0.6)[(index // 3) % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


class Segment(NamedTuple):
    """One segment of an image. Area and box are computed from the id map, never stored."""

    id: int  # 1 … 256³ − 1, as in the id map
    category: int  # index into the LabelSpace
    score: float = 1.0
    is_crowd: bool = False


@dataclass(frozen=True, eq=False)
class PanopticSegmentation:
    """An id map and the table of its segments: truth and prediction alike.

    ids: int32 (H, W), 0 = void. segments: one row for every non-zero id in the map, ids unique.
    """

    ids: Tensor
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        import torch

        if self.ids.ndim != 2 or self.ids.dtype != torch.int32:
            found = f"{self.ids.dtype} {tuple(self.ids.shape)}"
            raise PansightError(where="PanopticSegmentation.ids", expected="int32 (H, W)", found=found)
        if len({s.id for s in self.segments}) != len(self.segments):
            raise PansightError(where="PanopticSegmentation.segments", expected="unique ids", found="one twice")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.ids.shape[0], self.ids.shape[1]


@dataclass(frozen=True, eq=False)
class Instances:
    """N objects of an image that may overlap, as truth (scores 1) or prediction (sorted by falling score).

    boxes_xyxy float32 (N, 4) in pixels; labels int64 (N,), indices into the LabelSpace; scores float32 (N,);
    masks bool (N, H, W) or None for a model that only draws boxes; is_crowd bool (N,), truth only.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None = None
    is_crowd: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclass(frozen=True, eq=False)
class Sample:
    """An image with its truth. image uint8 (3, H, W) RGB; size (H, W) of the image file, before any transform.

    A resized image is float32 0 … 255 where the model's rule says so (the filter "plain" of ops/resize.py).
    proposals: float32 (P, 4), x1, y1, x2, y2 as shares of the width and height of the image, 0 … 1, the best first:
    regions that may hold an object, for a detector that is given them; None: nobody proposes any.
    """

    image: Tensor
    truth: PanopticSegmentation
    image_id: str | int
    size: tuple[int, int]
    instances: Instances | None = None  # where the annotations overlap (COCO instances); else derived from truth
    proposals: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples padded to one size. images uint8 (or float32, as in Sample) (B, 3, H, W); valid bool (B, H, W),
    False on padding.

    truths are not padded: truths[b].ids is (h, w), the top left corner of the padded image. proposals: as in Sample, of
    the image without its padding; (): of none.
    """

    images: Tensor
    valid: Tensor
    sizes: tuple[tuple[int, int], ...]  # (H, W) of each image file
    truths: tuple[PanopticSegmentation, ...]
    image_ids: tuple[str | int, ...]
    instances: tuple[Instances | None, ...]
    proposals: tuple[Tensor | None, ...] = ()


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one image, at the size of its file; None where it produces no such thing.

    semantic: int64 (H, W), indices into the LabelSpace, IGNORE where unknown.
    """

    panoptic: PanopticSegmentation | None = None
    semantic: Tensor | None = None
    instances: Instances | None = None
