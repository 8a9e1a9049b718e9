"""Every semantic network memorises eight generated images: forward, loss, decode and the metric agree.

On one core each takes 10 to 90 seconds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from test_overfit import train
from torch import Tensor

from pansight.data.formats.shapes import Shapes
from pansight.engine.infer import Inference, infer, prepare
from pansight.metrics.semantic_iou import SemanticIoU
from pansight.models import build
from pansight.types import LabelSpace, PanopticSegmentation, Sample

SMALL: dict[str, Any] = {"backbone": "lcnet_050", "short": 0, "long": 0}
PACKAGED: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "pretrained": "packaged", "short": 0, "long": 0}
OPTIONS: dict[str, dict[str, Any]] = {
    "deeplabv3": SMALL | {"output_stride": 8, "dropout": 0.0, "width": 64},
    "fcn": SMALL | {"output_stride": 8, "dropout": 0.0, "aux_weight": 0.0},
    "fcn_vgg16": {"width": 8, "hidden": 32, "dropout": 0.0, "learn_upsampling": True},
    "pspnet": SMALL | {"width": 64},
    "segnet": {"width": 8, "class_weights": (2.0, 2.0, 2.0, 0.5)},
    "semantic_fpn": PACKAGED | {"fpn_channels": 64, "width": 64},
}


class Schedule(NamedTuple):
    """side of the images, how much each pixel is enlarged, steps, peak rate."""

    side: int
    enlarged: int
    steps: int
    peak: float


SCHEDULES: dict[str, Schedule] = {
    # logits of stride 8 without a finer map: outlines lie on their grid, for nothing finer can be told
    "deeplabv3": Schedule(16, 8, 120, 5e-3),
    "fcn": Schedule(128, 1, 100, 5e-3),  # a coarse map cannot be exact along the outlines of small objects
    "fcn_vgg16": Schedule(48, 1, 150, 3e-3),
    "pspnet": Schedule(16, 8, 180, 5e-3),
    "segnet": Schedule(32, 1, 200, 2e-2),
    "semantic_fpn": Schedule(128, 1, 120, 2e-3),
}


class Enlarged:
    """A data set of which every pixel becomes a square of pixels."""

    def __init__(self, dataset: Shapes, factor: int):
        self.dataset, self.factor = dataset, factor
        self.labels: LabelSpace = dataset.labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        truth = PanopticSegmentation(self.enlarge(sample.truth.ids), sample.truth.segments)
        size = sample.size[0] * self.factor, sample.size[1] * self.factor
        return replace(sample, image=self.enlarge(sample.image), truth=truth, size=size)

    def enlarge(self, maps: Tensor) -> Tensor:
        return maps.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "segnet" else (pytest.mark.long,)) for name in OPTIONS]
)
def test_eight_images_are_memorised(name: str) -> None:
    torch.manual_seed(0)
    side, factor, steps, peak = SCHEDULES[name]
    dataset = Enlarged(Shapes(8, side, side, seed=0), factor)
    model = build(name, dataset.labels, **OPTIONS[name])
    train(model, dataset, steps, peak, images=8)
    metric, settings = SemanticIoU(dataset.labels), Inference(torch.device("cpu"), batch_size=4)
    samples = [dataset[index] for index in range(len(dataset))]
    predictions = infer(prepare(model, settings), [sample.image for sample in samples], settings)
    for prediction, sample in zip(predictions, samples, strict=True):
        metric.update(prediction, sample)
    assert metric.compute()["miou"] >= 0.95
