"""Sine positions: a vector for each place of a feature map. Carion et al., DETR, appendix A.4, which extends Vaswani et
al., Attention Is All You Need, 2017, section 3.5, to two axes.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_positions(valid: Tensor, channels: int, temperature: float = 10000.0) -> Tensor:
    """valid bool (B, h, w), False on padding → float32 (B, h, w, channels), the first half of y, the second of x.

    Positions count valid pixels from 1 and are normalised to (0, 2π] by the last of each row and column.
    """
    y = valid.cumsum(1, dtype=torch.float32)  # (B, h, w)
    x = valid.cumsum(2, dtype=torch.float32)
    y = y / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=valid.device)
    frequency = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / half)  # (half,)
    parts: list[Tensor] = []
    for axis in (y, x):
        phase = axis[..., None] / frequency  # (B, h, w, half); even places carry the sine, odd ones the cosine
        waves = torch.stack((phase[..., 0::2].sin(), phase[..., 1::2].cos()), dim=-1)  # (B, h, w, half / 2, 2)
        parts.append(waves.flatten(3))
    return torch.cat(parts, dim=3)  # (B, h, w, channels)


def resize_valid(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """bool (B, H, W) → (B, h, w) by the nearest pixel, as the official repositories shrink their padding masks."""
    return torch.nn.functional.interpolate(valid[:, None].float(), size=size).bool()[:, 0]
