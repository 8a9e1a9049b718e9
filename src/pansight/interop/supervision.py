"""A prediction as the detections of supervision."""

from __future__ import annotations

from typing import Any

import numpy as np

from pansight.interop.pieces import pieces, required, size_of
from pansight.types import LabelSpace, Prediction


def _package() -> Any:
    import supervision

    return supervision


def to_supervision(prediction: Prediction, labels: LabelSpace, score: float = 0.5, stuff: bool = False) -> Any:
    """``supervision.Detections`` of the things, with `stuff` of all segments: boxes, masks, scores, classes, names.

    class_id: the index in the label space. Boxes are those of the masks, where there are any.
    Raises PansightError where the package is missing.
    """
    package = required(_package, "supervision", "interop")
    found = pieces(prediction, labels, score, stuff)
    if not found:
        return package.Detections.empty()
    has_masks = all(piece.mask is not None for piece in found)
    return package.Detections(
        xyxy=np.array([piece.box_xyxy for piece in found], np.float32),
        mask=np.stack([piece.whole_mask(size_of(prediction)) for piece in found]) if has_masks else None,
        confidence=np.array([piece.score for piece in found], np.float32),
        class_id=np.array([piece.category.id for piece in found]),
        data={"class_name": np.array([piece.category.name for piece in found])},
    )
