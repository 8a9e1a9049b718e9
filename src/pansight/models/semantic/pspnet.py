"""PSPNet. Zhao, Shi, Qi, Wang, Jia: Pyramid Scene Parsing Network, CVPR 2017.

A dilated ResNet (stride 8), means over grids of 1, 2, 3 and 6 cells behind its last map, one 3×3 convolution and a
classifier. While it trains, a second classifier on the stage before is trained too, with weight 0.4.

ADE20K val mIoU (semseg, one scale / several): R50 41.89 / 42.84, R101 43.10 / 44.15. Cityscapes val: 77.30 / 78.38,
78.63 / 79.29. VOC 2012 val: 77.05 / 78.02, 79.07 / 79.63. Test: windows of the training crop, two thirds of it apart
(`--evaluate.window 473`), mirrored and at scales 0.5 … 1.75.
`pspnet_r50_semseg` and `pspnet_r101_semseg` differ in nothing from github.com/hszhao/semseg (MIT), whose ResNet has
three convolutions in its stem; `pspnet_smp` is that of segmentation_models_pytorch, which reads the map of stride 8
and has no dilation. See docs/systems/pspnet.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pansight.models.contract import Entry, every_class
from pansight.models.options import PYRAMID_OPTIONS, SEMANTIC_OPTIONS, Option, choice, whole
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.input import IMAGENET_RGB, Input
from pansight.nn.semantic.blocks import (
    PyramidPooling,
    auxiliary_head,
    class_head,
    conv_norm,
    dilate_every_block,
    dilated_backbone,
    size_divisor,
)
from pansight.nn.semantic.criterion import Criterion, criterion_of
from pansight.nn.semantic.segmenter import Segmenter, SemanticOutputs
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace

ANY_SHORT = 2**15
"""A short side that is never reached, so that the long one decides."""


class PSPNet(Segmenter):
    """Backbone, pyramid pooling of its last map (`ppm`), classifier (`head`); `aux_head`: one on the map before."""

    def __init__(
        self,
        backbone: Backbone,
        ppm: PyramidPooling,
        head: nn.Module,
        aux_head: nn.Module | None,
        labels: LabelSpace,
        input: Input,
        criterion: Criterion,
        aux_weight: float = 0.4,
    ):
        super().__init__(labels, input, criterion, aux_weight, align_corners=True)
        self.backbone = backbone
        self.ppm = ppm
        self.head = head
        self.aux_head = aux_head

    def forward(self, images: Tensor, valid: Tensor | None = None) -> SemanticOutputs:
        """images uint8 (B, 3, H, W), valid bool (B, H, W), False on padding → logits at the stride of the last map."""
        *_, before, last = self.backbone(self.input(images, valid))
        aux_logits = self.aux_head(before) if self.training and self.aux_head is not None else None
        return self.outputs(images, valid, self.head(self.ppm(last)), aux_logits)


def pspnet(
    labels: LabelSpace,
    backbone: str = "resnet50s",
    pretrained: str = "none",
    short: int = 512,
    long: int = 2048,
    output_stride: int = 8,
    bins: Sequence[int] = (1, 2, 3, 6),
    width: int = 512,
    loss: str = "cross_entropy",
    class_weights: Sequence[float] = (),
    border_weight: float = 0.0,
    border_sigma: float = 5.0,
    aux_weight: float = 0.4,
    frozen_bn: bool = False,
    freeze_stages: int = 0,
) -> PSPNet:
    """PSPNet on any timm backbone that can be dilated. short, long: the resizing rule (short 0: keep the size)."""
    net = dilated_backbone(backbone, pretrained, output_stride, frozen_bn, freeze_stages)
    dilate_every_block(net)
    ppm = PyramidPooling(net.channels[-1], bins)
    head = class_head(ppm.outputs, width, len(labels), nn.Dropout2d(0.1))
    aux_head = auxiliary_head(net, len(labels), nn.Dropout2d(0.1), aux_weight)
    criterion = criterion_of(labels, loss, class_weights, border_weight, border_sigma)
    return PSPNet(
        net,
        ppm,
        head,
        aux_head,
        labels,
        Input(ResizeRule(short, long, size_divisor(net)), net.pixels),
        criterion,
        aux_weight,
    )


def pspnet_r50_semseg(
    labels: LabelSpace, backbone: str = "resnet50s", long: int = 512, aux_weight: float = 0.4
) -> PSPNet:
    """semseg's PSPNet-50: 46,782,550 parameters for 150 classes. long: side of photos, 2048 for Cityscapes."""
    model = pspnet(labels, backbone, aux_weight=aux_weight)
    rule = ResizeRule(ANY_SHORT, long, divisor=1, rounding="eomt", filter="plain")
    model.input = Input(rule, IMAGENET_RGB)
    return model


def pspnet_r101_semseg(labels: LabelSpace, long: int = 512, aux_weight: float = 0.4) -> PSPNet:
    """semseg's PSPNet-101: 65,774,678 parameters for 150 classes."""
    return pspnet_r50_semseg(labels, "resnet101s", long, aux_weight)


def pspnet_smp(
    labels: LabelSpace, backbone: str = "resnet34", width: int = 512, short: int = 0, long: int = 0
) -> PSPNet:
    """The PSPNet of segmentation_models_pytorch, on torchvision's and timm's ResNets up to stride 8."""
    net = timm_backbone(backbone, strides=(4, 8), pixels=IMAGENET_RGB)
    ppm = PyramidPooling(net.channels[-1], (1, 2, 3, 6), bare_mean=True)
    classifier = nn.Conv2d(width, len(labels), 3, padding=1)
    head = nn.Sequential(conv_norm(ppm.outputs, width, 1), nn.Dropout2d(0.2), classifier)
    return PSPNet(net, ppm, head, None, labels, Input(ResizeRule(short, long, divisor=8), net.pixels), Criterion())


OPTIONS: dict[str, Option] = {
    **PYRAMID_OPTIONS,
    **SEMANTIC_OPTIONS,
    "bins": Option("cells of each side of the grids that means are taken over", "whole numbers", 1, 64),
    "width": whole("width of the layer before the classifier", 1, 8192),
}
OF_SEMSEG = OPTIONS | {
    "backbone": choice("a ResNet with three convolutions in its stem", "resnet50s", "resnet101s"),
    "long": SEMANTIC_OPTIONS["long"],
}
TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "width": 16, "frozen_bn": True}
SMALL: dict[str, Any] = {"width": 128, "output_stride": 16}

GENERAL = Entry(
    pspnet,
    architecture="pspnet",
    produces=("semantic",),
    options=OPTIONS,
    backbone="pyramid",
    adapts=("pretrained", "frozen_bn", "short"),
    class_rows={"head": every_class, "aux_head": every_class},
    small=SMALL,
    tiny=TINY,
)
PUBLISHED = replace(GENERAL, options=OF_SEMSEG, licence="mit")
ENTRIES: dict[str, Entry] = {
    "pspnet": GENERAL,
    "pspnet_r50_semseg": PUBLISHED.published(pspnet_r50_semseg, "pspnet"),
    "pspnet_r101_semseg": PUBLISHED.published(pspnet_r101_semseg, "pspnet"),
    "pspnet_smp": GENERAL.published(pspnet_smp, "pspnet"),
}
