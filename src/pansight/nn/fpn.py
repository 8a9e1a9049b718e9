"""Feature pyramid network (Lin et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """1×1 lateral convolutions, nearest ×2 top-down sums, 3×3 output convolutions; C2 … C5 → P2 … P5 (, P6).

    pool: append P6, every second cell of P5. norm: BatchNorm after every convolution, which then has no bias
    (torchvision's V2 models).
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, pool: bool = True, norm: bool = False):
        super().__init__()
        self.lateral = nn.ModuleList(_conv(c, channels, 1, norm) for c in in_channels)
        self.output = nn.ModuleList(_conv(channels, channels, 3, norm) for _ in in_channels)
        self.pool = pool

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[(B, C_i, h_i, w_i)], finest first → [(B, channels, h_i, w_i)], and P6 where `pool`."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for level in range(len(merged) - 2, -1, -1):
            merged[level] = merged[level] + F.interpolate(merged[level + 1], size=merged[level].shape[2:])
        maps = [output(x) for output, x in zip(self.output, merged, strict=True)]
        if self.pool:
            maps.append(F.max_pool2d(maps[-1], 1, 2))
        return maps


def _conv(in_channels: int, channels: int, kernel: int, norm: bool) -> nn.Module:
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=not norm)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if not norm:
        nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    return nn.Sequential(conv, nn.BatchNorm2d(channels)) if norm else conv
