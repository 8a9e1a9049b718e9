"""DETR's transformer: post-norm encoder and decoder layers with positions added to queries and keys.

Vaswani et al., 2017; Carion et al., DETR, ECCV 2020, appendix A.3. MaskFormer has the same decoder, and its encoder
pixel decoder the same encoder. Sequences are (B, N, D). Parameters carry the official names
(``self_attn.in_proj_weight`` (3D, D): query, key, value; ``linear1`` …).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.nn.checkpointing import Recomputed
from pansight.nn.layers import FastLinear
from pansight.ops.fast.linear import linear


class Attention(nn.Module):
    """Multi-head attention with the parameters of nn.MultiheadAttention."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = FastLinear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query (B, N, D), key and value (B, M, D) → (B, N, D).

        mask: bool, broadcastable to (B, heads, N, M), True where a query may look. A row that is all False gives NaN.
        """
        channels = query.shape[2]
        if query is key:  # one product instead of two
            both = linear(query, self.in_proj_weight[: 2 * channels], self.in_proj_bias[: 2 * channels])
            q, k = both.chunk(2, dim=2)
        else:
            q = linear(query, self.in_proj_weight[:channels], self.in_proj_bias[:channels])
            k = linear(key, self.in_proj_weight[channels : 2 * channels], self.in_proj_bias[channels : 2 * channels])
        v = linear(value, self.in_proj_weight[2 * channels :], self.in_proj_bias[2 * channels :])
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, N or M, D / heads)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (B, N, D)


class EncoderLayer(Recomputed):
    """x += attention; norm; x += feed-forward; norm. Positions go to queries and keys only."""

    def __init__(self, channels: int = 256, heads: int = 8, hidden: int = 2048, dropout: float = 0.1):
        super().__init__()
        self.self_attn = Attention(channels, heads, dropout)
        self.linear1 = FastLinear(channels, hidden)
        self.linear2 = FastLinear(hidden, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """x, positions (B, N, D); mask as in Attention."""
        placed = x + positions
        x = self.norm1(x + self.dropout(self.self_attn(placed, placed, x, mask)))
        return self.norm2(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class DecoderLayer(Recomputed):
    """Self-attention of the queries, cross-attention to the memory, a feed-forward block; a norm after each."""

    def __init__(self, channels: int = 256, heads: int = 8, hidden: int = 2048, dropout: float = 0.1):
        super().__init__()
        self.self_attn = Attention(channels, heads, dropout)
        self.multihead_attn = Attention(channels, heads, dropout)
        self.linear1 = FastLinear(channels, hidden)
        self.linear2 = FastLinear(hidden, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, query_positions: Tensor, memory: Tensor, placed_memory: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """x, query_positions (B, Q, D); memory, placed_memory = memory + its positions (B, N, D)."""
        placed = x + query_positions
        x = self.norm1(x + self.dropout(self.self_attn(placed, placed, x)))
        x = self.norm2(x + self.dropout(self.multihead_attn(x + query_positions, placed_memory, memory, mask)))
        return self.norm3(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class TransformerEncoder(nn.Module):
    """`layers` encoder layers, no final norm."""

    def __init__(self, layers: int = 6, channels: int = 256, heads: int = 8, hidden: int = 2048, dropout: float = 0.1):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(channels, heads, hidden, dropout) for _ in range(layers))
        _initialise(self)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """x, positions (B, N, D) → (B, N, D)."""
        for layer in self.layers:
            x = layer(x, positions, mask)
        return x


class TransformerDecoder(nn.Module):
    """`layers` decoder layers from zero queries; one norm, shared by the outputs of all layers."""

    def __init__(self, layers: int = 6, channels: int = 256, heads: int = 8, hidden: int = 2048, dropout: float = 0.1):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(channels, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)
        _initialise(self)

    def forward(
        self,
        query_positions: Tensor,
        memory: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        all_layers: bool = True,
    ) -> Tensor:
        """query_positions (Q, D); memory, positions (B, N, D); mask broadcastable to (B, heads, Q, N).

        → (L, B, Q, D), the normed output of every layer; of the last alone (L = 1) unless `all_layers`.
        """
        query_positions = query_positions.expand(memory.shape[0], -1, -1)  # (B, Q, D)
        x = torch.zeros_like(query_positions)
        placed_memory = memory + positions
        outputs: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            x = layer(x, query_positions, memory, placed_memory, mask)
            if all_layers or index == len(self.layers) - 1:
                outputs.append(self.norm(x))
        return torch.stack(outputs)


def _initialise(module: nn.Module) -> None:
    """Every matrix by Xavier's rule, as the official repositories."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)


class MLP(nn.Module):
    """Linear layers with ReLU between them (unless `relu` is false); ``sizes`` are the widths from input to output."""

    def __init__(self, *sizes: int, relu: bool = True):
        super().__init__()
        self.relu = relu
        self.layers = nn.ModuleList(FastLinear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x)) if self.relu else layer(x)
        return last(x)
