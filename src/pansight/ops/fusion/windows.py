"""Semantic inference in square windows along the long side of a photo.

Source: tue-mps/eomt, training/lightning_module.py, ``window_imgs_semantic`` and ``revert_window_logits_semantic``;
transformers' EoMT processor has the same rule.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.errors import PansightError


class Window(NamedTuple):
    """`side` × `side` px of an image of the batch, from its upper left corner on."""

    image: int
    top: int
    left: int


def windows_of(image: int, size: tuple[int, int], side: int) -> list[Window]:
    """As few windows as cover `size` (H, W), whose short side is at most `side`; they overlap evenly."""
    long = max(size)
    count = math.ceil(long / side)
    overlap = (count * side - long) / (count - 1) if count > 1 else 0.0
    starts = [int(index * (side - overlap)) for index in range(count)]
    return [Window(image, start, 0) if size[0] > size[1] else Window(image, 0, start) for start in starts]


def cut_windows(images: Tensor, extents: Sequence[tuple[int, int]], side: int) -> tuple[Tensor, list[Window]]:
    """uint8 (B, 3, H, W), the (height, width) of the unpadded part of each → (N, 3, side, side), 0 beyond; windows.

    Raises PansightError for an image whose short side is longer than a window.
    """
    for height, width in extents:
        if min(height, width) > side:
            raise PansightError(
                where="windows", expected=f"images with a side of at most {side} px", found=f"{height}×{width}"
            )
    windows = [window for image, extent in enumerate(extents) for window in windows_of(image, extent, side)]
    cuts = images.new_zeros((len(windows), images.shape[1], side, side))
    for cut, (image, top, left) in zip(cuts, windows, strict=True):
        height, width = extents[image]
        part = images[image, :, top : min(top + side, height), left : min(left + side, width)]
        cut[:, : part.shape[1], : part.shape[2]] = part
    return cuts, windows


def scores_from_windows(
    class_logits: Tensor,
    mask_logits: Callable[[int], Tensor],
    windows: Sequence[Window],
    side: int,
    extent: tuple[int, int],
    size: tuple[int, int],
) -> Tensor:
    """Σ_q softmax(class)·sigmoid(mask), averaged where windows overlap: float32 (C, H, W).

    class_logits (N, Q, C + 1) and mask_logits(window) → (Q, h, w) of the N windows of one image, which is `extent`
    large for the network and `size` in its file. Both resizes are bilinear, of masks before the sigmoid and of scores.
    """
    with torch.autocast(class_logits.device.type, enabled=False):
        weights = class_logits.float().softmax(-1)[..., :-1].transpose(1, 2)  # (N, C, Q)
        scores = weights.new_zeros((weights.shape[1], *extent))
        covered = weights.new_zeros(extent)
        for index, (_, top, left) in enumerate(windows):
            masks = F.interpolate(mask_logits(index).float()[None], (side, side), mode="bilinear")[0]  # (Q, S, S)
            masks = masks[:, : extent[0] - top, : extent[1] - left].sigmoid()
            height, width = masks.shape[1:]
            place = (slice(top, top + height), slice(left, left + width))
            scores[:, *place] += torch.einsum("cq,qhw->chw", weights[index], masks)
            covered[place] += 1
        return F.interpolate((scores / covered)[None], size, mode="bilinear")[0]
