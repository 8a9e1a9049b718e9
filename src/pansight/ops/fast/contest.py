"""The contest of queries on a CPU: full size only where it is open who wins (`kernels.contest`)."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pansight.ops.fast.kernels import contest as kernels
from pansight.ops.fusion.contest import Canvas, Contest, Sigmoid

PIXELS_WORTH_A_THREAD = 1 << 16
"""Below this many pixels a thread costs more than it saves."""


def contest_by_tiles(
    mask_logits: Tensor, scores: Tensor, canvas: Canvas, sigmoid: Sigmoid, threshold: float, weighted: bool
) -> Contest:
    """`plain_contest` of at least one query, for tensors on the CPU, only tiles that are open being looked at in full.

    The result is that of the plain rule but where two values, or a value and the threshold, are equal up to the last
    bits of a float32: torch's exponential function, and its resize to sizes of H + W ≤ 128, round differently there.
    """
    extent = (min(canvas.extent[0], canvas.padded[0]), min(canvas.extent[1], canvas.padded[1]))
    maps, probabilities = mask_logits.detach().float().contiguous(), mask_logits.detach().float().sigmoid()
    if sigmoid == "never":
        mode, bounds, factors = kernels.NEVER, maps, torch.ones_like(scores)
    elif sigmoid == "between" and canvas.padded == tuple(maps.shape[1:]):  # nothing to resize before: it is done
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


def painted_by_loop(code: Tensor, table: Tensor) -> Tensor:
    """``table[code]`` of tensors on the CPU, a third of the time: int16 (H, W), int32 (2 K,) → int32 (H, W)."""
    ids = np.empty(tuple(code.shape), np.int32)
    kernels.paint(code.contiguous().numpy().reshape(-1), table.numpy(), ids.reshape(-1))
    return torch.from_numpy(ids)
