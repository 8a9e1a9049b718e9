"""An auto-annotation function of CVAT.

    cvat-cli task auto-annotate 7 --function-module pansight.integrations.cvat -p weights=str:runs/demo

Classes are matched by name with the labels of the task. Further parameters: `device=str:cuda`, `stuff=bool:false` for
things alone, `tolerance=float:1.5` of polygons.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pansight.engine.predict import load
from pansight.integrations.asking import predict_above
from pansight.interop.pieces import Piece, pieces, required
from pansight.interop.polygons import polygons


def _package() -> Any:
    import cvat_sdk.auto_annotation
    import cvat_sdk.masks

    return cvat_sdk


class Function:
    """What `create` returns: `spec`, the labels, and `detect`."""

    def __init__(self, weights: str, device: str | None = None, stuff: bool = True, tolerance: float = 1.0):
        """weights: what `pansight.load` takes. stuff: False annotates things alone. tolerance: how far a polygon may be
        from the edge of its pixels, in pixels; 0: not at all.
        """
        self._cvat = required(_package, "cvat-sdk", "interop")
        self._predictor = load(weights, device)
        self._stuff, self._tolerance = stuff, tolerance

    @property
    def spec(self) -> Any:
        """The classes as labels of masks."""
        make = self._cvat.auto_annotation
        chosen = [category for category in self._predictor.labels if self._stuff or category.is_thing]
        return make.DetectionFunctionSpec(
            labels=[make.label_spec(category.name, category.id, type="mask") for category in chosen]
        )

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Masks, or polygons where the context asks for them, of at least its confidence."""
        prediction = predict_above(self._predictor, image, context.conf_threshold)
        least = 0.5 if context.conf_threshold is None else context.conf_threshold
        found = pieces(prediction, prediction.labels, least, self._stuff)
        make = self._cvat.auto_annotation
        shapes: list[Any] = []
        for piece in found:
            if context.conf_threshold is not None and piece.score < context.conf_threshold:
                continue
            if context.conv_mask_to_poly:
                shapes += [make.polygon(piece.category.id, points) for points in self._polygons(piece, prediction)]
            else:
                size = prediction.photo.shape[0], prediction.photo.shape[1]
                mask = self._cvat.masks.encode_mask(piece.whole_mask(size), list(piece.pixels(size)))
                shapes.append(make.mask(piece.category.id, mask))
        return shapes

    def _polygons(self, piece: Piece, prediction: Any) -> Iterator[list[float]]:
        """x, y, x, y … of each part; CVAT's polygons have no holes."""
        whole = piece.whole_mask((prediction.photo.shape[0], prediction.photo.shape[1]))
        for part in polygons(whole):
            points = part.exterior.astype(np.int32)
            if self._tolerance:
                simpler = cv2.approxPolyDP(points[:, None], self._tolerance, True)[:, 0]
                points = simpler if len(simpler) >= 3 else points
            yield points.ravel().astype(float).tolist()


def create(
    weights: str = "", device: str | None = None, stuff: bool = True, tolerance: float = 1.0, **unknown: Any
) -> Function:
    """The function for a model; parameters as of `Function`. Raises PansightError for others, and without weights."""
    from pansight.errors import PansightError, choice_error

    if unknown:
        raise choice_error("parameter of pansight.integrations.cvat", next(iter(unknown)), _PARAMETERS)
    if not weights:
        raise PansightError(where="pansight.integrations.cvat", expected="-p weights=str:RUN", found="none")
    return Function(weights, device, stuff, tolerance)


_PARAMETERS = ("weights", "device", "stuff", "tolerance")
