"""PQ, SQ and RQ of resampled images, as panopticapi averages them.

Counts are whole numbers far below 2²⁴ and so exact in float32. Of ΣIoU only the part beyond 0.75 TP is summed in
float32, at most 0.25 for each match: a PQ is off by at most 0.25 · 4096 · 2⁻²⁴ = 6e-5 however the product adds up, and
by less than 1e-6 in practice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pansight.metrics.bootstrap.sums import BoolArray, FloatArray, SumFigures, with_means
from pansight.ops.maps.overlap import IntArray

SCORES = ("pq", "sq", "rq")

_MIDDLE = 0.75
"""Of the range (0.5, 1] that the IoU of a match lies in."""


class ImageCounts(NamedTuple):
    """What panoptic quality counts, a row for each image and class; rows of one image and class are added."""

    image: IntArray  # int64 (N,), 0 … images − 1
    category: IntArray  # int64 (N,), 0 … classes − 1
    tp: FloatArray  # (N,), whole numbers
    fp: FloatArray  # (N,)
    fn: FloatArray  # (N,)
    iou: FloatArray  # (N,), ΣIoU of the matches

    def where(self, rows: BoolArray | IntArray) -> ImageCounts:
        """Some rows: where bool (N,) is True, or int (M,) in that order."""
        image, category, tp, fp, fn, iou = self
        return ImageCounts(image[rows], category[rows], tp[rows], fp[rows], fn[rows], iou[rows])


def segment_figures(counts: ImageCounts, things: BoolArray) -> SumFigures:
    """PQ, SQ and RQ of groups and classes. things: (C,), whether a class is a thing."""
    weight = counts.tp + 0.5 * (counts.fp + counts.fn)
    columns = np.stack([counts.tp, weight, counts.iou - _MIDDLE * counts.tp])
    return SumFigures(counts.image, counts.category, columns, things, SCORES, _scores, 1e-6)


def _scores(sums: FloatArray, groups: FloatArray) -> FloatArray:
    """Sums of TP, TP + ½FP + ½FN and ΣIoU − 0.75 TP, (3, C, ...), in whose type the figures are."""
    tp, weight, rest = sums
    present = weight > 0
    iou = rest + _MIDDLE * tp
    divisor = np.where(present, weight, 1)
    scores = np.stack([iou / divisor, iou / np.maximum(tp, 1), tp / divisor])  # (3, C, ...), 0 where absent
    return with_means(scores, np.broadcast_to(present, scores.shape), groups)
