"""How sure a figure is: intervals from resampled images, and a paired test of two evaluations.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 13 and 14 (percentile interval and
its bias) and 15 (permutation test).

The unit of chance is the image: segments of one image share camera, light and scene, so they are not drawn one by one.

- Interval: images are drawn with replacement, as many as there are; the figures are computed anew from the counts of
  the drawn images, by the averaging of the metric itself (classes that do not occur in a resample are left out of its
  means). The interval runs from the 2.5 % to the 97.5 % quantile of these figures. All evaluations see the same draws,
  so that the difference of two has an interval of its own, narrower than the two suggest.
- p-value: were both models equally good, it would not matter which of them made which prediction. So the two are
  swapped on each image with probability ½, and the figures of both sides and their difference computed anew; p is the
  share of swaps with a difference at least as large as the real one, in either direction, the real one counted in:
  (1 + hits) / (1 + swaps). PQ, mIoU and AP are no means over images, so a t-test or a sign test of per-image scores
  would test something else; swapping is exact for any figure.

What is counted of an image, and how figures come of it: `segments` (PQ), `pixels` (mIoU), `detections` (AP).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.metrics.bootstrap.sums import FloatArray

_WEIGHTS = 16_000_000
"""Most numbers in a block of weights, (resamples, images): 64 MB."""


class Figures(Protocol):
    """An evaluation whose figures can be computed for any choice of its images: rows are `groups`, then the classes."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The first rows: All, and perhaps Things and Stuff."""
        ...

    @property
    def scores(self) -> tuple[str, ...]:
        """The columns, the main figure first."""
        ...

    @property
    def tolerance(self) -> float:
        """Differences closer than this are one: float32 cannot tell them apart."""
        ...

    @property
    def classes(self) -> int: ...

    def value(self) -> FloatArray:
        """float64 (rows, columns) of the images as they are; NaN where there is no figure."""
        ...

    def drawn(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """(R, images), how often each counts → (rows, columns, R)."""
        ...

    def swapped(self, other: Any) -> Callable[[NDArray[np.float32]], FloatArray]:
        """other: figures of the same kind. Takes signs (R, images), ½ where the predictions of an image are swapped
        with those of `other` and −½ where they are not, to how far both sides are apart, (rows, columns, R).
        """
        ...


class Bootstrap(NamedTuple):
    """Figures of E evaluations; rows and columns as in `Figures`. NaN where there is no figure."""

    value: FloatArray  # float64 (E, rows, columns), of the images as they are
    low: FloatArray  # (E, rows, columns)
    high: FloatArray  # (E, rows, columns)
    difference: FloatArray  # (E, rows, columns), to the first evaluation
    difference_low: FloatArray  # (E, rows, columns)
    difference_high: FloatArray  # (E, rows, columns)


def bootstrap(
    evaluations: Sequence[Figures], images: int, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Bootstrap:
    """Intervals of every figure, and of its difference to that of the first evaluation.

    evaluations: of the same images and classes, and of the same kind. confidence: in (0, 1).
    The result depends on the seed alone. Memory: 4 · rows · columns · resamples bytes for each evaluation and twice
    that for sorting, plus 30 to 100 MB.
    Raises PansightError where there is no evaluation, image, class or resample.
    """
    _check(evaluations, images, resamples)
    if not 0 < confidence < 1:
        raise PansightError(where="bootstrap", expected="a confidence between 0 and 1", found=confidence)
    value = np.stack([evaluation.value() for evaluation in evaluations])
    drawn = np.empty((*value.shape, resamples), np.float32)
    rng = np.random.default_rng(seed)
    for start, stop in _blocks(resamples, images):
        weights = np.empty((stop - start, images), np.float32)
        for row in weights:
            row[:] = np.bincount(rng.integers(0, images, images), minlength=images)
        for e, evaluation in enumerate(evaluations):
            drawn[e, ..., start:stop] = evaluation.drawn(weights)
    difference = value - value[0]
    low, high = _around(value, drawn, confidence)
    difference_low, difference_high = _around(difference, drawn - drawn[0], confidence)
    return Bootstrap(value, low.clip(0, 1), high.clip(0, 1), difference, difference_low, difference_high)


def paired_test(first: Figures, second: Figures, images: int, swaps: int = 10_000, seed: int = 0) -> FloatArray:
    """Two-sided p-values of the difference of every figure: (rows, columns).

    1 where the evaluations are equal; never below 1 / (1 + swaps); NaN where a side has no figure.
    Raises PansightError where there is no image, class or swap.
    """
    _check([first, second], images, swaps)
    real = np.abs(second.value() - first.value())
    apart = first.swapped(second)
    rng = np.random.default_rng(seed)
    hits = np.zeros(real.shape, np.int64)
    for start, stop in _blocks(swaps, images):
        bits = rng.integers(0, 256, (stop - start, (images + 7) // 8), np.uint8)
        signs = np.unpackbits(bits, axis=1, count=images).astype(np.float32) - 0.5  # (block, images), ±½
        hits += (~(apart(signs) < real[..., None] - first.tolerance)).sum(axis=-1)
    return np.where(np.isnan(real), np.nan, (1 + hits) / (1 + swaps))


def adjust(p: FloatArray) -> FloatArray:
    """p-values of many tests, (N,), so that of those below 5 % at most 5 % are by chance; NaN stays NaN.

    Source: Benjamini and Hochberg, "Controlling the False Discovery Rate" (1995).
    """
    known = np.flatnonzero(~np.isnan(p))
    falling = known[np.argsort(-p[known], kind="stable")]
    rank = np.arange(len(falling), 0, -1)
    adjusted = np.full(p.shape, np.nan)
    adjusted[falling] = np.minimum.accumulate(np.minimum(p[falling] * len(falling) / rank, 1.0))
    return adjusted


def _check(evaluations: Sequence[Figures], images: int, resamples: int) -> None:
    classes = evaluations[0].classes if evaluations else 1
    sizes = {"evaluation": len(evaluations), "image": images, "class": classes, "resample": resamples}
    for name, size in sizes.items():
        if size < 1:
            raise PansightError(where="bootstrap", expected=f"at least one {name}", found=size)


def _blocks(resamples: int, images: int) -> list[tuple[int, int]]:
    """(start, stop) of the resamples whose weights are in memory at a time."""
    size = max(1, min(1024, _WEIGHTS // images))
    return [(start, min(start + size, resamples)) for start in range(0, resamples, size)]


def _around(value: FloatArray, drawn: NDArray[np.float32], confidence: float) -> tuple[FloatArray, FloatArray]:
    """The interval of figures (...) from draws (..., R): as wide as theirs, laid around the figure itself."""
    middle, low, high = _quantiles(drawn, (0.5, (1 - confidence) / 2, (1 + confidence) / 2))
    return value + (low - middle), value + (high - middle)


def _quantiles(drawn: NDArray[np.float32], tails: Sequence[float]) -> list[FloatArray]:
    """(..., R) → the quantiles (...) over the resamples that have the figure, linear between neighbours; else NaN."""
    ordered = np.sort(drawn, axis=-1)  # NaN comes last
    last = np.maximum(np.count_nonzero(~np.isnan(ordered), axis=-1) - 1, 0)
    found: list[FloatArray] = []
    for tail in tails:
        position = tail * last
        below = np.floor(position).astype(np.int64)
        above = np.minimum(below + 1, last)
        low, high = (np.take_along_axis(ordered, i[..., None], -1)[..., 0].astype(np.float64) for i in (below, above))
        found.append(low + (position - below) * (high - low))
    return found
