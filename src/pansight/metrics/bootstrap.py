"""Confidence intervals of panoptic quality from resampled images, and a paired test of two evaluations.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 13 and 14 (percentile interval and
its bias) and 15 (permutation test).

Whole images are resampled: segments of one image share camera, light and scene, so they are not drawn one by one.

- Interval: images are drawn with replacement, as many as there are; PQ, SQ and RQ are computed anew from the summed
  counts of the drawn images, by the averaging of `panoptic_quality` (classes that do not occur in a resample are left
  out of its means). The interval runs from the 2.5 % to the 97.5 % quantile of these figures. All evaluations see the
  same draws, so that the difference of two has an interval of its own, narrower than the two suggest.
- p-value: were both models equally good, it would not matter which of them made which prediction. So the two are
  swapped on each image with probability ½, and the figures of both sides and their difference computed anew; p is the
  share of swaps with a difference at least as large as the real one, in either direction, the real one counted in:
  (1 + hits) / (1 + swaps). PQ is a mean of ratios of sums, not a mean over images, so a t-test or a sign test of
  per-image scores would test something else; swapping is exact for any figure.

Sums over images are matrix products in float32: (resamples, images) @ (images, 3 · classes). Counts are whole numbers
far below 2²⁴ and so exact. Of ΣIoU only the part beyond 0.75 TP is summed in float32, at most 0.25 for each match: a
PQ is off by at most 0.25 · 4096 · 2⁻²⁴ = 6e-5 however the product adds up, and by less than 1e-6 in practice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.ops.maps.overlap import IntArray

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]

GROUPS = ("All", "Things", "Stuff")
"""The first rows of every array of figures; a row for each class follows."""
SCORES = ("pq", "sq", "rq")
"""The columns of every array of figures."""

_MIDDLE = 0.75
"""The middle of the range (0.5, 1] of a match's IoU."""
_SLAB = 4096
"""Images whose counts are summed in one float32 product."""
_WEIGHTS = 16_000_000
"""Most numbers in a block of weights, (resamples, images): 64 MB."""
_TOLERANCE = 1e-6
"""Differences closer than this count as equal, since float32 cannot distinguish them."""


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


class Bootstrap(NamedTuple):
    """Figures of E evaluations: rows GROUPS and then the C classes, columns SCORES. NaN where there is no figure."""

    value: FloatArray  # float64 (E, 3 + C, 3), of the images as they are
    low: FloatArray  # (E, 3 + C, 3)
    high: FloatArray  # (E, 3 + C, 3)
    difference: FloatArray  # (E, 3 + C, 3), to the first evaluation
    difference_low: FloatArray  # (E, 3 + C, 3)
    difference_high: FloatArray  # (E, 3 + C, 3)


def figures(evaluation: ImageCounts, things: BoolArray) -> FloatArray:
    """PQ, SQ, RQ of groups and classes as panopticapi computes them: float64 (3 + C, 3), NaN where none exists.

    things: (C,), whether a class is a thing.
    """
    return _figures(_totals(evaluation, len(things)), _groups(things, np.float64))


