"""The metrics: each is updated image by image, computes a plain dict, and merges with one of its kind from another
process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pansight.errors import PansightError, choice_error
from pansight.metrics.average_precision import AveragePrecision
from pansight.metrics.panoptic.quality import PanopticQuality
from pansight.metrics.semantic_iou import SemanticIoU
from pansight.types import LabelSpace, Prediction, Sample

__all__ = [
    "METRICS",
    "AveragePrecision",
    "Metric",
    "PanopticQuality",
    "SemanticIoU",
    "create_metrics",
    "evaluation_record",
]


class Metric(Protocol):
    """What every metric can do; `merge(other)` takes a metric of its own kind."""

    labels: LabelSpace

    def update(self, prediction: Prediction, truth: Sample) -> object: ...
    def compute(self) -> dict[str, Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


METRICS: dict[str, Callable[..., Any]] = {
    "panoptic": PanopticQuality,
    "semantic": SemanticIoU,
    "instances": AveragePrecision,
}
"""Name → class; each is built from a LabelSpace. A metric ignores what its kind of figure cannot be told from."""


def create_metrics(labels: LabelSpace, max_detections: int = 100, convention: str = "cityscapes") -> dict[str, Any]:
    """One fresh metric of each kind, by the names of METRICS."""
    return {
        "panoptic": PanopticQuality(labels),
        "semantic": SemanticIoU(labels, convention),
        "instances": AveragePrecision(labels, max_detections),
    }


def evaluation_record(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """The content of evaluation.json (but for `seconds`) from metrics by the names of METRICS.

    Keys All, Things, Stuff, per_class, images of PanopticQuality; `semantic`; `instances`. What the model does not
    predict is left out. Every value is JSON-able; None stands for a figure that does not exist (no such object).
    Raises PansightError for an unknown name, or where nothing at all could be measured.
    """
    record: dict[str, Any] = {}
    for name, metric in metrics.items():
        if name not in METRICS:
            raise choice_error("metric", name, METRICS)
        figures = metric.compute()
        if name == "panoptic":
            record |= figures
        elif figures:
            record[name] = figures
    if not record:
        raise PansightError(where="evaluation", expected="at least one image with a prediction", found="none")
    return record
