"""Drawn scenes for the tests of huge images, and predictors that read the answer from the colours of the pixels.

What these say of a tile is exact, so that the stitched map must be that of the whole image to the last pixel.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from pansight.engine.predict import PhotoPrediction, Predictor
from pansight.models import build
from pansight.ops.fusion.components import connected_components, objects_of
from pansight.types import LabelSpace

LABELS = LabelSpace.from_names(["cell", "fibre"], ["tissue", "glass"])
COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [90, 90, 90]], np.uint8)
"""Of the classes of LABELS."""
TINY = {"backbone": "resnet10t", "short": 0, "long": 0, "decoder_channels": (8, 8, 8, 8, 8), "pretrained": "none"}


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """RGB uint8 (H, W, 3): round cells that do not touch, one fibre through the whole image, tissue beside glass."""
    rng = np.random.default_rng(seed)
    classes = np.full((height, width), 3, np.uint8)
    classes[:, : width // 2] = 2
    for y in range(12, height - 12, 26):
        for x in range(12, width - 12, 26):
            centre = int(x + rng.integers(-2, 3)), int(y + rng.integers(-2, 3))
            cv2.ellipse(classes, centre, (int(rng.integers(4, 10)), int(rng.integers(4, 10))), 0, 0, 360, 0, -1)
    row = height // 2
    classes[row - 15 : row + 15] = np.where(classes[row - 15 : row + 15] == 0, 2, classes[row - 15 : row + 15])
    classes[row - 3 : row + 3] = 1
    return COLOURS[classes]


def classes_of(photo: np.ndarray) -> Tensor:
    """int64 (h, w): the class whose colour is nearest."""
    apart = np.abs(photo[..., None, :].astype(int) - COLOURS).sum(3)  # (h, w, C)
    return torch.from_numpy(apart.argmin(2))


@cache
def _network() -> Any:
    """Its weights say nothing, but are compared where a prediction is resumed."""
    torch.manual_seed(0)
    return build("unet", LABELS, **TINY)


class Oracle(Predictor):
    """Says of a photo what its colours are. kind: "panoptic", "semantic" or "instances".

    stop_at: the call of `predict` at which `accident` is raised, counted from 1 and without the one of the least tile.
    """

    def __init__(self, kind: str = "panoptic", stop_at: int = 0, accident: BaseException | None = None):
        super().__init__(_network(), "unet", TINY, "cpu")
        self.kind, self.stop_at, self.accident, self.calls = kind, stop_at, accident, -1

    def predict(self, image: Any, proposals: Tensor | None = None, **options: Any) -> PhotoPrediction:
        self._count()
        classes = classes_of(image)
        panoptic = connected_components(classes, LABELS)
        return PhotoPrediction(
            panoptic if self.kind == "panoptic" else None,
            classes if self.kind == "semantic" else None,
            objects_of(panoptic, LABELS) if self.kind == "instances" else None,
            photo=image,
            labels=LABELS,
        )

    def class_scores(self, images: Any) -> list[Tensor]:
        self._count()
        return [torch.nn.functional.one_hot(classes_of(i), len(LABELS)).permute(2, 0, 1).float() for i in images]

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.stop_at and self.accident is not None:
            raise self.accident


def full_disk() -> OSError:
    return OSError(28, os.strerror(28))


def write_tiff(path: Path, image: np.ndarray, **options: Any) -> Path:
    """A tiled GeoTIFF of 0.5 m a pixel in UTM zone 33 N. image: (H, W) or (H, W, B)."""
    import rasterio
    from rasterio.transform import Affine

    bands = image[..., None] if image.ndim == 2 else image
    height, width, count = bands.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": bands.dtype, "tiled": True}
    profile |= {"blockxsize": 64, "blockysize": 64, "crs": "EPSG:32633"}
    profile |= {"transform": Affine(0.5, 0, 400000, 0, -0.5, 5800000)}
    with rasterio.open(path, "w", **(profile | options)) as file:
        file.write(np.ascontiguousarray(bands.transpose(2, 0, 1)))
    return path
