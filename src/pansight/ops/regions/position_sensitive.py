"""Position-sensitive score maps: how regions read them, what inside and outside scores mean, and the vote of masks.

Dai, Li, He, Sun: R-FCN, NeurIPS 2016 (the maps: each cell of a region's k × k grid reads a map of its own); Li, Qi,
Dai, Ji, Wei: Fully Convolutional Instance-aware Semantic Segmentation, CVPR 2017 (FCIS: for each class a pair of such
maps, one for "inside the object" and one for "in the box, but outside of the object").
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from pansight.ops.regions.boxes import box_iou_matrix

POOLS = ("pool", "align")

PAIRS_AT_ONCE = 4096
"""So many masks are stretched at a time where masks vote, which bounds the memory."""


def position_sensitive_read(
    maps: Tensor, boxes_xyxy: Tensor, image_index: Tensor, cells: int, stride: int, pool: str = "pool"
) -> Tensor:
    """The cells of each region, each read from the map that is meant for it.

    maps (B, C · cells², H, W): channel c · cells² + row · cells + column is what class c says of that cell.
    boxes (N, 4) in image pixels, image_index int64 (N,) → float32 (N, C, cells, cells).
    pool: "pool" takes the mean over a cell whose edges are rounded to the map (R-FCN), "align" the mean of 2 × 2 points
    of the exact cell.
    """
    with torch.autocast(maps.device.type, enabled=False):  # torchvision's kernels know no bfloat16
        if torch.compiler.is_exporting():  # other engines do not have these kernels
            return _read_by_weights(maps.float(), boxes_xyxy.float() / stride, image_index, cells, pool)
        rois = torch.cat((image_index[:, None].float(), boxes_xyxy.float()), dim=1)  # (N, 5)
        if pool == "align":
            return torchvision.ops.ps_roi_align(maps.float(), rois, cells, 1 / stride, 2)
        # the kernel never reads the last row and column of a map, so these are ones of zeros that no region reaches
        return torchvision.ops.ps_roi_pool(F.pad(maps.float(), (0, 1, 0, 1)), rois, cells, 1 / stride)


def _read_by_weights(maps: Tensor, boxes_xyxy: Tensor, image_index: Tensor, cells: int, pool: str) -> Tensor:
    """`position_sensitive_read` as sums of weighted pixels: a cell is a rectangle, so rows and columns have weights.

    maps float32 (B, C · cells², H, W), boxes in places of the maps.
    """
    weights = _cell_means if pool == "pool" else _point_means
    count, _, height, width = maps.shape
    down = weights(boxes_xyxy[:, 1], boxes_xyxy[:, 3], height, cells)  # (N, cells, H)
    across = weights(boxes_xyxy[:, 0], boxes_xyxy[:, 2], width, cells)  # (N, cells, W)
    is_of_image = image_index[:, None] == torch.arange(count, device=maps.device)  # (N, B)
    down = (down[:, :, None] * is_of_image[:, None, :, None]).flatten(2)  # (N, cells, B · H)
    grid = maps.unflatten(1, (-1, cells, cells)).permute(2, 3, 1, 0, 4, 5).flatten(3, 4)  # (cells, cells, C, B · H, W)
    found = [
        torch.einsum("nh,chw,nw->nc", down[:, row], grid[row, column], across[:, column])
        for row in range(cells)
        for column in range(cells)
    ]
    return torch.stack(found, dim=2).unflatten(2, (cells, cells))  # (N, C, cells, cells)


def _cell_means(low: Tensor, high: Tensor, extent: int, cells: int) -> Tensor:
    """R-FCN's cells along one axis: edges float32 (N,) → weights float32 (N, cells, extent), of sum 1 or none."""
    first, last = (low + 0.5).floor(), (high + 0.5).floor()
    steps = torch.arange(cells + 1, device=low.device) * ((last - first).clamp(min=1) / cells)[:, None]
    start = (steps[:, :-1].floor() + first[:, None]).clamp(0, extent)
    stop = (steps[:, 1:].ceil() + first[:, None]).clamp(0, extent)
    pixel = torch.arange(extent, device=low.device)
    inside = (pixel >= start[..., None]) & (pixel < stop[..., None])
    return inside / (stop - start).clamp(min=1)[..., None]


