"""RoIAlign, RoIPool and RoIWarp: the features of a region of interest, read from a feature pyramid.

He et al., Mask R-CNN, ICCV 2017 (RoIAlign); Girshick, Fast R-CNN, ICCV 2015 (RoIPool); Dai, He, Sun: Instance-aware
Semantic Segmentation via Multi-task Network Cascades, CVPR 2016 (RoIWarp); Lin et al., FPN, CVPR 2017, eq. 1 (the level
of a region).

torchvision's kernels are the plain form and serve all devices but the CPU, where RoIAlign is a sum of embedding bags.
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

from pansight.ops.fast import use_plain
from pansight.ops.fast.roi_bags import pixel_table, roi_align_as_bags
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
    """Features with whatever serves all reads of them, made once."""
    as_bags = features[0].device.type == "cpu" and not torch.compiler.is_exporting() and not use_plain()
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
    if pyramid.table is None or use_plain():
        return roi_by_kernel(pyramid, boxes_xyxy, image_index, level, size, rule)
    return roi_align_as_bags(pyramid, boxes_xyxy, image_index, level, size, rule)


def multilevel_roi_warp(pyramid: Pyramid, boxes_xyxy: Tensor, image_index: Tensor, level: Tensor, size: int) -> Tensor:
    """RoIWarp of each box on its level: the region is cut to whole cells as in RoIPool, resampled bilinearly to twice
    the grid, and of each 2 × 2 samples the largest remains. Arguments and result as `multilevel_roi_align`.

    The cut is the step that RoIAlign leaves out, so the two differ by up to half a cell at each side of the region.
    """
    cells = whole_cells(pyramid, boxes_xyxy, level)
    twice = multilevel_roi_align(pyramid, cells, image_index, level, 2 * size, AlignRule(1, aligned=True))
    return F.max_pool2d(twice, 2)


def whole_cells(pyramid: Pyramid, boxes_xyxy: Tensor, level: Tensor) -> Tensor:
    """The boxes in image pixels, moved to the edges of the cells that RoIPool would read on their level: (N, 4) both.

    Corners are divided by the stride and rounded, halves away from zero; the cell of the second corner belongs to the
    region, which has at least one cell and none outside of the map.
    """
    stride = torch.tensor(pyramid.strides, device=boxes_xyxy.device)[level][:, None].float()  # (N, 1)
    last = boxes_xyxy.new_tensor([[f.shape[3] - 1, f.shape[2] - 1] for f in pyramid.features]).float()[level]  # (N, 2)
    corners = (boxes_xyxy.float() / stride + 0.5).floor()  # (N, 4) cells
    first = corners[:, :2].clamp(min=0).minimum(last)
    final = corners[:, 2:].maximum(first).minimum(last)
    return torch.cat((first, final + 1), dim=1) * stride


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
