"""The pixel decoder of Mask2Former: a deformable encoder over three levels and one FPN level above them.

Cheng et al., CVPR 2022, section 3.2.2; Zhu et al., Deformable DETR, ICLR 2021. Parameters carry the official names.
Maps are (B, C, h, w) in any memory order, sequences (B, N, C) with the levels one after another, coarse to fine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.nn.checkpointing import Recomputed
from pansight.nn.layers import FastLinear
from pansight.nn.norms import GroupNorm
from pansight.ops.attention.deformable import deform_attention
from pansight.ops.attention.positions import sine_positions
from pansight.ops.fast import use_plain
from pansight.ops.fast.memory import checkpointed

CHUNK = 1024
"""In inference, so many tokens pass the feed-forward block at a time, so that its hidden layer stays in the cache."""


class DeformAttention(nn.Module):
    """Each token reads `points` places of each level, by offsets and weights that it predicts itself."""

    def __init__(self, channels: int, heads: int = 8, levels: int = 3, points: int = 4):
        super().__init__()
        self.heads = heads
        self.levels = levels
        self.points = points
        self.sampling_offsets = FastLinear(channels, heads * levels * points * 2)
        self.attention_weights = FastLinear(channels, heads * levels * points)
        self.value_proj = FastLinear(channels, channels)
        self.output_proj = FastLinear(channels, channels)
        self._reset()

    def _reset(self) -> None:
        """Initially, head h reads points at 1, 2 … pixels in its own of `heads` directions, all with equal weight."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=1)  # (heads, 2)
        directions = directions / directions.abs().amax(1, keepdim=True)  # onto the unit square
        steps = torch.arange(1, self.points + 1)
        bias = directions[:, None, None] * steps[:, None]  # (heads, 1, points, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)

    def forward(self, query: Tensor, memory: Tensor, shapes: Sequence[tuple[int, int]], reference: Tensor) -> Tensor:
        """query (B, Q, C); memory (B, N, C), N = Σ h w of `shapes`; reference (Q, 2), see `reference_points`.

        Offsets stay float32 under autocast, since a rounded offset means another pixel.
        """
        value = self.value_proj(memory).unflatten(2, (self.heads, -1))  # (B, N, heads, C / heads)
        with torch.autocast(query.device.type, enabled=False):
            query = query.float() if query.dtype in (torch.float16, torch.bfloat16) else query
            offsets = self.sampling_offsets(query).unflatten(2, (self.heads, self.levels, self.points, 2))
            weights = self.attention_weights(query).unflatten(2, (self.heads, -1)).softmax(3)  # (B, Q, heads, L P)
            weights = weights.unflatten(3, (self.levels, self.points))
        return self.output_proj(deform_attention(value, shapes, reference, offsets, weights))


class DeformEncoderLayer(Recomputed):
    """x += deformable attention; norm; x += feed-forward; norm."""

    def __init__(self, channels: int, heads: int, hidden: int, levels: int, points: int):
        super().__init__()
        self.self_attn = DeformAttention(channels, heads, levels, points)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = FastLinear(channels, hidden)
        self.linear2 = FastLinear(hidden, channels)
        self.norm2 = nn.LayerNorm(channels)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, positions: Tensor, shapes: Sequence[tuple[int, int]], reference: Tensor) -> Tensor:
        """x (B, N, C), positions (1, N, C) → (B, N, C)."""
        x = self.norm1(x + self.self_attn(x + positions, x, shapes, reference))
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or use_plain():
            return checkpointed(self._feed_forward, x)
        return torch.cat([self._feed_forward(part) for part in x.split(CHUNK, dim=1)], dim=1)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class DeformEncoder(nn.Module):
    def __init__(self, layers: int, channels: int, heads: int, hidden: int, levels: int, points: int):
        super().__init__()
        self.layers = nn.ModuleList(DeformEncoderLayer(channels, heads, hidden, levels, points) for _ in range(layers))

    def forward(self, x: Tensor, positions: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """x (B, N, C), positions (1, N, C) → (B, N, C)."""
        reference = reference_points(shapes, x.device)
        for layer in self.layers:
            x = layer(x, positions, shapes, reference)
        return x


class LevelEncoder(nn.Module):
    """`encoder` with an embedding for each level, added to the positions."""

    def __init__(self, layers: int, channels: int, heads: int, hidden: int, levels: int, points: int):
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(levels, channels))
        self.encoder = DeformEncoder(layers, channels, heads, hidden, levels, points)
        nn.init.normal_(self.level_embed)

    def forward(self, maps: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """maps (B, C, h, w) coarse to fine, positions (1, h · w, C) → as many sequences (B, h · w, C)."""
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)  # (B, N, C)
        placed = torch.cat([p + e for p, e in zip(positions, self.level_embed)], dim=1)  # (1, N, C)
        return list(self.encoder(x, placed, shapes).split([h * w for h, w in shapes], dim=1))


