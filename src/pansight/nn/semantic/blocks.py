"""Layers that several semantic networks are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.layers import DilatedConv2d
from pansight.nn.norms import BatchNorm2d
from pansight.nn.semantic.segmenter import resized
from pansight.ops.semantic.pooling import adaptive_mean


def conv_norm(
    inputs: int, outputs: int, kernel: int, dilation: int = 1, separable: bool = False, norm_between: bool = False
) -> nn.Sequential:
    """A convolution without bias that keeps the size, BatchNorm, ReLU.

    separable: a convolution of each channel by itself, then one of a single pixel over all channels. norm_between:
    BatchNorm and ReLU stand between these two as well.
    """
    if separable:
        alone = DilatedConv2d(inputs, inputs, kernel, (dilation, dilation), groups=inputs)
        between = [BatchNorm2d(inputs), nn.ReLU()] if norm_between else []
        convolution: nn.Module = nn.Sequential(alone, *between, nn.Conv2d(inputs, outputs, 1, bias=False))
    else:
        convolution = DilatedConv2d(inputs, outputs, kernel, (dilation, dilation))
    return nn.Sequential(convolution, BatchNorm2d(outputs), nn.ReLU())


def class_head(inputs: int, width: int, classes: int, dropout: nn.Module) -> nn.Sequential:
    """3×3 convolution, BatchNorm, ReLU, `dropout`, 1×1 convolution: (B, inputs, h, w) → logits (B, classes, h, w)."""
    return nn.Sequential(conv_norm(inputs, width, 3), dropout, nn.Conv2d(width, classes, 1))


def auxiliary_head(backbone: Backbone, classes: int, dropout: nn.Module, weight: float) -> nn.Sequential | None:
    """A `class_head` on the map before the last one, with a quarter of its channels; None for a loss without weight.

    Zhao, Shi, Qi, Wang, Jia: Pyramid Scene Parsing Network, CVPR 2017, section 3.3.
    """
    inputs = backbone.channels[-2]
    return class_head(inputs, max(1, inputs // 4), classes, dropout) if weight else None


def side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """The channels of all maps (B, C_i, h, w), in the memory format of the first one.

    Pooled maps come contiguous; among channels_last ones they would turn all of them.
    """
    first = maps[0]
    if first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous():
        maps = [each.contiguous(memory_format=torch.channels_last) for each in maps]
    return torch.cat(list(maps), 1)


class PyramidPooling(nn.Module):
    """What the surroundings say: means over grids of `bins` × `bins` cells, each brought to the size of the map.

    Zhao, Shi, Qi, Wang, Jia: Pyramid Scene Parsing Network, CVPR 2017, section 3.2. Each grid has
    inputs / len(bins) channels, so that all of them together have as many as the map, which they are put behind.
    bare_mean: the mean over the whole map has no BatchNorm, but a bias.
    """

    def __init__(self, inputs: int, bins: Sequence[int], bare_mean: bool = False):
        super().__init__()
        self.bins = tuple(bins)
        width = max(1, inputs // max(1, len(self.bins)))
        self.outputs = inputs + width * len(self.bins)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, width, 1), nn.ReLU())
            if bare_mean and cells == 1
            else conv_norm(inputs, width, 1)
            for cells in self.bins
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h, w)."""
        pooled = (branch(adaptive_mean(x, cells)) for branch, cells in zip(self.branches, self.bins, strict=True))
        return side_by_side([x, *(resized(each, x.shape[2:], align_corners=True) for each in pooled)])


