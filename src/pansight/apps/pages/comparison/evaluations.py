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

from pansight.apps.pages.comparison.counts import read_counts
from pansight.apps.pages.comparison.measures import Counts, Measure, common_measure, figures_of, truth_cells
from pansight.errors import PansightError, choice_error
from pansight.files import value_at
from pansight.metrics.bootstrap.detections import DetectionCounts
from pansight.metrics.bootstrap.pixels import PixelCounts
from pansight.metrics.bootstrap.segments import ImageCounts
from pansight.metrics.files.class_map import BY_NAME, read_names
from pansight.metrics.semantic_iou import CONVENTIONS


class Evaluation(NamedTuple):
    """What an evaluation.json says of one measure; classes in the order of its per_class."""

    name: str
    file: Path
    record: dict[str, Any]
    image_ids: list[str | int]
    classes: dict[str, bool]  # name → is a thing
    counts: Counts
    convention: str  # of mIoU


def read_evaluations(
    files: Sequence[Path], records: Sequence[dict[str, Any]], names: Sequence[str]
) -> tuple[Measure, list[Evaluation]]:
    """Check the records of files. Raises PansightError, naming the file, for anything that does not fit."""
    measure = common_measure(records, files)
    read = [_read(file, name, record, measure) for file, name, record in zip(files, names, records)]
    rules = ("convention",) if measure.part == "semantic" else ("max_detections",) if measure.part else ()
    for rule in rules:
        first = read[0].record[measure.part].get(rule)
        for other in read[1:]:
            found = other.record[measure.part].get(rule)
            if found != first:
                raise PansightError(
                    where=other.file,
                    expected=f"{measure.name} with {rule} {str(first)[:40]} as in {read[0].file}",
                    found=str(found)[:40],
                )
    return (measure._replace(name=f"mIoU ({read[0].convention})") if measure.part == "semantic" else measure), read


def _read(file: Path, name: str, record: dict[str, Any], measure: Measure) -> Evaluation:
    part = measure.part_of(record)
    assert part is not None  # by the choice of the measure
    classes, index = _read_classes(file, part, measure)
    image_ids = part.get("image_ids")
    if not isinstance(image_ids, list) or not image_ids or not all(type(i) in (int, str) for i in image_ids):
        raise PansightError(
            where=f"{file}: image_ids", expected="a list of numbers or names", found=str(image_ids)[:60]
        )
    if len(set(image_ids)) < len(image_ids):
        twice = Counter(image_ids).most_common(1)[0][0]
        raise PansightError(where=f"{file}: image_ids", expected="each image once", found=f"{twice!r} more than once")
    for image_id in image_ids:
        _check_text(file, str(image_id))
    convention = str(part.get("convention", ""))
    if measure.part == "semantic":
        if convention not in CONVENTIONS:
            raise PansightError(
                where=f"{file}: convention", expected=f"one of {', '.join(CONVENTIONS)}", found=f"{convention:.40}"
            )
        _check_text(file, convention)
    counts = read_counts(file, part["counts"], measure, len(image_ids), index)
    if isinstance(counts, ImageCounts):
        _check_sums(file, part["per_class"], counts)
    else:
        figures = figures_of(counts, np.array(list(classes.values()), bool), len(image_ids), convention)
        stated = part[measure.kind].get("ap") if measure.kind else part.get("miou")
        _check_figure(file, measure, float(figures.value()[0, 0]), stated)
    return Evaluation(name, file, record, image_ids, classes, counts, convention)


def _read_classes(file: Path, part: Mapping[str, Any], measure: Measure) -> tuple[dict[str, bool], dict[int, int]]:
    """(name → is a thing, source id → place) of `per_class`; objects are things without saying so."""
    if not part["per_class"]:
        raise PansightError(where=f"{file}: per_class", expected="classes", found="none")
    classes: dict[str, bool] = {}
    index: dict[int, int] = {}
    for key, row in part["per_class"].items():
        said = isinstance(row, dict) and (measure.part == "instances" or "isthing" in row)
        if not said or not isinstance(row.get("name"), str):
            raise PansightError(where=f"{file}: per_class {key!r}", expected="name and isthing", found=str(row)[:60])
        _check_text(file, row["name"])
        if row["name"] in classes:
            raise PansightError(
                where=f"{file}: per_class", expected="each name once", found=f"{row['name']!r} more than once"
            )
        try:
            index[int(key)] = len(classes)
        except ValueError as error:
            raise PansightError(where=f"{file}: per_class", expected="ids as keys", found=f"{key[:60]!r}") from error
        classes[row["name"]] = bool(row.get("isthing", True))
    return classes, index