class ConvGroupNorm(nn.Conv2d):
    """A "same" convolution without bias whose GroupNorm is its child `norm`, as detectron2 names them."""

    def __init__(self, in_channels: int, channels: int, kernel: int):
        super().__init__(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = GroupNorm(math.gcd(32, channels), channels)
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(super().forward(input))


class DeformPixelDecoder(nn.Module):
    """Maps of a backbone at strides 4, 8, 16, 32 → three levels of memory and the features that masks are made of.

    channels: of all that comes out; hidden: of the encoder's feed-forward blocks.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        heads: int = 8,
        layers: int = 6,
        hidden: int = 1024,
        points: int = 4,
    ):
        super().__init__()
        finest, *coarser = in_channels
        groups = math.gcd(32, channels)
        self.input_proj = nn.ModuleList(  # coarse to fine: the first is of stride 32
            nn.Sequential(nn.Conv2d(c, channels, 1), GroupNorm(groups, channels)) for c in reversed(coarser)
        )
        self.transformer = LevelEncoder(layers, channels, heads, hidden, len(coarser), points)
        self.adapter_1 = ConvGroupNorm(finest, channels, 1)
        self.layer_1 = ConvGroupNorm(channels, channels, 3)
        self.mask_features = nn.Conv2d(channels, channels, 1)
        for proj in self.input_proj:
            nn.init.xavier_uniform_(proj[0].weight)  # type: ignore[index]
            nn.init.zeros_(proj[0].bias)  # type: ignore[index]
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[tuple[int, int]], Tensor]:
        """maps (B, C_i, h_i, w_i), fine to coarse, all but the first encoded →

        levels (B, h · w, C) coarse to fine, their positions (1, h · w, C), their (h, w), features (B, C, h₀, w₀).
        """
        finest, *coarser = maps
        inputs = [proj(m) for proj, m in zip(self.input_proj, reversed(coarser), strict=True)]
        shapes = [(x.shape[2], x.shape[3]) for x in inputs]
        channels = inputs[0].shape[1]
        positions = [whole_positions(shape, channels, inputs[0].device).flatten(1, 2) for shape in shapes]
        levels = self.transformer(inputs, positions)
        finer = levels[-1].transpose(1, 2).unflatten(2, shapes[-1])  # (B, C, h₁, w₁)
        y = self.adapter_1(finest)
        y = y + F.interpolate(finer.to(y.dtype), size=y.shape[2:], mode="bilinear", align_corners=False)
        return levels, positions, shapes, self.mask_features(F.relu(self.layer_1(y)))


def reference_points(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """The centre of every pixel of every level, x and y in 0 … 1: float32 (N, 2), N = Σ h w."""
    points: list[Tensor] = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        points.append(torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=2).flatten(0, 1))
    return torch.cat(points)


def whole_positions(shape: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """``sine_positions`` of a map without padding, float32 (1, h, w, channels): h + w sines a channel, not h · w."""
    height, width = shape
    half = channels // 2
    y = sine_positions(torch.ones(1, height, 1, dtype=torch.bool, device=device), channels)[..., :half]
    x = sine_positions(torch.ones(1, 1, width, dtype=torch.bool, device=device), channels)[..., half:]
    return torch.cat((y.expand(-1, -1, width, -1), x.expand(-1, height, -1, -1)), dim=3)
