"""Which of K queries has the largest value at each pixel of an image: the costly part of the panoptic rules, since only
its work grows with the number of pixels.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

PIXELS_WORTH_A_THREAD = 1 << 16
"""Below this number of pixels, starting a thread costs more time than it saves."""


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

    weighted: the threshold applies to score · probability (transformers) instead of the probability.
    On the CPU only undecided tiles are computed at full size (`contest_kernels`). The result equals that of
    `plain_contest`, except where two values, or a value and the threshold, differ in the last bits of a float32 only:
    torch's exponential function, and its resize to sizes of H + W ≤ 128, may round differently there.
    """
    if mask_logits.device.type != "cpu" or not len(mask_logits):
        return plain_contest(mask_logits, scores, canvas, sigmoid, threshold, weighted)
    from pansight.ops.fusion import contest_kernels as kernels  # imported here, since numba takes long to load

    extent = (min(canvas.extent[0], canvas.padded[0]), min(canvas.extent[1], canvas.padded[1]))
    maps, probabilities = mask_logits.detach().float().contiguous(), mask_logits.detach().float().sigmoid()
    if sigmoid == "never":
        mode, bounds, factors = kernels.NEVER, maps, torch.ones_like(scores)
    elif sigmoid == "between" and canvas.padded == tuple(maps.shape[1:]):  # no resize before the sigmoid
        mode, bounds, factors, maps = kernels.NEVER, probabilities, scores, probabilities
    else:
        mode, bounds, factors = kernels.BETWEEN if sigmoid == "between" else kernels.LAST, probabilities, scores
    axes = (
        *_axis(maps.shape[1], canvas.padded[0], extent[0]),
        *_axis(maps.shape[2], canvas.padded[1], extent[1]),
        *_axis(extent[0], canvas.size[0], canvas.size[0]),
        *_axis(extent[1], canvas.size[1], canvas.size[1]),
    )
    code = np.empty(canvas.size, np.int16)
    threads = max(1, min(torch.get_num_threads(), code.size // PIXELS_WORTH_A_THREAD))
    tiles = -(-canvas.size[0] // kernels.TILE)
    bands = list(itertools.pairwise(tiles * part // threads for part in range(threads + 1)))
    pixels = np.zeros((threads, len(maps), 3), np.int64)
    values = (maps.numpy(), bounds.contiguous().numpy(), factors.detach().float().contiguous().numpy())
    limit = float(np.float32(threshold))  # torch compares in float32

    def run(part: int) -> None:
        kernels.run_contest(*values, limit, weighted, axes, mode, bands[part], code, pixels[part])

    if threads == 1:
        run(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, range(threads)))
    won, inside, mask = torch.from_numpy(pixels.sum(0)).unbind(1)
    return Contest(torch.from_numpy(code), won, inside, mask)


def _axis(source: int, target: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of the first `count` pixels of a side resized from `source` to `target`: the lower neighbour, the way past it.

    In torch's arithmetic, step by step in float32.
    """
    if source == target:
        return np.arange(count), np.zeros(count, np.float32)
    step, half = np.float32(source) / np.float32(target), np.float32(0.5)
    position = np.maximum(step * (np.arange(count, dtype=np.float32) + half) - half, np.float32(0))
    low = position.astype(np.int64)
    return low, position - low.astype(np.float32)


def plain_contest(
    mask_logits: Tensor, scores: Tensor, canvas: Canvas, sigmoid: Sigmoid, threshold: float, weighted: bool = False
) -> Contest:
    """The rule as it is written, with every mask at full size. `contest` must equal it; accelerators run this one."""
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


def resized_rows(maps: Tensor, height: int, size: tuple[int, int], rows: range, first: int = 0) -> Tensor:
    """Some rows of ``resized(…, size)``: (N, len(rows), W). maps: rows from `first` on of maps of `height` rows."""
    if height != size[0]:
        position = (torch.arange(rows.start, rows.stop, device=maps.device) + 0.5) * (height / size[0]) - 0.5
        position = position.clamp_(min=0)
        above = position.long()
        weight = (position - above)[:, None]  # (R, 1)
        below = (above + 1).clamp_(max=height - 1) - first
        part = torch.lerp(maps[:, above - first], maps[:, below], weight)  # (N, R, w)
    else:
        part = maps[:, rows.start - first : rows.stop - first]
    return resized(part, (len(rows), size[1]))


def source_rows(height: int, size: int, rows: range) -> range:
    """The rows of a map of `height` rows that `rows` of its resized version (of `size` rows) are made of."""
    if height == size:
        return rows
    start = max(0, int((rows.start + 0.5) * height / size - 0.5))
    stop = max(0, int((rows.stop - 0.5) * height / size - 0.5)) + 2
    return range(start, min(stop, height))


def canvas_rows(mask_logits: Tensor, canvas: Canvas, rows: range) -> Tensor:
    """Some rows of the masks at the size of the file: float (N, h, w) → float32 (N, len(rows), W)."""
    between = source_rows(canvas.extent[0], canvas.size[0], rows)
    height = mask_logits.shape[1]
    needed = source_rows(height, canvas.padded[0], between)
    part = mask_logits[:, needed.start : needed.stop].float()
    part = resized_rows(part, height, canvas.padded, between, needed.start)[:, :, : canvas.extent[1]]
    return resized_rows(part, canvas.extent[0], canvas.size, rows, between.start)


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
    if code.device.type != "cpu":
        return table[code.int()]
    from pansight.ops.fusion import contest_kernels as kernels

    ids = np.empty(tuple(code.shape), np.int32)
    kernels.paint(code.contiguous().numpy().reshape(-1), table.numpy(), ids.reshape(-1))
    return torch.from_numpy(ids)
