"""What Panoptic FCN learns from: centres of things and regions of stuff, and the masks that kernels found there make.

Li et al.: Fully Convolutional Networks for Panoptic Segmentation, CVPR 2021, sections 3.2 and 3.5. The targets are
those of its published code (Apache-2.0); maps of masks have a quarter of the size of the image and are soft, 0 … 1.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.centres.heatmaps import draw_gaussians
from pansight.ops.fast.memory import checkpointed
from pansight.ops.targets import InstanceTargets
from pansight.types import IGNORE

STRIDES = (8, 16, 32, 64, 128)
"""Of the levels P3 … P7, at which centres are looked for."""
QUARTER = 4
"""The stride of the maps of masks."""
MASKS_AT_ONCE = 64
IN_REGION = 0.1
"""A place of a level is inside an object if more than this share of it is."""

Size = tuple[int, int]


class KernelSettings(NamedTuple):
    """How truth becomes targets; the defaults are those of the paper."""

    size_ranges: tuple[float, ...] = (1, 64, 32, 128, 64, 256, 128, 512, 256, 2048)
    """The least and the largest √area of a box, in pixels, that each of the five levels learns from, both included."""
    centre: str = "mass"
    """The centre of an object: "mass", of its pixels, or "box"."""
    picks: int = 7
    """The number k of kernels of an object that the loss looks at."""
    weighted: bool = True
    """The k losses of an object count by the scores of their places; else all of them count the same."""


class ObjectTargets(NamedTuple):
    """The N things of one image that some level learns from.

    masks float32 (N, H/4, W/4) of the padded image, things int64 (N,), levels bool (5, N), and of each level the heat
    map of centres, float32 (things, h, w).
    """

    masks: Tensor
    things: Tensor
    levels: Tensor
    heat: list[Tensor]


def level_sizes(padded: Size) -> list[Size]:
    """The sizes (h, w) of P3 … P7 for a padded image (H, W)."""
    return [(-(-padded[0] // stride), -(-padded[1] // stride)) for stride in STRIDES]


def levels_of_boxes(boxes_xyxy: Tensor, size_ranges: Sequence[float]) -> Tensor:
    """Which level learns from which object: boxes float32 (N, 4) in pixels → bool (levels, N).

    Ranges of √area overlap, so an object may belong to several levels; one beyond all of them belongs to none.
    """
    sides = ((boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])).sqrt()  # (N,)
    low, high = boxes_xyxy.new_tensor(size_ranges).view(-1, 2, 1).unbind(1)  # (levels, 1)
    return (sides >= low) & (sides <= high)


def gaussian_radius(heights: Tensor, widths: Tensor, overlap: float = 0.7) -> Tensor:
    """How far a centre may be missed: float (N,) both, in places of the level → int64 (N,).

    The published code solves the three quadratic equations of CornerNet without dividing by their first coefficients;
    the least solution is always that of the third one: −m(h+w) + √(m²(h+w)² + 4m(1−m)hw).
    """
    half = overlap * (heights + widths)
    radius = (half**2 + 4 * overlap * (1 - overlap) * heights * widths).sqrt() - half
    return radius.clamp(min=0).long()


def centre_heat(centres_yx: Tensor, radii: Tensor, classes: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Squares of 2r + 1 places around each centre with a Gaussian in it, σ = (2r + 1) / 3; the largest value counts.

    centres_yx int64 (N, 2), which may lie outside of the map, radii int64 (N,), classes int64 (N,) → float32 (C, h, w).
    """
    return draw_gaussians(centres_yx, radii, (2 * radii + 1) / 3, classes, shape)


