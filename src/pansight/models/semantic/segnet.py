"""SegNet. Badrinarayanan, Kendall, Cipolla: SegNet: A Deep Convolutional Encoder-Decoder Architecture, TPAMI 2017.

The convolutions of VGG16 with BatchNorm, and their mirror image. Each pooling keeps where its maxima were; the decoder
puts its values back there, so that edges need no maps of the encoder beside the indices.

CamVid, 11 classes (paper): global accuracy 90.4, class accuracy 71.2, mIoU 60.1. SUN RGB-D: mIoU 31.8.
`segnet_camvid` is the network whose weights alexgkendall/SegNet-Tutorial offers (CC BY-NC): blue, green, red, 0 … 255.
The general `segnet` has any width and RGB input with ImageNet's mean and deviation. In training they differ from the
official code in BatchNorm, whose statistics it takes in a pass over the training set after training: ours are running
averages that become long towards the end of training (`SegNet.set_progress`). See docs/systems/segnet.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from pansight.models.contract import Entry, every_class
from pansight.models.options import SEMANTIC_OPTIONS, Option, choice, whole
from pansight.nn.backbones.vgg import CONVOLUTIONS, conv_relu, load_vgg16, timm_vgg16, vgg16_blocks, vgg16_channels
from pansight.nn.input import IMAGENET_RGB, Input, PixelStatistics
from pansight.nn.semantic.criterion import Criterion, criterion_of
from pansight.nn.semantic.segmenter import Segmenter, SemanticOutputs
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace

PLAIN_BGR = PixelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), bgr=True)
"""What the published weights expect of pixels."""

FIRST_SHIFT = 0.001
"""What BatchNorm adds before it is trained."""

MOMENTUM, LEAST_MOMENTUM = 0.1, 0.01
"""Weight of the newest step in the running averages of BatchNorm: through most of training, and at its end."""
LAST_SHARE = 0.2
"""Of the steps: in these the weight falls from the one to the other."""


class SegNet(Segmenter):
    """The encoder is called `backbone`; `decoder` has its blocks in reverse, without the last convolution, which is
    the `classifier`."""

    def __init__(self, labels: LabelSpace, input: Input, criterion: Criterion, width: int = 64):
        super().__init__(labels, input, criterion)
        self.backbone = vgg16_blocks(width, batch_norm=True)
        self.decoder = mirrored_blocks(width)
        self.classifier = nn.Conv2d(width, len(labels), 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, FIRST_SHIFT)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> SemanticOutputs:
        """images uint8 (B, 3, H, W) of any size, valid bool (B, H, W), False on padding → logits (B, C, H, W)."""
        x = self.input(images, valid)
        pooled: list[tuple[Tensor, tuple[int, int]]] = []  # where the maxima were, and (height, width) before
        for block in self.backbone:
            x = block(x)
            size = (x.shape[2], x.shape[3])
            x, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            pooled.append((indices, size))
        for block, (indices, size) in zip(self.decoder, reversed(pooled), strict=True):
            x = block(unpooled(x, indices, size))
        return self.outputs(images, valid, self.classifier(x))

    def set_progress(self, share: float) -> None:
        """BatchNorm's running averages become longer towards the end of training.

        The official code averages the statistics of all training images after training. Averages over the last ten
        steps, as are usual, are poor for four images a step; at the end these here go over a hundred steps, which is
        CamVid's training set.
        """
        momentum = max(LEAST_MOMENTUM, MOMENTUM * min(1.0, (1 - share) / LAST_SHARE))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum


def mirrored_blocks(width: int) -> nn.ModuleList:
    """The decoder's blocks: as many convolutions as those of the encoder, the last block without its last one.

    The last convolution of each block has the channels of the encoder's block before.
    """
    channels = vgg16_channels(width)
    blocks = nn.ModuleList()
    for index in reversed(range(len(channels))):
        inputs = channels[index]
        layers = [conv_relu(inputs, inputs, batch_norm=True) for _ in range(CONVOLUTIONS[index] - 1)]
        if index > 0:
            layers.append(conv_relu(inputs, channels[index - 1], batch_norm=True))
        blocks.append(nn.Sequential(*layers))
    return blocks


def unpooled(x: Tensor, indices: Tensor, size: tuple[int, int]) -> Tensor:
    """The values of x at their `indices` in rows of maps of `size`, zero elsewhere.

    x float (B, C, h, w), indices int64 (B, C, h, w) as ``F.max_pool2d`` gives them → (B, C, *size).
    """
    flat = x.new_zeros((*x.shape[:2], size[0] * size[1]))
    return flat.scatter(2, indices.flatten(2), x.flatten(2)).unflatten(2, size)


def segnet(
    labels: LabelSpace,
    pretrained: str = "none",
    short: int = 0,
    long: int = 0,
    width: int = 64,
    loss: str = "cross_entropy",
    class_weights: Sequence[float] = (),
    border_weight: float = 0.0,
    border_sigma: float = 5.0,
) -> SegNet:
    """SegNet on a VGG16 of any width, with RGB input. short, long: the resizing rule (short 0: keep the size)."""
    criterion = criterion_of(labels, loss, class_weights, border_weight, border_sigma)
    model = SegNet(labels, Input(ResizeRule(short, long, divisor=1), IMAGENET_RGB), criterion, width)
    if pretrained == "timm":
        load_vgg16(model.backbone, timm_vgg16(batch_norm=True, width=width), "timm's vgg16_bn")
    return model


def segnet_camvid(labels: LabelSpace) -> SegNet:
    """The published SegNet: 29,449,355 parameters for the 11 classes of CamVid."""
    return SegNet(labels, Input(ResizeRule(0, 0, divisor=1), PLAIN_BGR), Criterion())


OPTIONS: dict[str, Option] = {
    **SEMANTIC_OPTIONS,
    "pretrained": choice("weights of the encoder: random, or those of timm's VGG16 with BatchNorm", "none", "timm"),
    "width": whole("channels of the first convolutions, 64 as published; later ones have up to 8 × as many", 1, 512),
}

GENERAL = Entry(
    segnet,
    architecture="segnet",
    produces=("semantic",),
    options=OPTIONS,
    adapts=("pretrained", "short"),
    class_rows={"classifier": every_class},
    small={"width": 16},
    tiny={"width": 4},
)
PUBLISHED = replace(GENERAL, options={}, licence="cc-by-nc-4.0")
ENTRIES: dict[str, Entry] = {
    "segnet": GENERAL,
    "segnet_camvid": PUBLISHED.published(segnet_camvid, "segnet"),
}
