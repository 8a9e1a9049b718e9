"""The figures of an evaluation's record that can be resampled, and their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pansight.metrics.bootstrap import Figures, bootstrap
from pansight.metrics.bootstrap.detections import DetectionCounts, DetectionFigures
from pansight.metrics.bootstrap.pixels import PixelCounts, pixel_figures
from pansight.metrics.bootstrap.segments import ImageCounts, segment_figures
from pansight.metrics.bootstrap.sums import BoolArray
from pansight.ops.maps.overlap import IntArray


def with_intervals(record: Mapping[str, Any], resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The record of an evaluation with 95 % intervals of its figures under `intervals`: those of PQ at its head, those
    of mIoU in `semantic`, of AP in `instances`, for `box` and `mask`.

    record: with per_class, image_ids and counts of each, as the metrics compute them.
    """
    result = dict(record)
    if "counts" in record:
        result["intervals"] = record_intervals(record, resamples, seed)
    if "semantic" in record:
        part = record["semantic"]
        index, things = _classes(part)
        figures = pixel_figures(pixel_counts(part["counts"], index), things, part["convention"])
        result["semantic"] = part | {"intervals": _intervals(part, figures, resamples, seed)}
    if "instances" in record:
        part = record["instances"]
        index, _ = _classes(part)
        found: dict[str, Any] = {}
        for kind in ("box", "mask"):
            if kind in part and index:  # data without things has no figure to resample
                counts = detection_counts(part["counts"], kind, index)
                figures = DetectionFigures(counts, len(index), len(part["image_ids"]))
                found[kind] = _intervals(part, figures, resamples, seed)
        result["instances"] = part | {"intervals": found}
    return result


def record_intervals(record: Mapping[str, Any], resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """95 % intervals of PQ: All, Things, Stuff and per_class (by source id) → pq sq rq → [low, high], fractions; what
    has no figure is left out.
    """
    index, things = _classes(record)
    return _intervals(record, segment_figures(segment_counts(record["counts"], index), things), resamples, seed)


def segment_counts(table: Mapping[str, Any], index: Mapping[int, int]) -> ImageCounts:
    """`counts` of PanopticQuality. index: source id → class."""
    image, category = _places(table, index)
    return ImageCounts(image, category, *(np.array(table[key], np.float64) for key in ("tp", "fp", "fn", "iou")))


def pixel_counts(table: Mapping[str, Any], index: Mapping[int, int]) -> PixelCounts:
    """`counts` of SemanticIoU."""
    image, category = _places(table, index)
    return PixelCounts(image, category, *(np.array(table[key], np.float64) for key in ("hits", "truth", "predicted")))


def detection_counts(table: Mapping[str, Any], kind: str, index: Mapping[int, int]) -> DetectionCounts:
    """`counts` of AveragePrecision. kind: "box" or "mask"."""
    found, truth = table["found"], table["truth"]
    score, code = np.array(found["score"], np.float64), np.array(found[kind], np.int64)
    n = np.array(truth["n"], np.float64)
    return DetectionCounts(*_places(found, index), score, code, *_places(truth, index), n)


def _places(table: Mapping[str, Any], index: Mapping[int, int]) -> tuple[IntArray, IntArray]:
    return np.array(table["image"], np.int64), np.array([index[source] for source in table["category"]], np.int64)


def _classes(part: Mapping[str, Any]) -> tuple[dict[int, int], BoolArray]:
    """Source id → class, and which are things (objects have no others)."""
    index = {int(key): place for place, key in enumerate(part["per_class"])}
    return index, np.array([row.get("isthing", True) for row in part["per_class"].values()], bool)


def _intervals(part: Mapping[str, Any], figures: Figures, resamples: int, seed: int) -> dict[str, Any]:
    drawn = bootstrap([figures], len(part["image_ids"]), resamples, seed)
    rows: list[dict[str, list[float]]] = []
    for low, high in zip(drawn.low[0], drawn.high[0]):
        known = [column for column in range(len(figures.scores)) if not np.isnan(low[column])]
        rows.append({figures.scores[column]: [float(low[column]), float(high[column])] for column in known})
    groups = {name: row for name, row in zip(figures.groups, rows) if row}
    classes = zip(part["per_class"], rows[len(figures.groups) :])
    return groups | {"per_class": {key: row for key, row in classes if row}}
