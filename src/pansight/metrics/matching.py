"""What became of every segment of an image: the rules of panoptic quality, once, for training, files and the report.

Everything here is NumPy: a table of segments is a few arrays, a match is a row number. Rules: spec 08, and the head of
`panoptic_quality`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.metrics.overlap import IntArray, Overlaps
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
    match: IntArray  # int64 (T,), row of the prediction that found it, −1 where none did
    iou: NDArray[np.float64]  # (T,), IoU of the match in (0.5, 1], 0.0 where none
    state: NDArray[np.uint8]  # (P,), PHANTOM, MATCHED or IGNORED
    excused: NDArray[np.bool_]  # (P,), more than half of it lies on void and crowds of its class: no phantom

    @property
    def missed(self) -> NDArray[np.bool_]:
        """(T,), truth segments nobody found (FN); crowds never are."""
        return (self.match < 0) & ~self.truth.crowd


def match_tables(
    truth: SegmentTable,
    prediction: SegmentTable,
    overlaps: Overlaps,
    truth_area: IntArray | None = None,
    excuses: NDArray[np.bool_] | None = None,
) -> ImageMatch:
    """Match the segments of one image.

    overlaps: (truth id, predicted id, pixels). For strict compatibility only: truth_area int64 (T,), to be trusted
    instead of the count; excuses bool (T,), the crowds that excuse phantoms, all of them unless given.
    Raises PansightError where a map holds an id that its table lacks, or a predicted segment has no pixel.
    A truth segment without a pixel counts as missed, as in the reference.
    """
    t_rows = _rows_of(truth.ids, overlaps.first, "truth")  # (Q,)
    p_rows = _rows_of(prediction.ids, overlaps.second, "prediction")
    n_truth, n_prediction = len(truth.ids), len(prediction.ids)
    pixels = overlaps.pixels
    counted = np.bincount(t_rows, pixels, n_truth + 1)[:n_truth].astype(np.int64)
    area = counted if truth_area is None else truth_area
    predicted_area = np.bincount(p_rows, pixels, n_prediction + 1)[:n_prediction].astype(np.int64)
    if n_prediction and not predicted_area.all():
        empty = int(prediction.ids[int(np.argmin(predicted_area))])
        raise PansightError(f"prediction: segment {empty}: expected at least one pixel, found none")

    on_void = np.bincount(p_rows[t_rows == n_truth], pixels[t_rows == n_truth], n_prediction + 1)[:n_prediction]
    both = (t_rows < n_truth) & (p_rows < n_prediction)
    t, p, inside = t_rows[both], p_rows[both], pixels[both]
    own_class = truth.categories[t] == prediction.categories[p]
    on_crowd = own_class & truth.crowd[t]
    excusing = on_crowd if excuses is None else on_crowd & excuses[t]
    on_own_crowd = np.bincount(p[excusing], inside[excusing], n_prediction)[:n_prediction]

    t, p, inside = (each[own_class & ~on_crowd] for each in (t, p, inside))
    iou = inside / np.maximum(area[t] + predicted_area[p] - inside - on_void[p], 1)
    hit = iou > 0.5  # at most one per segment on either side, since > 0.5
    match = np.full(n_truth, -1, np.int64)
    match[t[hit]] = p[hit]
    match_iou = np.zeros(n_truth)
    match_iou[t[hit]] = iou[hit]
    excused = (on_void + on_own_crowd) / np.maximum(predicted_area, 1) > 0.5
    state = np.where(excused, IGNORED, PHANTOM).astype(np.uint8)
    state[p[hit]] = MATCHED
    return ImageMatch(truth, prediction, t_rows, p_rows, pixels, area, predicted_area, match, match_iou, state, excused)


def _rows_of(ids: IntArray, values: IntArray, side: str) -> IntArray:
    """(Q,) ids of a map → (Q,) rows of its table; void → len(ids)."""
    row_of = {number: row for row, number in enumerate(ids.tolist())}
    row_of[VOID] = len(ids)
    try:
        return np.array([row_of[i] for i in values.tolist()], np.int64)
    except KeyError as error:
        raise PansightError(
            f"{side}: expected only ids of its segment table, found {error.args[0]} in the map"
        ) from error
