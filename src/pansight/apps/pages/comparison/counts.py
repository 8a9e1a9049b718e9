"""Reading the counts of every image out of a file that may come from anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.apps.pages.comparison.measures import Counts, Measure
from pansight.errors import PansightError
from pansight.metrics.bootstrap.detections import IOUS, DetectionCounts
from pansight.metrics.bootstrap.pixels import PixelCounts
from pansight.metrics.bootstrap.segments import ImageCounts
from pansight.ops.maps.overlap import IntArray

_LARGEST = 2**31
"""No count of segments or of the pixels of an image comes near."""


def read_counts(file: Path, table: object, measure: Measure, images: int, index: Mapping[int, int]) -> Counts:
    """The table `counts` of a measure; categories, by source id in `index`, become their places there.

    Raises PansightError, naming file, column and row.
    """
    if measure.part == "instances":
        return _detections(file, table, measure.kind, images, index)
    return (_pixels if measure.part else _segments)(file, table, images, index)


def _segments(file: Path, table: object, images: int, index: Mapping[int, int]) -> ImageCounts:
    """Rows of nothing are left out."""
    columns = _columns(file, table, "counts", ("image", "category", "tp", "fp", "fn", "iou"), ("iou",))
    image, category = _places(file, "counts", columns, images, index)
    tp, iou = columns["tp"], columns["iou"]
    wrong = np.flatnonzero((iou < 0.5 * tp - 1e-6) | (iou > tp + 1e-6))
    if len(wrong):
        row = int(wrong[0])
        raise PansightError(
            where=f"{file}: counts.iou: row {row}", expected=f"{tp[row] / 2:g} … {tp[row]:g}", found=f"{iou[row]:g}"
        )
    _once(file, "counts", image, category, len(index))
    counts = ImageCounts(image, category, tp, columns["fp"], columns["fn"], iou)
    return counts.where(tp + counts.fp + counts.fn > 0)


def _pixels(file: Path, table: object, images: int, index: Mapping[int, int]) -> PixelCounts:
    columns = _columns(file, table, "counts", ("image", "category", "hits", "truth", "predicted"))
    image, category = _places(file, "counts", columns, images, index)
    hits, truth, predicted = (columns[key] for key in ("hits", "truth", "predicted"))
    wrong = np.flatnonzero(hits > np.minimum(truth, predicted))
    if len(wrong):
        row = int(wrong[0])
        most = min(truth[row], predicted[row])
        raise PansightError(
            where=f"{file}: counts.hits: row {row}", expected=f"at most {most:g}", found=f"{hits[row]:g}"
        )
    _once(file, "counts", image, category, len(index))
    counts = PixelCounts(image, category, hits, truth, predicted)
    return counts.where(truth + predicted > 0)


def _detections(file: Path, table: object, kind: str, images: int, index: Mapping[int, int]) -> DetectionCounts:
    if not isinstance(table, dict):
        raise PansightError(where=f"{file}: counts", expected="truth and found", found=type(table).__name__)
    found = _columns(file, table.get("found"), "counts.found", ("image", "category", "score", kind), ("score",))
    truth = _columns(file, table.get("truth"), "counts.truth", ("image", "category", "n"))
    wrong = np.flatnonzero(found[kind] >= 1 << 2 * IOUS)
    if len(wrong):
        row = int(wrong[0])
        value = found[kind][row]
        raise PansightError(
            where=f"{file}: counts.found.{kind}: row {row}", expected=f"{2 * IOUS} bits", found=f"{value:g}"
        )
    places = _places(file, "counts.found", found, images, index)
    wanted = _places(file, "counts.truth", truth, images, index)
    _once(file, "counts.truth", *wanted, len(index))
    keep = truth["n"] > 0
    code = found[kind].astype(np.int64)
    return DetectionCounts(*places, found["score"], code, wanted[0][keep], wanted[1][keep], truth["n"][keep])


def _columns(
    file: Path, table: object, where: str, keys: tuple[str, ...], fractions: tuple[str, ...] = ()
) -> dict[str, NDArray[np.float64]]:
    """Columns of equal length, of numbers from 0; whole ones but for `fractions`."""
    if not isinstance(table, dict):
        raise PansightError(where=f"{file}: {where}", expected="a table of columns", found=type(table).__name__)
    columns = {key: _column(file, table, where, key, key in fractions) for key in keys}
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise PansightError(where=f"{file}: {where}", expected="columns of one length", found=lengths)
    return columns


def _column(file: Path, table: Mapping[str, Any], where: str, key: str, fraction: bool) -> NDArray[np.float64]:
    values = table.get(key)
    if not isinstance(values, list):
        raise PansightError(where=f"{file}: {where}.{key}", expected="a list", found=type(values).__name__)
    kinds, kind = ((int, float), "numbers") if fraction else ((int,), "whole numbers")
    for row, value in enumerate(values):
        if type(value) not in kinds or not 0 <= value < _LARGEST or not math.isfinite(value):
            raise PansightError(
                where=f"{file}: {where}.{key}: row {row}", expected=f"{kind} from 0", found=str(value)[:40]
            )
    return np.array(values, np.float64)


def _places(
    file: Path, where: str, columns: Mapping[str, NDArray[np.float64]], images: int, index: Mapping[int, int]
) -> tuple[IntArray, IntArray]:
    """(image, class) of each row."""
    image, source = columns["image"].astype(np.int64), columns["category"].astype(np.int64).tolist()
    if len(image) and image.max() >= images:
        raise PansightError(where=f"{file}: {where}.image", expected=f"an index below {images}", found=image.max())
    unknown = set(source) - set(index)
    if unknown:
        raise PansightError(where=f"{file}: {where}.category", expected="an id of per_class", found=min(unknown))
    return image, np.array([index[i] for i in source], np.int64)


def _once(file: Path, where: str, image: IntArray, category: IntArray, classes: int) -> None:
    cells = np.unique(image * classes + category)
    if len(cells) < len(image):
        more = len(image) - len(cells)
        raise PansightError(where=f"{file}: {where}", expected="one row for an image and class", found=f"{more} more")
