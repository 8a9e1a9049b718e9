"""RoIAlign and RoIPool: the features of a region of interest, read from a feature pyramid.

He et al., Mask R-CNN, ICCV 2017 (RoIAlign); Girshick, Fast R-CNN, ICCV 2015 (RoIPool); Lin et al., FPN, CVPR 2017,
eq. 1 (the level of a region).

torchvision's kernels are the reference and serve all devices but the CPU, where RoIAlign is computed differently: an
output bin is a weighted sum of a few pixels' channel vectors, which is what an embedding bag sums. On two cores that
takes 3 to 18 ms (bfloat16, float32) where the kernel takes 156, its gradient 20 where the kernel takes 545, and it
exists in bfloat16, which the kernel does not. Both agree to rounding (tested).
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pansight.ops.regions.boxes import box_area


class AlignRule(NamedTuple):
    """How RoIAlign samples. sampling_ratio: points per bin and axis; 0 = one per pixel, rounded up (adaptive).

    aligned: shift by half a pixel, so that pixel centres are met (detectron2); False: the original, sides ≥ 1.
    """

    sampling_ratio: int
    aligned: bool


def pyramid_levels(
    boxes_xyxy: Tensor,
    levels: int,
    eps_after_log: float = 0.0,
    eps_in_ratio: float = 0.0,
    canonical_size: float = 224.0,
) -> Tensor:
    """FPN's eq. 1: k = ⌊4 + log2(√area / 224)⌋, P2 being level 0. boxes (N, 4) → int64 (N,) in 0 … levels − 1.

    canonical_size: 224 in the paper, ImageNet's image size. The two eps are torchvision's (1e-6, after the logarithm)
    and detectron2's (1e-8, inside it).
    """
    side = box_area(boxes_xyxy).clamp(min=0).sqrt()
    level = 4 + torch.log2(side / canonical_size + eps_in_ratio) + eps_after_log
    return level.floor().clamp(min=2, max=levels + 1).to(torch.int64) - 2


class Pyramid(NamedTuple):
    """Feature maps to read regions from. features [(B, C, H_l, W_l)]; table: see `pixel_table`, None off the CPU."""

    features: list[Tensor]
    strides: tuple[int, ...]
    table: Tensor | None


def make_pyramid(features: Sequence[Tensor], strides: Sequence[int]) -> Pyramid:
    """Features together with the table that all reads of them share, which is built once."""
    as_bags = features[0].device.type == "cpu" and not torch.compiler.is_exporting()
    return Pyramid(list(features), tuple(strides), pixel_table(features) if as_bags else None)


def multilevel_roi_align(
    pyramid: Pyramid,
    boxes_xyxy: Tensor,
    image_index: Tensor,
    level: Tensor,
    size: int,
    rule: AlignRule,
) -> Tensor:
    """RoIAlign of each box on its level: boxes (N, 4) in image pixels → (N, C, size, size).

    image_index, level int64 (N,). The result has the dtype of the features and, on the
    CPU, channels_last memory.
    """
    if pyramid.table is None:
        return roi_by_kernel(pyramid, boxes_xyxy, image_index, level, size, rule)
    return roi_align_as_bags(pyramid, boxes_xyxy, image_index, level, size, rule)


def roi_by_kernel(
    pyramid: Pyramid, boxes_xyxy: Tensor, image_index: Tensor, level: Tensor, size: int, rule: AlignRule | None
) -> Tensor:
    """torchvision's kernels, level by level, in float32: they know no bfloat16. rule None: RoIPool (maximum of bins).

    Shapes as `multilevel_roi_align`.
    """
    features = pyramid.features
    rois = torch.cat((image_index[:, None].float(), boxes_xyxy.float()), dim=1)  # (N, 5)
    with torch.autocast(features[0].device.type, enabled=False):
        parts: list[Tensor] = []
        places: list[Tensor] = []
        for index, (feature, stride) in enumerate(zip(features, pyramid.strides, strict=True)):
            place = (level == index).nonzero().flatten()  # (n,)
            places.append(place)
            if rule is None:
                part = torchvision.ops.roi_pool(feature.float(), rois[place], size, 1 / stride)
            else:
                part = torchvision.ops.roi_align(
                    feature.float(), rois[place], size, 1 / stride, rule.sampling_ratio or -1, rule.aligned
                )
            parts.append(part)  # (n, C, size, size)
        back = torch.cat(places).argsort()  # a permutation: no scatter, so that an exported graph stays simple
        return torch.cat(parts)[back].to(features[0].dtype)


def roi_align_as_bags(
    pyramid: Pyramid, boxes_xyxy: Tensor, image_index: Tensor, level: Tensor, size: int, rule: AlignRule
) -> Tensor:
    """`multilevel_roi_align` by embedding bags over the pixels of all levels and images, as one table of rows."""
    features = pyramid.features
    table = pixel_table(features) if pyramid.table is None else pyramid.table  # (Σ B H W, C)
    count = len(boxes_xyxy)
    if count == 0:
        return table[:0].view(0, size, size, table.shape[1]).permute(0, 3, 1, 2)
    heights = torch.tensor([f.shape[2] for f in features])
    widths = torch.tensor([f.shape[3] for f in features])
    pixels = heights * widths * features[0].shape[0]
    scale = 1 / torch.tensor(pyramid.strides, dtype=torch.float32)
    height, width = heights[level], widths[level]  # (N,)
    first_row = (pixels.cumsum(0) - pixels)[level] + image_index * height * width  # (N,)

    boxes = boxes_xyxy.float() * scale[level][:, None] - (0.5 if rule.aligned else 0.0)
    start, side = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]  # (N, 2) x, y
    if not rule.aligned:
        side = side.clamp(min=1)
    bin_side = side / size
    if rule.sampling_ratio:
        points = torch.full_like(side, rule.sampling_ratio, dtype=torch.int64)
    else:
        points = bin_side.ceil().to(torch.int64).clamp(min=1)  # (N, 2)

    # regions with the same number of sampling points share one rectangular index; all of them one ragged bag
    order, groups = _groups(points)
    indices: list[Tensor] = []
    weights: list[Tensor] = []
    lengths: list[Tensor] = []
    for part, (nx, ny) in zip(order, groups, strict=True):
        x, x_weight = axis_samples(start[part, 0], bin_side[part, 0], width[part], size, nx)  # (n, size, K)
        y, y_weight = axis_samples(start[part, 1], bin_side[part, 1], height[part], size, ny)
        row = (y * width[part, None, None] + first_row[part, None, None]).to(torch.int32)
        index = row[:, :, None, :, None] + x.to(torch.int32)[:, None, :, None, :]  # (n, size, size, Ky, Kx)
        weight = y_weight.to(table.dtype)[:, :, None, :, None] * x_weight.to(table.dtype)[:, None, :, None, :]
        indices.append(index.flatten())
        weights.append(weight.flatten())
        lengths.append(torch.full((len(part) * size * size,), y.shape[2] * x.shape[2], dtype=torch.int32))
    length = torch.cat(lengths)  # (N · size²,)
    offsets = (length.cumsum(0) - length).to(torch.int32)
    rows = WeightedRows.apply(table, torch.cat(indices), torch.cat(weights), offsets)  # pyright: ignore
    rows = rows.view(count, size, size, -1)
    if len(order) > 1:
        rows = rows[torch.cat(order).argsort()]
    return rows.permute(0, 3, 1, 2)  # (N, C, size, size), channels_last


def _groups(points: Tensor) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Regions by (points in x, points in y), int64 (N, 2) → the indices of each group, and its pair."""
    key = points[:, 0] * (1 << 20) + points[:, 1]
    order = key.argsort(stable=True)
    keys, counts = torch.unique_consecutive(key[order], return_counts=True)
    pairs = [(value >> 20, value & ((1 << 20) - 1)) for value in keys.tolist()]
    return list(order.split(counts.tolist())), pairs


