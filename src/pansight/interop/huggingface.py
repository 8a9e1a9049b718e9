"""What the pipelines and image processors of transformers return."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from pansight.errors import PansightError
from pansight.interop.pieces import pieces, size_of
from pansight.types import LabelSpace, Prediction


def to_pipeline(prediction: Prediction, labels: LabelSpace, score: float = 0.5) -> list[dict[str, Any]]:
    """As ``pipeline("image-segmentation")`` returns it: score, label and mask, a PIL image of 0 and 255, of each piece.

    The score of a region of a semantic map is None, as there.
    """
    is_semantic = prediction.panoptic is None and prediction.instances is None
    size = size_of(prediction)
    return [
        {
            "score": None if is_semantic else piece.score,
            "label": piece.category.name,
            "mask": Image.fromarray(piece.whole_mask(size).astype(np.uint8) * 255),
        }
        for piece in pieces(prediction, labels, score)
    ]


def to_processed(prediction: Prediction, labels: LabelSpace) -> dict[str, Any]:
    """As ``post_process_panoptic_segmentation`` returns it for an image: {"segmentation", "segments_info"}.

    segmentation: int32 (H, W), ids from 1, 0 where there is none. segments_info: id, label_id, was_fused (true of
    stuff, which has one segment a class) and score of each. Raises PansightError for a model without panoptic maps.
    """
    if prediction.panoptic is None:
        raise PansightError(where="to_processed", expected="a panoptic map", found="none")
    rows = [
        {
            "id": segment.id,
            "label_id": segment.category,
            "was_fused": not labels[segment.category].is_thing,
            "score": segment.score,
        }
        for segment in prediction.panoptic.segments
    ]
    return {"segmentation": prediction.panoptic.ids, "segments_info": rows}
