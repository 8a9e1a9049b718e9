"""What evaluations are compared by: PQ where all have it, else AP of masks or boxes, else mIoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.metrics.bootstrap import Figures
from pansight.metrics.bootstrap.detections import DetectionCounts, DetectionFigures
from pansight.metrics.bootstrap.pixels import PixelCounts, pixel_figures
from pansight.metrics.bootstrap.segments import ImageCounts, segment_figures
from pansight.metrics.bootstrap.sums import GROUPS, BoolArray, FloatArray

Counts = ImageCounts | PixelCounts | DetectionCounts
Sums = dict[str, NDArray[Any]]

DRAWN_SCORE = 0.5
"""Detections of at least this score count in the F1 of an image."""


class Measure(NamedTuple):
    """A figure with an interval, and those that come with it."""

    name: str
    part: str  # of the record; "": its head
    kind: str  # in that part: "mask" or "box"
    scores: dict[str, str]  # key → title, the main one first
    groups: tuple[str, ...]
    image: tuple[str, str]  # key and title of the figure of one image
    counts: bool  # whether classes and images have TP, FP, FN
    meaning: str

    @property
    def key(self) -> str:
        return next(iter(self.scores))

    def part_of(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """The part of an evaluation that holds its figures and counts; None where there is none, or no counts."""
        part = record.get(self.part) if self.part else record
        if not isinstance(part, dict) or not isinstance(part.get("per_class"), dict) or "counts" not in part:
            return None
        return None if self.kind and not isinstance(part.get(self.kind), dict) else part


_PQ = (
    "Panoptic quality, and its parts: how exact the segments that were found are (SQ), and whether the right ones are "
)
_PQ += "found (RQ). All, Things and Stuff are plain means over the classes that occur."
_AP = "Average precision: the share of right ones among the detections down to each recall, averaged; AP over IoU "
_AP += "thresholds from 50 to 95, AP50 and AP75 at one. All is the mean over the classes. F1 of an image: of its "
_AP += "detections with a score of at least 0.5, at IoU 50."
_IOU = "Pixels of a class that are right, of those that are of it or taken for it; accuracy: of those that are of it. "
_IOU += "All, Things and Stuff are means over classes."

_APS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
MEASURES = (
    Measure("PQ", "", "", {"pq": "PQ", "sq": "SQ", "rq": "RQ"}, GROUPS, ("pq", "PQ"), True, _PQ),
    Measure("Mask AP", "instances", "mask", _APS, ("All",), ("f1", "F1"), True, _AP),
    Measure("Box AP", "instances", "box", _APS, ("All",), ("f1", "F1"), True, _AP),
    Measure("mIoU", "semantic", "", {"iou": "IoU", "accuracy": "Accuracy"}, GROUPS, ("iou", "mIoU"), False, _IOU),
)
"""The first that all evaluations have is taken: the order that checkpoints are chosen by, too."""


def common_measure(records: Sequence[dict[str, Any]], files: Sequence[Path]) -> Measure:
    """Raises PansightError, naming the file, where there is none."""
    for file, record in zip(files, records):
        if not any(measure.part_of(record) for measure in MEASURES):
            raise PansightError(
                where=file,
                expected="the counts of every image (of PQ, mIoU or AP)",
                found="none (older pansight): evaluate again",
            )
    for measure in MEASURES:
        if all(measure.part_of(record) for record in records):
            return measure
    first = next(measure for measure in MEASURES if measure.part_of(records[0]))
    lacking = next(file for file, record in zip(files, records) if not first.part_of(record))
    raise PansightError(
        where=lacking,
        expected=f"{first.name} as in {files[0]}",
        found="none, and no other figure of all",
        hint="a model of queries gives objects too: evaluate it with --evaluate.decode.task all",
    )


def figures_of(counts: Counts, things: BoolArray, images: int, convention: str) -> Figures:
    """What intervals and tests are computed of. convention: of mIoU."""
    if isinstance(counts, ImageCounts):
        return segment_figures(counts, things)
    if isinstance(counts, PixelCounts):
        return pixel_figures(counts, things, convention)
    return DetectionFigures(counts, len(things), images)


def image_scores(counts: Counts, images: int) -> tuple[FloatArray, Sums]:
    """The figure of each image, (images,), NaN where nothing was there and nothing was predicted; and tp, fp, fn."""
    if isinstance(counts, DetectionCounts):
        return _detection_scores(counts, images)
    if isinstance(counts, ImageCounts):
        score = counts.iou / (counts.tp + 0.5 * counts.fp + 0.5 * counts.fn)  # of each image and class
        sums = {key: np.bincount(counts.image, getattr(counts, key), images) for key in ("tp", "fp", "fn")}
    else:
        score, sums = counts.hits / (counts.truth + counts.predicted - counts.hits), {}
    present = np.bincount(counts.image, minlength=images)
    return np.bincount(counts.image, score, images) / np.where(present > 0, present, np.nan), sums


def per_image(image_ids: Sequence[str | int], counts: Sequence[Counts], measure: Measure) -> list[dict[str, Any]]:
    """Figure and counts of every image with something on any side, the largest difference to the first first."""
    each = [image_scores(c, len(image_ids)) for c in counts]
    scores = np.stack([score for score, _ in each])  # (E, n)
    columns = {key: np.stack([sums[key] for _, sums in each]) for key in each[0][1]}  # each (E, n)
    difference = scores - scores[0]
    size = np.abs(np.nan_to_num(difference)).max(axis=0)  # (n,)
    return [
        {
            "image_id": image_ids[i],
            measure.image[0]: [_known(v) for v in scores[:, i]],
            "difference": [_known(v) for v in difference[:, i]],
            **{key: column[:, i].astype(int).tolist() for key, column in columns.items()},
        }
        for i in np.argsort(-size, kind="stable").tolist()
        if not np.isnan(scores[:, i]).all()
    ]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _detection_scores(counts: DetectionCounts, images: int) -> tuple[FloatArray, Sums]:
    shown = counts.score >= DRAWN_SCORE
    right, ignored = (shown & (counts.code >> bit & 1).astype(bool) for bit in (0, 10))
    tp = np.bincount(counts.image, right, images)
    fp = np.bincount(counts.image, shown & ~right & ~ignored, images)
    fn = np.bincount(counts.truth_image, counts.truth, images) - tp
    total = tp + 0.5 * (fp + fn)
    return tp / np.where(total > 0, total, np.nan), {"tp": tp, "fp": fp, "fn": fn}


def class_sums(counts: Counts, classes: int) -> Sums:
    """tp, fp, fn of each class, (classes,), where the figures are made of them."""
    if not isinstance(counts, ImageCounts):
        return {}
    return {key: np.bincount(counts.category, getattr(counts, key), classes) for key in ("tp", "fp", "fn")}


def truth_cells(counts: Counts, classes: int) -> dict[int, float]:
    """image · classes + class → what the truth has there: segments, pixels or objects."""
    if isinstance(counts, DetectionCounts):
        cells, size = counts.truth_image * classes + counts.truth_category, counts.truth
    else:
        cells = counts.image * classes + counts.category
        size = counts.tp + counts.fn if isinstance(counts, ImageCounts) else counts.truth
    return dict(zip(cells[size > 0].tolist(), size[size > 0].tolist()))
