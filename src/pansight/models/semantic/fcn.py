"""Fully convolutional networks. Long, Shelhamer, Darrell: CVPR 2015; Shelhamer, Long, Darrell: TPAMI 2017.

A classifier turned into convolutions says a class for every place of a coarse map, which transposed convolutions bring
back to the size of the image. FCN-32s looks at the last map of VGG16 alone; FCN-16s and FCN-8s add the scores of the
maps at strides 16 and 8. The general `fcn` is torchvision's later form: a small head on a dilated backbone.

VOC 2011 validation (736 images), mIoU: FCN-32s 63.6, FCN-16s 65.0, FCN-8s 65.5 (at once 65.4); VOC 2012 test, FCN-8s:
67.2. COCO val with VOC's classes (torchvision): R50 60.5, R101 63.7.
`fcn32s`, `fcn16s` and `fcn8s` are the networks of shelhamer/fcn.berkeleyvision.org, trained in another way in two
things. Its loss is the sum over pixels, for which its learning rates of 1e-10 … 1e-14 were made; ours is the mean, so
that usual rates suit it. Its biases learn at twice the rate of its weights; ours at the same. `fcn_r50_tv` and
`fcn_r101_tv` differ in nothing from torchvision. See docs/systems/fcn.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.models.contract import Entry, TrainingDefaults, every_class
from pansight.models.options import (
    PYRAMID_OPTIONS,
    SEMANTIC_OPTIONS,
    Option,
    choice,
    drop_rate,
    flag,
    loss_weight,
    whole,
)
from pansight.nn.backbones.pyramid import Backbone
from pansight.nn.backbones.vgg import load_fully_connected, load_vgg16, timm_vgg16, vgg16_blocks, vgg16_channels
from pansight.nn.input import IMAGENET_RGB, Input, PixelStatistics
from pansight.nn.semantic.blocks import auxiliary_head, class_head, dilated_backbone
from pansight.nn.semantic.criterion import Criterion, criterion_of
from pansight.nn.semantic.segmenter import Segmenter, SemanticOutputs
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace

WITHOUT_LIMIT = 2**15
"""A limit of the long side that no photo reaches."""

CAFFE_VGG = PixelStatistics((104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0), bgr=True)
"""What the published VGG16 expects of pixels."""

BORDER = 100
"""Zeros around the image. With them fc6, a 7×7 convolution without padding, fits even into an image of one pixel."""
OFFSETS = {32: 19, 16: 27, 8: 31}
"""Where the image begins in the last upsampled scores, by the stride that they come from; it follows from BORDER."""
OFFSET_POOL4, OFFSET_POOL3 = 5, 9
"""Where the upsampled scores begin in the map that is added to them."""
SCALE_POOL4, SCALE_POOL3 = 0.01, 0.0001
"""Of the maps that are added, where all strides are trained at once: so each has about the size of the last one."""


class Upsampling(nn.Module):
    """Bilinear upsampling by `factor` as Caffe does it: a transposed convolution of 2 · factor pixels, without bias.

    learned: the kernel between every two classes is trained, (C, C, k, k), and starts bilinear in each class and zero
    between classes, as in the first paper. Otherwise nothing is stored, as a bilinear resize of the map with a border
    of zeros is the same; the published weights are of this kind.
    """

    def __init__(self, classes: int, factor: int, learned: bool):
        super().__init__()
        self.factor = factor
        self.weight = nn.Parameter(bilinear_kernels(classes, factor)) if learned else None

    def forward(self, scores: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, (h + 1) · factor, (w + 1) · factor); the outermost pixels fade to zero."""
        if self.weight is not None:
            return F.conv_transpose2d(scores, self.weight, stride=self.factor)
        cut = self.factor // 2
        enlarged = F.interpolate(F.pad(scores.float(), (1, 1, 1, 1)), scale_factor=self.factor, mode="bilinear")
        return enlarged[:, :, cut : enlarged.shape[2] - cut, cut : enlarged.shape[3] - cut]


