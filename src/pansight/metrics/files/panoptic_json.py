"""The JSON of COCO panoptic files as a few flat arrays, 20 bytes for each segment, so that a hundred thousand images
fit into memory.

Only what the metrics need is stored. `data.check` lists every defect of a file; here the first one is an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.files import decode_json, read_plain
from pansight.metrics.panoptic.matching import SegmentTable
from pansight.ops.idmap import MAX_ID
from pansight.types import Flag, LabelSpace, read_flag

UNMAPPED = -1
"""The category of a segment whose class does not count: its pixels are void."""

MAX_CLASSES = 5_000
"""Confusion matrices take the square of it."""

_Id = Annotated[int, msgspec.Meta(ge=1, le=MAX_ID)]
_CategoryId = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
_Area = Annotated[float, msgspec.Meta(ge=0, le=1e15)]


class _Segment(msgspec.Struct, gc=False):
    id: _Id
    category_id: _CategoryId
    area: _Area | None = None
    iscrowd: Flag = 0
    score: float | None = 1.0


class _Annotation(msgspec.Struct, gc=False):
    image_id: int | str
    file_name: str
    segments_info: list[_Segment]


class _File(msgspec.Struct):
    annotations: list[_Annotation]
    categories: list[dict[str, Any]] | None = None


class PanopticFile:
    """Images and segments of a COCO panoptic JSON: truth or prediction.

    labels: the file's own categories, in its order, or those given. image_ids, file_names: one of each per annotation.
    has_scores: whether any segment has a score other than 1. areas: float64 (S,) of the JSON, −1 where it has none.
    Raises PansightError, in one line, where the file is missing, is no such JSON, or lists an id or image twice.
    """

    def __init__(self, path: str | Path, labels: LabelSpace | None = None):
        self.path = Path(path)
        content = _decode(self.path)
        self.labels = _labels(content.categories, self.path) if labels is None else labels
        self.image_ids = [row.image_id for row in content.annotations]
        self.file_names = [row.file_name for row in content.annotations]
        sizes = [len(row.segments_info) for row in content.annotations]
        self._first = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
        segments = [segment for row in content.annotations for segment in row.segments_info]
        self._ids = np.array([s.id for s in segments], np.int32)
        self._categories = self._indices(np.array([s.category_id for s in segments], np.int32))
        self._crowd = np.array([s.iscrowd != 0 and self._is_crowd(s) for s in segments], bool)
        self._scores = np.array([1.0 if s.score is None else s.score for s in segments], np.float64)
        self.areas = np.array([-1 if s.area is None else s.area for s in segments], np.float64)
        self.has_scores = bool((self._scores != 1).any())
        self._refuse_repeats()
        self._position = {image_id: index for index, image_id in enumerate(self.image_ids)}

    def _is_crowd(self, segment: _Segment) -> bool:
        return bool(read_flag(segment.iscrowd, f"{self.path}: segment {segment.id}", "iscrowd"))

    def _indices(self, source_ids: NDArray[np.int32]) -> NDArray[np.int16]:
        """Source category ids → indices into the label space."""
        different, inverse = np.unique(source_ids, return_inverse=True)
        known = {source: c.id for source, c in self.labels.by_source_id().items()}
        index = np.array([known.get(source, UNMAPPED) for source in different.tolist()], np.int16)
        if UNMAPPED in index[inverse]:
            row = int(np.argmax(index[inverse] == UNMAPPED))
            image = self.image_ids[int(np.searchsorted(self._first, row, side="right")) - 1]
            found = f"category_id {source_ids[row]} of segment {self._ids[row]}"
            raise PansightError(
                where=f"{self.path}: image {image}",
                expected="a listed category",
                found=found,
                code="unlisted_category",
            )
        return index[inverse]

    def _refuse_repeats(self) -> None:
        images = np.repeat(np.arange(len(self.image_ids)), np.diff(self._first))
        keys = np.sort(images << 24 | self._ids)
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if twice.size:
            image, number = self.image_ids[int(keys[twice[0]] >> 24)], int(keys[twice[0]] & MAX_ID)
            raise PansightError(
                where=f"{self.path}: image {image}", expected="each segment id once", found=f"{number} twice"
            )
        if len(set(self.image_ids)) != len(self.image_ids):
            seen: set[int | str] = set()
            image = next(i for i in self.image_ids if i in seen or seen.add(i))
            raise PansightError(where=self.path, expected="one annotation per image", found=f"image_id {image!r} twice")

    def __len__(self) -> int:
        return len(self.image_ids)

    def index(self, image_id: int | str) -> int:
        """The position of an image. Raises PansightError where the file has no annotation of it."""
        try:
            return self._position[image_id]
        except KeyError as error:
            raise PansightError(
                where=self.path, expected="an annotation for every image of the truth", found=f"none for {image_id!r}"
            ) from error

    def table(self, index: int) -> SegmentTable:
        """The segments of one image, in the order of the file."""
        rows = slice(int(self._first[index]), int(self._first[index + 1]))
        categories = self._categories[rows].astype(np.int64)
        return SegmentTable(self._ids[rows].astype(np.int64), categories, self._crowd[rows], self._scores[rows])

    def stated_areas(self, index: int) -> NDArray[np.float64]:
        """float64 (N,), the areas that the JSON states, −1 where it states none."""
        return self.areas[int(self._first[index]) : int(self._first[index + 1])]


def _decode(path: Path) -> _File:
    try:
        return decode_json(read_plain(path), _File, path)
    except PansightError as error:
        raise PansightError(where=path, expected="COCO panoptic", reason=error.what) from error
    except FileNotFoundError as error:
        raise PansightError(
            "no such file", where=path, hint="expected the JSON of COCO panoptic", code="missing_file"
        ) from error
    except OSError as error:
        raise PansightError("cannot be read", where=path, reason=error.strerror or error, code="cannot_read") from error


def _labels(rows: list[dict[str, Any]] | None, path: Path) -> LabelSpace:
    if not rows:
        raise PansightError(where=path, expected="categories", found="none")
    if len(rows) > MAX_CLASSES:
        raise PansightError(where=path, expected=f"at most {MAX_CLASSES} categories", found=len(rows))
    try:
        return LabelSpace.from_json(rows)
    except PansightError as error:
        raise PansightError(f"{error!s:.300}", where=path) from error  # a row of the file may be of any length
    except (TypeError, ValueError, OverflowError) as error:
        found = json.dumps(rows[0])[:80]
        raise PansightError(where=path, expected="categories with id, name, isthing, color", found=found) from error