def axis_samples(start: Tensor, bin_side: Tensor, extent: Tensor, size: int, points: int) -> tuple[Tensor, Tensor]:
    """RoIAlign along one axis: which pixels each bin reads, and with what weight (bilinear, mean over the points).

    start, bin_side float32 (N,) and extent int64 (N,) in pixels → index int64, weight float32, both (N, size, K),
    K = 2 · points, or points + 1 where points are at most a pixel apart, so that neighbours share pixels.
    A point farther than one pixel outside reads nothing; one within is moved onto the border (the reference's rule).
    """
    # the kernel's order of operations, so that both round alike
    bins = start[:, None] + torch.arange(size, device=start.device) * bin_side[:, None]  # (N, size)
    steps = (torch.arange(points, device=start.device) + 0.5) * bin_side[:, None] / points  # (N, points)
    at = bins[:, :, None] + steps[:, None, :]  # (N, size, points)
    last = (extent - 1)[:, None, None].to(at.dtype)
    inside = (at >= -1) & (at <= last + 1)
    at = at.clamp(min=0).minimum(last)
    low = at.floor()
    high_weight = at - low
    weight = torch.stack((1 - high_weight, high_weight), dim=-1) * (inside / points).unsqueeze(-1)
    if points > 2 and not torch.any(bin_side > points):
        # every pixel of the bin once: points + 1 consecutive ones, instead of two for every point
        first = low.amin(dim=2, keepdim=True)  # (N, size, 1)
        window = first + torch.arange(points + 1, device=start.device)  # (N, size, points + 1)
        slot = (low - first).to(torch.int64)  # (N, size, points)
        merged = weight.new_zeros((*weight.shape[:2], points + 2))
        merged.scatter_add_(2, slot, weight[..., 0]).scatter_add_(2, slot + 1, weight[..., 1])
        return window.minimum(last).to(torch.int64), merged[..., : points + 1]
    index = torch.stack((low, (low + 1).minimum(last)), dim=-1)
    return index.to(torch.int64).flatten(2), weight.flatten(2)


