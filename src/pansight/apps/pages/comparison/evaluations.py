"""Read evaluations and reduce them to the images, classes and truth that they share.

The file may come from anywhere, so every value is checked before it is counted on.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.files import read_json
from pansight.metrics.bootstrap import ImageCounts

_LARGEST = 2**31
"""No count of segments comes near."""


class Evaluation(NamedTuple):
    """What an evaluation.json says; classes in the order of its per_class."""

    name: str
    file: Path
    record: dict[str, Any]
    image_ids: list[str | int]
    classes: dict[str, bool]  # name → is a thing
    counts: ImageCounts


def read_evaluation(file: Path, name: str) -> Evaluation:
    """Read and check an evaluation.json. Raises PansightError, naming the file, for anything that does not fit."""
    record = read_json(file)
    if not isinstance(record, dict):
        raise PansightError(f"{file}: expected a JSON object, found {type(record).__name__}")
    if not isinstance(record.get("per_class"), dict) or not record["per_class"]:
        raise PansightError(
            f"{file}: expected panoptic quality (per_class), found none: was it a model of boxes alone?"
        )
    if "counts" not in record or "image_ids" not in record:
        raise PansightError(f"{file}: expected the counts of every image, found none (older pansight): evaluate again")
    classes: dict[str, bool] = {}
    index: dict[int, int] = {}
    for key, row in record["per_class"].items():
        if not isinstance(row, dict) or not isinstance(row.get("name"), str) or "isthing" not in row:
            raise PansightError(f"{file}: per_class {key!r}: expected name and isthing, found {str(row)[:60]}")
        _check_text(file, row["name"])
        if row["name"] in classes:
            raise PansightError(f"{file}: per_class: expected each name once, found {row['name']!r} more than once")
        try:
            index[int(key)] = len(classes)
        except ValueError as error:
            raise PansightError(f"{file}: per_class: expected ids as keys, found {key[:60]!r}") from error
        classes[row["name"]] = bool(row["isthing"])
    image_ids = record["image_ids"]
    if not isinstance(image_ids, list) or not image_ids or not all(type(i) in (int, str) for i in image_ids):
        raise PansightError(f"{file}: image_ids: expected a list of numbers or names, found {str(image_ids)[:60]}")
    if len(set(image_ids)) < len(image_ids):
        twice = Counter(image_ids).most_common(1)[0][0]
        raise PansightError(f"{file}: image_ids: expected each image once, found {twice!r} more than once")
    for image_id in image_ids:
        _check_text(file, str(image_id))
    counts = _read_counts(file, record["counts"], len(image_ids), index)
    _check_sums(file, record["per_class"], counts)
    return Evaluation(name, file, record, image_ids, classes, counts)


def _check_text(file: Path, text: str) -> None:
    """Names are printed: control characters could command the terminal, and half characters cannot be written."""
    if not text.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise PansightError(f"{file}: expected a name without control characters, found {ascii(text)[:80]}")


def other_figures(evaluations: Sequence[Evaluation]) -> dict[str, list[float]]:
    """mIoU, mask AP and box AP where all have them: fractions that are known without an interval."""
    paths = {"mIoU": ("semantic", "miou"), "Mask AP": ("instances", "mask", "ap"), "Box AP": ("instances", "box", "ap")}
    figures = {name: [_at(e.record, path) for e in evaluations] for name, path in paths.items()}
    conventions = {str(_at(e.record, ("semantic", "convention"))) for e in evaluations}
    return {
        name: values
        for name, values in figures.items()
        if all(isinstance(v, int | float) and 0 <= v <= 1 for v in values) and (name != "mIoU" or len(conventions) == 1)
    }


def _at(record: object, path: Sequence[str]) -> Any:
    for key in path:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _read_counts(file: Path, table: object, images: int, index: Mapping[int, int]) -> ImageCounts:
    """The table `counts`; categories become indices. Rows of nothing are left out."""
    if not isinstance(table, dict):
        raise PansightError(f"{file}: counts: expected a table of columns, found {type(table).__name__}")
    columns = {key: _column(file, table, key) for key in ("image", "category", "tp", "fp", "fn", "iou")}
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise PansightError(f"{file}: counts: expected columns of one length, found {lengths}")
    image, tp, iou = columns["image"].astype(np.int64), columns["tp"], columns["iou"]
    if len(image) and image.max() >= images:
        raise PansightError(f"{file}: counts.image: expected an index below {images}, found {image.max()}")
    unknown = set(columns["category"].astype(np.int64).tolist()) - set(index)
    if unknown:
        raise PansightError(f"{file}: counts.category: expected an id of per_class, found {min(unknown)}")
    wrong = np.flatnonzero((iou < 0.5 * tp - 1e-6) | (iou > tp + 1e-6))
    if len(wrong):
        row = int(wrong[0])
        raise PansightError(
            f"{file}: counts.iou: row {row}: expected {tp[row] / 2:g} … {tp[row]:g}, found {iou[row]:g}"
        )
    category = np.array([index[i] for i in columns["category"].astype(np.int64).tolist()], np.int64)
    cells = np.unique(image * len(index) + category)
    if len(cells) < len(image):
        raise PansightError(
            f"{file}: counts: expected one row for an image and class, found {len(image) - len(cells)} more"
        )
    counts = ImageCounts(image, category, tp, columns["fp"], columns["fn"], iou)
    return counts.where(tp + counts.fp + counts.fn > 0)


def _column(file: Path, table: Mapping[str, Any], key: str) -> NDArray[np.float64]:
    values = table.get(key)
    if not isinstance(values, list):
        raise PansightError(f"{file}: counts.{key}: expected a list, found {type(values).__name__}")
    kinds, kind = ((int, float), "numbers") if key == "iou" else ((int,), "whole numbers")
    for row, value in enumerate(values):
        if type(value) not in kinds or not 0 <= value < _LARGEST:  # NaN fails every comparison
            raise PansightError(f"{file}: counts.{key}: row {row}: expected {kind} from 0, found {str(value)[:40]}")
    return np.array(values, np.float64)


def _check_sums(file: Path, per_class: Mapping[str, Any], counts: ImageCounts) -> None:
    """The counts of the images must add up to those of the classes: an edited or mixed file is no evaluation."""
    for key, column in (("tp", counts.tp), ("fp", counts.fp), ("fn", counts.fn)):
        sums = np.bincount(counts.category, column, len(per_class))
        for row, total in zip(per_class.values(), sums.tolist()):
            if row.get(key) != total:
                raise PansightError(
                    f"{file}: class {row['name']!r}: expected the {key} of all images to add up to "
                    f"{str(row.get(key))[:20]}, found {total:g}"
                )


def align(evaluations: Sequence[Evaluation]) -> tuple[list[str | int], list[ImageCounts], list[str]]:
    """The images that all hold, the counts on them in the order and classes of the first, and what to be told.

    Raises PansightError where classes differ, no image is common, or the truth of an image is not the same.
    """
    first = evaluations[0]
    names = list(first.classes)
    for other in evaluations[1:]:
        for one, two in ((first, other), (other, first)):
            alone = [n for n in one.classes if n not in two.classes]
            if alone:
                shown = ", ".join(alone[:5]) + (f" and {len(alone) - 5} more" if len(alone) > 5 else "")
                raise PansightError(f"{two.file}: expected the classes of {one.file}, found none named {shown}")
        for name in names:
            if first.classes[name] != other.classes[name]:
                raise PansightError(f"{other.file}: class {name!r}: expected thing or stuff as in {first.file}")
    shared = set(first.image_ids).intersection(*(e.image_ids for e in evaluations[1:]))
    if not shared:
        ids = " and ".join(f"{e.image_ids[0]!r} …" for e in evaluations)
        raise PansightError(f"compare: expected evaluations of the same images, found none in common: {ids}")
    image_ids = [i for i in first.image_ids if i in shared]
    notes: list[str] = []
    if any(len(e.image_ids) > len(shared) for e in evaluations):
        sizes = ", ".join(f"{e.name} {len(e.image_ids):,}" for e in evaluations)
        notes.append(
            f"Only the {len(shared):,} images that all evaluations share are compared ({sizes}), "
            "so the scores differ from those in the files."
        )
    counts = [_on(e, image_ids, names) for e in evaluations]
    for evaluation, each in zip(evaluations[1:], counts[1:]):
        _check_truth(first, counts[0], evaluation, each, image_ids, names)
    return image_ids, counts, notes


def _on(evaluation: Evaluation, image_ids: Sequence[str | int], names: Sequence[str]) -> ImageCounts:
    """The counts on some images, with their indices and those of the classes as listed, and sorted by them.

    Sums then do not depend on the order in a file, not even in the last digit.
    """
    place = {image_id: k for k, image_id in enumerate(image_ids)}
    image_of = np.array([place.get(i, -1) for i in evaluation.image_ids], np.int64)
    class_of = np.array([names.index(n) for n in evaluation.classes], np.int64)
    counts = evaluation.counts
    moved = counts._replace(image=image_of[counts.image], category=class_of[counts.category])
    order = np.lexsort((moved.category, moved.image))
    return moved.where(order[moved.image[order] >= 0])


def _check_truth(
    first: Evaluation, a: ImageCounts, other: Evaluation, b: ImageCounts, ids: Sequence[str | int], names: Sequence[str]
) -> None:
    """TP + FN of an image and class is the number of segments in the truth, whatever was predicted."""
    truth: list[dict[int, float]] = []
    for counts in (a, b):
        segments = counts.tp + counts.fn
        cells = counts.image * len(names) + counts.category
        truth.append(dict(zip(cells[segments > 0].tolist(), segments[segments > 0].tolist())))
    if truth[0] != truth[1]:
        cell = min(c for c in {*truth[0], *truth[1]} if truth[0].get(c) != truth[1].get(c))
        image_id, name = ids[cell // len(names)], names[cell % len(names)]
        found = [f"{t.get(cell, 0):g} in {e.file}" for t, e in zip(truth, (first, other))]
        raise PansightError(
            f"image {image_id}: expected evaluations of the same truth, found segments of {name!r}: {', '.join(found)}"
        )
