"""The semantic head of EfficientPS (Mohan, Valada, IJCV 2021, section 3.3): what each scale of the pyramid needs.

The two coarse maps hold context, which dense prediction cells gather at many dilations; the two fine ones hold
outlines, which a few convolutions keep. Between the scales a module corrects the mismatch of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pansight.nn.fpn import activated_conv, separable_conv
from pansight.nn.semantic.segmenter import resized


class DensePredictionCell(nn.Module):
    """Five separable convolutions of different dilations, some behind others; their maps side by side → `width`.

    Chen et al.: Searching for Efficient Multi-Scale Architectures for Dense Image Prediction, NeurIPS 2018, the best
    cell found there.
    """

    DILATIONS = ((1, 6), (1, 1), (6, 21), (18, 15), (6, 3))  # down and right

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.convs = nn.ModuleList(separable_conv(in_channels, in_channels, rates) for rates in self.DILATIONS)
        self.project = activated_conv(in_channels * len(self.DILATIONS), width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) → (B, width, h, w)."""
        a = self.convs[0](x)
        b, c, d = (conv(a) for conv in self.convs[1:4])
        e = self.convs[4](d)
        return self.project(torch.cat([a, b, c, d, e], 1))


def two_convs(in_channels: int, width: int) -> nn.Sequential:
    """Two separable convolutions: the extractor of large-scale features, and the correction of the mismatch."""
    return nn.Sequential(separable_conv(in_channels, width), separable_conv(width, width))


class EfficientPSHead(nn.Module):
    """P4, P8, P16 and P32 (named by their strides) to logits at the stride of the first.

    All lists of layers are ordered from coarse to fine.
    """

    def __init__(self, in_channels: int, classes: int, width: int = 128):
        super().__init__()
        self.context = nn.ModuleList(DensePredictionCell(in_channels, width) for _ in range(2))  # of P32 and P16
        self.outlines = nn.ModuleList(two_convs(in_channels, width) for _ in range(2))  # of P8 and P4
        self.correction = nn.ModuleList(two_convs(width, width) for _ in range(2))  # from 16 to 8, from 8 to 4
        self.predictor = nn.Conv2d(4 * width, classes, 1)
        nn.init.kaiming_normal_(self.predictor.weight, nonlinearity="linear")
        nn.init.zeros_(self.predictor.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[(B, in_channels, H/s, W/s) for s = 4, 8, 16, 32] → logits (B, classes, H/4, W/4)."""
        p4, p8, p16, p32 = features
        f32, f16 = self.context[0](p32), self.context[1](p16)
        both = f16 + resized(f32, f16.shape[2:])
        f8 = self.outlines[0](p8) + resized(self.correction[0](both), p8.shape[2:])
        f4 = self.outlines[1](p4) + resized(self.correction[1](f8), p4.shape[2:])
        return self.predictor(torch.cat([f4, *(resized(f, f4.shape[2:]) for f in (f8, f16, f32))], 1))
