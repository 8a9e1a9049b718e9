"""DeepLabV3 and DeepLabV3+.

Chen, Papandreou, Schroff, Adam: Rethinking Atrous Convolution for Semantic Image Segmentation, 2017 (V3): a dilated
backbone, whose last map is seen at several dilations and as its mean (ASPP). Chen, Zhu, Papandreou, Schroff, Adam:
Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation, ECCV 2018 (V3+): a decoder joins the
map of stride 4, so that edges are sharper.

VOC 2012 test (papers): V3 85.7, V3+ 87.8. COCO val with VOC's classes (torchvision): R50 66.4, R101 67.4,
MobileNetV3 60.3 mIoU.
Cityscapes val (detectron2, R103): V3 78.5, V3+ 80.0.
`deeplabv3_r50_tv`, `_r101_tv` and `_mobilenet_v3_large_tv` differ in nothing from torchvision. `deeplabv3_r103_d2` and
`deeplabv3plus_r103_d2` are those of detectron2's projects/DeepLab, which refuses maps that its pooling windows do not
divide; here they pass.
`deeplabv3plus_smp` is that of segmentation_models_pytorch. The general `deeplabv3` has torchvision's head, the general
`deeplabv3plus` that of detectron2. See docs/systems/deeplab.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pansight.models.contract import Entry, every_class
from pansight.models.options import (
    PYRAMID_OPTIONS,
    SEMANTIC_OPTIONS,
    SIZE_OPTIONS,
    Option,
    choice,
    drop_rate,
    flag,
    loss_weight,
    whole,
)
from pansight.nn.backbones.mobilenet import dilated_mobilenet_v3_large
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.input import IMAGENET_RGB, Input
from pansight.nn.semantic.blocks import (
    ASPP,
    ImagePooling,
    auxiliary_head,
    conv_norm,
    dilate_every_block,
    dilated_backbone,
    dilated_strides,
    size_divisor,
)
from pansight.nn.semantic.criterion import Criterion, criterion_of
from pansight.nn.semantic.segmenter import Segmenter, SemanticOutputs, resized
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace

WITHOUT_LIMIT = 2**15
"""A limit of the long side that no photo reaches."""


class Decoder(nn.Module):
    """What comes between ASPP and classifier.

    before: layers on what ASPP says. low: layers on the map of stride 4, None in V3, which does not look at it.
    after: layers on both, the latter first.
    """

    def __init__(self, before: nn.Module, low: nn.Module | None, after: nn.Module, align_corners: bool = False):
        super().__init__()
        self.before, self.low, self.after = before, low, after
        self.align_corners = align_corners

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        """x (B, width, h, w) of ASPP, first (B, C, H/4, W/4) of the backbone → (B, width, …), large as first in V3+."""
        x = self.before(x)
        if self.low is not None:
            low = self.low(first)
            x = torch.cat([low, resized(x, low.shape[2:], self.align_corners)], 1)
        return self.after(x)


class DeepLab(Segmenter):
    """Backbone, `aspp` on its last map, `decoder`, 1×1 `classifier`; `aux_head`: a second one on the map before."""

    def __init__(
        self,
        backbone: Backbone,
        aspp: ASPP,
        decoder: Decoder,
        classifier: nn.Conv2d,
        aux_head: nn.Module | None,
        labels: LabelSpace,
        input: Input,
        criterion: Criterion,
        aux_weight: float = 0.0,
        align_corners: bool = False,
    ):
        super().__init__(labels, input, criterion, aux_weight, align_corners)
        self.backbone = backbone
        self.aspp = aspp
        self.decoder = decoder
        self.classifier = classifier
        self.aux_head = aux_head

    def forward(self, images: Tensor, valid: Tensor | None = None) -> SemanticOutputs:
        """images uint8 (B, 3, H, W), valid bool (B, H, W), False on padding → logits at the stride of the decoder."""
        first, *_, before, last = self.backbone(self.input(images, valid))
        aux_logits = self.aux_head(before) if self.training and self.aux_head is not None else None
        logits = self.classifier(self.decoder(self.aspp(last), first))
        return self.outputs(images, valid, logits, aux_logits)


def deeplabv3(
    labels: LabelSpace,
    backbone: str = "resnet50",
    pretrained: str = "none",
    short: int = 520,
    long: int = 2048,
    output_stride: int = 16,
    rates: Sequence[int] = (6, 12, 18),
    multi_grid: Sequence[int] = (),
    width: int = 256,
    dropout: float = 0.1,
    loss: str = "cross_entropy",
    class_weights: Sequence[float] = (),
    border_weight: float = 0.0,
    border_sigma: float = 5.0,
    aux_weight: float = 0.0,
    frozen_bn: bool = False,
    freeze_stages: int = 0,
) -> DeepLab:
    """DeepLabV3 on any timm backbone that can be dilated. rates: of ASPP at stride 16; other strides scale them."""
    net = dilated_backbone(backbone, pretrained, output_stride, frozen_bn, freeze_stages, multi_grid)
    last = net.channels[-1]
    aspp = ASPP(last, width, [rate * 16 // output_stride for rate in rates], ImagePooling(last, width), dropout)
    decoder = Decoder(nn.Identity(), None, conv_norm(width, width, 3))
    aux_head = auxiliary_head(net, len(labels), nn.Dropout(0.1), aux_weight)
    criterion = criterion_of(labels, loss, class_weights, border_weight, border_sigma)
    classifier, input = nn.Conv2d(width, len(labels), 1), Input(ResizeRule(short, long, size_divisor(net)), net.pixels)
    return DeepLab(net, aspp, decoder, classifier, aux_head, labels, input, criterion, aux_weight)


def deeplabv3plus(
    labels: LabelSpace,
    backbone: str = "resnet50",
    pretrained: str = "none",
    short: int = 520,
    long: int = 2048,
    output_stride: int = 16,
    rates: Sequence[int] = (6, 12, 18),
    multi_grid: Sequence[int] = (),
    width: int = 256,
    low_width: int = 48,
    separable: bool = False,
    dropout: float = 0.1,
    loss: str = "cross_entropy",
    class_weights: Sequence[float] = (),
    border_weight: float = 0.0,
    border_sigma: float = 5.0,
    aux_weight: float = 0.0,
    frozen_bn: bool = False,
    freeze_stages: int = 0,
) -> DeepLab:
    """DeepLabV3+ on any timm backbone that can be dilated. separable: the 3×3 convolutions, as in the paper."""
    net = dilated_backbone(backbone, pretrained, output_stride, frozen_bn, freeze_stages, multi_grid)
    last, pooling = net.channels[-1], ImagePooling(net.channels[-1], width)
    aspp = ASPP(last, width, [rate * 16 // output_stride for rate in rates], pooling, dropout, separable)
    fuse = [conv_norm(low_width + width, width, 3, 1, separable), conv_norm(width, width, 3, 1, separable)]
    decoder = Decoder(nn.Identity(), conv_norm(net.channels[0], low_width, 1), nn.Sequential(*fuse))
    aux_head = auxiliary_head(net, len(labels), nn.Dropout(0.1), aux_weight)
    criterion = criterion_of(labels, loss, class_weights, border_weight, border_sigma)
    classifier, input = nn.Conv2d(width, len(labels), 1), Input(ResizeRule(short, long, size_divisor(net)), net.pixels)
    return DeepLab(net, aspp, decoder, classifier, aux_head, labels, input, criterion, aux_weight)


def deeplabv3_r50_tv(labels: LabelSpace, backbone: str = "resnet50", aux_weight: float = 0.5) -> DeepLab:
    """torchvision's deeplabv3_resnet50: 42,004,074 parameters for 21 classes, with its auxiliary head."""
    model = deeplabv3(labels, backbone, output_stride=8, dropout=0.5, aux_weight=aux_weight)
    model.input = _input_of_torchvision()
    return model