def pixel_table(features: Sequence[Tensor]) -> Tensor:
    """[(B, C, H_l, W_l)] → (Σ B H_l W_l, C): level after level, image after image, row after row."""
    return torch.cat([f.permute(0, 2, 3, 1).reshape(-1, f.shape[1]) for f in features])


class WeightedRows(torch.autograd.Function):
    """Weighted sums of rows, bag by bag: out[m] = Σ_k weight[k] · table[index[k]] over k of bag m.

    Differentiable in `table` only. torch differentiates embedding_bag itself, but row by row; the gradient is again a
    bag (of the transposed index), which takes a fifth of the time.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor, index: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
        """table (R, C) float, index int32 (K,), weight (K,) of the table's dtype, offsets int32 (M,) → (M, C)."""
        ctx.save_for_backward(index, weight, offsets)
        ctx.rows = table.shape[0]  # pyright: ignore[reportAttributeAccessIssue]
        return F.embedding_bag(index, table, offsets, per_sample_weights=weight, mode="sum")

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor):  # pyright: ignore
        index, weight, offsets = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        key, order = index.sort()  # (K,) table rows, ascending
        bag_of_entry = torch.zeros_like(index)
        bag_of_entry[offsets[1:].to(torch.int64)] = 1  # no bag is empty
        bag = bag_of_entry.cumsum(0, dtype=torch.int32)[order]
        rows = torch.arange(ctx.rows, dtype=key.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        starts = torch.searchsorted(key, rows, out_int32=True)  # (R,): where each row's entries begin
        grad_table = F.embedding_bag(bag, grad.contiguous(), starts, per_sample_weights=weight[order], mode="sum")
        return grad_table, None, None, None
