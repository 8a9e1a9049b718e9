"""Counts for each class and the scores computed from them, which panoptic quality and its variants share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.metrics.panoptic.matching import PHANTOM, ImageMatch
from pansight.ops.maps.overlap import IntArray
from pansight.types import LabelSpace

IOU_UNIT = 2**53
"""IoUs are added as integers in units of 2⁻⁵³, of which float64 values in (0.5, 1] are multiples: sums are exact in any
order."""


class ClassCounts:
    """TP, FP, FN and ΣIoU of each class; scores by `rows` and `group_means`."""

    def __init__(self, labels: LabelSpace):
        self.labels = labels
        self._table = np.zeros((len(labels), 5), np.int64)  # TP, FP, FN, ΣIoU // 2²⁶ and ΣIoU mod 2²⁶, summed

    def add_rows(self, rows: IntArray) -> None:
        """Count rows of `image_rows` of any number of images."""
        np.add.at(self._table, rows[:, 1], rows[:, 2:])

    @property
    def tp(self) -> list[int]:
        return self._table[:, 0].tolist()

    @property
    def fp(self) -> list[int]:
        return self._table[:, 1].tolist()

    @property
    def fn(self) -> list[int]:
        return self._table[:, 2].tolist()

    @property
    def iou(self) -> list[int]:
        """ΣIoU of the matches in units of 2⁻⁵³."""
        return [(high << _LOW_BITS) + low for high, low in self._table[:, 3:].tolist()]

    def rows(self) -> dict[str, dict[str, Any]]:
        """By source id → name isthing pq sq rq tp fp fn iou; scores of an absent class are 0.0."""
        result: dict[str, dict[str, Any]] = {}
        for c, tp, fp, fn, iou in zip(self.labels, self.tp, self.fp, self.fn, self.iou):
            counts = {"tp": tp, "fp": fp, "fn": fn, "iou": iou / IOU_UNIT}
            scores = class_scores(tp, fp, fn, iou)
            result[str(c.source_id)] = {"name": c.name, "isthing": c.is_thing, **scores, **counts}
        return result

    def state_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"tp": self.tp, "fp": self.fp, "fn": self.fn, "iou": self.iou}

    def add_state(self, state: dict[str, Any]) -> None:
        """Add a `state_dict`. Raises PansightError where it has another number of classes."""
        columns = [[int(value) for value in state[key]] for key in ("tp", "fp", "fn", "iou")]
        for column in columns:
            if len(column) != len(self.labels):
                raise PansightError(where="counts by class", expected=f"{len(self.labels)} classes", found=len(column))
        low = (1 << _LOW_BITS) - 1
        ious = [[value >> _LOW_BITS for value in columns[3]], [value & low for value in columns[3]]]
        self._table += np.array([*columns[:3], *ious], np.int64).T  # (5, K) → (K, 5)


_LOW_BITS = 26
"""A ΣIoU in units of 2⁻⁵³ overflows 64 bits after a thousand segments: it is kept as two numbers of 27 and 26 bits."""


class ImageRows:
    """Counts of many images: for each some rows (R, columns), whose first two columns are image and category."""

    def __init__(self, columns: int):
        self.columns = columns
        self.ids: list[str | int] = []
        self._rows: list[IntArray] = []

    def add(self, image_id: str | int, rows: IntArray) -> None:
        """Add an image; the first column of its rows becomes its number."""
        rows[:, 0] = len(self.ids)
        self.ids.append(image_id)
        self._rows.append(rows)
        if len(self._rows) >= _ROWS_KEPT_APART:
            self._rows = [np.concatenate(self._rows)]

    def all_rows(self) -> IntArray:
        return np.concatenate([np.zeros((0, self.columns), np.int64), *self._rows])

    def in_order(self) -> tuple[list[str | int], IntArray]:
        """Image ids, rising, and the rows in that order: the same however the images were split among processes."""
        rows = self.all_rows()
        order = sorted(range(len(self.ids)), key=lambda i: (isinstance(self.ids[i], str), self.ids[i]))
        place = np.empty(len(self.ids), np.int64)
        place[order] = np.arange(len(self.ids))
        rows[:, 0] = place[rows[:, 0]]
        return [self.ids[i] for i in order], rows[np.argsort(rows[:, 0], kind="stable")]

    def state_dict(self) -> dict[str, Any]:
        """As plain JSON values; columns are many times shorter than rows."""
        return {"image_ids": list(self.ids), "rows": self.all_rows().T.tolist()}

    def extend(self, state: Mapping[str, Any], classes: int, what: str) -> None:
        """Add the images of a `state_dict`. Raises PansightError, headed by `what`, where it is damaged."""
        rows = np.array(state["rows"], np.int64).reshape(self.columns, -1).T.copy()  # (columns, R) → (R, columns)
        if (rows < 0).any() or (rows[:, :2] >= (len(state["image_ids"]), classes)).any() or _is_idle(rows):
            raise PansightError(where=what, expected="counts of classes in images", found="others (damaged)")
        rows[:, 0] += len(self.ids)
        self.ids += state["image_ids"]
        self._rows.append(rows)


def _is_idle(rows: IntArray) -> bool:
    """Whether a row counts nothing."""
    return not bool(rows[:, 2:5].any(axis=1).all())


_ROWS_KEPT_APART = 256
"""Images whose rows are small arrays of their own, before they are joined into one."""


def image_rows(match: ImageMatch, n_classes: int) -> IntArray:
    """What each class contributes in one image: int64 (R, 7), one row for each class that is counted there.

    Columns: 0 (for the caller's number of the image), category, TP, FP, FN, ΣIoU // 2²⁶ and ΣIoU mod 2²⁶ of its units.
    Raises PansightError for a category outside 0 … n_classes − 1.
    """
    truth, prediction = match.truth.categories, match.prediction.categories
    found = match.match >= 0
    hit = np.append(truth[found], truth[match.again])
    phantom = prediction[match.state == PHANTOM]
    counted = np.concatenate([hit, phantom, truth[match.missed]])
    if counted.size and not 0 <= int(counted.min()) <= int(counted.max()) < n_classes:
        raise PansightError(where="segment category", expected=f"an index below {n_classes}", found=int(counted.max()))
    units = (np.append(match.iou[found], match.again_iou) * IOU_UNIT).astype(np.int64)
    table = np.zeros((n_classes, 7), np.int64)
    table[:, 1] = np.arange(n_classes)
    table[:, 2] = np.bincount(hit, minlength=n_classes)
    table[:, 3] = np.bincount(phantom, minlength=n_classes)
    table[:, 4] = np.bincount(truth[match.missed], minlength=n_classes)
    table[:, 5] = np.bincount(hit, units >> _LOW_BITS, n_classes)  # float64 sums of such numbers are exact
    table[:, 6] = np.bincount(hit, units & ((1 << _LOW_BITS) - 1), n_classes)
    return table[np.bincount(counted, minlength=n_classes) > 0]


def image_pq(match: ImageMatch, n_classes: int) -> float | None:
    """PQ of one image, 0..1: the mean over the classes that occur in it; None where nothing is counted."""
    rows = image_rows(match, n_classes)
    if not len(rows):
        return None
    return float((joined_iou(rows) / (rows[:, 2] + 0.5 * rows[:, 3] + 0.5 * rows[:, 4])).mean())


def image_f1(match: ImageMatch) -> float | None:
    """F1 of the segments of one image, 0..1, of all classes together; None where nothing is counted."""
    hits, phantoms, missed = int((match.match >= 0).sum()), int((match.state == PHANTOM).sum()), int(match.missed.sum())
    return hits / (hits + 0.5 * (phantoms + missed)) if hits + phantoms + missed else None


def joined_iou(rows: IntArray) -> NDArray[np.float64]:
    """ΣIoU of each row of `image_rows`, (R,), rounded once."""
    return (rows[:, 5] * float(1 << _LOW_BITS) + rows[:, 6]) / IOU_UNIT


def class_scores(tp: int, fp: int, fn: int, iou: int) -> dict[str, float]:
    """pq, sq, rq of one class; 0.0 where it is absent. iou: ΣIoU in units of 2⁻⁵³."""
    total = iou / IOU_UNIT
    weight = tp + 0.5 * fp + 0.5 * fn
    if not weight:
        return {"pq": 0.0, "sq": 0.0, "rq": 0.0}
    return {"pq": total / weight, "sq": total / tp if tp else 0.0, "rq": tp / weight}


def group_means(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, float | int]]:
    """All, Things, Stuff → pq sq rq n: plain means over the n classes of `ClassCounts.rows` that are present."""
    present = [row for row in rows if row["tp"] + row["fp"] + row["fn"] > 0]
    groups = {
        "All": present,
        "Things": [row for row in present if row["isthing"]],
        "Stuff": [row for row in present if not row["isthing"]],
    }
    return {name: _mean(members) for name, members in groups.items()}


def _mean(rows: list[dict[str, Any]]) -> dict[str, float | int]:
    means: dict[str, float | int] = {k: sum(row[k] for row in rows) / max(len(rows), 1) for k in ("pq", "sq", "rq")}
    return means | {"n": len(rows)}
