"""What a prediction is answered as: of a model without panoptic maps its objects or classes, as regions."""

from __future__ import annotations

import base64
import json
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pansight.apps.serving.http.problems import refusal
from pansight.apps.serving.http.schemas import PanopticAnswer, SegmentationParameters
from pansight.errors import PansightError
from pansight.interop.photo import PhotoPrediction
from pansight.models import decode_options, entry
from pansight.ops.maps.regions import class_regions, object_regions
from pansight.types import LabelSpace, PanopticSegmentation, Prediction

PNG_LEVEL = 1
"""Of deflate; at 3 an id map takes twice the time for a tenth less."""


def regions_of(prediction: Prediction, size: tuple[int, int], score: float) -> PanopticSegmentation:
    """One map of size (H, W): the panoptic one, else objects of at least `score`, smaller ones on top, else classes."""
    if prediction.panoptic is not None:
        return prediction.panoptic
    if prediction.instances is not None:
        return object_regions(prediction.instances, size, score)
    assert prediction.semantic is not None  # one of the three is there
    return class_regions(prediction.semantic)


def as_panoptic(prediction: Prediction, photo: NDArray[np.uint8], labels: LabelSpace, score: float) -> PhotoPrediction:
    """The prediction with `regions_of` as its only part."""
    regions = regions_of(prediction, (photo.shape[0], photo.shape[1]), score)
    return PhotoPrediction(panoptic=regions, photo=photo, labels=labels)


def coco_answer(found: PhotoPrediction, model: str) -> PanopticAnswer:
    """found: with a panoptic map."""
    annotation, colors = found.to_coco_panoptic(1, "image.png")
    height, width = colors.shape[:2]
    return PanopticAnswer.model_validate(
        {
            "model": model,
            "images": [{"id": 1, "file_name": "image.png", "width": width, "height": height}],
            "annotations": [annotation],
            "categories": found.labels.to_json(),
            "png": base64.b64encode(png(colors)).decode(),
        }
    )


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Grey (H, W) or RGB (H, W, 3)."""
    # a copy where a side is 1: NumPy calls it contiguous whatever its strides, the encoder does not
    whole = pixels.copy() if 1 in pixels.shape else np.ascontiguousarray(pixels)
    return bytes(imagecodecs.png_encode(whole, level=PNG_LEVEL))


def geojson(found: PhotoPrediction) -> bytes:
    """found: with a panoptic map. Polygons in pixels."""
    return json.dumps(found.to_geojson(), allow_nan=False).encode()


TASK_OF = {"panoptic": "panoptic", "instance": "instances", "semantic": "semantic"}
"""Subtask → the part of a Prediction."""


def hugging_face_options(name: str, given: SegmentationParameters) -> dict[str, Any]:
    """The decode options of the model `name` for the parameters of the task.

    Raises `Refusal` for one that the model has no such threshold for. `threshold` alone holds for every model: where
    its decode has none, what is below it is left out of the answer.
    """
    known = decode_options(name)
    options: dict[str, Any] = {}
    if given.subtask is not None:
        part = TASK_OF[given.subtask]
        if part not in entry(name).produces or ("task" in known and given.subtask not in known["task"].choices):
            made = ", ".join(entry(name).produces)
            raise refusal(422, "subtask", f"one that this model can do ({made})", given.subtask)
        if "task" in known:
            options["task"] = given.subtask
    if given.threshold is not None and "score_threshold" in known:
        options["score_threshold"] = given.threshold
    for parameter, option in (("mask_threshold", "mask_threshold"), ("overlap_mask_area_threshold", "overlap")):
        value = getattr(given, parameter)
        if value is None:
            continue
        if option not in known:
            raise refusal(422, parameter, f"a model with the option {option}", f"{name}, which has none")
        options[option] = value
    return options


def hugging_face_part(found: Prediction, subtask: str | None) -> Prediction:
    """The part that the subtask asks for; the panoptic map, else objects, else classes, where it says nothing."""
    parts = {"panoptic": found.panoptic, "instances": found.instances, "semantic": found.semantic}
    if subtask is None:
        return found
    part = TASK_OF[subtask]
    if parts[part] is None:
        raise PansightError(where="subtask", expected="one that this model can do", found=subtask)
    return Prediction(**{part: parts[part]})


def labelled_masks(found: PhotoPrediction, threshold: float | None) -> list[dict[str, Any]]:
    """The answer of the task image-segmentation. threshold: of segments, where they have a score; None: 0.5 of objects
    alone, as everywhere.
    """
    try:
        pieces = found.to_pipeline(0.5 if threshold is None else threshold)
    except PansightError as error:  # boxes alone
        raise refusal(422, "model", "one that makes masks", error.found or error.what) from error
    rows: list[dict[str, Any]] = []
    for piece in pieces:
        score = piece["score"]
        if threshold is not None and score is not None and score < threshold:
            continue
        mask = png(np.asarray(piece["mask"], np.uint8))
        rows.append({"label": piece["label"], "score": score, "mask": base64.b64encode(mask).decode()})
    return rows
