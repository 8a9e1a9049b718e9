"""Callbacks for supervision.

import supervision as sv
from pansight.integrations.supervision import slicer_callback

slicer = sv.InferenceSlicer(slicer_callback("runs/demo"), slice_wh=640, overlap_wh=100)
detections = slicer(image)  # RGB
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.engine.predict import Predictor, load
from pansight.integrations.asking import predict_above


def slicer_callback(
    weights: str | Predictor, score: float = 0.5, bgr: bool = False
) -> Callable[[NDArray[np.uint8]], Any]:
    """From a tile uint8 (H, W, 3) to the ``supervision.Detections`` of its things.

    weights: what `pansight.load` takes, or a Predictor. bgr: tiles are BGR, as OpenCV reads them.
    """
    predictor = weights if isinstance(weights, Predictor) else load(weights)

    def detect(tile: NDArray[np.uint8]) -> Any:
        rgb = tile[:, :, ::-1] if bgr else tile
        return predict_above(predictor, np.ascontiguousarray(rgb), score).to_supervision(score)

    return detect
