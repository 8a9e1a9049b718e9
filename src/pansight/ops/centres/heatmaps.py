"""What Panoptic-DeepLab learns from: a heat map of the centres of things, and the way from each pixel to its centre.

Cheng et al.: Panoptic-DeepLab, CVPR 2020, section 3.2; the details are those of detectron2's projects/Panoptic-DeepLab
(Apache-2.0).
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pansight.ops.targets import lookup
from pansight.types import LabelSpace, PanopticSegmentation


class CentreSettings(NamedTuple):
    """How truth becomes targets.

    sigma: deviation of the Gaussian around a centre, in pixels. small_area: things of fewer pixels weigh small_weight
    in the semantic loss instead of 1.
    """

    sigma: float = 8.0
    small_area: int = 4096
    small_weight: float = 3.0


class CentreTargets(NamedTuple):
    """Of one image or, each with an axis more in front, of a batch."""

    heat: Tensor  # float32 (H, W), 0 … 1: a Gaussian around the centre of each thing
    offsets_yx: Tensor  # float32 (2, H, W): from each pixel of a thing to its centre, in pixels, y first
    has_heat: Tensor  # bool (H, W): the heat is learned here, where something is annotated that is no crowd
    has_offset: Tensor  # bool (H, W): the offset is learned here, on things that are no crowds
    class_weight: Tensor  # float32 (H, W): weight of the pixel's class in the loss


def centre_targets(truth: PanopticSegmentation, labels: LabelSpace, settings: CentreSettings) -> CentreTargets:
    """The targets of an image, where its truth is.

    The centre of a thing is the mean place of its pixels; the Gaussian stands at the nearest whole pixel (halves go to
    the even one) and reaches ⌊3σ⌋ + 1 pixels to each side. Crowds are drawn, but neither heat nor offsets are learned
    on them.
    """
    ids, things = truth.ids, {category.id for category in labels.things}
    device, (height, width) = ids.device, ids.shape
    rows = [(s.id, s.category in things, s.is_crowd) for s in truth.segments]
    table = torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, 3)  # (S, 3) id, thing, crowd
    count = len(table)
    slot = lookup(ids, table[:, 0], torch.arange(count, device=device), count)  # (H, W), void is the last
    down, across = (_counts(slot, axis, count) for axis in range(2))  # (S, H), (S, W)
    area = down.sum(1)
    centres = torch.stack([_mean_place(down, area), _mean_place(across, area)], 1)  # (S, 2) y, x
    is_thing, is_crowd = table[:, 1].bool(), table[:, 2].bool()
    drawn = centres[is_thing & (area > 0)].round().long()
    zeros = torch.zeros(len(drawn), dtype=torch.int64, device=device)
    reach, sigmas = zeros + int(3 * settings.sigma) + 1, torch.full((len(drawn),), settings.sigma, device=device)
    heat = draw_gaussians(drawn, reach, sigmas, zeros, (1, height, width))[0]
    pixel_thing = _of_slots(is_thing, slot, False)
    small = is_thing & (area < settings.small_area)
    places = torch.stack(
        torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    )  # (2, H, W)
    centre_of_pixel = torch.cat([centres, centres.new_zeros((1, 2))])[slot].permute(2, 0, 1)  # (2, H, W)
    return CentreTargets(
        heat=heat,
        offsets_yx=(centre_of_pixel - places) * pixel_thing,
        has_heat=_of_slots(~is_crowd, slot, False),
        has_offset=_of_slots(is_thing & ~is_crowd, slot, False),
        class_weight=torch.where(_of_slots(small, slot, False), settings.small_weight, 1.0),
    )


def _counts(slot: Tensor, axis: int, count: int) -> Tensor:
    """How many pixels of each segment lie in each row (axis 0) or column (axis 1): int64 (count, H or W)."""
    side = slot.shape[axis]
    place = torch.arange(side, device=slot.device)
    place = place[:, None] if axis == 0 else place
    return torch.bincount((slot * side + place).flatten(), minlength=(count + 1) * side).view(-1, side)[:count]


def _mean_place(counts: Tensor, area: Tensor) -> Tensor:
    """counts int64 (S, H or W) of pixels, area int64 (S,) → float32 (S,), their mean place along the axis."""
    places = torch.arange(counts.shape[1], device=counts.device)
    return ((counts * places).sum(1).double() / area.clamp(min=1)).float()


def _of_slots(values: Tensor, slot: Tensor, default: bool) -> Tensor:
    """values bool (S,), slot int64 (H, W) → bool (H, W): the value of the segment of each pixel."""
    return torch.cat([values, values.new_full((1,), default)])[slot]


def draw_gaussians(
    centres_yx: Tensor, reach: Tensor, sigmas: Tensor, channels: Tensor, shape: tuple[int, int, int]
) -> Tensor:
    """Squares of 2 · reach + 1 places around each centre, with a Gaussian in it; where some meet, the largest counts.

    centres_yx int64 (N, 2), which may lie outside of the map, reach int64 (N,), sigmas float (N,), channels int64 (N,)
    → float32 (C, H, W) of the given shape.
    """
    heat = torch.zeros(shape, device=centres_yx.device)
    if not len(centres_yx):
        return heat
    farthest = int(reach.max())
    away = torch.arange(-farthest, farthest + 1, device=heat.device)  # (k,)
    line = torch.exp(-(away**2) / (2 * sigmas[:, None] ** 2)) * (away.abs() <= reach[:, None])  # (N, k)
    y, x = centres_yx[:, :1] + away, centres_yx[:, 1:] + away  # (N, k)
    seen = ((y >= 0) & (y < shape[1]))[:, :, None] & ((x >= 0) & (x < shape[2]))[:, None]  # (N, k, k)
    place = (channels[:, None] * shape[1] + y)[:, :, None] * shape[2] + x[:, None]
    heat.flatten().scatter_reduce_(0, place[seen], (line[:, :, None] * line[:, None])[seen], "amax")
    return heat


def batched_targets(targets: list[CentreTargets], size: tuple[int, int], device: torch.device) -> CentreTargets:
    """The targets of images, each at the top left of a map of the padded `size` (H, W); nothing is learned beyond."""
    return CentreTargets(*(_padded(maps, size, device) for maps in zip(*targets, strict=True)))


def _padded(maps: tuple[Tensor, ...], size: tuple[int, int], device: torch.device) -> Tensor:
    """Maps (…, h, w) of several images → (B, …, H, W), zero beyond each."""
    result = torch.zeros((len(maps), *maps[0].shape[:-2], *size), dtype=maps[0].dtype, device=device)
    for row, one in zip(result, maps, strict=True):
        row[..., : one.shape[-2], : one.shape[-1]] = one.to(device)
    return result