def _point_means(low: Tensor, high: Tensor, extent: int, cells: int) -> Tensor:
    """The same of two points in each cell, which is exact; a point is read bilinearly, 0 more than a pixel outside."""
    at = (torch.arange(2 * cells, device=low.device) + 0.5) * ((high - low) / (2 * cells))[:, None]
    at = at + (low - 0.5)[:, None]  # (N, 2 cells): centres of pixels are whole numbers
    inside = (at >= -1) & (at <= extent)
    at = at.clamp(0, extent - 1)[..., None]
    bilinear = (1 - (at - torch.arange(extent, device=low.device)).abs()).clamp(min=0) * inside[..., None]
    return bilinear.unflatten(1, (cells, 2)).mean(2)  # (N, cells, extent)


def class_and_mask_logits(inside_outside: Tensor) -> tuple[Tensor, Tensor]:
    """What the two scores of each cell say of a region: float (N, C, 2, k, k), inside before outside.

    → class logits (N, C), the mean over the cells of the larger of the two: a cell in the box of an object belongs to
    it or not, but either fits the class (FCIS, section 2.2). Mask logits (N, C, k, k): inside minus outside, whose
    sigmoid is the softmax over the two.
    """
    inside, outside = inside_outside.unbind(2)
    return torch.maximum(inside, outside).mean((2, 3)), inside - outside


def stretched_masks(masks: Tensor, from_xyxy: Tensor, to_xyxy: Tensor, size: int) -> Tensor:
    """Masks of some boxes, seen through grids that lie over other boxes: bilinear, 0 outside of the first.

    masks float (P, k, k), boxes float32 (P, 4) both → float32 (P, size, size).
    """
    cells = masks.shape[-1]
    across = _weights(from_xyxy[:, [0, 2]], to_xyxy[:, [0, 2]], size, cells)  # (P, size, k)
    down = _weights(from_xyxy[:, [1, 3]], to_xyxy[:, [1, 3]], size, cells)
    with torch.autocast(masks.device.type, enabled=False):
        return down @ masks.float() @ across.transpose(1, 2)


def _weights(source: Tensor, target: Tensor, size: int, cells: int) -> Tensor:
    """Along one axis: how much of each of `cells` cells of `source` is seen at the centre of each of `size` cells of
    `target`; both float32 (P, 2), first and last edge → float32 (P, size, cells).
    """
    steps = (torch.arange(size, device=source.device) + 0.5) / size
    at = target[:, :1] + steps * (target[:, 1:] - target[:, :1])  # (P, size)
    inside = (at >= source[:, :1]) & (at <= source[:, 1:])
    place = (at - source[:, :1]) * (cells / (source[:, 1:] - source[:, :1]).clamp(min=1e-6)) - 0.5
    place = place.clamp(min=0, max=cells - 1)[..., None]  # a point in the outer half of a border cell is in that cell
    bilinear = (1 - (place - torch.arange(cells, device=source.device)).abs()).clamp(min=0)
    return bilinear * inside[..., None]


def voted_masks(
    boxes_xyxy: Tensor,
    image_index: Tensor,
    classes: Tensor,
    voters_xyxy: Tensor,
    voters_image: Tensor,
    scores: Tensor,
    masks: Tensor,
    size: int,
    min_iou: float = 0.5,
) -> Tensor:
    """The mask of each object as the mean of the masks of all regions that overlap it by an IoU > min_iou, weighted by
    their scores for the object's class (FCIS, section 2.3).

    Of D objects: boxes (D, 4), image_index and classes int64 (D,). Of R regions: voters_xyxy (R, 4), voters_image (R,),
    scores float (R, C), masks float (R, C, k, k), probabilities → float32 (D, size, size), probabilities in the box.
    An object that nothing votes for has an empty mask.
    """
    near = box_iou_matrix(boxes_xyxy, voters_xyxy) > min_iou  # (D, R)
    near &= image_index[:, None] == voters_image
    total = boxes_xyxy.new_zeros((boxes_xyxy.shape[0], size, size), dtype=torch.float32)
    weight = boxes_xyxy.new_zeros(boxes_xyxy.shape[0], dtype=torch.float32)
    pairs = near.nonzero()  # (P, 2) object, region
    for part in [pairs] if torch.compiler.is_exporting() else pairs.split(PAIRS_AT_ONCE):  # a graph has no such loop
        thing, region = part.unbind(1)
        of_class = classes[thing]
        votes = scores[region, of_class].float()
        seen = stretched_masks(masks[region, of_class], voters_xyxy[region], boxes_xyxy[thing], size)
        total.index_add_(0, thing, votes[:, None, None] * seen)
        weight.index_add_(0, thing, votes)
    return total / weight.clamp(min=1e-12)[:, None, None]
