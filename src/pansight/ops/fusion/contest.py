"""Which of K queries has the largest value at each pixel of an image: the costly part of the panoptic rules, since only
its work grows with the number of pixels.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.fast import use_plain


class Canvas(NamedTuple):
    """The sizes (H, W) on the way of mask logits to the file: resized to `padded`, cut to `extent`, then to `size`."""

    padded: tuple[int, int]
    extent: tuple[int, int]
    size: tuple[int, int]


class Contest(NamedTuple):
    """The result of the contest of K queries, for each pixel and for each query.

    code int16 (H, W): 2 · winner + inside. winner: the query of the highest value, the first of equal ones; inside: the
    winner's own mask is at least the threshold there. Pixels of each query, int64 (K,), on the CPU: won; won and
    inside; mask (where its own mask is at least the threshold, won or not).
    """

    code: Tensor
    won: Tensor
    inside: Tensor
    mask: Tensor


Sigmoid = Literal["never", "between", "last"]
"""Where logits become probabilities: never (logits compete), between the two resizes, or after both."""


def contest(
    mask_logits: Tensor, scores: Tensor, canvas: Canvas, sigmoid: Sigmoid, threshold: float, weighted: bool = False
) -> Contest:
    """mask_logits float (K, h, w), scores float (K,), which weigh the probabilities (logits are not weighed).

    weighted: the threshold is put to score · probability (transformers), not to the probability.
    """
    if use_plain() or mask_logits.device.type != "cpu" or not len(mask_logits):
        return plain_contest(mask_logits, scores, canvas, sigmoid, threshold, weighted)
    from pansight.ops.fast.contest import contest_by_tiles  # here: numba takes its time to load

    return contest_by_tiles(mask_logits, scores, canvas, sigmoid, threshold, weighted)


def plain_contest(
    mask_logits: Tensor, scores: Tensor, canvas: Canvas, sigmoid: Sigmoid, threshold: float, weighted: bool = False
) -> Contest:
    """The rule word by word: every mask at full size. Accelerators run it as it is."""
    masks = resized(mask_logits.float().contiguous(), canvas.padded)[:, : canvas.extent[0], : canvas.extent[1]]
    if sigmoid == "between":
        masks = masks.sigmoid()
    masks = resized(masks, canvas.size)  # (K, H, W)
    if sigmoid == "last":
        masks = masks.sigmoid()
    values = masks if sigmoid == "never" else masks * scores[:, None, None]
    count = len(values)
    if count == 0:
        none = torch.zeros(0, dtype=torch.int64)
        return Contest(torch.zeros(canvas.size, dtype=torch.int16, device=values.device), none, none, none)
    above = (values if weighted else masks) >= threshold  # (K, H, W)
    winner = values.max(0).indices  # six times as fast as argmax(0) on a CPU, the first of equal ones alike
    code = 2 * winner + above.gather(0, winner.unsqueeze(0))[0]  # (H, W)
    pixels = torch.bincount(code.flatten(), minlength=2 * count).cpu().view(count, 2)
    return Contest(code.to(torch.int16), pixels.sum(1), pixels[:, 1], above.flatten(1).sum(1).cpu())


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) → (N, H, W), bilinear between pixel centres; the same tensor where the size is the same."""
    if tuple(maps.shape[1:]) == tuple(size) or not len(maps):
        return maps if len(maps) else maps.new_zeros((0, *size))
    return F.interpolate(maps.unsqueeze(0), size=size, mode="bilinear", align_corners=False)[0]


def on_canvas(mask_logits: Tensor, canvas: Canvas) -> Tensor:
    """The masks at the size of the file: float (N, h, w) → float32 (N, H, W)."""
    masks = resized(mask_logits.float(), canvas.padded)[:, : canvas.extent[0], : canvas.extent[1]]
    return resized(masks, canvas.size)


def nearest_source(source: int, target: int) -> Tensor:
    """The source pixel of each target pixel by PIL's NEAREST: int64 (target,)."""
    step = source / target
    centers = np.full(target, step)
    centers[0] = 0.5 * step
    return torch.from_numpy(
        np.minimum(np.cumsum(centers).astype(np.int64), source - 1)
    )  # PIL adds the step again and again instead of multiplying


def painted(code: Tensor, table: Tensor) -> Tensor:
    """table[code] as a map: int16 (H, W), int32 (2 K,) → int32 (H, W)."""
    if use_plain() or code.device.type != "cpu":
        return table[code.int()]
    from pansight.ops.fast.contest import painted_by_loop

    return painted_by_loop(code, table)
