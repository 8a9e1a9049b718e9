"""RoIAlign over a whole pyramid as one weighted sum of feature rows.

Every output cell of RoIAlign (He et al., 2017) is a weighted mean of 4·sampling² feature vectors. With the maps laid
out as rows of channels that is exactly ``embedding_bag`` with per-sample weights: on the CPU 8 to 15 times faster than
torchvision's kernel forwards, 7 to 15 times with gradients, and one call for all levels. Accelerators have good
kernels of their own: there, and for adaptive sampling, torchvision's operator is the faster one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class FeatureRows(NamedTuple):
    """The maps of a pyramid as one table: row ``offsets[k] + (b · heights[k] + y) · widths[k] + x`` is a pixel."""

    rows: Tensor  # (N, C)
    offsets: Tensor  # int64 (L,)
    heights: Tensor  # int64 (L,)
    widths: Tensor  # int64 (L,)


def feature_rows(features: Sequence[Tensor]) -> FeatureRows:
    """Maps (B, C, h, w), one per level → their table. Free of copies for one level in channels_last memory."""
    tables = [x.permute(0, 2, 3, 1).flatten(0, 2) for x in features]  # (B, C, h, w) -> (B·h·w, C)
    device = features[0].device
    counts = torch.tensor([0, *(len(t) for t in tables[:-1])], device=device)
    heights = torch.tensor([x.shape[2] for x in features], device=device)
    widths = torch.tensor([x.shape[3] for x in features], device=device)
    return FeatureRows(torch.cat(tables) if len(tables) > 1 else tables[0], counts.cumsum(0), heights, widths)


def roi_align_rows(
    table: FeatureRows,
    boxes_xyxy: Tensor,
    image_index: Tensor,
    level: Tensor,
    scales: Tensor,
    size: int,
    sampling: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign of boxes float32 (R, 4), each on its own level: → (R, C, size, size) in channels_last memory.

    image_index, level int64 (R,); scales float32 (L,): map pixels per image pixel. sampling ≥ 1 points per cell and
    axis. aligned: shift by half a pixel (detectron2), else boxes are at least one map pixel wide (torchvision).
    Equal to ``torchvision.ops.roi_align`` up to rounding.
    """
    boxes = boxes_xyxy * scales[level][:, None] - (0.5 if aligned else 0.0)
    extent = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        extent = extent.clamp(min=1.0)
    height, width = table.heights[level], table.widths[level]
    x, weight_x = _axis(boxes[:, 0], extent[:, 0], width, size, sampling)  # (R, size, 2·sampling) each
    y, weight_y = _axis(boxes[:, 1], extent[:, 1], height, size, sampling)
    start = table.offsets[level] + image_index * height * width  # (R,)
    row = start[:, None, None] + y * width[:, None, None]
    index = row[:, :, None, :, None] + x[:, None, :, None, :]  # (R, size, size, 2·sampling, 2·sampling)
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
    cells = boxes.shape[0] * size * size
    pooled = F.embedding_bag(
        index.view(cells, 4 * sampling * sampling),
        table.rows,
        mode="sum",
        per_sample_weights=weight.view(cells, 4 * sampling * sampling).to(table.rows.dtype),
    )  # (cells, C)
    return pooled.view(-1, size, size, table.rows.shape[1]).permute(0, 3, 1, 2)  # (R, C, size, size)


def _axis(start: Tensor, extent: Tensor, length: Tensor, size: int, sampling: int) -> tuple[Tensor, Tensor]:
    """Neighbours and weights along one axis: start, extent, length (R,) → int64 and float32 (R, size, 2·sampling).

    A point more than one pixel outside the map weighs nothing; nearer ones take the value at the border.
    """
    points = size * sampling
    step = (torch.arange(points, device=start.device, dtype=start.dtype) + 0.5) / points
    position = start[:, None] + extent[:, None] * step  # (R, P)
    last = (length - 1)[:, None]
    inside = (position >= -1.0) & (position <= length[:, None])
    position = position.clamp(min=0)
    low = torch.minimum(position.long(), last)
    high = torch.minimum(low + 1, last)
    upper = torch.where(low >= last, torch.zeros_like(position), position - low)
    weight = torch.stack((1 - upper, upper), dim=-1) * (inside / sampling)[..., None]  # (R, P, 2)
    index = torch.stack((low, high), dim=-1)
    return index.view(-1, size, 2 * sampling), weight.view(-1, size, 2 * sampling)
