"""Masks of objects: targets sampled from a shared map, and small mask logits pasted into images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_masks(
    mask_stack: Tensor,
    mask_index: Tensor,
    mask_value: Tensor,
    boxes_xyxy: Tensor,
    size: int,
    aligned: bool,
    grid: int = 2,
) -> Tensor:
    """RoIAlign of ``mask_stack[mask_index[n]] == mask_value[n]`` at box n, without making that mask.

    mask_stack int (S, H, W); mask_index, mask_value (N,); boxes (N, 4) → float32 (N, size, size) in 0..1.
    Equal to ``torchvision.ops.roi_align`` of the bitmask with sampling_ratio=grid: each cell is the mean of grid × grid
    points, each point bilinear among its four pixels.
    """
    count, height, width = boxes_xyxy.shape[0], mask_stack.shape[1], mask_stack.shape[2]
    if count == 0:
        return boxes_xyxy.new_zeros((0, size, size))
    start = boxes_xyxy[:, :2] - (0.5 if aligned else 0.0)  # (N, 2) x, y
    extent = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    if not aligned:
        extent = extent.clamp(min=1.0)
    points = size * grid
    step = (torch.arange(points, device=boxes_xyxy.device, dtype=torch.float32) + 0.5) / points  # (P,)
    x = start[:, 0, None] + extent[:, 0, None] * step  # (N, P)
    y = start[:, 1, None] + extent[:, 1, None] * step
    x0, x1, wx, inside_x = _corners(x, width)
    y0, y1, wy, inside_y = _corners(y, height)
    flat = mask_stack.flatten()
    base = mask_index[:, None, None] * (height * width)
    value = mask_value[:, None, None]

    def corner(yi: Tensor, xi: Tensor) -> Tensor:
        return (flat[base + yi[:, :, None] * width + xi[:, None, :]] == value).float()  # (N, P, P)

    wx, wy = wx[:, None, :], wy[:, :, None]
    top = corner(y0, x0) * (1 - wx) + corner(y0, x1) * wx
    bottom = corner(y1, x0) * (1 - wx) + corner(y1, x1) * wx
    sampled = (top * (1 - wy) + bottom * wy) * (inside_y[:, :, None] & inside_x[:, None, :])
    return F.avg_pool2d(sampled, grid) if grid > 1 else sampled  # (N, P, P) -> (N, size, size)


def _corners(position: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower and upper neighbour, weight of the upper, and whether the point counts; RoIAlign's border rule."""
    inside = (position >= -1.0) & (position <= length)
    position = position.clamp(min=0)
    low = position.floor().long().clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    weight = torch.where(low >= length - 1, torch.zeros_like(position), position - low)
    return low, high, weight, inside


def paste_masks(
    probabilities: Tensor,
    boxes_xyxy: Tensor,
    size: tuple[int, int],
    threshold: float = 0.5,
    integer_boxes: bool = False,
) -> Tensor:
    """Mask probabilities (N, M, M) stretched over their boxes (N, 4), in an image of size (H, W) → bool (N, H, W).

    The default is detectron2's: pixel centres are mapped into the float box, bilinear, zero outside, ≥ threshold.
    integer_boxes is torchvision's: one cell of padding, the box truncated to integers, resized, > threshold.
    Only the pixels under each box are computed.
    """
    masks = torch.zeros((len(boxes_xyxy), *size), dtype=torch.bool, device=boxes_xyxy.device)
    if len(boxes_xyxy) == 0:
        return masks
    if integer_boxes:
        cells = probabilities.shape[-1]
        probabilities = F.pad(probabilities, (1, 1, 1, 1))
        center = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) * 0.5
        half = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * (0.5 * (cells + 2) / cells)
        whole = torch.cat((center - half, center + half), dim=1).long()
        boxes_xyxy = torch.cat((whole[:, :2], torch.maximum(whole[:, 2:] + 1, whole[:, :2] + 1)), dim=1).float()
    for mask, probability, box in zip(masks, probabilities, boxes_xyxy.tolist(), strict=True):
        x, weight_x = _stretch(box[0], box[2], probability, size[1], integer_boxes)
        y, weight_y = _stretch(box[1], box[3], probability, size[0], integer_boxes)
        if x.stop <= x.start or y.stop <= y.start:
            continue
        value = weight_y @ probability @ weight_x.T  # (h, M) (M, M) (M, w) -> (h, w)
        mask[y, x] = value > threshold if integer_boxes else value >= threshold
    return masks


def _stretch(low: float, high: float, like: Tensor, length: int, clamp: bool) -> tuple[slice, Tensor]:
    """The pixels of one axis that an interval covers, and the bilinear weights (pixels, M) of its M cells there.

    clamp: beyond the outer cell centres the outer cell holds (resizing), else it fades to zero (sampling).
    """
    cells = like.shape[-1]
    pixels = slice(max(0, int(low // 1)), min(length, -int(-high // 1)))
    at = torch.arange(pixels.start, pixels.stop, device=like.device, dtype=like.dtype) + 0.5
    position = (at - low) * (cells / max(high - low, 1e-6)) - 0.5
    if clamp:
        position = position.clamp(0, cells - 1)
    distance = (position[:, None] - torch.arange(cells, device=like.device)).abs()  # (pixels, M)
    return pixels, (1 - distance).clamp(min=0)
