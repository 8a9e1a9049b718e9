"""Predictions of the same few validation images, drawn for the trackers after every evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pansight.config import Config
from pansight.data import Dataset
from pansight.data.transforms import resize_image
from pansight.drawing.prediction import draw_prediction
from pansight.engine.distributed import resolve_precision
from pansight.engine.infer import Inference, infer, prepare

LONGEST = 640
"""Pixels of the long side of a picture; larger ones are made smaller, because a tracker keeps every one of them."""


def predicted_pictures(model: Any, dataset: Dataset, config: Config, device: torch.device) -> list[Tensor]:
    """The predictions for the first ``train.tracker_images`` photos of `dataset` over them: uint8 (3, H, W) each."""
    samples = [dataset[index] for index in range(min(config.train.tracker_images, len(dataset)))]
    photos = [sample.image for sample in samples]
    settings = Inference.of(config.evaluate, device, resolve_precision(config.evaluate.precision, device))
    predictions = infer(prepare(model, settings), photos, settings, [sample.proposals for sample in samples])
    return [
        _small(draw_prediction(photo, found, dataset.labels)) for photo, found in zip(photos, predictions, strict=True)
    ]


def _small(photo: Tensor) -> Tensor:
    height, width = photo.shape[1:]
    factor = LONGEST / max(height, width)
    if factor >= 1:
        return photo
    return resize_image(photo, max(1, round(factor * height)), max(1, round(factor * width)), "pillow")
