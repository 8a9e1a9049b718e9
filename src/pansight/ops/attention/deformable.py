"""Multi-scale deformable attention. Zhu et al., Deformable DETR, ICLR 2021, eq. 2 and 3.

Every query reads a few points of each level of a feature pyramid. Points between pixels are interpolated bilinearly,
and points outside of the map count as zero. The plain form samples level by level with ``grid_sample``, and holds L · P
values for each query and head at once. On the CPU two compiled loops, one for the sum and one for its gradient, need
memory for one row of D numbers only.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pansight.ops.maps.compiled import compiled

WORTH_A_THREAD = 1 << 20
"""Below this number of multiplications, starting another thread costs more time than it saves."""


def deform_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], reference: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """Σ over levels and points of weight · value(reference + offset): (B, N, heads, D) → (B, Q, heads · D).

    value: the levels one after another, rows of pixels; shapes: (h, w) of each of the L levels, N = Σ h w.
    reference (Q, 2): x, y of each query in 0 … 1 of every map. offsets (B, Q, heads, L, P, 2): x, y in pixels of their
    level. weights (B, Q, heads, L, P). All of one floating dtype; float16 and bfloat16 are computed in float32.
    """
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return deform_attention_plain(value, shapes, reference, offsets, weights)
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    tensors = [t.to(dtype).contiguous() for t in (value, reference, offsets, weights)]
    return _Compiled.apply(*tensors, np.array(shapes, np.int64)).to(value.dtype)  # type: ignore[no-untyped-call]


def deform_attention_plain(
    value: Tensor, shapes: Sequence[tuple[int, int]], reference: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """The same in torch's own operations: for accelerators and for export."""
    batch, _, heads, channels = value.shape
    queries = offsets.shape[1]
    levels = value.split([height * width for height, width in shapes], dim=1)
    sampled: list[Tensor] = []
    for level, (pixels, (height, width)) in enumerate(zip(levels, shapes, strict=True)):
        maps = pixels.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        x = 2 * reference[:, None, None, 0] - 1 + offsets[:, :, :, level, :, 0] * (2 / width)  # (B, Q, heads, P)
        y = 2 * reference[:, None, None, 1] - 1 + offsets[:, :, :, level, :, 1] * (2 / height)
        grid = torch.stack((x, y), dim=-1).transpose(1, 2).flatten(0, 1)  # (B heads, Q, P, 2)
        grid = grid.to(maps.dtype)
        sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    rows = torch.cat(sampled, dim=3)  # (B heads, D, Q, L P)
    rows = rows * weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    return rows.sum(3).view(batch, heads * channels, queries).transpose(1, 2)


