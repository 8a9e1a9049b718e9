"""Feature pyramids: FPN (Lin et al., CVPR 2017), and the two-way one of EfficientPS (Mohan, Valada, IJCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pansight.nn.layers import DilatedConv2d
from pansight.nn.norms import BatchNorm2d


def conv_norm(in_channels: int, out_channels: int, kernel: int, norm: str | None, groups: int = 1) -> nn.Module:
    """A "same" convolution with a bias; with norm="bn": without one, followed by BatchNorm."""
    padding = kernel // 2
    if norm is None:
        return nn.Conv2d(in_channels, out_channels, kernel, padding=padding, groups=groups)
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, groups=groups, bias=False)
    return nn.Sequential(convolution, BatchNorm2d(out_channels))


class FPN(nn.Module):
    """C2 … C5 to as many maps of equal width, each the sum of all coarser ones, and P6 where extra="pool".

    norm: None or "bn" (torchvision's V2 models). in_channels from fine to coarse, as a backbone lists them. groups: of
    the 3×3 convolutions: each of so many equal parts of the channels depends on its own part of the sums alone.
    gap: the mean of the coarsest map, through a linear layer, is added to all of its lateral places (UPSNet on COCO).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        extra: str | None = "pool",
        norm: str | None = None,
        groups: int = 1,
        gap: bool = False,
    ):
        super().__init__()
        self.channels = out_channels
        self.extra = extra
        self.lateral = nn.ModuleList(conv_norm(c, out_channels, 1, norm) for c in in_channels)
        self.output = nn.ModuleList(conv_norm(out_channels, out_channels, 3, norm, groups) for _ in in_channels)
        self.gap = nn.Linear(in_channels[-1], out_channels) if gap else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)  # "xavier" of Caffe2
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[(B, C_i, H_i, W_i)] → [(B, out_channels, H_i, W_i)], then half the last map's size for P6."""
        laterals = [layer(x) for layer, x in zip(self.lateral, maps, strict=True)]
        if self.gap is not None:
            laterals[-1] = laterals[-1] + self.gap(maps[-1].mean((2, 3)))[:, :, None, None]
        for fine in range(len(laterals) - 2, -1, -1):
            size = laterals[fine].shape[2:]
            laterals[fine] = laterals[fine] + F.interpolate(laterals[fine + 1], size=size, mode="nearest")
        pyramid = [layer(x) for layer, x in zip(self.output, laterals, strict=True)]
        if self.extra == "pool":
            pyramid.append(F.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        return pyramid


SLOPE = 0.01
"""Of the leaky ReLU behind an activated BatchNorm."""


def activated_conv(
    in_channels: int, out_channels: int, kernel: int = 1, dilation: tuple[int, int] = (1, 1), groups: int = 1
) -> nn.Sequential:
    """A "same" convolution without bias, BatchNorm, leaky ReLU: an activated BatchNorm as ordinary layers.

    Rota Bulò, Porzi, Kontschieder: In-Place Activated BatchNorm for Memory-Optimized Training of DNNs, CVPR 2018. The
    in-place form gives the same values. dilation: down and right, in places.
    """
    convolution = DilatedConv2d(in_channels, out_channels, kernel, dilation, groups)
    return nn.Sequential(convolution, BatchNorm2d(out_channels), nn.LeakyReLU(SLOPE, inplace=True))


def separable_conv(in_channels: int, out_channels: int, dilation: tuple[int, int] = (1, 1)) -> nn.Sequential:
    """A 3×3 convolution of each channel by itself, then a 1×1 convolution over all of them, both activated."""
    alone = activated_conv(in_channels, in_channels, 3, dilation, groups=in_channels)
    return nn.Sequential(alone, activated_conv(in_channels, out_channels))


class TwoWayFPN(nn.Module):
    """As many maps of equal width as the backbone has, each the sum of all coarser and of all finer ones.

    Mohan, Valada: EfficientPS, IJCV 2021, section 3.2. Two sets of 1×1 convolutions feed a pass from the coarse to the
    fine maps and one from the fine to the coarse; both results of a level are added, and a 3×3 convolution follows.
    separable: these 3×3 convolutions are separable, as in the paper; the released network has plain ones.
    in_channels from fine to coarse, as a backbone lists them.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256, separable: bool = False):
        super().__init__()
        self.top = nn.ModuleList(activated_conv(c, out_channels) for c in in_channels)
        self.bottom = nn.ModuleList(activated_conv(c, out_channels) for c in in_channels)
        self.output = nn.ModuleList(
            separable_conv(out_channels, out_channels) if separable else activated_conv(out_channels, out_channels, 3)
            for _ in in_channels
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[(B, C_i, H_i, W_i)] → [(B, out_channels, H_i, W_i)]."""
        down = [layer(x) for layer, x in zip(self.top, maps, strict=True)]
        for fine in range(len(down) - 2, -1, -1):
            size = down[fine].shape[2:]
            down[fine] = down[fine] + F.interpolate(down[fine + 1], size=size, mode="nearest")
        up = [layer(x) for layer, x in zip(self.bottom, maps, strict=True)]
        for coarse in range(1, len(up)):
            size = up[coarse].shape[2:]
            up[coarse] = up[coarse] + F.interpolate(up[coarse - 1], size=size, mode="nearest")
        return [layer(a + b) for layer, a, b in zip(self.output, down, up, strict=True)]
