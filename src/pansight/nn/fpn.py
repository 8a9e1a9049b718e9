"""Feature pyramid. Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

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