def bilinear_kernels(classes: int, factor: int) -> Tensor:
    """Float32 (C, C, 2 · factor, 2 · factor): each class is upsampled by itself, bilinearly."""
    places = torch.arange(2 * factor)
    line = 1 - (places - (factor - 0.5)).abs() / factor  # (k,)
    return torch.eye(classes)[:, :, None, None] * torch.outer(line, line)


class VGGFCN(Segmenter):
    """VGG16 up to fc7 as convolutions, and the scores of its maps at strides 32, 16 and 8, of which `stride` is the
    finest that is used.

    at_once: the maps of strides 16 and 8 are scaled down, for training without the coarser networks before it.
    Raises PansightError for a stride that there is not.
    """

    def __init__(
        self,
        labels: LabelSpace,
        input: Input,
        criterion: Criterion,
        stride: int = 8,
        width: int = 64,
        hidden: int = 4096,
        dropout: float = 0.5,
        at_once: bool = False,
        learn_upsampling: bool = False,
    ):
        super().__init__(labels, input, criterion)
        check_stride(stride)
        classes, channels = len(labels), vgg16_channels(width)
        self.stride = stride
        self.scales = (SCALE_POOL4, SCALE_POOL3) if at_once else (1.0, 1.0)
        self.backbone = vgg16_blocks(width, border=BORDER)
        self.fc6 = nn.Conv2d(channels[-1], hidden, 7)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.dropout = nn.Dropout(dropout)
        self.score_fr = zero_scores(hidden, classes)
        if stride < 32:
            self.upscore2 = Upsampling(classes, 2, learn_upsampling)
            self.score_pool4 = zero_scores(channels[3], classes)
        if stride < 16:
            self.upscore_pool4 = Upsampling(classes, 2, learn_upsampling)
            self.score_pool3 = zero_scores(channels[2], classes)
        self.upscore = Upsampling(classes, stride, learn_upsampling)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> SemanticOutputs:
        """images uint8 (B, 3, H, W) of any size, valid bool (B, H, W), False on padding → logits (B, C, H, W)."""
        maps: list[Tensor] = []
        x = self.input(images, valid)
        for block in self.backbone:
            x = F.max_pool2d(block(x), 2, ceil_mode=True)
            maps.append(x)
        x = self.dropout(F.relu(self.fc6(x)))
        scores = self.score_fr(self.dropout(F.relu(self.fc7(x))))  # (B, C, h/32, w/32), of the image with its border
        if self.stride < 32:
            skip = self.score_pool4(maps[3] * self.scales[0])
            scores = self.upscore2(scores)
            scores = scores + cropped(skip, OFFSET_POOL4, scores.shape[2:])
        if self.stride < 16:
            skip = self.score_pool3(maps[2] * self.scales[1])
            scores = self.upscore_pool4(scores)
            scores = scores + cropped(skip, OFFSET_POOL3, scores.shape[2:])
        logits = cropped(self.upscore(scores), OFFSETS[self.stride], images.shape[2:])
        return self.outputs(images, valid, logits)