class _Compiled(torch.autograd.Function):
    """The compiled sum with its gradient; shapes int64 (L, 2). Contiguous tensors of one dtype on the CPU."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, reference: Tensor, offsets: Tensor, weights: Tensor, shapes: Any) -> Tensor:
        ctx.save_for_backward(value, reference, offsets, weights)
        ctx.shapes = shapes
        batch, queries, heads = offsets.shape[:3]
        out = value.new_empty(batch, queries, heads, value.shape[3])
        arrays = [_array(t) for t in (value, reference, offsets, weights)]
        work = weights.numel() * 4 * value.shape[3]
        _in_threads(functools.partial(_loops()[0], *arrays, shapes, _array(out)), batch * queries, work)
        return out.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        value, reference, offsets, weights = ctx.saved_tensors
        batch, queries, heads = offsets.shape[:3]
        gradient = grad_outputs[0].contiguous().view(batch, queries, heads, value.shape[3])
        of_value = torch.zeros_like(value)
        of_offsets, of_weights = torch.empty_like(offsets), torch.empty_like(weights)
        arrays = [_array(t) for t in (value, reference, offsets, weights, gradient, of_value, of_offsets, of_weights)]
        work = weights.numel() * 8 * value.shape[3]
        # one head of one batch entry is one piece of work, since no other piece adds to the same values
        _in_threads(functools.partial(_loops()[1], *arrays[:4], ctx.shapes, *arrays[4:]), batch * heads, work)
        return of_value, None, of_offsets, of_weights, None


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


@functools.cache
def _loops() -> tuple[Callable[..., None], Callable[..., None]]:
    return compiled(_sum_loop, reorder_sums=True), compiled(_gradient_loop, reorder_sums=True)


def _in_threads(loop: Callable[[int, int], None], count: int, work: int) -> None:
    """loop(first, last) over 0 … count, in as many threads as torch uses; the loop holds no interpreter lock."""
    threads = max(1, min(torch.get_num_threads(), count, work // WORTH_A_THREAD))
    own, *parts = pairwise([count * part // threads for part in range(threads + 1)])
    others = [threading.Thread(target=loop, args=part) for part in parts]
    for thread in others:
        thread.start()
    loop(*own)
    for thread in others:
        thread.join()


def _sum_loop(
    value: Any, reference: Any, offsets: Any, weights: Any, shapes: Any, out: Any, first: int, last: int
) -> None:
    """out[b, q] for b · Q + q from `first` to `last`."""
    queries, heads, levels, points = weights.shape[1:]
    channels = value.shape[3]
    row = np.empty(channels, value.dtype)
    for place in range(first, last):
        b = place // queries
        q = place - b * queries
        for head in range(heads):
            row[:] = 0
            start = 0
            for level in range(levels):
                height, width = shapes[level, 0], shapes[level, 1]
                for point in range(points):
                    x = reference[q, 0] * width - 0.5 + offsets[b, q, head, level, point, 0]
                    y = reference[q, 1] * height - 0.5 + offsets[b, q, head, level, point, 1]
                    if not (-1 < x < width and -1 < y < height):
                        if math.isnan(x) or math.isnan(y):
                            row[:] = np.nan
                        continue
                    left, top = int(math.floor(x)), int(math.floor(y))
                    right, below = left + 1, top + 1
                    # a neighbour outside the map has weight 0; any pixel inside is read in its place
                    weight = weights[b, q, head, level, point]
                    w_left = right - x if left >= 0 else 0 * x
                    w_right = x - left if right < width else 0 * x
                    w_top = weight * (below - y) if top >= 0 else 0 * y
                    w_below = weight * (y - top) if below < height else 0 * y
                    left, right = max(left, 0), min(right, width - 1)
                    top, below = start + max(top, 0) * width, start + min(below, height - 1) * width
                    a, c, d, e = w_top * w_left, w_top * w_right, w_below * w_left, w_below * w_right
                    for k in range(channels):
                        row[k] += (
                            a * value[b, top + left, head, k]
                            + c * value[b, top + right, head, k]
                            + d * value[b, below + left, head, k]
                            + e * value[b, below + right, head, k]
                        )
                start += height * width
            for k in range(channels):
                out[b, q, head, k] = row[k]


def _gradient_loop(
    value: Any,
    reference: Any,
    offsets: Any,
    weights: Any,
    shapes: Any,
    gradient: Any,
    of_value: Any,
    of_offsets: Any,
    of_weights: Any,
    first: int,
    last: int,
) -> None:
    """The gradients of one head of one image after another, b · heads + head from `first` to `last`."""
    queries, heads, levels, points = weights.shape[1:]
    channels = value.shape[3]
    zero = value.dtype.type(0)
    for place in range(first, last):
        b = place // heads
        head = place - b * heads
        for q in range(queries):
            start = 0
            for level in range(levels):
                height, width = shapes[level, 0], shapes[level, 1]
                for point in range(points):
                    x = reference[q, 0] * width - 0.5 + offsets[b, q, head, level, point, 0]
                    y = reference[q, 1] * height - 0.5 + offsets[b, q, head, level, point, 1]
                    if not (-1 < x < width and -1 < y < height):
                        nothing = x * 0 + y * 0  # NaN stays NaN
                        of_offsets[b, q, head, level, point, 0] = nothing
                        of_offsets[b, q, head, level, point, 1] = nothing
                        of_weights[b, q, head, level, point] = nothing
                        continue
                    left, top = int(math.floor(x)), int(math.floor(y))
                    right, below = left + 1, top + 1
                    weight = weights[b, q, head, level, point]
                    to_right, to_below = x - left, y - top
                    in_left, in_right, in_top, in_below = left >= 0, right < width, top >= 0, below < height
                    left, right = max(left, 0), min(right, width - 1)
                    top, below = start + max(top, 0) * width, start + min(below, height - 1) * width
                    a, c, d, e = zero, zero, zero, zero  # the gradient times each of the four neighbours
                    for k in range(channels):
                        g = gradient[b, q, head, k]
                        a += g * value[b, top + left, head, k]
                        c += g * value[b, top + right, head, k]
                        d += g * value[b, below + left, head, k]
                        e += g * value[b, below + right, head, k]
                    a = a if in_top and in_left else zero
                    c = c if in_top and in_right else zero
                    d = d if in_below and in_left else zero
                    e = e if in_below and in_right else zero
                    above, under = a + (c - a) * to_right, d + (e - d) * to_right
                    of_weights[b, q, head, level, point] = above + (under - above) * to_below
                    of_offsets[b, q, head, level, point, 0] = weight * ((c - a) * (1 - to_below) + (e - d) * to_below)
                    of_offsets[b, q, head, level, point, 1] = weight * (under - above)
                    for corner in range(4):
                        is_right, is_below = corner % 2 == 1, corner >= 2
                        share = weight * (to_right if is_right else 1 - to_right)
                        share *= to_below if is_below else 1 - to_below
                        if (in_right if is_right else in_left) and (in_below if is_below else in_top):
                            pixel = (below if is_below else top) + (right if is_right else left)
                            for k in range(channels):
                                of_value[b, pixel, head, k] += share * gradient[b, q, head, k]
                start += height * width
