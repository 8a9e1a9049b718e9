"""Every semantic network memorises eight generated images: forward, loss, decode and the metric agree.

On one core each takes 10 to 50 seconds.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_overfit import train

from pansight.data.formats.shapes import Shapes
from pansight.engine.infer import Inference, infer, prepare
from pansight.metrics.semantic_iou import SemanticIoU
from pansight.models import build

OPTIONS: dict[str, dict[str, Any]] = {
    "fcn": {"backbone": "lcnet_050", "short": 0, "long": 0, "output_stride": 8, "dropout": 0.0, "aux_weight": 0.0},
    "fcn_vgg16": {"width": 8, "hidden": 32, "dropout": 0.0, "learn_upsampling": True},
    "segnet": {"width": 8, "class_weights": (2.0, 2.0, 2.0, 0.5)},
    "semantic_fpn": {"backbone": "tf_efficientnet_lite0", "pretrained": "packaged", "short": 0, "long": 0}
    | {"fpn_channels": 64, "width": 64},
}
SCHEDULES: dict[str, tuple[int, int, float]] = {
    "fcn": (128, 100, 5e-3),  # a coarse map cannot be exact along the outlines of small objects
    "fcn_vgg16": (48, 150, 3e-3),
    "segnet": (32, 200, 2e-2),
    "semantic_fpn": (128, 120, 2e-3),
}
"""(side of the images, steps, peak rate)."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "segnet" else (pytest.mark.long,)) for name in OPTIONS]
)
def test_eight_images_are_memorised(name: str) -> None:
    torch.manual_seed(0)
    side, steps, peak = SCHEDULES[name]
    dataset = Shapes(8, side, side, seed=0)
    model = build(name, dataset.labels, **OPTIONS[name])
    train(model, dataset, steps, peak, images=8)
    metric, settings = SemanticIoU(dataset.labels), Inference(torch.device("cpu"), batch_size=4)
    samples = [dataset[index] for index in range(len(dataset))]
    predictions = infer(prepare(model, settings), [sample.image for sample in samples], settings)
    for prediction, sample in zip(predictions, samples, strict=True):
        metric.update(prediction, sample)
    assert metric.compute()["miou"] >= 0.95
