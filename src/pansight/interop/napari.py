"""A prediction as a layer of napari."""

from __future__ import annotations

from typing import Any

from pansight.errors import PansightError
from pansight.types import LabelSpace, Prediction


def to_napari(prediction: Prediction, labels: LabelSpace, name: str = "pansight") -> tuple[Any, dict[str, Any], str]:
    """A layer as data, options and kind: ``viewer.add_layer(napari.layers.Layer.create(*layer))``.

    data: the ids int32 (H, W). features: for each id its class, score and whether it is a thing, shown on hovering.
    Raises PansightError for a model without panoptic maps.
    """
    if prediction.panoptic is None:
        raise PansightError(where="to_napari", expected="a panoptic map", found="none")
    segments = prediction.panoptic.segments
    features = {
        "index": [0, *(segment.id for segment in segments)],
        "class": ["void", *(labels[segment.category].name for segment in segments)],
        "score": [float("nan"), *(segment.score for segment in segments)],
        "is_thing": [False, *(labels[segment.category].is_thing for segment in segments)],
    }
    return prediction.panoptic.ids.cpu().numpy(), {"name": name, "features": features}, "labels"