def deeplabv3_r101_tv(labels: LabelSpace, aux_weight: float = 0.5) -> DeepLab:
    """torchvision's deeplabv3_resnet101: 60,996,202 parameters for 21 classes, with its auxiliary head."""
    return deeplabv3_r50_tv(labels, "resnet101", aux_weight)


def deeplabv3_mobilenet_v3_large_tv(labels: LabelSpace, aux_weight: float = 0.5) -> DeepLab:
    """torchvision's deeplabv3_mobilenet_v3_large: 11,029,328 parameters for 21 classes, with its auxiliary head."""
    net, width = dilated_mobilenet_v3_large(), 256
    last, classes = net.channels[-1], len(labels)
    aspp = ASPP(last, width, (12, 24, 36), ImagePooling(last, width), 0.5)
    decoder = Decoder(nn.Identity(), None, conv_norm(width, width, 3))
    aux_head = auxiliary_head(net, classes, nn.Dropout(0.1), aux_weight)
    classifier, input = nn.Conv2d(width, classes, 1), _input_of_torchvision()
    return DeepLab(net, aspp, decoder, classifier, aux_head, labels, input, Criterion(), aux_weight)


def _input_of_torchvision() -> Input:
    return Input(ResizeRule(520, WITHOUT_LIMIT, divisor=1, rounding="detr"), IMAGENET_RGB)


def deeplabv3_r103_d2(labels: LabelSpace) -> DeepLab:
    """detectron2's deeplab_v3_R_103: 58,163,667 parameters for 19 classes."""
    model = deeplabv3(labels, "resnet101s", multi_grid=(1, 2, 4))
    decoder = Decoder(nn.Identity(), None, nn.Identity())
    return _of_detectron2(model, decoder)


