"""mIoU and mean accuracy of resampled images, by one of the conventions of `metrics.semantic_iou`.

Pixels are summed in float32: an IoU is off by about 1e-7 for each of them that is rounded, 1e-6 in practice.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from pansight.metrics.bootstrap.sums import BoolArray, FloatArray, SumFigures, with_means
from pansight.metrics.semantic_iou import counted_classes
from pansight.ops.maps.overlap import IntArray

SCORES = ("iou", "accuracy")


class PixelCounts(NamedTuple):
    """What mIoU counts, a row for each image and class; void of the truth is nowhere."""

    image: IntArray  # int64 (N,), 0 … images − 1
    category: IntArray  # int64 (N,), 0 … classes − 1
    hits: FloatArray  # (N,), pixels of the class that were found
    truth: FloatArray  # (N,), pixels of the class
    predicted: FloatArray  # (N,), pixels taken for it

    def where(self, rows: BoolArray | IntArray) -> PixelCounts:
        """Some rows: where bool (N,) is True, or int (M,) in that order."""
        image, category, hits, truth, predicted = self
        return PixelCounts(image[rows], category[rows], hits[rows], truth[rows], predicted[rows])


def pixel_figures(counts: PixelCounts, things: BoolArray, convention: str) -> SumFigures:
    """IoU and accuracy of groups and classes. things: (C,), whether a class is a thing."""
    columns = np.stack([counts.hits, counts.truth, counts.predicted])
    make = partial(_scores, convention=convention)
    return SumFigures(counts.image, counts.category, columns, things, SCORES, make, 1e-5)


def _scores(sums: FloatArray, groups: FloatArray, convention: str) -> FloatArray:
    """Sums of hits, truth and predicted, (3, C, ...), in whose type the figures are."""
    hits, truth, predicted = sums
    union = truth + predicted - hits
    scores = np.stack([hits / np.maximum(union, 1), hits / np.maximum(truth, 1)])  # (2, C, ...)
    return with_means(scores, np.stack([counted_classes(truth > 0, union > 0, convention), truth > 0]), groups)
