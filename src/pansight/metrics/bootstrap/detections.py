"""AP of resampled images: the detections with how they were matched, ordered anew and counted as often as their image.

A match lives within one image, so drawing images leaves it as it is: AP of a resample is that of COCO's own rules, to
the last threshold of recall (where detections have one score, their order is by chance there, and that of the file
here). AP of one class is a sum over its right detections alone, since precision is looked up where recall rises: for
each, as many of the 101 recalls as it passes times the highest precision from there on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.metrics.bootstrap.sums import FloatArray
from pansight.ops.maps.overlap import IntArray

SCORES = ("ap", "ap50", "ap75")
IOUS = 10
"""0.5, 0.55 … 0.95; bit k of a code: right at the k-th; bit 10 + k: does not count there."""

_RECALLS = np.linspace(0.0, 1.0, 101)
_AT_ONCE = 4_000_000
"""Weights of detections in memory: resamples times detections of a class."""


class DetectionCounts(NamedTuple):
    """N detections, and the objects of the truth that are to be found: T pairs of image and class."""

    image: IntArray  # int64 (N,), 0 … images − 1
    category: IntArray  # int64 (N,), 0 … classes − 1
    score: FloatArray  # (N,); of equal ones the first comes first
    code: IntArray  # int64 (N,), how it was matched
    truth_image: IntArray  # int64 (T,)
    truth_category: IntArray  # int64 (T,)
    truth: FloatArray  # (T,), whole numbers


@dataclass(frozen=True)
class DetectionFigures:
    """AP, AP50 and AP75 of all classes and each; see `bootstrap.Figures`."""

    counts: DetectionCounts
    classes: int
    images: int
    groups: tuple[str, ...] = ("All",)
    scores: tuple[str, ...] = SCORES
    tolerance: float = 1e-6

    def value(self) -> FloatArray:
        return self._figures(np.ones((1, self.images), np.float32))[..., 0]

    def drawn(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._figures(weights).astype(np.float32)

    def swapped(self, other: DetectionFigures) -> Callable[[NDArray[np.float32]], FloatArray]:
        n, a, b = self.images, self.counts, other.counts
        both = DetectionCounts(
            np.concatenate([a.image, b.image + n]),
            np.concatenate([a.category, b.category]),
            np.concatenate([a.score, b.score]),
            np.concatenate([a.code, b.code]),
            np.concatenate([a.truth_image, b.truth_image + n]),
            np.concatenate([a.truth_category, b.truth_category]),
            np.concatenate([a.truth, b.truth]),
        )
        order = np.argsort(both.image % n, kind="stable")  # as the metric takes the mixture: image after image
        both = both._replace(**{key: getattr(both, key)[order] for key in ("image", "category", "score", "code")})
        joined = DetectionFigures(both, self.classes, 2 * n)

        def apart(signs: NDArray[np.float32]) -> FloatArray:
            mine, theirs = signs + 0.5, 0.5 - signs  # (R, images), 1 where a side has the predictions of this one
            one = joined.drawn(np.concatenate([mine, theirs], axis=1))
            return np.abs(one - joined.drawn(np.concatenate([theirs, mine], axis=1)))

        return apart

    def _figures(self, weights: NDArray[np.float32]) -> FloatArray:
        """float64 (1 + C, 3, R)."""
        c, resamples = self.counts, len(weights)
        result = np.full((1 + self.classes, len(SCORES), resamples), np.nan)
        order = np.lexsort((-c.score, c.category))  # stable: of equal scores the first comes first
        bounds = np.searchsorted(c.category[order], np.arange(self.classes + 1))
        for category in range(self.classes):
            rows = order[bounds[category] : bounds[category + 1]]
            true = c.truth_category == category
            if not true.any():
                continue
            step = max(1, _AT_ONCE // max(len(rows), int(true.sum()), 1))
            for start in range(0, resamples, step):
                part = weights[start : start + step]
                wanted = part[:, c.truth_image[true]] @ c.truth[true]  # (r,) objects to be found
                ap = _precisions(part[:, c.image[rows]], c.code[rows], wanted)  # (IoUs, r)
                scores = np.stack([ap.mean(0), ap[0], ap[5]])
                result[1 + category, :, start : start + step] = np.where(wanted > 0, scores, np.nan)
        known = ~np.isnan(result[1:])  # (C, 3, R)
        total = np.where(known, result[1:], 0).sum(0)
        result[0] = total / np.where(known.any(0), known.sum(0), np.nan)
        return result


def _precisions(weights: NDArray[np.float32], codes: IntArray, wanted: FloatArray) -> FloatArray:
    """AP at each IoU: float64 (10, R), of detections of one class by falling score.

    weights: (R, N), how often each is there. codes: (N,). wanted: (R,), objects to be found, of the same draws.
    """
    resamples = len(weights)
    result = np.zeros((IOUS, resamples))
    seen = np.cumsum(weights, axis=1, dtype=np.float64)
    for k in range(IOUS):
        ignored = (codes >> (IOUS + k) & 1).astype(bool)
        right = np.flatnonzero((codes >> k & 1).astype(bool) & ~ignored)
        if not len(right):
            continue
        before = np.cumsum(weights * ~ignored, axis=1, dtype=np.float64) if ignored.any() else seen
        hits = np.cumsum(weights[:, right], axis=1, dtype=np.float64)  # (R, P)
        precision = hits / np.maximum(before[:, right], 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = hits / np.maximum(wanted, 1)[:, None]
        passed = np.searchsorted(_RECALLS, recall, "right")  # (R, P) recalls up to this detection
        result[k] = (best * np.diff(passed, axis=1, prepend=0)).sum(1) / len(_RECALLS)
    return result
