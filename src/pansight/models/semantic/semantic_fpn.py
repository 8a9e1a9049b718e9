"""Semantic FPN. Kirillov, Girshick, He, Dollár: Panoptic Feature Pyramid Networks, CVPR 2019, sections 3 and 5.1.

The semantic branch of Panoptic FPN as a network of its own: a feature pyramid, whose levels are brought to stride 4 and
summed, and a classifier. It has no dilated convolutions, so it needs less memory than networks that keep a large map
through the last stages of the backbone.

Cityscapes val mIoU (paper): R101-FPN 77.7, ResNeXt101-FPN 79.1. The paper crops 512 × 1024 pixels and trains on things
and stuff alike, as here; GroupNorm has two channels or more in a group, which the paper leaves open. The branch is that
of detectron2 (32 groups at 128 channels). See docs/systems/semantic_fpn.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pansight.models.contract import Entry, every_class
from pansight.models.options import PYRAMID_OPTIONS, RCNN_OPTIONS, SEMANTIC_OPTIONS, Option, whole
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.fpn import FPN
from pansight.nn.input import Input
from pansight.nn.semantic.criterion import Criterion, criterion_of
from pansight.nn.semantic.fpn_head import SemanticFPNHead
from pansight.nn.semantic.segmenter import Segmenter, SemanticOutputs
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace


class SemanticFPN(Segmenter):
    """Backbone, pyramid P2 … P5 (`fpn`), and the branch that sums its levels and classifies (`semantic_head`)."""

    def __init__(
        self,
        backbone: Backbone,
        fpn: FPN,
        semantic_head: SemanticFPNHead,
        labels: LabelSpace,
        input: Input,
        criterion: Criterion,
    ):
        super().__init__(labels, input, criterion)
        self.backbone = backbone
        self.fpn = fpn
        self.semantic_head = semantic_head

    def forward(self, images: Tensor, valid: Tensor | None = None) -> SemanticOutputs:
        """images uint8 (B, 3, H, W), sides multiples of 32; valid bool (B, H, W), False on padding.

        → logits (B, C, H/4, W/4).
        """
        logits = self.semantic_head(self.fpn(self.backbone(self.input(images, valid))))
        return self.outputs(images, valid, logits)


def semantic_fpn(
    labels: LabelSpace,
    backbone: str = "resnet50",
    pretrained: str = "none",
    short: int = 512,
    long: int = 2048,
    fpn_channels: int = 256,
    width: int = 128,
    loss: str = "cross_entropy",
    class_weights: Sequence[float] = (),
    border_weight: float = 0.0,
    border_sigma: float = 5.0,
    frozen_bn: bool = False,
    freeze_stages: int = 0,
) -> SemanticFPN:
    """Semantic FPN on any timm backbone. short, long: the resizing rule in pixels (short 0: keep the size)."""
    net = timm_backbone(backbone, pretrained, frozen_bn=frozen_bn, freeze_stages=freeze_stages)
    groups = max(1, math.gcd(64, width) // 2)  # 32; two channels in each, since P5 may be a single cell
    head = SemanticFPNHead(fpn_channels, net.strides, len(labels), width, groups)
    criterion = criterion_of(labels, loss, class_weights, border_weight, border_sigma)
    fpn = FPN(net.channels, fpn_channels, extra=None)
    return SemanticFPN(net, fpn, head, labels, Input(ResizeRule(short, long), net.pixels), criterion)


OPTIONS: dict[str, Option] = {
    **PYRAMID_OPTIONS,
    **SEMANTIC_OPTIONS,
    "fpn_channels": RCNN_OPTIONS["fpn_channels"],
    "width": whole("width of the branch that labels the pixels", 1, 4096),
}
TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "fpn_channels": 16, "width": 16}
TINY |= {"frozen_bn": True}
SMALL: dict[str, Any] = {"fpn_channels": 96, "width": 64}

ENTRIES: dict[str, Entry] = {
    "semantic_fpn": Entry(
        semantic_fpn,
        architecture="semantic_fpn",
        produces=("semantic",),
        options=OPTIONS,
        backbone="pyramid",
        adapts=("pretrained", "frozen_bn", "short"),
        class_rows={"semantic_head.predictor": every_class},
        small=SMALL,
        tiny=TINY,
    )
}
