"""Panoptic quality: PQ, SQ and RQ over all classes, things, stuff and each class.

Source: Kirillov et al., "Panoptic Segmentation", arXiv 1801.00868, section 4, with the rules of its public evaluation
for void and crowds (spec 08):

- a prediction matches a truth segment of its class where IoU > 0.5; the union leaves out what it has on void
- a truth segment without a match is missed (FN), except a crowd, which is neither matched nor missed
- a prediction without a match is a phantom (FP), unless more than half of it lies on void and on crowds of its class
- PQ = ΣIoU / (TP + ½FP + ½FN), SQ = ΣIoU / TP, RQ = TP / (TP + ½FP + ½FN) per class; groups are plain means over the
  classes with TP + FP + FN > 0, so that PQ ≠ SQ · RQ for a group.

Different on purpose: every crowd segment of a class is honoured, where the reference keeps only the last one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pansight.errors import PansightError
from pansight.metrics.overlap import IntArray, Overlaps, count_overlaps
from pansight.types import VOID, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment

_IOU_UNIT = 2**53
"""IoUs are added as whole multiples of 2⁻⁵³, which float64 values in (0.5, 1] are: the sum is exact in any order."""


class Match(NamedTuple):
    """A truth segment and the prediction that found it (TP)."""

    truth: Segment
    prediction: Segment
    iou: float  # in (0.5, 1]


class SegmentMatches(NamedTuple):
    """What became of every segment of an image. Crowds of the truth appear nowhere."""

    matches: tuple[Match, ...]  # in rising order of the truth id
    missed: tuple[Segment, ...]  # truth segments nobody found (FN)
    phantom: tuple[Segment, ...]  # predictions of something that is not there (FP)
    ignored: tuple[Segment, ...]  # predictions that lie mostly on void or crowd: they cost nothing


def match_segments(truth: PanopticSegmentation, prediction: PanopticSegmentation) -> SegmentMatches:
    """Match the segments of one image by the rules at the head of this file.

    Areas are counted from the maps. Raises PansightError where the sizes differ, a map holds an id that its table
    lacks, or a predicted segment has no pixel. A truth segment without a pixel counts as missed, as in the reference.
    """
    if truth.size != prediction.size:
        raise PansightError(
            f"prediction: expected the size of the truth {_size(truth)}, found {_size(prediction)} (height × width)"
        )
    return match_overlaps(truth.segments, prediction.segments, count_overlaps(truth.ids, prediction.ids))


def match_overlaps(truth: tuple[Segment, ...], prediction: tuple[Segment, ...], overlaps: Overlaps) -> SegmentMatches:
    """`match_segments` from counts of (truth id, predicted id) pairs instead of maps."""
    t = _row_of_id(truth, overlaps.first, "truth")  # (P,) row in the table, len(table) for void
    p = _row_of_id(prediction, overlaps.second, "prediction")
    n_truth, n_prediction = len(truth), len(prediction)
    pixels = np.zeros((n_truth + 1, n_prediction + 1), np.int64)  # last row and column: void
    pixels[t, p] = overlaps.pixels
    truth_area = pixels[:n_truth].sum(axis=1)  # (T,)
    prediction_area = pixels[:, :n_prediction].sum(axis=0)  # (P,)
    if n_prediction and not prediction_area.all():
        empty = prediction[int(np.argmin(prediction_area))]
        raise PansightError(f"prediction: segment {empty.id}: expected at least one pixel, found none")

    truth_category = np.array([s.category for s in truth], np.int64)
    prediction_category = np.array([s.category for s in prediction], np.int64)
    crowd = np.array([s.is_crowd for s in truth], bool)
    same_class = truth_category[:, None] == prediction_category[None, :]  # (T, P)
    inside = pixels[:n_truth, :n_prediction]
    on_void = pixels[n_truth, :n_prediction]
    union = truth_area[:, None] + prediction_area[None, :] - inside - on_void[None, :]
    candidate = same_class & ~crowd[:, None] & (inside > 0)
    iou = np.divide(inside, union, out=np.zeros(inside.shape), where=candidate)
    rows, columns = np.nonzero(iou > 0.5)  # at most one per row and column, since > 0.5

    found = np.zeros(n_truth, bool)
    found[rows] = True
    used = np.zeros(n_prediction, bool)
    used[columns] = True
    on_own_crowd = np.where(same_class & crowd[:, None], inside, 0).sum(axis=0)  # (P,)
    excused = (on_void + on_own_crowd) / np.maximum(prediction_area, 1) > 0.5
    matches = (Match(truth[r], prediction[c], float(iou[r, c])) for r, c in zip(rows.tolist(), columns.tolist()))
    return SegmentMatches(
        tuple(sorted(matches, key=lambda m: m.truth.id)),
        tuple(s for s, hit, many in zip(truth, found, crowd) if not hit and not many),
        tuple(s for s, hit, excuse in zip(prediction, used, excused) if not hit and not excuse),
        tuple(s for s, hit, excuse in zip(prediction, used, excused) if not hit and excuse),
    )


class PanopticQuality:
    """Gathers PQ, SQ and RQ over images.

    >>> metric = PanopticQuality(labels)
    >>> metric.update(prediction, sample)
    >>> metric.compute()["All"]["pq"]

    Models without a panoptic map leave it empty: `compute` then gives {}.
    """

    def __init__(self, labels: LabelSpace):
        self.labels = labels
        self._tp = [0] * len(labels)
        self._fp = [0] * len(labels)
        self._fn = [0] * len(labels)
        self._iou = [0] * len(labels)  # in units of 2⁻⁵³
        self._images: list[tuple[str | int, float]] = []
        self._updates = 0
        self._without = 0  # predictions that brought no panoptic map

    def update(self, prediction: Prediction, truth: Sample) -> SegmentMatches | None:
        """Add one image. Gives what became of each segment, or None where the model has no panoptic map.

        Raises PansightError, naming the image, as `match_segments` does or where a category is not in the label space.
        """
        if prediction.panoptic is None:
            self._without += 1
            return None
        try:
            result = match_segments(truth.truth, prediction.panoptic)
            tp, fp, fn, iou = self._count(result)
        except PansightError as error:
            raise PansightError(f"image {truth.image_id}: {error}") from error
        self._updates += 1
        for category in range(len(self.labels)):
            self._tp[category] += tp[category]
            self._fp[category] += fp[category]
            self._fn[category] += fn[category]
            self._iou[category] += iou[category]
        scores = [_scores(*counts)["pq"] for counts in zip(tp, fp, fn, iou) if any(counts)]
        if scores:
            self._images.append((truth.image_id, sum(scores) / len(scores)))
        return result

    def _count(self, result: SegmentMatches) -> tuple[list[int], list[int], list[int], list[int]]:
        """TP, FP, FN and ΣIoU (units of 2⁻⁵³) of each category."""
        tp, fp, fn, iou = ([0] * len(self.labels) for _ in range(4))
        try:
            for match in result.matches:
                tp[match.truth.category] += 1
                iou[match.truth.category] += int(match.iou * _IOU_UNIT)
            for segment in result.phantom:
                fp[segment.category] += 1
            for segment in result.missed:
                fn[segment.category] += 1
        except IndexError as error:
            raise PansightError(f"segment category: expected an index below {len(self.labels)}, found more") from error
        return tp, fp, fn, iou

    def compute(self) -> dict[str, Any]:
        """All, Things, Stuff → pq sq rq n; per_class by source id → name isthing pq sq rq tp fp fn iou; images.

        Fractions 0..1; iou is ΣIoU of the matched segments. A group without any segment has n = 0 and scores 0.0.
        `images` lists image_id and pq of every image where something was to be found or was predicted, by falling pq.
        """
        if not self._updates:
            return {}
        if self._without:
            raise PansightError(
                f"panoptic quality: expected a panoptic map for every image, found none for {self._without} images"
            )
        per_class: dict[str, dict[str, Any]] = {}
        for c in self.labels:
            tp, fp, fn, iou = self._tp[c.id], self._fp[c.id], self._fn[c.id], self._iou[c.id]
            scores = _scores(tp, fp, fn, iou)
            counts = {"tp": tp, "fp": fp, "fn": fn, "iou": iou / _IOU_UNIT}
            per_class[str(c.source_id)] = {"name": c.name, "isthing": c.is_thing, **scores, **counts}
        rows = list(per_class.values())
        images = sorted(self._images, key=lambda image: (-image[1], str(image[0])))
        return {
            "All": _mean(rows),
            "Things": _mean(row for row in rows if row["isthing"]),
            "Stuff": _mean(row for row in rows if not row["isthing"]),
            "per_class": per_class,
            "images": [{"image_id": image_id, "pq": pq} for image_id, pq in images],
        }

    def merge(self, other: PanopticQuality) -> None:
        """Add what another process gathered on other images. Raises PansightError for another label space."""
        if other.labels != self.labels:
            raise PansightError("panoptic quality: expected the same label space on both sides of a merge")
        self._add(other.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All that was gathered, as plain JSON values."""
        return {
            "tp": list(self._tp),
            "fp": list(self._fp),
            "fn": list(self._fn),
            "iou": list(self._iou),
            "images": [list(image) for image in self._images],
            "updates": self._updates,
            "without": self._without,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what was gathered by a `state_dict`."""
        if len(state["tp"]) != len(self.labels):
            raise PansightError(f"panoptic quality: expected {len(self.labels)} classes, found {len(state['tp'])}")
        self.__init__(self.labels)
        self._add(state)

    def _add(self, state: dict[str, Any]) -> None:
        self._tp = [a + int(b) for a, b in zip(self._tp, state["tp"])]
        self._fp = [a + int(b) for a, b in zip(self._fp, state["fp"])]
        self._fn = [a + int(b) for a, b in zip(self._fn, state["fn"])]
        self._iou = [a + int(b) for a, b in zip(self._iou, state["iou"])]
        self._images += [(image_id, float(pq)) for image_id, pq in state["images"]]
        self._updates += int(state["updates"])
        self._without += int(state["without"])


def _row_of_id(segments: tuple[Segment, ...], ids: IntArray, side: str) -> IntArray:
    """(P,) ids of a map → (P,) rows of its table; void → len(segments)."""
    row_of = {segment.id: row for row, segment in enumerate(segments)}
    row_of[VOID] = len(segments)
    try:
        return np.array([row_of[i] for i in ids.tolist()], np.int64)
    except KeyError as error:
        raise PansightError(
            f"{side}: expected only ids of its segment table, found {error.args[0]} in the map"
        ) from error


def _scores(tp: int, fp: int, fn: int, iou: int) -> dict[str, float]:
    """pq, sq, rq of one class; 0.0 where it is absent. iou: ΣIoU in units of 2⁻⁵³."""
    total = iou / _IOU_UNIT
    weight = tp + 0.5 * fp + 0.5 * fn
    if not weight:
        return {"pq": 0.0, "sq": 0.0, "rq": 0.0}
    return {"pq": total / weight, "sq": total / tp if tp else 0.0, "rq": tp / weight}


def _mean(rows: Iterable[dict[str, Any]]) -> dict[str, float | int]:
    present = [row for row in rows if row["tp"] + row["fp"] + row["fn"] > 0]
    n = len(present)
    means: dict[str, float | int] = {k: sum(row[k] for row in present) / max(n, 1) for k in ("pq", "sq", "rq")}
    return means | {"n": n}


def _size(segmentation: PanopticSegmentation) -> str:
    return f"{segmentation.size[0]}×{segmentation.size[1]}"
