"""COCO's formats: an annotation of a panoptic map with its PNG, and results of objects."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.data.formats.coco_panoptic import segment_rows
from pansight.data.formats.results import coco_results
from pansight.errors import PansightError
from pansight.ops.idmap import ids_to_rgb
from pansight.ops.maps.regions import surer_than
from pansight.types import LabelSpace, Prediction


def to_coco_panoptic(
    prediction: Prediction, labels: LabelSpace, image_id: str | int = 0, file_name: str = "0.png"
) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """(the entry of "annotations", the colours of its PNG: uint8 (H, W, 3), id = R + 256·G + 256²·B).

    Raises PansightError for a model without panoptic maps.
    """
    if prediction.panoptic is None:
        raise PansightError(where="to_coco_panoptic", expected="a panoptic map", found="none")
    ids = prediction.panoptic.ids.cpu().numpy()
    rows = segment_rows(prediction.panoptic, ids, labels)
    return {"image_id": image_id, "file_name": file_name, "segments_info": rows}, ids_to_rgb(ids)


def to_coco_results(
    prediction: Prediction, labels: LabelSpace, image_id: str | int = 0, score: float = 0.0
) -> list[dict[str, Any]]:
    """A row for each object of at least `score`: image_id, category_id, bbox, score, segmentation as run lengths.

    Raises PansightError for a model that finds no objects.
    """
    if prediction.instances is None:
        raise PansightError(where="to_coco_results", expected="objects", found="none")
    return coco_results(image_id, surer_than(prediction.instances, score), labels)