def bootstrap(
    evaluations: Sequence[ImageCounts],
    things: BoolArray,
    images: int,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Bootstrap:
    """Intervals of every figure, and of its difference to that of the first evaluation.

    evaluations: of the same images and classes. things: (C,), whether a class is a thing. confidence: in (0, 1).
    The result depends on the seed alone. Memory: 12 · (3 + C) · resamples bytes for each evaluation and twice that for
    sorting, plus 30 to 100 MB.
    Raises PansightError where there is no evaluation, image, class or resample.
    """
    _check(evaluations, things, images, resamples)
    if not 0 < confidence < 1:
        raise PansightError(f"bootstrap: expected a confidence between 0 and 1, found {confidence}")
    groups = _groups(things, np.float32)
    drawn = np.empty((len(evaluations), 3 + len(things), 3, resamples), np.float32)
    rng = np.random.default_rng(seed)
    for start, stop in _blocks(resamples, images):
        weights = np.empty((stop - start, images), np.float32)
        for row in weights:
            row[:] = np.bincount(rng.integers(0, images, images), minlength=images)
        for e, evaluation in enumerate(evaluations):
            drawn[e, ..., start:stop] = _figures(_sums(evaluation, len(things), weights), groups)
    value = np.stack([figures(evaluation, things) for evaluation in evaluations])
    value = np.stack([figures(evaluation, things) for evaluation in evaluations])
    difference = value - value[0]
    low, high = _around(value, drawn, confidence)
    difference_low, difference_high = _around(difference, drawn - drawn[0], confidence)
    return Bootstrap(value, low.clip(0, 1), high.clip(0, 1), difference, difference_low, difference_high)


def record_intervals(record: dict[str, Any], resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """95 % intervals of an evaluation's own figures: All, Things, Stuff and per_class (by source id) → pq sq rq → [low,
    high], fractions; what has no figure is left out.

    record: with per_class, image_ids and counts, as PanopticQuality computes them.
    """
    keys = list(record["per_class"])
    place = {int(key): index for index, key in enumerate(keys)}
    columns = {key: np.array(record["counts"][key]) for key in ("image", "tp", "fp", "fn", "iou")}
    category = np.array([place[source] for source in record["counts"]["category"]], np.int64)
    counts = ImageCounts(
        columns["image"].astype(np.int64),
        category,
        *(columns[key].astype(np.float64) for key in ("tp", "fp", "fn", "iou")),
    )
    things = np.array([record["per_class"][key]["isthing"] for key in keys], bool)
    drawn = bootstrap([counts], things, len(record["image_ids"]), resamples, seed)
    rows: list[dict[str, list[float]]] = []
    for low, high in zip(drawn.low[0], drawn.high[0]):
        known = [column for column in range(len(SCORES)) if not np.isnan(low[column])]
        rows.append({SCORES[column]: [float(low[column]), float(high[column])] for column in known})
    groups = {name: row for name, row in zip(GROUPS, rows) if row}
    return groups | {"per_class": {key: row for key, row in zip(keys, rows[len(GROUPS) :]) if row}}


def paired_test(
    first: ImageCounts, second: ImageCounts, things: BoolArray, images: int, swaps: int = 10_000, seed: int = 0
) -> FloatArray:
    """Two-sided p-values of the difference of every figure: (3 + C, 3), rows and columns as in `Bootstrap`.

    1 where the evaluations are equal; never below 1 / (1 + swaps); NaN where a side has no figure.
    Raises PansightError where there is no image, class or swap.
    """
    _check([first, second], things, images, swaps)
    real = np.abs(figures(second, things) - figures(first, things))  # (3 + C, 3)
    groups = _groups(things, np.float32)
    both = _totals(first, len(things)) + _totals(second, len(things))  # (3, C)
    middle = (both / 2).astype(np.float32)[..., None]  # (3, C, 1)
    change = _minus(second, first)
    rng = np.random.default_rng(seed)
    hits = np.zeros(real.shape, np.int64)
    for start, stop in _blocks(swaps, images):
        bits = rng.integers(0, 256, (stop - start, (images + 7) // 8), np.uint8)
        signs = np.unpackbits(bits, axis=1, count=images).astype(np.float32) - 0.5  # (block, images), ±½
        half = _sums(change, len(things), signs)  # (3, C, block)
        swapped = np.abs(_figures(middle + half, groups) - _figures(middle - half, groups))  # (3 + C, 3, block)
        hits += (~(swapped < real[..., None] - _TOLERANCE)).sum(axis=-1)
    return np.where(np.isnan(real), np.nan, (1 + hits) / (1 + swaps))


def adjust(p: FloatArray) -> FloatArray:
    """Adjust the p-values (N,) of many tests: of those below 5 %, at most 5 % are by chance. NaN stays NaN.

    Source: Benjamini and Hochberg, "Controlling the False Discovery Rate" (1995).
    """
    known = np.flatnonzero(~np.isnan(p))
    falling = known[np.argsort(-p[known], kind="stable")]
    rank = np.arange(len(falling), 0, -1)
    adjusted = np.full(p.shape, np.nan)
    adjusted[falling] = np.minimum.accumulate(np.minimum(p[falling] * len(falling) / rank, 1.0))
    return adjusted


def _check(evaluations: Sequence[ImageCounts], things: BoolArray, images: int, resamples: int) -> None:
    sizes = {"evaluation": len(evaluations), "image": images, "class": len(things), "resample": resamples}
    for name, size in sizes.items():
        if size < 1:
            raise PansightError(f"bootstrap: expected at least one {name}, found {size}")


def _minus(second: ImageCounts, first: ImageCounts) -> ImageCounts:
    """Counts whose sums are those of the second minus those of the first."""
    return ImageCounts(
        np.concatenate([second.image, first.image]),
        np.concatenate([second.category, first.category]),
        np.concatenate([second.tp, -first.tp]),
        np.concatenate([second.fp, -first.fp]),
        np.concatenate([second.fn, -first.fn]),
        np.concatenate([second.iou, -first.iou]),
    )


def _blocks(resamples: int, images: int) -> list[tuple[int, int]]:
    """(start, stop) of the resamples whose weights are in memory at a time."""
    size = max(1, min(1024, _WEIGHTS // images))
    return [(start, min(start + size, resamples)) for start in range(0, resamples, size)]


def _groups(things: BoolArray, dtype: type[np.floating[Any]]) -> FloatArray:
    """(3, C): 1 where a class belongs to All, Things, Stuff."""
    members: FloatArray = np.stack([np.ones_like(things), things, ~things]).astype(dtype)
    return members


def _columns(evaluation: ImageCounts) -> tuple[FloatArray, FloatArray, FloatArray]:
    """TP, TP + ½FP + ½FN, ΣIoU − 0.75 TP of every row, (N,) each."""
    weight = evaluation.tp + 0.5 * (evaluation.fp + evaluation.fn)
    return evaluation.tp, weight, evaluation.iou - _MIDDLE * evaluation.tp


def _totals(evaluation: ImageCounts, classes: int) -> FloatArray:
    """float64 (3, C): `_columns` summed over all images."""
    sums = [np.bincount(evaluation.category, column, classes) for column in _columns(evaluation)]
    return np.stack(sums).astype(np.float64)  # integers where there is no row at all


def _sums(evaluation: ImageCounts, classes: int, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (3, C, R): `_columns` summed over the images, each counted as often as the (R, images) weights say."""
    resamples, images = weights.shape
    total = np.zeros((resamples, 3 * classes), np.float32)
    columns = _columns(evaluation)
    for start in range(0, images, _SLAB):
        length = min(_SLAB, images - start)
        inside = (evaluation.image >= start) & (evaluation.image < start + length)
        cell = evaluation.category[inside] * length + evaluation.image[inside] - start
        dense = [np.bincount(cell, column[inside], classes * length) for column in columns]
        slab = np.concatenate(dense).astype(np.float32).reshape(3 * classes, length)  # (3 · C, length)
        total += weights[:, start : start + length] @ slab.T
    return np.ascontiguousarray(total.T).reshape(3, classes, resamples)  # (R, 3 · C) → (3, C, R)


def _figures(sums: FloatArray, groups: FloatArray) -> FloatArray:
    """(3, C, ...) sums of `_columns` and (3, C) groups → (3 + C, 3, ...) figures, in the type of the sums."""
    tp, weight, rest = sums
    present = weight > 0
    iou = rest + _MIDDLE * tp
    divisor = np.where(present, weight, 1)
    scores = np.stack([iou / divisor, iou / np.maximum(tp, 1), tp / divisor])  # (3, C, ...), 0 where absent
    size = groups @ present.astype(groups.dtype)  # (3, ...), classes that occur in each group
    means = np.stack([groups @ score for score in scores]) / np.where(size > 0, size, np.nan)  # (3, 3, ...)
    scores[:, ~present] = np.nan
    return np.concatenate([means, scores], axis=1).swapaxes(0, 1)  # (3 scores, 3 + C, ...) → (3 + C, 3, ...)


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
