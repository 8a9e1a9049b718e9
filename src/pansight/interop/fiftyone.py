"""A prediction as the labels of FiftyOne."""

from __future__ import annotations

from typing import Any

import numpy as np

from pansight.interop.pieces import pieces, required, size_of
from pansight.types import LabelSpace, Prediction


def _package() -> Any:
    import fiftyone  # pyright: ignore[reportMissingImports]

    return fiftyone


def to_fiftyone(
    prediction: Prediction, labels: LabelSpace, size: tuple[int, int] | None = None, score: float = 0.5
) -> dict[str, Any]:
    """{"things": ``fiftyone.Detections``, "stuff": ``fiftyone.Segmentation``}, of them what the model gives.

    Things have their class, score, box in shares of the photo, and mask within the box. Each pixel of the segmentation
    is 1 + the index of its class, 0 for things and void; `mask_targets` names the numbers. size: (H, W) of the photo,
    for a model of boxes alone.
    Raises PansightError where the package is missing.
    """
    package = required(_package, "fiftyone", "fiftyone")
    height, width = size or size_of(prediction)
    found = pieces(prediction, labels, score)
    things = [
        package.Detection(
            label=piece.category.name,
            bounding_box=_relative(piece.box_xyxy, height, width),
            mask=piece.mask,
            confidence=piece.score,
        )
        for piece in found
        if piece.category.is_thing
    ]
    wanted = {"things": package.Detections(detections=things)}
    if prediction.panoptic is None and prediction.semantic is None:
        return wanted
    mask = np.zeros((height, width), np.uint8 if len(labels) < 256 else np.uint16)
    for piece in found:
        if not piece.category.is_thing:
            mask[piece.whole_mask((height, width))] = 1 + piece.category.id
    return wanted | {"stuff": package.Segmentation(mask=mask)}


def mask_targets(labels: LabelSpace) -> dict[int, str]:
    """For ``dataset.default_mask_targets``: the names of the numbers of the segmentation."""
    return {1 + category.id: category.name for category in labels if not category.is_thing}


def _relative(box_xyxy: tuple[float, float, float, float], height: int, width: int) -> list[float]:
    x1, y1, x2, y2 = box_xyxy
    return [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
