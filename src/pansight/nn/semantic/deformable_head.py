"""The semantic branch of UPSNet (Xiong et al., CVPR 2019, 3.2): deformable convolutions, the same for all levels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.nn.deformable import DeformableConv
from pansight.nn.semantic.segmenter import resized


class DeformableHead(nn.Module):
    """Pyramid maps P2 … P5 to logits at the stride of the first.

    `depth` deformable convolutions with ReLU, the same ones for every level; the channels become `width` in the last
    but one. All levels are brought to the size of the first, stacked, and one 1×1 convolution predicts the classes.
    """

    def __init__(self, in_channels: int, strides: Sequence[int], num_classes: int, width: int = 128, depth: int = 2):
        super().__init__()
        self.stride, self.maps = strides[0], len(strides)
        wide = max(depth - 1, 1)  # convolutions until the channels have become fewer, that one included
        widths = [in_channels] * wide + [width] * (depth - wide + 1)
        self.convs = nn.ModuleList(DeformableConv(a, b) for a, b in itertools.pairwise(widths))
        self.predictor = nn.Conv2d(width * len(strides), num_classes, 1)
        for conv in self.convs:
            assert isinstance(conv, DeformableConv)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.01)
        assert self.predictor.bias is not None
        nn.init.zeros_(self.predictor.bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[(B, C, H/s, W/s) for each stride, further maps are not looked at] → logits (B, classes, H/s₀, W/s₀)."""
        levels: list[Tensor] = []
        for x in features[: self.maps]:
            for conv in self.convs:
                x = F.relu(conv(x))
            levels.append(resized(x, features[0].shape[2:]))
        return self.predictor(torch.cat(levels, dim=1))
