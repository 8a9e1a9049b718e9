"""The matching of panoptic quality: what became of every segment of an image, for evaluation, files and the report.

Everything here is NumPy: a table of segments is a few arrays, a match is a row number. The rules are written down
at the head of `metrics.panoptic.quality` and in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.ops.maps.overlap import IntArray, Overlaps
from pansight.types import VOID, Segment

PHANTOM, MATCHED, IGNORED = 0, 1, 2
"""What becomes of a prediction: FP, TP, or mostly on void and crowd of its class, so that it costs nothing."""


class SegmentTable(NamedTuple):
    """The segments of one side of an image, one row each; the order is that of the file."""

    ids: IntArray  # int64 (N,), 1 … 256³ − 1, each once
    categories: IntArray  # int64 (N,), indices into the LabelSpace
    crowd: NDArray[np.bool_]  # (N,)
    scores: NDArray[np.float64]  # (N,), 1.0 where the file has none

    @classmethod
    def of(cls, segments: Iterable[Segment]) -> SegmentTable:
        rows = list(segments)
        return cls(
            np.array([s.id for s in rows], np.int64),
            np.array([s.category for s in rows], np.int64),
            np.array([s.is_crowd for s in rows], bool),
            np.array([s.score for s in rows], np.float64),
        )


class ImageMatch(NamedTuple):
    """One image: T truth segments, P predicted segments, Q pairs of ids that meet at some pixel.

    The pairs cover every pixel, void included (truth_rows = T or prediction_rows = P stands for void).
    """

    truth: SegmentTable
    prediction: SegmentTable
    truth_rows: IntArray  # int64 (Q,), row in `truth`, T for void
    prediction_rows: IntArray  # int64 (Q,), row in `prediction`, P for void
    pixels: IntArray  # int64 (Q,)
    truth_area: IntArray  # int64 (T,), pixels
    prediction_area: IntArray  # int64 (P,), pixels, void of the truth included
    visible_area: IntArray  # int64 (P,), pixels, without void of the truth
    match: IntArray  # int64 (T,), row of the prediction that found it, −1 where none did
    iou: NDArray[np.float64]  # (T,), IoU of the match in (0.5, 1], 0.0 where none
    state: NDArray[np.uint8]  # (P,), PHANTOM, MATCHED or IGNORED
    excused: NDArray[np.bool_]  # (P,), more than half of it lies on void and crowds of its class: no phantom
    again: IntArray  # int64 (A,), truth rows matched once more: only where stated areas are far too small
    again_iou: NDArray[np.float64]  # (A,)

    @property
    def missed(self) -> NDArray[np.bool_]:
        """(T,), truth segments nobody found (FN); crowds never are."""
        return (self.match < 0) & ~self.truth.crowd


def match_tables(
    truth: SegmentTable,
    prediction: SegmentTable,
    overlaps: Overlaps,
    stated: NDArray[np.float64] | None = None,
    background: bool = False,
) -> ImageMatch:
    """Match the segments of one image.

    overlaps: (truth id, predicted id, pixels). stated: (T,), areas of the truth by its file, only to count to the
    letter as panopticapi does: they are trusted for IoU, of each class only the last crowd excuses phantoms, and pixels
    of the truth with an id that its table lacks are not void there (`truth_rows` has them as void all the same).
    background: pixels without a truth segment are background, as for objects alone, rather than void: a prediction that
    spreads over them is inexact there, or a phantom.
    Raises PansightError where a map holds an id that its table lacks, or a predicted segment has no pixel.
    A truth segment without a pixel counts as missed, as in the reference.
    """
    first = overlaps.first if stated is None else np.where(np.isin(overlaps.first, truth.ids), overlaps.first, VOID)
    t_rows = _rows_of(truth.ids, first, "truth")  # (Q,)
    p_rows = _rows_of(prediction.ids, overlaps.second, "prediction")
    n_truth, n_prediction = len(truth.ids), len(prediction.ids)
    pixels = overlaps.pixels
    truth_area = np.bincount(t_rows, pixels, n_truth + 1)[:n_truth].astype(np.int64)
    area = np.bincount(p_rows, pixels, n_prediction + 1)[:n_prediction].astype(np.int64)
    if n_prediction and not area.all():
        empty = int(prediction.ids[int(np.argmin(area))])
        raise PansightError(where=f"prediction: segment {empty}", expected="at least one pixel", found="none")

    void = (overlaps.first == VOID) & (not background)
    on_void = np.bincount(p_rows[void], pixels[void], n_prediction + 1)[:n_prediction]
    outside = (t_rows == n_truth) & (not background)
    unlabelled = np.bincount(p_rows[outside], pixels[outside], n_prediction + 1)[:n_prediction].astype(np.int64)
    both = (t_rows < n_truth) & (p_rows < n_prediction)
    t, p, inside = t_rows[both], p_rows[both], pixels[both]
    own_class = truth.categories[t] == prediction.categories[p]
    on_crowd = own_class & truth.crowd[t]
    excusing = on_crowd if stated is None else on_crowd & _last_crowds(truth)[t]
    excused = (on_void + np.bincount(p[excusing], inside[excusing], n_prediction)[:n_prediction]) / area > 0.5

    t, p, inside = (each[own_class & ~on_crowd] for each in (t, p, inside))
    union = (truth_area if stated is None else stated)[t] + area[p] - inside - on_void[p]
    if stated is not None:
        _refuse_absurd(truth, truth_area, stated, t[(union >= 0) & (inside > _MOST_IOU * union)])
    iou = inside / union
    hit = iou > 0.5  # at most one per segment on either side, since > 0.5
    t, p, iou = t[hit], p[hit], iou[hit]
    match = np.full(n_truth, -1, np.int64)
    match[t] = p
    match_iou = np.zeros(n_truth)
    match_iou[t] = iou
    state = np.where(excused, IGNORED, PHANTOM).astype(np.uint8)
    state[p] = MATCHED
    again = match[t] != p
    return ImageMatch(
        truth, prediction, t_rows, p_rows, pixels, truth_area, area, area - unlabelled,
        match, match_iou, state, excused, t[again], iou[again],
    )  # fmt: skip


_MOST_IOU = 512
"""A stated area that is far too small gives IoUs above 1, and in the end infinite ones."""


def _refuse_absurd(truth: SegmentTable, counted: IntArray, stated: NDArray[np.float64], rows: IntArray) -> None:
    if rows.size:
        row = int(rows[0])
        expected = f"expected an area near its {counted[row]} pixels, found {stated[row]:g}"
        raise PansightError(
            f"segment {truth.ids[row]}: {expected}", where="truth", hint="trusted, it makes IoU infinite"
        )


def _last_crowds(truth: SegmentTable) -> NDArray[np.bool_]:
    """(T,), of each class its last crowd."""
    last = {int(truth.categories[row]): row for row in np.flatnonzero(truth.crowd).tolist()}
    return np.isin(np.arange(len(truth.ids)), list(last.values()))


def _rows_of(ids: IntArray, values: IntArray, side: str) -> IntArray:
    """(Q,) ids of a map → (Q,) rows of its table; void → len(ids)."""
    row_of = {number: row for row, number in enumerate(ids.tolist())}
    row_of[VOID] = len(ids)
    try:
        return np.array([row_of[i] for i in values.tolist()], np.int64)
    except KeyError as error:
        raise PansightError(
            where=side, expected="only ids of its segment table", found=f"{error.args[0]} in the map"
        ) from error
