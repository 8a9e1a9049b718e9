"""Predictions by hand, which the tests of conversions turn into other formats."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pansight.engine.predict import Predictor
from pansight.interop.photo import PhotoPrediction
from pansight.models import MODELS, build
from pansight.types import Category, Instances, LabelSpace, PanopticSegmentation, Segment

LABELS = LabelSpace(
    [
        Category(0, "cat", True, (200, 30, 30), 17),
        Category(1, "sky <blue>", False, (30, 30, 200), 40),
        Category(2, "dog", True, (30, 200, 30), 18),
    ]
)
"""Ids of the data set that are not the indices."""


def photo(height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def ids() -> Tensor:
    """12×16: a cat with a hole in two parts, a dog, sky, and a void corner."""
    made = torch.full((12, 16), 3, dtype=torch.int32)
    made[1:6, 1:6] = 1
    made[3:5, 2:4] = 3
    made[7, 7] = 1
    made[6:11, 9:14] = 2
    made[0, 15] = 0
    return made


def panoptic() -> PhotoPrediction:
    segments = (Segment(1, 0, 0.9), Segment(2, 2, 0.6), Segment(3, 1, 0.8))
    return PhotoPrediction(PanopticSegmentation(ids(), segments), photo=photo(), labels=LABELS)


def semantic() -> PhotoPrediction:
    table = torch.tensor([-1, 0, 2, 1])
    return PhotoPrediction(semantic=table[ids().long()], photo=photo(), labels=LABELS)


def objects(masks: bool = True) -> PhotoPrediction:
    """A cat and a dog that overlap, and a cat that is not sure."""
    boxes = torch.tensor([[1.0, 1, 6, 6], [4.0, 4, 12, 11], [0.0, 0, 3, 3]])
    made = torch.zeros(3, 12, 16, dtype=torch.bool)
    for mask, box in zip(made, boxes.int().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = True
    scores = torch.tensor([0.9, 0.7, 0.2])
    found = Instances(boxes, torch.tensor([0, 2, 0]), scores, made if masks else None)
    return PhotoPrediction(instances=found, photo=photo(), labels=LABELS)


def nothing() -> PhotoPrediction:
    empty = PanopticSegmentation(torch.zeros(12, 16, dtype=torch.int32), ())
    return PhotoPrediction(empty, photo=photo(), labels=LABELS)


SPACE = LabelSpace.from_names(["cat", "dog"], ["sky"])


def predictor(name: str = "panoptic_deeplab", **given: str) -> Predictor:
    """An untrained network whose heat is high everywhere, so that it finds things."""
    torch.manual_seed(1)
    options = MODELS[name].tiny | given
    model = build(name, SPACE, **options)
    if name == "panoptic_deeplab":
        model.rule = model.rule._replace(threshold=-1.0, min_stuff_area=0, centres=8)
    return Predictor(model, name, options, "cpu")


def image(side: int = 64) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (side, side, 3), np.uint8)
