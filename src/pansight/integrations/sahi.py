"""A detection model of SAHI, for its sliced prediction and everything built on it.

    from sahi.predict import get_sliced_prediction
    from pansight.integrations.sahi import PansightModel

    model = PansightModel(model_path="runs/demo", confidence_threshold=0.5)
    result = get_sliced_prediction("large.jpg", model, slice_height=512, slice_width=512)

Slices are joined by SAHI, object by object; stuff would be cut at each slice and is left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from sahi.models.base import DetectionModel
    from sahi.prediction import ObjectPrediction
    from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list
    from sahi.utils.cv import get_coco_segmentation_from_bool_mask
except ModuleNotFoundError as error:
    from pansight.errors import PansightError

    raise PansightError(
        where="pansight.integrations.sahi",
        expected="the package sahi",
        found="none",
        hint="install the extra pansight[interop]",
    ) from error

from pansight.engine.predict import Predictor, load
from pansight.integrations.asking import predict_above
from pansight.interop.photo import PhotoPrediction
from pansight.interop.pieces import Piece, pieces


class PansightModel(DetectionModel):
    """Any model of ours that finds things. model_path: what `pansight.load` takes; or `model`: a Predictor."""

    def load_model(self) -> None:
        """Called by the base class, where no model is given."""
        self.set_model(load(str(self.model_path), str(self.device)))

    def set_model(self, model: Predictor, **options: Any) -> None:
        """A model that is loaded already."""
        self.model = model
        things = [category for category in model.labels if category.is_thing]
        self.category_mapping = {str(category.id): category.name for category in things}

    @property
    def has_mask(self) -> bool:
        """Whether objects have masks."""
        found: list[PhotoPrediction] = self._original_predictions or []
        return any(each.panoptic is not None or _has_masks(each) for each in found)

    @property
    def num_categories(self) -> int:
        """Number of thing classes."""
        return len(self.category_mapping or {})

    @property
    def category_names(self) -> list[str]:
        """Names of the thing classes."""
        return list((self.category_mapping or {}).values())

    def perform_inference(self, image: NDArray[np.uint8]) -> None:
        """image: uint8 RGB (H, W, 3)."""
        assert isinstance(self.model, Predictor)
        self._original_predictions = [predict_above(self.model, np.ascontiguousarray(image), self.confidence_threshold)]

    def _create_object_prediction_list_from_original_predictions(
        self,
        shift_amount_list: Any = ((0, 0),),
        full_shape_list: Any = None,
    ) -> None:
        shifts = fix_shift_amount_list(list(shift_amount_list))
        shapes = fix_full_shape_list(full_shape_list) if full_shape_list is not None else None
        found: list[PhotoPrediction] = self._original_predictions
        self._object_prediction_list_per_image = [
            [
                self._object(piece, each, shifts[index], None if shapes is None else shapes[index])
                for piece in pieces(each, each.labels, self.confidence_threshold, stuff=False)
                if piece.score >= self.confidence_threshold
            ]
            for index, each in enumerate(found)
        ]

    def _object(self, piece: Piece, prediction: PhotoPrediction, shift: Any, shape: Any) -> ObjectPrediction:
        height, width = prediction.photo.shape[:2]
        outline = None
        if piece.mask is not None:
            outline = get_coco_segmentation_from_bool_mask(piece.whole_mask((height, width)))
        return ObjectPrediction(
            bbox=None if outline else list(piece.pixels((height, width))),
            category_id=piece.category.id,
            category_name=piece.category.name,
            segmentation=outline or None,
            score=piece.score,
            shift_amount=shift,
            full_shape=[height, width] if shape is None else shape,
        )


def _has_masks(prediction: PhotoPrediction) -> bool:
    return prediction.instances is not None and prediction.instances.masks is not None
