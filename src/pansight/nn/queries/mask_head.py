"""DETR's mask head: a query's attention map and the backbone's features become its mask. Carion et al., section 4.4.

A convolution is linear, so the convolution of a sum is the sum of convolutions. Therefore the part of the input that
all queries share passes through the head only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionMap(nn.Module):
    """The attention of a query over the image, without values: one softmax over heads and places together."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(channels, channels)
        self.k_linear = nn.Linear(channels, channels)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, memory: Tensor, valid: Tensor) -> Tensor:
        """One image: queries (K, D), memory (h, w, D), valid bool (h, w) → (K, heads, h, w), sums of 1 a query."""
        q = self.q_linear(queries).unflatten(1, (self.heads, -1)).transpose(0, 1)  # (heads, K, D / heads)
        k = self.k_linear(memory).flatten(0, 1).unflatten(1, (self.heads, -1)).permute(1, 2, 0)  # (heads, D / heads, N)
        logits = ((q * q.shape[2] ** -0.5) @ k).transpose(0, 1).float()  # (K, heads, N)
        logits = logits.masked_fill(~valid.flatten(), float("-inf"))
        return logits.flatten(1).softmax(1).view(-1, self.heads, *valid.shape)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(gcd(8, channels), channels)


ATTENTION_GAIN, ADAPTER_GAIN = 1000.0, 0.1
"""Of the first weights on attention maps, which are near 1 / (heads · h · w), and of those on the backbone's maps.

With a gain of 1 all queries get one mask at first, and hundreds of steps do not change that: eight memorised images
(tests/models/test_overfit.py) end at PQ 0.07 instead of 0.9. The published 184,000 steps grow these weights.
"""


class MaskHead(nn.Module):
    """The projected features beside a query's attention, then three times the resolution, adding the backbone's maps.

    fpn_channels: of the backbone's maps from coarse to fine. All convolutions but the adapters are 3×3.
    """

    def __init__(self, channels: int, heads: int, fpn_channels: Sequence[int]):
        super().__init__()
        self.channels = channels
        inner, a, b, c, d = channels + heads, channels // 2, channels // 4, channels // 8, channels // 16
        self.lay1, self.gn1 = nn.Conv2d(inner, inner, 3, padding=1), _norm(inner)
        self.lay2, self.gn2 = nn.Conv2d(inner, a, 3, padding=1), _norm(a)
        self.lay3, self.gn3 = nn.Conv2d(a, b, 3, padding=1), _norm(b)
        self.lay4, self.gn4 = nn.Conv2d(b, c, 3, padding=1), _norm(c)
        self.lay5, self.gn5 = nn.Conv2d(c, d, 3, padding=1), _norm(d)
        self.out_lay = nn.Conv2d(d, 1, 3, padding=1)
        self.adapter1 = nn.Conv2d(fpn_channels[0], a, 1)
        self.adapter2 = nn.Conv2d(fpn_channels[1], b, 1)
        self.adapter3 = nn.Conv2d(fpn_channels[2], c, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.lay1.weight[:, channels:] *= ATTENTION_GAIN
            for adapter in (self.adapter1, self.adapter2, self.adapter3):
                adapter.weight *= ADAPTER_GAIN

    def shared(self, projected: Tensor, fpn: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The part of the head that does not depend on the query. projected (B, D, h, w); fpn: the backbone's maps from
        coarse to fine, (B, C_i, …).

        → the parts of lay1, lay3, lay4 and lay5 (with their biases) to which a query's own parts are added.
        """
        first = F.conv2d(projected, self.lay1.weight[:, : self.channels], self.lay1.bias, padding=1)
        stages = ((self.lay3, self.adapter1), (self.lay4, self.adapter2), (self.lay5, self.adapter3))
        return first, *(lay(adapter(x)) for (lay, adapter), x in zip(stages, fpn, strict=True))

    def forward(self, shared: Sequence[Tensor], attention: Tensor) -> Tensor:
        """One image: shared (1, C_i, h_i, w_i) of `shared`; attention (K, heads, h, w) → logits (K, H / 4, W / 4)."""
        first, *rest = shared
        x = attention.contiguous(memory_format=torch.channels_last)  # twice as fast here, and no copies to pay for
        x = F.conv2d(x, self.lay1.weight[:, self.channels :], padding=1) + first
        x = F.relu_(self.gn1(x))
        x = F.relu_(self.gn2(self.lay2(x)))
        layers = ((self.lay3, self.gn3), (self.lay4, self.gn4), (self.lay5, self.gn5))
        for (lay, norm), part in zip(layers, rest, strict=True):
            x = upsample_conv(x, lay.weight, (part.shape[2], part.shape[3])) + part
            x = F.relu_(norm(x))
        return self.out_lay(x)[:, 0]


def upsample_conv(x: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """A 3×3 convolution, padding 1, of `x` enlarged to `size` by nearest pixels.

    x (K, C, h, w), weight (C', C, 3, 3) → (K, C', *size).

    For twice the size (or one less: odd sides), a pixel's 3×3 neighbours are copies of 2×2 pixels of `x`: a transposed
    convolution of stride 2 with the weights of equal pixels added up does the same with 4 products in place of 9.
    """
    if x.shape[2:] == size:
        return F.conv2d(x, weight, padding=1)
    if any(large not in (2 * small, 2 * small - 1) for large, small in zip(size, x.shape[2:], strict=True)):
        return F.conv2d(F.interpolate(x, size), weight, padding=1)
    y = F.conv_transpose2d(x, _doubled(weight).transpose(0, 1), stride=2, padding=1)  # (K, C', 2 h, 2 w)
    if y.shape[2:] == size:
        return y
    # what lies beyond an odd side must count as zero, not as the copy of the last pixel: once more for that side
    y = y[:, :, : size[0], : size[1]]
    if size[0] % 2:
        last = x[:, :, -2:]  # the last two rows of the enlarged map, or its only one
        rows = F.interpolate(last, (last.shape[2], size[1]))
        y[:, :, -1:] = F.conv2d(rows, weight[:, :, 2 - rows.shape[2] : 2], padding=(0, 1))
    if size[1] % 2:
        last = x[:, :, :, -2:]
        columns = F.interpolate(last, (size[0], last.shape[3]))
        y[:, :, :, -1:] = F.conv2d(columns, weight[:, :, :, 2 - columns.shape[3] : 2], padding=(1, 0))
    return y


def _doubled(weight: Tensor) -> Tensor:
    """(C', C, 3, 3) → (C', C, 4, 4) of the transposed convolution in `upsample_conv`, one axis after the other."""
    for axis in (2, 3):
        first, middle, last = weight.unbind(axis)
        weight = torch.stack((last, middle + last, first + middle, first), axis)
    return weight
