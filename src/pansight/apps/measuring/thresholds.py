"""The threshold of an evaluation in the terms of each model, and what a threshold took away where nothing is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pansight.config import EvaluateConfig
from pansight.data import Dataset
from pansight.engine.evaluate import predict_all
from pansight.engine.infer import known_decode_options
from pansight.errors import PansightError
from pansight.models import entry
from pansight.types import Prediction

SCORE = "score_threshold"
LOOKED_AT = 20
"""Images that are predicted once more to see what a threshold took away."""


def check_threshold(threshold: float | None) -> None:
    """Raises PansightError, before anything is loaded."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise PansightError(where="--threshold", expected="0 … 1", found=f"{threshold:g}")


def with_threshold(config: EvaluateConfig, threshold: float | None, model: Any, name: str) -> EvaluateConfig:
    """Settings with the threshold: an option of the model's decode, else the least score of its objects.

    Raises PansightError for a model that gives neither scored segments nor objects.
    """
    if threshold is None:
        return config
    if SCORE in known_decode_options(model):
        return replace(config, decode={**config.decode, SCORE: threshold})
    if "instances" not in entry(name).produces:
        raise PansightError(where="--threshold", expected="a model of segments or objects with scores", found=name)
    return replace(config, least_score=threshold)


def lost_to_threshold(
    record: Mapping[str, Any],
    model: Any,
    dataset: Dataset,
    config: EvaluateConfig,
    device: torch.device,
    images: int = LOOKED_AT,
) -> str | None:
    """One line on what the threshold took away where PQ, or that of things, is 0; None where nothing needs saying.

    images: so many are predicted once more for it.
    """
    groups = [record[name] for name in ("All", "Things") if record.get(name, {}).get("n")]
    if SCORE not in known_decode_options(model) or all(group["pq"] for group in groups):
        return None
    few = range(min(images, len(dataset), config.limit or len(dataset)))
    anything = replace(config, decode={**config.decode, SCORE: 0.0})
    scores = [
        score for prediction, _ in predict_all(model, dataset, few, anything, device) for score in _of(prediction)
    ]
    where = f"on {len(few)} image" + ("" if len(few) == 1 else "s")
    if not scores:
        return f"no segment is predicted {where}, whatever the threshold"
    threshold = config.decode.get(SCORE, _own_threshold(model))
    if threshold is None:
        return None
    kept = sum(score >= threshold for score in scores)
    line = f"{kept} of {len(scores)} predicted segments {where} pass the threshold of {threshold:g}"
    lower = next((t for t in _LOWER if t < threshold and 2 * sum(s >= t for s in scores) >= len(scores)), 0.0)
    would = sum(score >= lower for score in scores)
    return line + (f"; {would} would at {lower:g} (--threshold {lower:g})" if would > kept else "")


_LOWER = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)


def _of(prediction: Prediction) -> list[float]:
    """The scores of the objects, or of the segments where a model gives no objects beside them."""
    if prediction.instances is not None:
        return prediction.instances.scores.tolist()
    return [] if prediction.panoptic is None else [segment.score for segment in prediction.panoptic.segments]


def _own_threshold(model: Any) -> float | None:
    """The default of the model's own decode: an attribute of the model, or of its rules."""
    own = getattr(model, SCORE, None)
    rules = getattr(model, "rules", None)
    return own if own is not None else getattr(rules, "score", None)