class ImagePooling(nn.Module):
    """The mean over the map, or over windows of it, through a 1×1 convolution, at the size of the map.

    window: (height, width) in places of the map; a smaller map is one window. norm: BatchNorm instead of a bias.
    """

    def __init__(self, inputs: int, width: int, norm: bool = True, window: Sequence[int] = ()):
        super().__init__()
        self.window = tuple(window)
        self.layers = conv_norm(inputs, width, 1) if norm else nn.Sequential(nn.Conv2d(inputs, width, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, width, h, w)."""
        size = x.shape[2:]
        if self.window:
            window = [min(side, least) for side, least in zip(size, self.window, strict=True)]
            return resized(self.layers(F.avg_pool2d(x, window, stride=1)), size)
        return resized(self.layers(F.adaptive_avg_pool2d(x, 1)), size)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: the same map seen at several dilations, and its mean.

    Chen, Papandreou, Schroff, Adam: Rethinking Atrous Convolution for Semantic Image Segmentation, 2017, section 3.3.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        rates: Sequence[int],
        pooling: ImagePooling,
        dropout: float,
        separable: bool = False,
        norm_between: bool = False,
    ):
        super().__init__()
        branches = [conv_norm(inputs, width, 3, rate, separable, norm_between) for rate in rates]
        self.branches = nn.ModuleList([conv_norm(inputs, width, 1), *branches, pooling])
        self.project = nn.Sequential(conv_norm(width * len(self.branches), width, 1), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, width, h, w)."""
        return self.project(side_by_side([branch(x) for branch in self.branches]))


def dilate(backbone: Backbone, stage: str, dilations: Sequence[int], where: str = "dilations") -> None:
    """Give the 3×3 convolutions of a ResNet's stage (``layer4``) these dilations, one for each of its blocks.

    timm and torchvision leave the first block of a dilated stage at the dilation of the stage before.
    where: what an error begins with. Raises PansightError for a backbone without such a stage, or of other blocks.
    """
    blocks = list(dict(backbone.features.named_children()).get(stage, nn.Module()).children())
    if len(blocks) != len(dilations):
        found = f"{len(blocks)} blocks in {stage}" if blocks else f"no {stage}"
        raise PansightError(where=where, expected=f"a ResNet with {len(dilations)} blocks in {stage}", found=found)
    for block, dilation in zip(blocks, dilations, strict=True):
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (dilation, dilation)


def dilate_every_block(backbone: Backbone) -> None:
    """Dilate the first block of a stage as the others of it, where the backbone is a ResNet; else change nothing."""
    stages = dict(backbone.features.named_children())
    for stage, index, usual in (("layer3", 2, 16), ("layer4", 3, 32)):
        dilation = usual // backbone.strides[index]
        if stage in stages and dilation > 1:
            dilate(backbone, stage, [dilation] * len(list(stages[stage].children())))


def dilated_strides(output_stride: int) -> tuple[int, ...]:
    """The strides of the maps of a backbone whose last ones are dilated: 8 → (4, 8, 8, 8)."""
    return tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))


def dilated_backbone(
    name: str,
    pretrained: str,
    output_stride: int,
    frozen_bn: bool,
    freeze_stages: int,
    multi_grid: Sequence[int] = (),
) -> Backbone:
    """A timm backbone with the maps of `dilated_strides`; options as those of `timm_backbone`.

    multi_grid: factors on the dilation of the blocks of a ResNet's last stage; (): the same for all.
    """
    strides = dilated_strides(output_stride)
    net = timm_backbone(
        name, pretrained, strides, frozen_bn=frozen_bn, freeze_stages=freeze_stages, output_stride=output_stride
    )
    if multi_grid:
        dilate(net, "layer4", [factor * 32 // output_stride for factor in multi_grid], "multi_grid")
    return net


def check_output_stride(stride: int) -> None:
    """Raises PansightError for another one than 8, 16 or 32."""
    if stride not in (8, 16, 32):
        raise PansightError(where="output_stride", expected="8, 16 or 32", found=stride)


def size_divisor(backbone: Backbone) -> int:
    """What the sides of images are padded to multiples of: nothing (1) for a ResNet, which takes any size.

    Other families may cut what their strides do not divide, or refuse it.
    """
    return 1 if "layer4" in dict(backbone.features.named_children()) else 32