def soft_masks(target: InstanceTargets, image: Size, padded: Size, index: Tensor) -> Tensor:
    """The masks of some objects at a quarter of the size, bilinear, 0 on padding: float32 (n, H/4, W/4).

    image: (height, width) of the unpadded part; index int64 (n,). Four neighbours are read of the shared map of ids, so
    that no object needs a map of full size.
    """
    values = target.mask_value[index, None, None]
    masks = torch.zeros((len(index), padded[0] // QUARTER, padded[1] // QUARTER), device=values.device)
    if not len(index):
        return masks
    stack = target.mask_stack if len(target.mask_stack) == 1 else target.mask_stack[target.mask_index[index]]
    (top, bottom, down), (left, right, across) = (_neighbours(side, values.device) for side in image)
    inner = masks[:, : len(top), : len(left)]
    for rows, of_rows in ((top, 1 - down), (bottom, down)):
        for columns, of_columns in ((left, 1 - across), (right, across)):
            inside = stack[:, rows][:, :, columns] == values
            inner += inside * (of_rows[:, None] * of_columns)
    return masks


def _neighbours(side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two source pixels of each place of a quarter of `side`, and the share of the second one."""
    count = max(1, int(side / QUARTER + 0.5))
    places = ((torch.arange(count, device=device) + 0.5) * (side / count) - 0.5).clamp(min=0)
    first = places.long().clamp(max=side - 1)
    return first, (first + 1).clamp(max=side - 1), places - first


def centres_of(masks: Tensor, boxes_xyxy: Tensor, by_mass: bool) -> Tensor:
    """The centre of each object in places of the maps of masks: float32 (N, 2), y and x.

    by_mass: the mean place (row, column) of all places of the mask that are not zero; the centre of the box where there
    is none, as for objects of a pixel that the quarter passes over.
    """
    of_box = (boxes_xyxy[:, [1, 0]] + boxes_xyxy[:, [3, 2]]) / 2 / QUARTER
    if not by_mass:
        return of_box
    seen = masks > 0
    rows, columns = seen.sum(2).float(), seen.sum(1).float()  # (N, H/4), (N, W/4)
    area = rows.sum(1)
    y, x = ((counts * torch.arange(counts.shape[1], device=seen.device)).sum(1) for counts in (rows, columns))
    of_mass = torch.stack((y, x), dim=1) / area.clamp(min=1)[:, None]
    return torch.where(area[:, None] > 0, of_mass, of_box)


def object_targets(
    target: InstanceTargets, image: Size, padded: Size, classes: int, settings: KernelSettings
) -> ObjectTargets:
    """The targets of the things of one image; image: (height, width) of its unpadded part; classes: of things."""
    levels = levels_of_boxes(target.boxes_xyxy, settings.size_ranges)
    index = levels.any(0).nonzero().flatten()
    levels, boxes, things = levels[:, index], target.boxes_xyxy[index], target.things[index]
    masks = soft_masks(target, image, padded, index)
    centres = centres_of(masks, boxes, settings.centre == "mass")
    sides = torch.stack((boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]), dim=1)  # (N, 2) in pixels
    whole = centres.new_tensor(padded)
    heat: list[Tensor] = []
    for here, size in zip(levels, level_sizes(padded), strict=True):
        scale = centres.new_tensor(size) / whole  # places for a pixel
        extents = sides[here] * scale
        places = (centres[here] * (scale * QUARTER)).long()
        radii = gaussian_radius(extents[:, 0], extents[:, 1])
        heat.append(centre_heat(places, radii, things[here], (classes, *size)))
    return ObjectTargets(masks, things, levels, heat)


def stuff_targets(semantic: Tensor, classes: int, image: Size, sizes: Sequence[Size]) -> tuple[Tensor, list[Tensor]]:
    """(soft masks of all classes float32 (C, H/4, W/4), soft targets of their scores at each level (C, h, w)).

    semantic int64 (H, W) of the padded image, IGNORE where nothing is known; image: (height, width) of its unpadded
    part, which alone is resized, bilinear, so that padding is 0. At the levels what is less than a half becomes zero.
    """
    shape = (classes + 1, semantic.shape[0] // QUARTER, semantic.shape[1] // QUARTER)
    quarter = torch.zeros(shape, device=semantic.device)
    known = torch.where(semantic == IGNORE, classes, semantic)
    (top, bottom, down), (left, right, across) = (_neighbours(side, semantic.device) for side in image)
    inner = quarter[:, : len(top), : len(left)]
    for rows, of_rows in ((top, 1 - down), (bottom, down)):
        for columns, of_columns in ((left, 1 - across), (right, across)):
            inner.scatter_add_(0, known[rows][:, columns][None], (of_rows[:, None] * of_columns)[None])
    quarter = quarter[:classes]
    levels: list[Tensor] = []
    for size in sizes:
        scores = F.interpolate(quarter[None], size, mode="bilinear", align_corners=False)[0].clamp(max=1)
        levels.append(scores * (scores >= 0.5))
    return quarter, levels


def pick_places(logits: Tensor, masks: Tensor, things: Tensor, picks: int, weighted: bool) -> tuple[Tensor, Tensor]:
    """The best places inside each object: (places int64 (n, k) of h · w, weights float32 (n, k), which sum to 1).

    logits (classes, h, w) of a level, masks float32 (n, H/4, W/4), things int64 (n,): its class. Where fewer than k
    places are inside, the others weigh nothing. Weights follow the scores, and gradients flow through them.
    """
    size = (logits.shape[1], logits.shape[2])
    region = F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0] > IN_REGION  # (n, h, w)
    scores = logits.float().sigmoid()[things] * region
    best = scores.flatten(1).topk(min(picks, size[0] * size[1]))
    weights = best.values if weighted else (best.values > 0).float()
    return best.indices, weights / weights.sum(1, keepdim=True).clamp(min=1e-8)


def weighted_dice(kernels: Tensor, features: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Σ over n objects of Σ_j w_j · Dice_j (eq. 5), with squares below the line: a scalar.

    kernels (n, k, D), features (D, H/4, W/4), masks (n, H/4, W/4), weights (n, k). Where there are many objects, their
    masks are computed again in the backward pass, a few at a time.
    """
    pixels, masks, step = features.flatten(1), masks.flatten(1), max(1, MASKS_AT_ONCE // max(1, kernels.shape[1]))
    total = weights.new_zeros(())
    for first in range(0, len(kernels), step):
        some = slice(first, first + step)
        parts = (kernels[some], pixels, masks[some], weights[some])
        if len(kernels) > step:
            total = total + checkpointed(_weighted_dice, *parts)
        else:
            total = total + _weighted_dice(*parts)
    return total


def _weighted_dice(kernels: Tensor, pixels: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    said = (kernels @ pixels).sigmoid()  # (n, k, pixels)
    overlap = (said @ masks[:, :, None])[:, :, 0]  # (n, k)
    squares = (said * said).sum(2) + (masks * masks).sum(1, keepdim=True)
    return (weights * (1 - 2 * overlap / squares.clamp(min=1e-8))).sum()


def mean_kernels(kernels: Tensor, regions: Tensor) -> Tensor:
    """The mean over the whole map of kernels inside each region, places outside counting as zero.

    kernels float (C, h, w), regions bool (n, h, w) → float32 (n, C).
    """
    places = regions.shape[1] * regions.shape[2]
    return regions.flatten(1).float() @ kernels.float().flatten(1).T / places