def _check_figure(file: Path, measure: Measure, found: float, stated: object) -> None:
    """The counts of the images must give the figure of the file: an edited or mixed file is no evaluation."""
    same = np.isnan(found) and stated in (None, 0)  # nothing was to be found
    if not same and not (type(stated) in (int, float) and abs(float(str(stated)) - found) < 1e-6):
        raise PansightError(
            where=file,
            expected=f"the counts of all images to give the {measure.name} of {str(stated)[:20]}",
            found=f"{found:.6f}",
        )


def _check_text(file: Path, text: str) -> None:
    """Names are printed: control characters could command the terminal, and half characters cannot be written."""
    if not text.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise PansightError(where=file, expected="a name without control characters", found=ascii(text)[:80])


def other_figures(evaluations: Sequence[Evaluation], measure: Measure) -> dict[str, list[float]]:
    """mIoU, mask AP and box AP where all have them, but for the measure itself: fractions without an interval."""
    paths = {"mIoU": ("semantic", "miou"), "Mask AP": ("instances", "mask", "ap"), "Box AP": ("instances", "box", "ap")}
    figures = {name: [value_at(e.record, path) for e in evaluations] for name, path in paths.items()}
    conventions = {str(value_at(e.record, ("semantic", "convention"))) for e in evaluations}
    compared = measure.name.partition(" (")[0]
    return {
        name: values
        for name, values in figures.items()
        if name != compared
        and all(isinstance(v, int | float) and 0 <= v <= 1 for v in values)
        and (name != "mIoU" or len(conventions) == 1)
    }


def _check_sums(file: Path, per_class: Mapping[str, Any], counts: ImageCounts) -> None:
    """The counts of the images must add up to those of the classes: an edited or mixed file is no evaluation."""
    for key, column in (("tp", counts.tp), ("fp", counts.fp), ("fn", counts.fn)):
        sums = np.bincount(counts.category, column, len(per_class))
        for row, total in zip(per_class.values(), sums.tolist()):
            if row.get(key) != total:
                raise PansightError(
                    where=f"{file}: class {row['name']!r}",
                    expected=f"the {key} of all images to add up to {str(row.get(key))[:20]}",
                    found=f"{total:g}",
                )


def shared(evaluations: Sequence[Evaluation], class_map: str | Path | None) -> tuple[list[Evaluation], list[str]]:
    """The evaluations on the classes that all have, in the names of the first, and what is left out, as notes.

    class_map: None leaves them as they are; the word names takes classes of equal names; a TOML file renames classes
    of the others before: "their class" = "class of the first".
    Raises PansightError where two classes would get one name (their segments were counted apart), where a name is
    unknown, and where nothing is shared.
    """
    if class_map is None:
        return list(evaluations), []
    listed = {} if str(class_map) == BY_NAME else read_names(Path(class_map))
    first, known = evaluations[0], {name for e in evaluations[1:] for name in e.classes}
    for name, target in listed.items():
        if name not in known:
            raise choice_error(f"class of the others in {class_map}", name, known)
        if target and target not in first.classes:
            raise choice_error(f"class of {first.file} in {class_map}", target, first.classes)
    renamed = [first, *(_renamed(e, listed, class_map) for e in evaluations[1:])]
    common = [n for n in first.classes if all(n in e.classes for e in renamed)]
    if not common:
        raise PansightError(where="--map", expected="classes that all evaluations have", found="none")
    notes = [
        f"Only the {len(common)} classes that all have are compared; left out of {e.name}: {', '.join(lost)}."
        for e in renamed
        if (lost := [n for n in e.classes if n not in common])
    ]
    return [_of_classes(e, common) for e in renamed], notes


