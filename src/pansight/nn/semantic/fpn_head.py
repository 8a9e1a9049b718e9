"""The semantic branch of Panoptic FPN (Kirillov et al., CVPR 2019, figure 3): a sum of upsampled pyramid levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pansight.nn.norms import GroupNorm


class ConvNormUp(nn.Module):
    """3×3 convolution (no bias), GroupNorm, ReLU, then bilinear ×2 where `up`."""

    def __init__(self, in_channels: int, channels: int, groups: int, up: bool):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = GroupNorm(groups, channels)
        self.up = up
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        if self.up:  # after every convolution, not once at the end
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return x


class SemanticFPNHead(nn.Module):
    """Pyramid maps P2 … P5 to logits at the stride of the first.

    A level of stride s passes max(1, log2(s / s₀)) stages of `width` channels; all levels meet at stride s₀ and are
    summed, then one 1×1 convolution predicts `num_classes` logits. Input sizes must be multiples of the last stride.
    num_classes 0: no classifier, the sum itself.
    """

    def __init__(
        self, in_channels: int, strides: Sequence[int], num_classes: int, width: int = 128, norm_groups: int = 32
    ):
        super().__init__()
        self.stride = strides[0]
        self.levels = nn.ModuleList()
        for stride in strides:
            doublings = int(math.log2(stride // strides[0]))
            self.levels.append(
                nn.Sequential(
                    *(
                        ConvNormUp(in_channels if stage == 0 else width, width, norm_groups, up=doublings > 0)
                        for stage in range(max(1, doublings))
                    )
                )
            )
        self.predictor = nn.Conv2d(width, num_classes, 1) if num_classes else nn.Identity()
        if isinstance(self.predictor, nn.Conv2d):
            nn.init.kaiming_normal_(self.predictor.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(self.predictor.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[(B, C, H/s, W/s) for each stride] → logits (B, num_classes, H/s₀, W/s₀)."""
        first, *rest = (level(x) for level, x in zip(self.levels, features, strict=True))
        for x in rest:
            first = first + x
        return self.predictor(first)
