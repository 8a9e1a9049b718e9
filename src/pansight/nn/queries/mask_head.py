"""DETR's mask head: a query's attention map and the backbone's features become its mask. Carion et al., section 4.4."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.nn.norms import GroupNorm
from pansight.ops.fast import use_plain
from pansight.ops.fast.convolutions import upsample_conv

CHUNK_ELEMENTS = 1 << 23
"""How large a map of several queries may get in the mask head; more queries come in turns."""


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


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(gcd(8, channels), channels)


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

    def adapted(self, fpn: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The backbone's maps (B, fpn_channels[i], h_i, w_i), coarse to fine, with as many channels as the head's."""
        adapters = (self.adapter1, self.adapter2, self.adapter3)
        return tuple(adapter(x) for adapter, x in zip(adapters, fpn, strict=True))

    def forward(self, projected: Tensor, adapted: Sequence[Tensor], attention: Tensor) -> Tensor:
        """One image: projected (1, D, h, w), adapted: three (1, C_i, h_i, w_i) of `adapted`, the last one of stride 4;

        attention (K, heads, h, w) → logits (K, H / 4, W / 4), in turns where K is large.
        """
        parts: Sequence[Tensor] = (attention,)
        if not torch.compiler.is_exporting():  # a graph has no loops of a length that follows from its size
            step = max(1, CHUNK_ELEMENTS // max(1, self.out_lay.in_channels * adapted[-1][0, 0].numel()))
            parts = attention.split(step)  # one part of no query, where there is none
        if use_plain():
            return torch.cat([self._as_published(projected, adapted, part) for part in parts])
        shared = self._shared(projected, adapted)
        return torch.cat([self._around(shared, part) for part in parts])

    def _as_published(self, projected: Tensor, adapted: Sequence[Tensor], attention: Tensor) -> Tensor:
        x = torch.cat((projected.expand(attention.shape[0], -1, -1, -1), attention.to(projected.dtype)), dim=1)
        x = F.relu(self.gn1(self.lay1(x)))
        x = F.relu(self.gn2(self.lay2(x)))
        layers = ((self.lay3, self.gn3), (self.lay4, self.gn4), (self.lay5, self.gn5))
        for (lay, norm), finer in zip(layers, adapted, strict=True):
            x = finer + F.interpolate(x, size=finer.shape[2:], mode="nearest")
            x = F.relu(norm(lay(x)))
        return self.out_lay(x)[:, 0]

    def _shared(self, projected: Tensor, adapted: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The parts of lay1, lay3, lay4 and lay5, with their biases, that are the same for all queries.

        A convolution is linear: one over a sum or over maps side by side is a sum of convolutions.
        """
        first = F.conv2d(projected, self.lay1.weight[:, : self.channels], self.lay1.bias, padding=1)
        return first, *(lay(x) for lay, x in zip((self.lay3, self.lay4, self.lay5), adapted, strict=True))

    def _around(self, shared: Sequence[Tensor], attention: Tensor) -> Tensor:
        """What `_as_published` gives: the parts of each query's own, added to the `shared` ones."""
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