def _renamed(evaluation: Evaluation, listed: Mapping[str, str], class_map: str | Path) -> Evaluation:
    names = [listed.get(name, name) for name in evaluation.classes]
    twice = next((n for n, count in Counter(names).items() if n and count > 1), None)
    if twice is not None:
        raise PansightError(
            where=f"class map {class_map}",
            expected="one class for each of the first evaluation",
            found=f"several of {evaluation.file} for {twice!r}",
            hint="evaluate with --map, which counts their segments together",
        )
    kinds = evaluation.classes.values()
    return evaluation._replace(classes={n or f"({k})": kind for k, (n, kind) in enumerate(zip(names, kinds))})


def _of_classes(evaluation: Evaluation, names: Sequence[str]) -> Evaluation:
    """The evaluation with some of its classes, in the order of `names`."""
    place = np.array([names.index(n) if n in names else -1 for n in evaluation.classes], np.int64)
    counts = evaluation.counts
    moved = counts._replace(category=place[counts.category])
    if isinstance(moved, DetectionCounts):
        truth_category = place[moved.truth_category]
        moved = moved._replace(truth_category=truth_category)
        found, there = moved.category >= 0, truth_category >= 0
        kept = {key: getattr(moved, key)[found] for key in ("image", "category", "score", "code")}
        kept |= {key: getattr(moved, key)[there] for key in ("truth_image", "truth_category", "truth")}
        moved = moved._replace(**kept)
    else:
        moved = moved.where(np.flatnonzero(moved.category >= 0))
    return evaluation._replace(classes={n: evaluation.classes[n] for n in names}, counts=moved)


def align(evaluations: Sequence[Evaluation]) -> tuple[list[str | int], list[Counts], list[str]]:
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
                raise PansightError(
                    where=two.file,
                    expected=f"the classes of {one.file}",
                    found=f"none named {shown}",
                    hint="--map names compares those that all have",
                )
        for name in names:
            if first.classes[name] != other.classes[name]:
                raise PansightError(
                    f"expected thing or stuff as in {first.file}", where=f"{other.file}: class {name!r}"
                )
    shared = set(first.image_ids).intersection(*(e.image_ids for e in evaluations[1:]))
    if not shared:
        ids = " and ".join(f"{e.image_ids[0]!r} …" for e in evaluations)
        raise PansightError(where="compare", expected="evaluations of the same images", found=f"none in common: {ids}")
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


def _on(evaluation: Evaluation, image_ids: Sequence[str | int], names: Sequence[str]) -> Counts:
    """The counts on some images, with their indices and those of the classes as listed, and sorted by them.

    Sums then do not depend on the order in a file, not even in the last digit.
    """
    place = {image_id: k for k, image_id in enumerate(image_ids)}
    image_of = np.array([place.get(i, -1) for i in evaluation.image_ids], np.int64)
    class_of = np.array([names.index(n) for n in evaluation.classes], np.int64)
    counts = evaluation.counts
    moved = counts._replace(image=image_of[counts.image], category=class_of[counts.category])
    if not isinstance(moved, DetectionCounts):
        order = np.lexsort((moved.category, moved.image))
        return moved.where(order[moved.image[order] >= 0])
    order = np.argsort(moved.image, kind="stable")  # detections of one image keep theirs, which decides between equals
    order = order[moved.image[order] >= 0]
    kept = {key: getattr(moved, key)[order] for key in ("image", "category", "score", "code")}
    image, category = image_of[moved.truth_image], class_of[moved.truth_category]
    order = np.lexsort((category, image))
    order = order[image[order] >= 0]
    return moved._replace(**kept, truth_image=image[order], truth_category=category[order], truth=moved.truth[order])


def _check_truth(
    first: Evaluation, a: Counts, other: Evaluation, b: Counts, ids: Sequence[str | int], names: Sequence[str]
) -> None:
    """What the truth of an image has of a class is the same, whatever was predicted."""
    truth = [truth_cells(counts, len(names)) for counts in (a, b)]
    if truth[0] != truth[1]:
        cell = min(c for c in {*truth[0], *truth[1]} if truth[0].get(c) != truth[1].get(c))
        image_id, name = ids[cell // len(names)], names[cell % len(names)]
        found = [f"{t.get(cell, 0):g} in {e.file}" for t, e in zip(truth, (first, other))]
        what = "pixels" if isinstance(a, PixelCounts) else "objects" if isinstance(a, DetectionCounts) else "segments"
        raise PansightError(
            where=f"image {image_id}",
            expected="evaluations of the same truth",
            found=f"{what} of {name!r}: {', '.join(found)}",
        )
