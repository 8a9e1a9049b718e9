"""The heads of Panoptic FCN (Li et al., CVPR 2021, figure 2): where segments are, their kernels, and the pixels.

The position head and the kernel head have one set of weights for all levels of the pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.nn.deformable import DeformableConv
from pansight.nn.norms import GroupNorm
from pansight.nn.semantic.fpn_head import SemanticFPNHead

PRIOR = -2.19
"""The bias that scores start with: a probability of 0.1."""


def with_coordinates(x: Tensor) -> Tensor:
    """(B, C, h, w) → (B, C + 2, h, w): the row, then the column of each place, from −1 to 1."""
    count, _, height, width = x.shape
    rows, columns = _coordinates(x, height)[:, None], _coordinates(x, width)
    return torch.cat((x, *(each.expand(count, 1, height, width) for each in (rows, columns))), dim=1)


def _coordinates(x: Tensor, length: int) -> Tensor:
    """From −1 to 1 in equal steps, of the dtype of x: (length,)."""
    if not torch.compiler.is_exporting():
        return torch.linspace(-1, 1, length, dtype=x.dtype, device=x.device)
    step = torch.arange(length, dtype=x.dtype, device=x.device)  # torch exports linspace for one length alone
    return 2 * step / step[-1].clamp(min=1) - 1


class ConvLayer(nn.Module):
    """A 3×3 convolution, plain or deformable (v2), and ReLU; groups: of a GroupNorm between, 0: a bias instead.

    published_start: plain convolutions, and those that say offsets, start with PyTorch's weights, as in the published
    code. Offsets then grow with the pyramid, whose values differ by backbone: beyond a few places, the position head
    does not learn. Otherwise they start at zero, and plain convolutions with weights for ReLU.
    """

    def __init__(self, inputs: int, channels: int, groups: int, deformable: bool, published_start: bool):
        super().__init__()
        bias = groups == 0
        if deformable:
            still = not published_start
            self.conv = DeformableConv(inputs, channels, bias=bias, modulated=True, still=still)
        else:
            self.conv = nn.Conv2d(inputs, channels, 3, padding=1, bias=bias)
        if deformable or not published_start:
            nn.init.kaiming_uniform_(self.conv.weight, nonlinearity="relu")
            if self.conv.bias is not None:
                nn.init.zeros_(self.conv.bias)
        self.norm = GroupNorm(groups, channels) if groups else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, channels, h, w)."""
        return F.relu(self.norm(self.conv(x)))


def conv_layers(
    inputs: int, channels: int, count: int, groups: int, deformable: bool, published_start: bool
) -> nn.Sequential:
    """`count` layers of `channels`, of which the first has other inputs."""
    widths = [inputs, *[channels] * count]
    return nn.Sequential(*(ConvLayer(a, b, groups, deformable, published_start) for a, b in pairwise(widths)))


def predictor(inputs: int, outputs: int, kernel: int = 3, bias: float = 0.0) -> nn.Conv2d:
    """A last convolution, which starts near zero."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    assert convolution.bias is not None
    nn.init.normal_(convolution.weight, std=0.01)
    nn.init.constant_(convolution.bias, bias)
    return convolution


class PositionHead(nn.Module):
    """Scores of each place: is it the centre of a thing of that class, is it stuff of that class."""

    def __init__(
        self,
        channels: int,
        convs: int,
        groups: int,
        deformable: bool,
        things: int,
        stuff: int,
        published_start: bool = False,
    ):
        super().__init__()
        self.convs = conv_layers(channels, channels, convs, groups, deformable, published_start)
        self.things = predictor(channels, things, bias=PRIOR)
        self.stuff = predictor(channels, stuff, bias=PRIOR)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) → logits (B, things, h, w), (B, stuff, h, w)."""
        x = self.convs(x)
        return self.things(x), self.stuff(x)


class KernelHead(nn.Module):
    """The kernel of each place. coordinates: the head is told where on the map a place is."""

    def __init__(self, channels: int, convs: int, groups: int, coordinates: bool, published_start: bool = False):
        super().__init__()
        self.coordinates = coordinates
        self.convs = conv_layers(channels + 2 * coordinates, channels, convs, groups, False, published_start)
        self.predictor = predictor(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, h, w)."""
        return self.predictor(self.convs(with_coordinates(x) if self.coordinates else x))


class FeatureEncoder(nn.Module):
    """The pixels that kernels are multiplied with: three convolutions with a bias, the last one with a ReLU, too."""

    def __init__(self, inputs: int, channels: int, coordinates: bool, deformable: bool, published_start: bool = False):
        super().__init__()
        self.coordinates = coordinates
        self.convs = conv_layers(inputs + 2 * coordinates, channels, 3, 0, deformable, published_start)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H/4, W/4) → (B, channels, H/4, W/4)."""
        return self.convs(with_coordinates(x) if self.coordinates else x)


class TopLevels(nn.Module):
    """P3 … P5 and the two levels above, each half as large: P6 from P5, P7 from P6 behind a ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.p6 = nn.Conv2d(channels, channels, 3, 2, 1)
        self.p7 = nn.Conv2d(channels, channels, 3, 2, 1)
        for layer in (self.p6, self.p7):
            assert layer.bias is not None
            nn.init.kaiming_uniform_(layer.weight, a=1)  # "xavier" of Caffe2
            nn.init.zeros_(layer.bias)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, h, w), the coarsest last → these and two more."""
        with torch.autocast(levels[-1].device.type, enabled=False):  # see Backbone: bfloat16 on narrow maps
            p6 = self.p6(levels[-1].float())
            return [*levels, p6, self.p7(F.relu(p6))]


class PyramidSum(nn.Module):
    """P2 … P5 at the size of P2, added up as they are; finest: P2 alone."""

    def __init__(self, finest: bool):
        super().__init__()
        self.finest = finest

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """[(B, C, h, w)] → (B, C, H/4, W/4)."""
        total = levels[0]
        for level in () if self.finest else levels[1:]:
            total = total + F.interpolate(level, total.shape[2:], mode="bilinear", align_corners=False)
        return total


def pixel_branch(kind: str, channels: int, strides: Sequence[int], groups: int) -> nn.Module:
    """What the feature encoder reads, P2 … P5 → (B, channels, H/4, W/4): "semantic_fpn", "sum" or "p2"."""
    if kind == "semantic_fpn":
        return SemanticFPNHead(channels, strides, 0, channels, groups)
    return PyramidSum(finest=kind == "p2")