def deeplabv3plus_r103_d2(labels: LabelSpace) -> DeepLab:
    """detectron2's deeplab_v3_plus_R_103: 59,467,315 parameters for 19 classes."""
    model = deeplabv3plus(labels, "resnet101s", multi_grid=(1, 2, 4))
    return _of_detectron2(model, model.decoder)


def _of_detectron2(model: DeepLab, decoder: Decoder) -> DeepLab:
    """`model` with what all DeepLabs of detectron2 have: means over windows of 32 × 64 places, without BatchNorm."""
    pooling = ImagePooling(model.backbone.channels[-1], 256, norm=False, window=(32, 64))
    model.aspp.branches[-1] = pooling
    model.decoder = decoder
    model.criterion = Criterion("hard_pixels")
    model.input = Input(ResizeRule(1024, 2048, divisor=1), IMAGENET_RGB)
    return model


def deeplabv3plus_smp(
    labels: LabelSpace, backbone: str = "resnet34", width: int = 256, short: int = 0, long: int = 0
) -> DeepLab:
    """The DeepLabV3+ of segmentation_models_pytorch, on torchvision's and timm's ResNets."""
    net = timm_backbone(backbone, strides=dilated_strides(16), output_stride=16, pixels=IMAGENET_RGB)
    dilate_every_block(net)
    last = net.channels[-1]
    aspp = ASPP(last, width, (12, 24, 36), ImagePooling(last, width), 0.5, separable=True)
    low = conv_norm(net.channels[0], 48, 1)
    before, after = conv_norm(width, width, 3, separable=True), conv_norm(48 + width, width, 3, separable=True)
    decoder, input = Decoder(before, low, after, align_corners=True), Input(ResizeRule(short, long, 16), net.pixels)
    classifier = nn.Conv2d(width, len(labels), 1)
    return DeepLab(net, aspp, decoder, classifier, None, labels, input, Criterion(), align_corners=True)


OPTIONS: dict[str, Option] = {
    **PYRAMID_OPTIONS,
    **SEMANTIC_OPTIONS,
    "rates": Option("dilations of ASPP at stride 16; other strides scale them", "whole numbers", 1, 512),
    "multi_grid": Option(
        "factors on the dilations of the blocks of a ResNet's last stage; empty: all alike", "whole numbers", 1, 64
    ),
    "width": whole("width of ASPP and decoder", 1, 8192),
    "low_width": whole("width of what the decoder takes from the map of stride 4", 1, 8192),
    "separable": flag("3×3 convolutions of each channel by itself, as in the paper"),
    "dropout": drop_rate("dropout behind ASPP"),
}
OF_TORCHVISION: dict[str, Option] = {
    "backbone": choice("a ResNet of torchvision", "resnet50", "resnet101"),
    "aux_weight": loss_weight("the auxiliary head"),
}
OF_SMP: dict[str, Option] = {**SIZE_OPTIONS, "backbone": PYRAMID_OPTIONS["backbone"], "width": OPTIONS["width"]}

TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "width": 16, "frozen_bn": True}
TINY |= {"aux_weight": 0.5}
SMALL: dict[str, Any] = {"width": 128}

V3 = Entry(
    deeplabv3,
    architecture="deeplabv3",
    produces=("semantic",),
    options=OPTIONS,
    backbone="pyramid",
    adapts=("pretrained", "frozen_bn", "short"),
    class_rows={"classifier": every_class, "aux_head": every_class},
    small=SMALL,
    tiny=TINY,
)
V3_PLUS = replace(V3, build=deeplabv3plus, architecture="deeplabv3plus")
TV = replace(V3, options=OF_TORCHVISION, licence="bsd-3-clause")
OF_MOBILENET = replace(TV, options={"aux_weight": OF_TORCHVISION["aux_weight"]})
D2, D2_PLUS = (replace(each, options={}, licence="cc-by-sa-3.0") for each in (V3, V3_PLUS))
ENTRIES: dict[str, Entry] = {
    "deeplabv3": V3,
    "deeplabv3_r50_tv": TV.published(deeplabv3_r50_tv, "deeplabv3"),
    "deeplabv3_r101_tv": TV.published(deeplabv3_r101_tv, "deeplabv3"),
    "deeplabv3_mobilenet_v3_large_tv": OF_MOBILENET.published(deeplabv3_mobilenet_v3_large_tv, "deeplabv3"),
    "deeplabv3_r103_d2": D2.published(deeplabv3_r103_d2, "deeplabv3"),
    "deeplabv3plus": V3_PLUS,
    "deeplabv3plus_r103_d2": D2_PLUS.published(deeplabv3plus_r103_d2, "deeplabv3plus"),
    "deeplabv3plus_smp": replace(V3_PLUS, options=OF_SMP).published(deeplabv3plus_smp, "deeplabv3plus"),
}
