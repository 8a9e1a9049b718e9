"""Masks of single objects: sampled from the truth into the small grid of a region, and pasted into the image.

Both directions are bilinear and therefore separable: a grid of M × M and an image part of h × w are related by one
(M, h) and one (M, w) matrix, and two small matrix products replace reading every pixel. Tests show that the results
equal torchvision's roi_align, interpolate and grid_sample up to rounding.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pansight.ops.targets import InstanceTargets


def mask_targets(
    targets: InstanceTargets, boxes_xyxy: Tensor, match: Tensor, size: int, aligned: bool, threshold: float | None
) -> Tensor:
    """The target mask of each region: RoIAlign (adaptive sampling) of the true object's bitmask.

    boxes float32 (R, 4) in pixels of the padded batch, match int64 (R,) rows of `targets` → float32 (R, size, size).
    aligned: see `regions.roi.AlignRule`. threshold: targets become 0 / 1 (detectron2: 0.5); None keeps the soft
    values (torchvision). No map per object is made: each object's mask is read from the stack once.
    """
    result = boxes_xyxy.new_zeros((len(match), size, size), dtype=torch.float32)
    if len(match) == 0:
        return result
    height, width = targets.mask_stack.shape[1:]
    shifted = boxes_xyxy.float() - (0.5 if aligned else 0.0)
    start, side = shifted[:, :2], shifted[:, 2:] - shifted[:, :2]  # (R, 2) x, y
    if not aligned:
        side = side.clamp(min=1)
    order = match.argsort(stable=True)
    rows, counts = torch.unique_consecutive(match[order], return_counts=True)
    with torch.autocast(result.device.type, enabled=False):  # the products must be exact sums
        for row, part in zip(rows.tolist(), order.split(counts.tolist()), strict=True):
            x1, y1, x2, y2 = targets.boxes_xyxy[row].tolist()
            # the object is zero outside its box; two pixels more, for boxes that were annotated apart from the mask
            left, top = max(0, math.floor(x1) - 2), max(0, math.floor(y1) - 2)
            region = targets.mask_stack[targets.mask_index[row], top : math.ceil(y2) + 2, left : math.ceil(x2) + 2]
            mask = (region == targets.mask_value[row]).float()  # (h, w)
            across = align_matrix(start[part, 0], side[part, 0], size, width, left, mask.shape[1])  # (n, size, w)
            down = align_matrix(start[part, 1], side[part, 1], size, height, top, mask.shape[0])  # (n, size, h)
            result[part] = down @ (mask @ across.transpose(1, 2))
    return result if threshold is None else (result >= threshold).float()


def align_matrix(start: Tensor, side: Tensor, size: int, extent: int, first: int, count: int) -> Tensor:
    """RoIAlign with adaptive sampling along one axis as a matrix: float32 (R, size, count).

    Entry (r, b, p) is the weight of pixel first + p in bin b of region r, which spans `side` pixels from `start`;
    both float32 (R,). extent: pixels along the axis of the whole image.
    """
    bin_side = side / size
    points = bin_side.ceil().clamp(min=1)  # (R,) sampling points per bin
    most = int(points.max())
    step = torch.arange(most, device=start.device)
    used = step < points[:, None]  # (R, most)
    bins = start[:, None] + torch.arange(size, device=start.device) * bin_side[:, None]  # (R, size)
    at = bins[:, :, None] + ((step + 0.5) * bin_side[:, None] / points[:, None])[:, None, :]  # (R, size, most)
    weight = ((at >= -1) & (at <= extent) & used[:, None, :]) / points[:, None, None]
    at = at.clamp(min=0, max=extent - 1)
    low = at.floor()
    high_part = at - low
    low = low.to(torch.int64) - first
    # two more columns than pixels: everything outside the part is added there and cut off
    matrix = weight.new_zeros((*bins.shape, count + 2))
    for slot, value in ((low, weight * (1 - high_part)), (low + 1, weight * high_part)):
        slot = torch.where(slot < 0, count, slot.clamp(max=count))
        matrix.scatter_add_(2, slot, value)
    return matrix[..., :count]


def paste_sampled(probabilities: Tensor, boxes_xyxy: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """detectron2's paste: the grid stretched over the box as it is (grid_sample, corners not aligned, zero outside).

    probabilities float (N, M, M), boxes float32 (N, 4) in pixels of the image, size (H, W) → bool (N, H, W), True
    where the probability is ≥ threshold.
    """
    masks = empty_masks(len(probabilities), size, probabilities.device)
    grid = probabilities.shape[-1]
    cells = torch.arange(grid, device=probabilities.device)
    probabilities = probabilities.float()
    # one cell beyond the box still reads half of the outermost one
    margin = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) / grid
    limits = torch.cat(((boxes_xyxy[:, :2] - margin).floor(), (boxes_xyxy[:, 2:] + margin).ceil()), dim=1).tolist()
    for index, (box, limit) in enumerate(zip(boxes_xyxy.tolist(), limits, strict=True)):
        (left, right), (top, bottom) = (_inside(limit[axis], limit[axis + 2], size[1 - axis]) for axis in (0, 1))
        if left >= right or top >= bottom:
            continue
        x = _cell_at(left, right, box[0], box[2], cells)  # (w, 1)
        y = _cell_at(top, bottom, box[1], box[3], cells)  # (h, 1)
        across = (1 - (x - cells).abs()).clamp_(min=0)  # (w, M) bilinear weights
        down = (1 - (y - cells).abs()).clamp_(min=0)  # (h, M)
        masks[index, top:bottom, left:right] = _product(down, probabilities[index], across) >= threshold
    return masks


def _inside(low: float, high: float, extent: int) -> tuple[int, int]:
    return max(0, int(low)), min(extent, int(high))


def _cell_at(first: int, stop: int, low: float, high: float, cells: Tensor) -> Tensor:
    """The cell coordinate of each pixel centre in first … stop, for a box from `low` to `high`: (stop − first, 1)."""
    centers = torch.arange(first, stop, device=cells.device).unsqueeze(1) + 0.5
    return (centers - low) * (len(cells) / max(high - low, 1e-12)) - 0.5


def paste_integer(probabilities: Tensor, boxes_xyxy: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """torchvision's paste: one cell of zeros around the grid, the box grown alike, cut to integers, then resized.

    Arguments as `paste_sampled`; True where the probability is > threshold, as torchvision's evaluation has it.
    """
    masks = empty_masks(len(probabilities), size, probabilities.device)
    grid = probabilities.shape[-1]
    padded = torch.nn.functional.pad(probabilities.float(), (1, 1, 1, 1))  # (N, M + 2, M + 2)
    cells = torch.arange(grid + 2, device=probabilities.device)
    center = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) * 0.5
    half = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * 0.5 * ((grid + 2) / grid)
    grown = torch.cat((center - half, center + half), dim=1).to(torch.int64)  # towards zero
    for index, (x1, y1, x2, y2) in enumerate(grown.tolist()):
        (left, right), (top, bottom) = _inside(x1, x2 + 1, size[1]), _inside(y1, y2 + 1, size[0])
        if left >= right or top >= bottom:
            continue
        x = _cell_of_resize(left - x1, right - x1, max(x2 - x1 + 1, 1), cells)  # (w, 1)
        y = _cell_of_resize(top - y1, bottom - y1, max(y2 - y1 + 1, 1), cells)  # (h, 1)
        across = (1 - (x - cells).abs()).clamp_(min=0)  # (w, M + 2)
        down = (1 - (y - cells).abs()).clamp_(min=0)  # (h, M + 2)
        masks[index, top:bottom, left:right] = _product(down, padded[index], across) > threshold
    return masks


def _cell_of_resize(first: int, stop: int, length: int, cells: Tensor) -> Tensor:
    """interpolate's coordinate (corners not aligned) of the pixels first … stop of `length`: (stop − first, 1)."""
    pixels = torch.arange(first, stop, device=cells.device).unsqueeze(1)
    return ((pixels + 0.5) * (len(cells) / length) - 0.5).clamp_(min=0, max=len(cells) - 1)


def _product(down: Tensor, grid: Tensor, across: Tensor) -> Tensor:
    """(h, M), (M, M), (w, M) → (h, w), in float32 also under autocast."""
    with torch.autocast(grid.device.type, enabled=False):
        return down @ grid @ across.T


def empty_masks(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """bool (count, H, W), all False. On the CPU the memory is only taken where something is painted later.

    numpy asks for zeroed pages (calloc), torch writes the zeros: 400 masks of 1040 × 1388 are 577 MB.
    """
    if device.type == "cpu":
        return torch.from_numpy(np.zeros((count, *size), dtype=np.bool_))
    return torch.zeros((count, *size), dtype=torch.bool, device=device)
