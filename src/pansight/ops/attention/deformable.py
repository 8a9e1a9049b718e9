"""Multi-scale deformable attention. Zhu et al., Deformable DETR, ICLR 2021, eq. 2 and 3.

Every query looks at a few points of each level of a pyramid, between pixels (bilinear), nothing outside the map.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.fast import use_plain
from pansight.ops.fast.deformable import deform_attention_by_loops


def deform_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], reference: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """Σ over levels and points of weight · value(reference + offset): (B, N, heads, D) → (B, Q, heads · D).

    value: the levels one after another, rows of pixels; shapes: (h, w) of each of the L levels, N = Σ h w.
    reference (Q, 2): x, y of each query in 0 … 1 of every map. offsets (B, Q, heads, L, P, 2): x, y in pixels of their
    level. weights (B, Q, heads, L, P). All of one floating dtype; float16 and bfloat16 are computed in float32.
    """
    if value.device.type != "cpu" or torch.compiler.is_compiling() or use_plain():
        return deform_attention_plain(value, shapes, reference, offsets, weights)
    return deform_attention_by_loops(value, shapes, reference, offsets, weights)


def deform_attention_plain(
    value: Tensor, shapes: Sequence[tuple[int, int]], reference: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """The same level by level with ``grid_sample``, L · P values a query and head at once. Accelerators and exported

    graphs take it too.
    """
    batch, _, heads, channels = value.shape
    queries = offsets.shape[1]
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32  # a rounded place is another pixel
    reference, offsets, weights = reference.to(dtype), offsets.to(dtype), weights.to(dtype)
    levels = value.to(dtype).split([height * width for height, width in shapes], dim=1)
    sampled: list[Tensor] = []
    for level, (pixels, (height, width)) in enumerate(zip(levels, shapes, strict=True)):
        maps = pixels.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        x = 2 * reference[:, None, None, 0] - 1 + offsets[:, :, :, level, :, 0] * (2 / width)  # (B, Q, heads, P)
        y = 2 * reference[:, None, None, 1] - 1 + offsets[:, :, :, level, :, 1] * (2 / height)
        grid = torch.stack((x, y), dim=-1).transpose(1, 2).flatten(0, 1)  # (B heads, Q, P, 2)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    rows = torch.cat(sampled, dim=3)  # (B heads, D, Q, L P)
    rows = rows * weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    return rows.sum(3).view(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)