def zero_scores(inputs: int, classes: int) -> nn.Conv2d:
    """A 1×1 convolution that says zero before it is trained."""
    layer = nn.Conv2d(inputs, classes, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return layer


def cropped(maps: Tensor, offset: int, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) → (B, C, *size), from row and column `offset` on."""
    return maps[:, :, offset : offset + size[0], offset : offset + size[1]]


def check_stride(stride: int) -> None:
    """Raises PansightError for another one than 32, 16 or 8."""
    if stride not in OFFSETS:
        raise PansightError(expected="32, 16 or 8", found=stride)


class FCN(Segmenter):
    """A dilated backbone with `head` on its last map and, in training, `aux_head` on the map before."""

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        aux_head: nn.Module | None,
        labels: LabelSpace,
        input: Input,
        criterion: Criterion,
        aux_weight: float = 0.5,
    ):
        super().__init__(labels, input, criterion, aux_weight)
        self.backbone = backbone
        self.head = head
        self.aux_head = aux_head

    def forward(self, images: Tensor, valid: Tensor | None = None) -> SemanticOutputs:
        """images uint8 (B, 3, H, W), valid bool (B, H, W), False on padding → logits at the backbone's last stride."""
        *_, before, last = self.backbone(self.input(images, valid))
        aux_logits = self.aux_head(before) if self.training and self.aux_head is not None else None
        return self.outputs(images, valid, self.head(last), aux_logits)


def fcn(
    labels: LabelSpace,
    backbone: str = "resnet50",
    pretrained: str = "none",
    short: int = 520,
    long: int = 2048,
    output_stride: int = 8,
    dropout: float = 0.1,
    loss: str = "cross_entropy",
    class_weights: Sequence[float] = (),
    border_weight: float = 0.0,
    border_sigma: float = 5.0,
    aux_weight: float = 0.5,
    frozen_bn: bool = False,
    freeze_stages: int = 0,
) -> FCN:
    """torchvision's FCN on any timm backbone that can be dilated. short, long: the resizing rule (short 0: keep it)."""
    net = dilated_backbone(backbone, pretrained, output_stride, frozen_bn, freeze_stages)
    last = net.channels[-1]
    head = class_head(last, max(1, last // 4), len(labels), nn.Dropout(dropout))
    aux_head = auxiliary_head(net, len(labels), nn.Dropout(dropout), aux_weight)
    criterion = criterion_of(labels, loss, class_weights, border_weight, border_sigma)
    return FCN(net, head, aux_head, labels, Input(ResizeRule(short, long), net.pixels), criterion, aux_weight)


def fcn_r50_tv(labels: LabelSpace, backbone: str = "resnet50", aux_weight: float = 0.5) -> FCN:
    """torchvision's fcn_resnet50: 35,322,218 parameters for 21 classes, with its auxiliary head."""
    model = fcn(labels, backbone, aux_weight=aux_weight)
    model.input = Input(ResizeRule(520, WITHOUT_LIMIT, divisor=1, rounding="detr"), IMAGENET_RGB)
    return model


def fcn_r101_tv(labels: LabelSpace, aux_weight: float = 0.5) -> FCN:
    """torchvision's fcn_resnet101: 54,314,346 parameters for 21 classes, with its auxiliary head."""
    return fcn_r50_tv(labels, "resnet101", aux_weight)


def fcn_vgg16(
    labels: LabelSpace,
    stride: int = 8,
    pretrained: str = "none",
    short: int = 0,
    long: int = 0,
    width: int = 64,
    hidden: int = 4096,
    dropout: float = 0.5,
    at_once: bool = False,
    learn_upsampling: bool = False,
    loss: str = "cross_entropy",
    class_weights: Sequence[float] = (),
    border_weight: float = 0.0,
    border_sigma: float = 5.0,
) -> VGGFCN:
    """FCN-32s, FCN-16s or FCN-8s on a VGG16 of any width, with RGB input. stride: 32, 16 or 8."""
    criterion = criterion_of(labels, loss, class_weights, border_weight, border_sigma)
    input = Input(ResizeRule(short, long, divisor=1), IMAGENET_RGB)
    model = VGGFCN(labels, input, criterion, stride, width, hidden, dropout, at_once, learn_upsampling)
    if pretrained == "timm":
        state = timm_vgg16(batch_norm=False, width=width, hidden=hidden)
        load_vgg16(model.backbone, state, "timm's vgg16")
        load_fully_connected(model.fc6, model.fc7, state, "timm's vgg16")
    return model


def fcn32s(labels: LabelSpace, learn_upsampling: bool = False) -> VGGFCN:
    """The published FCN-32s: 134,346,581 learned parameters for 21 classes."""
    return _of_caffe(labels, 32, False, learn_upsampling)


def fcn16s(labels: LabelSpace, at_once: bool = False, learn_upsampling: bool = False) -> VGGFCN:
    """The published FCN-16s: 134,357,354 learned parameters for 21 classes."""
    return _of_caffe(labels, 16, at_once, learn_upsampling)


def fcn8s(labels: LabelSpace, at_once: bool = False, learn_upsampling: bool = False) -> VGGFCN:
    """The published FCN-8s: 134,362,751 learned parameters for 21 classes."""
    return _of_caffe(labels, 8, at_once, learn_upsampling)


def _of_caffe(labels: LabelSpace, stride: int, at_once: bool, learn_upsampling: bool) -> VGGFCN:
    input = Input(ResizeRule(0, 0, divisor=1), CAFFE_VGG)
    return VGGFCN(labels, input, Criterion(), stride, at_once=at_once, learn_upsampling=learn_upsampling)


OPTIONS: dict[str, Option] = {
    **PYRAMID_OPTIONS,
    **SEMANTIC_OPTIONS,
    "dropout": drop_rate("dropout before the classifier"),
}
OF_TORCHVISION: dict[str, Option] = {
    "backbone": choice("a ResNet of torchvision", "resnet50", "resnet101"),
    "aux_weight": loss_weight("the auxiliary head"),
}
OF_CAFFE: dict[str, Option] = {
    "stride": Option("finest map whose scores are used: 32, 16 or 8", "whole number", 8, 32, further=check_stride),
    "at_once": flag("maps of strides 16 and 8 are scaled down, to train without FCN-32s and FCN-16s first"),
    "learn_upsampling": flag("the kernels that upsample scores are trained, between all classes"),
}
OF_VGG: dict[str, Option] = {
    **SEMANTIC_OPTIONS,
    **OF_CAFFE,
    "pretrained": choice("weights of VGG16: random, or timm's", "none", "timm"),
    "width": whole("channels of the first convolutions, 64 as published; later ones have up to 8 × as many", 1, 512),
    "hidden": whole("channels of fc6 and fc7, 4096 as published", 1, 16_384),
    "dropout": drop_rate("dropout behind fc6 and fc7"),
}

DILATED = Entry(
    fcn,
    architecture="fcn",
    produces=("semantic",),
    options=OPTIONS,
    backbone="pyramid",
    adapts=("pretrained", "frozen_bn", "short"),
    class_rows={"head": every_class, "aux_head": every_class},
    small={"output_stride": 16},
    tiny={"backbone": "resnet10t", "short": 0, "long": 0, "output_stride": 16},
)
TINY: dict[str, Any] = {"width": 4, "hidden": 16, "dropout": 0.0}
VGG = Entry(
    fcn_vgg16,
    architecture="fcn_vgg16",
    produces=("semantic",),
    options=OF_VGG,
    adapts=("pretrained", "short"),
    training=TrainingDefaults(lr=1e-4),
    class_rows={"score_fr": every_class, "score_pool4": every_class, "score_pool3": every_class},
    small={"width": 16, "hidden": 256},
    tiny=TINY,
)
TV = replace(DILATED, options=OF_TORCHVISION, licence="bsd-3-clause")
CAFFE = replace(VGG, options=OF_CAFFE, licence="bsd-2-clause")
ENTRIES: dict[str, Entry] = {
    "fcn": DILATED,
    "fcn_r50_tv": TV.published(fcn_r50_tv, "fcn"),
    "fcn_r101_tv": TV.published(fcn_r101_tv, "fcn"),
    "fcn_vgg16": VGG,
    "fcn32s": CAFFE.published(fcn32s, "fcn_vgg16"),
    "fcn16s": CAFFE.published(fcn16s, "fcn_vgg16"),
    "fcn8s": CAFFE.published(fcn8s, "fcn_vgg16"),
}
