"""U-Net. Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015.

A contracting path that sees context, an expanding path that finds places again, and a skip between both at every
resolution. `unet_original` is the published network of unpadded convolutions: it predicts 388×388 pixels from 572×572,
so what it needs beyond the border of an image is the image's mirror image, and large images are computed in tiles.
`unet` is the padded form of today: any timm backbone as the contracting path, and the decoder of
segmentation_models.pytorch (MIT), whose saved weights load.

Published: ISBI cell tracking challenge 2015, IoU 92.03 (PhC-U373) and 77.56 (DIC-HeLa). See docs/systems/unet.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.models.contract import Entry, RateGroups, every_class
from pansight.models.options import PYRAMID_OPTIONS, SEMANTIC_OPTIONS, Option, choice, drop_rate, whole
from pansight.nn.backbones.pyramid import Backbone, pyramid_strides, timm_backbone
from pansight.nn.input import Input
from pansight.nn.norms import BatchNorm2d
from pansight.nn.semantic.blocks import size_divisor
from pansight.nn.semantic.criterion import Criterion, criterion_of
from pansight.nn.semantic.segmenter import Segmenter, SemanticOutputs
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import valid_extents
from pansight.types import LabelSpace

# --- the published network -------------------------------------------------------------------------------------------


class UnpaddedUNet(nn.Module):
    """The network of figure 1: for 1 channel and 2 classes it has 31,030,658 parameters.

    forward maps float (B, inputs, h + 2m, w + 2m) to logits (B, classes, h, w) for every h and w of `output_side`,
    where m is `margin`: 92 for the published depth, 572 → 388. width: channels of the first level, doubled at each of
    the `depth` poolings. dropout: at the end of the contracting path, on its last two levels.
    """

    def __init__(self, inputs: int, classes: int, width: int = 64, depth: int = 4, dropout: float = 0.5):
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.depth = depth
        self.down = nn.ModuleList(_convolutions(a, b) for a, b in pairwise([inputs, *widths]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.join = nn.ModuleList(_convolutions(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                _initialise(module)

    @property
    def margin(self) -> int:
        """Pixels around its output that the network sees, at each side."""
        return 6 * 2**self.depth - 4

    @property
    def step(self) -> int:
        """Moved by a multiple of so many pixels, an image has the same output, moved as far."""
        return 2**self.depth

    def output_side(self, side: int) -> int:
        """The least side of an output that is at least `side`: every pooling then has whole 2×2 windows."""
        return 4 + max(0, -(-(side - 4) // self.step)) * self.step

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, convolutions in enumerate(self.down):
            x = convolutions(x)
            if level >= self.depth - 1:
                x = self.dropout(x)
            if level < self.depth:
                skips.append(x)
                x = F.max_pool2d(x, 2)
        for up, convolutions in zip(self.up, self.join, strict=True):
            x = up(x)
            x = convolutions(torch.cat([_centre(skips.pop(), x.shape[2:]), x], dim=1))
        return self.head(x)


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3), nn.ReLU(), nn.Conv2d(outputs, outputs, 3), nn.ReLU())


def _initialise(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Gaussian weights of deviation √(2/N), where N is the number of values that an output is made of (section 3)."""
    values = (
        layer.weight[0].numel() if isinstance(layer, nn.Conv2d) else layer.in_channels
    )  # its windows do not overlap
    nn.init.normal_(layer.weight, std=(2 / values) ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _centre(x: Tensor, size: Sequence[int]) -> Tensor:
    """The middle (B, C, *size) of (B, C, H, W)."""
    top, left = (x.shape[2] - size[0]) // 2, (x.shape[3] - size[1]) // 2
    return x[:, :, top : top + size[0], left : left + size[1]]


def mirrored(images: Tensor, extents: Tensor, before: int, size: tuple[int, int]) -> Tensor:
    """Each image, continued by its mirror images without end, from `before` pixels above and left of it on.

    images (B, C, H, W); extents int64 (B, 2): the (height, width) of each that is image, which may be as small as 1.
    → (B, C, *size). The pixels at the border are not doubled: … 2 1 0 1 2 …
    """
    rows, columns = (_mirrored_places(extents[:, axis], before, size[axis]) for axis in (0, 1))
    number = torch.arange(images.shape[0], device=images.device)
    found = images[number[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, h, w, C)
    return found.permute(0, 3, 1, 2)


def _mirrored_places(lengths: Tensor, before: int, count: int) -> Tensor:
    """int64 (B, count): which of 0 … length − 1 is at each of the places −before … count − before − 1."""
    period = (2 * (lengths - 1)).clamp(min=1)[:, None]  # (B, 1)
    place = (torch.arange(count, device=lengths.device) - before) % period
    return torch.minimum(place, period - place)


class OriginalUNet(Segmenter):
    """The published network, for images of any size.

    tile: the largest side of the output that is computed at once, in pixels, as in figure 2; 0: the whole image. Tiles
    overlap so that each sees what it sees in the whole, and the result is the same. In training an image is whole.
    """

    def __init__(self, network: UnpaddedUNet, labels: LabelSpace, input: Input, criterion: Criterion, tile: int = 0):
        super().__init__(labels, input, criterion)
        self.network = network
        self.tile = tile

    def forward(self, images: Tensor, valid: Tensor | None = None) -> SemanticOutputs:
        """images uint8 (B, 3, H, W) of any size, valid bool (B, H, W), False on padding."""
        height, width = images.shape[2:]
        size = self.network.output_side(height), self.network.output_side(width)
        margin = self.network.margin
        enlarged = size[0] + 2 * margin, size[1] + 2 * margin
        pixels = mirrored(self.input(images, valid), valid_extents(images, valid), margin, enlarged)
        logits = self.network(pixels) if self.training or not self.tile else self._in_tiles(pixels, size)
        return self.outputs(images, valid, logits[:, :, :height, :width])

    def _in_tiles(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """The logits (B, C, *size) of enlarged images, one tile after the other, without what they repeat."""
        step, margin = self.network.step, self.network.margin
        largest = 4 + max(1, (self.tile - 4) // step) * step
        height, width = (min(largest, side) for side in size)
        rows: list[Tensor] = []
        for top in _starts(size[0], height):
            row: list[Tensor] = []
            for left in _starts(size[1], width):
                window = pixels[:, :, top : top + height + 2 * margin, left : left + width + 2 * margin]
                row.append(self.network(window)[..., sum(part.shape[3] for part in row) - left :])
            rows.append(torch.cat(row, dim=3)[:, :, sum(part.shape[2] for part in rows) - top :])
        return torch.cat(rows, dim=2)


def _starts(length: int, side: int) -> list[int]:
    """Where tiles begin, at multiples of the network's step; the last one ends where the image does."""
    return [*range(0, length - side, side - 4), length - side]


# --- the padded network ----------------------------------------------------------------------------------------------


class UNetBlock(nn.Module):
    """Nearest upsampling to the size of the skip, which is put beside it, then two 3×3 convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int, norm: bool):
        super().__init__()
        self.conv1 = _padded(inputs + skip, outputs, norm)
        self.conv2 = _padded(outputs, outputs, norm)

    def forward(self, x: Tensor, skip: Tensor | None, size: Sequence[int]) -> Tensor:
        x = F.interpolate(x, size=tuple(size), mode="nearest")
        return self.conv2(self.conv1(x if skip is None else torch.cat([x, skip], dim=1)))


def _padded(inputs: int, outputs: int, norm: bool) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)
    nn.init.kaiming_uniform_(convolution.weight, nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, BatchNorm2d(outputs) if norm else nn.Identity(), nn.ReLU())


class UNetDecoder(nn.Module):
    """Blocks that double the resolution, from the last map of a backbone up to that of the image.

    channels: of the blocks, from the lowest resolution up, where `of_stride` says how many channels the skip has that
    the backbone has at each stride; a stride without a map has no skip.
    """

    def __init__(self, inputs: int, of_stride: Mapping[int, int], channels: Sequence[int], norm: bool):
        super().__init__()
        self.strides = [2**level for level in reversed(range(len(channels)))]  # of what the blocks give: 16 … 1
        self.blocks = nn.ModuleList(
            UNetBlock(before, of_stride.get(stride, 0), outputs, norm)
            for before, stride, outputs in zip([inputs, *channels], self.strides, channels)
        )

    def forward(self, maps: Mapping[int, Tensor], size: tuple[int, int]) -> Tensor:
        """Maps (B, C, H/s, W/s) by their strides s, and the size (H, W) of the image → (B, channels[-1], H, W)."""
        x = maps[max(maps)]
        for block, stride in zip(self.blocks, self.strides, strict=True):
            x = block(x, maps.get(stride), [(side + stride - 1) // stride for side in size])
        return x


class UNet(Segmenter):
    """A backbone with maps up to stride 32, and a decoder of five blocks."""

    def __init__(
        self,
        backbone: Backbone,
        decoder: UNetDecoder,
        width: int,
        labels: LabelSpace,
        input: Input,
        criterion: Criterion,
    ):
        super().__init__(labels, input, criterion)
        self.backbone = backbone
        self.decoder = decoder
        self.head = nn.Conv2d(width, len(labels), 3, padding=1)
        nn.init.xavier_uniform_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> SemanticOutputs:
        """images uint8 (B, 3, H, W), of any size for a ResNet, else multiples of 32.

        valid bool (B, H, W), False on padding.
        """
        maps = self.backbone(self.input(images, valid))
        features = self.decoder(dict(zip(self.backbone.strides, maps, strict=True)), (images.shape[2], images.shape[3]))
        return self.outputs(images, valid, self.head(features))


# --- builders --------------------------------------------------------------------------------------------------------


def unet_original(
    labels: LabelSpace,
    width: int = 64,
    depth: int = 4,
    dropout: float = 0.5,
    tile: int = 0,
    short: int = 0,
    long: int = 0,
    loss: str = "cross_entropy",
    class_weights: Sequence[float] = (),
    border_weight: float = 0.0,
    border_sigma: float = 5.0,
) -> OriginalUNet:
    """U-Net as published, of unpadded convolutions with mirrored borders: for cells and other small structures."""
    network = UnpaddedUNet(3, len(labels), width, depth, dropout)
    criterion = criterion_of(labels, loss, class_weights, border_weight, border_sigma)
    return OriginalUNet(network, labels, Input(ResizeRule(short, long, divisor=1)), criterion, tile)


def unet(
    labels: LabelSpace,
    backbone: str = "resnet34",
    pretrained: str = "none",
    short: int = 0,
    long: int = 0,
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
    decoder_norm: str = "batch",
    frozen_bn: bool = False,
    freeze_stages: int = 0,
    loss: str = "cross_entropy",
    class_weights: Sequence[float] = (),
    border_weight: float = 0.0,
    border_sigma: float = 5.0,
) -> UNet:
    """U-Net on any timm backbone, with padding. short, long: the resizing rule in pixels (short 0: keep the size)."""
    strides = [2, 4, 8, 16, 32] if 2 in pyramid_strides(backbone) else [4, 8, 16, 32]
    net = timm_backbone(backbone, pretrained, strides, frozen_bn=frozen_bn, freeze_stages=freeze_stages)
    criterion = criterion_of(labels, loss, class_weights, border_weight, border_sigma)
    input = Input(ResizeRule(short, long, size_divisor(net)), net.pixels)
    of_stride = dict(zip(net.strides, net.channels, strict=True))
    decoder = UNetDecoder(net.channels[-1], of_stride, decoder_channels, decoder_norm == "batch")
    return UNet(net, decoder, decoder_channels[-1], labels, input, criterion)


OPTIONS_ORIGINAL: dict[str, Option] = {
    **SEMANTIC_OPTIONS,
    "width": whole("channels of the first level, which double with every pooling", 1, 1024),
    "depth": whole("poolings of the contracting path", 1, 6),
    "dropout": drop_rate("dropout at the end of the contracting path"),
    "tile": whole("largest side of the output that is computed at once, in pixels; 0: the whole image", 0, 2**14),
}
OPTIONS: dict[str, Option] = {
    **SEMANTIC_OPTIONS,
    **PYRAMID_OPTIONS,
    "decoder_channels": Option(
        "widths of the decoder's blocks, from low to high resolution", "whole numbers", 1, 4096, length=5
    ),
    "decoder_norm": choice("norm after the decoder's convolutions", "batch", "none"),
}

ORIGINAL = Entry(
    unet_original,
    architecture="unet_original",
    produces=("semantic",),
    options=OPTIONS_ORIGINAL,
    adapts=("short",),
    rates=RateGroups(backbone="network.down."),
    class_rows={"network.head": every_class},
    small={"width": 16},
    tiny={"width": 4, "depth": 2, "short": 0, "long": 0},
)
GENERAL = Entry(
    unet,
    architecture="unet",
    produces=("semantic",),
    options=OPTIONS,
    backbone="pyramid",
    adapts=("pretrained", "short"),
    class_rows={"head": every_class},
    small={"decoder_channels": [128, 64, 48, 32, 16]},
    tiny={"backbone": "resnet10t", "short": 0, "long": 0, "decoder_channels": [16, 16, 8, 8, 8]} | {"frozen_bn": True},
)
ENTRIES: dict[str, Entry] = {"unet": GENERAL, "unet_original": ORIGINAL}
