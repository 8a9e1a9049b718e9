"""What point-sampled losses need: masks and features at points, masks of matched pairs, the least values of rows."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def samples_by_loop(stack: Tensor, plane: Tensor, value: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """`ops.queries.targets.sample_masks` on a CPU: one compiled pass over the points, no mask being made.

    stack (S, h, w); plane int64 (N,), value int32 (N,): mask n is ``stack[plane[n]] == value[n]``, padded to `size`
    (H, W); points float32 (P, 2) or (N, P, 2) → float32 (N, P).
    """
    from pansight.ops.fast.kernels import points as kernels  # here: numba takes its time to load

    samples = torch.empty((len(value), points.shape[-2]))
    points = (points if points.ndim == 3 else points.unsqueeze(0)).contiguous()
    kernels.sample(stack.contiguous().numpy(), plane.numpy(), value.numpy(), points.numpy(), size, samples.numpy())
    return samples


def samples_by_gathering(stack: Tensor, plane: Tensor, value: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """The same as four gathers, for accelerators."""
    # one pixel of 0, which is the value of no mask, all round: whatever lies outside is clamped onto it
    stack = torch.nn.functional.pad(stack, (1, 1, 1, 1))  # (S, h + 2, w + 2)
    planes, height, width = stack.shape
    x = points[..., 0] * size[1] + 0.5  # (P,) or (N, P), pixel centres of the padded stack at 0, 1, 2 …
    y = points[..., 1] * size[0] + 0.5
    x0, y0 = x.floor(), y.floor()
    x, y = x - x0, y - y0  # 0 … 1, the way from one neighbour to the next
    columns = [(x0 + step).clamp_(0, width - 1).long() for step in (0, 1)]
    rows = [(y0 + step).clamp_(0, height - 1).long() * width for step in (0, 1)]
    flat = stack.flatten()  # (S · (h + 2) · (w + 2),)
    start = (plane * (height * width)).unsqueeze(1) if planes > 1 else 0  # (N, 1)
    result = torch.zeros((len(value), points.shape[-2]), device=points.device)
    for row, down in zip(rows, (1 - y, y), strict=True):
        for column, across in zip(columns, (1 - x, x), strict=True):
            result += (flat[start + (row + column)] == value.unsqueeze(1)) * (down * across)  # (N, P)
    return result


def products_at_points(embeddings: Tensor, features: Sequence[Tensor], image: int, points: Tensor) -> Iterator[Tensor]:
    """`ops.queries.losses.point_logits`. Sampling is linear: it acts on the features, or on the masks of one layer,

    whichever is less work. Layers may share a map, which is sampled once.
    """
    near, weights = neighbours(points, features[0].shape[2:])  # (K, 4) both
    table = near  # of each map, below
    few = features[0][0, 0].numel() <= len(near)
    for layer, feature in enumerate(features):
        if layer == 0 or feature is not features[layer - 1]:
            pixels = feature[image].float().flatten(1).T  # (h · w, D)
            table = pixels if few else _weighted(pixels, near, weights)  # (h · w, D) or (K, D)
        logits = table @ embeddings[layer].T  # (h · w or K, Q)
        yield (_weighted(logits, near, weights) if few else logits).T  # (Q, K)


def neighbours(points: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The 4 pixels around each point and their bilinear weights, 0 outside: (P, 2) → int64 (P, 4), float32 (P, 4)."""
    height, width = size
    position = points * points.new_tensor([width, height]) - 0.5
    low = position.floor()
    far = position - low
    corner = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=points.device)  # x, y
    pixel = low.long().unsqueeze(1) + corner  # (P, 4, 2)
    weight = torch.where(corner == 1, far.unsqueeze(1), 1 - far.unsqueeze(1)).prod(2)
    inside = ((pixel >= 0) & (pixel < torch.tensor([width, height], device=points.device))).all(2)
    return (pixel[..., 1] * width + pixel[..., 0]).where(inside, 0), weight * inside


def _weighted(rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of 4 rows each: (R, D), (P, 4), (P, 4) → (P, D)."""
    return F.embedding_bag(index, rows, per_sample_weights=weights, mode="sum")


def pair_masks_by_map(
    embeddings: Tensor, features: Sequence[Tensor], layer: Tensor, image: Tensor, of_layer: Sequence[int]
) -> list[Tensor]:
    """`ops.queries.losses.pair_masks`: layers that share a map are one product an image, and one sum of gradients.

    embeddings (M, D); layer, image int64 (M,) → L of (M of the layer, h, w).
    """
    result: list[Tensor] = []
    start = 0
    while start < len(features):
        feature = features[start]
        stop = start + 1
        while stop < len(features) and features[stop] is feature:
            stop += 1
        group = (layer >= start) & (layer < stop)
        own = image[group]  # (m,)
        order = own.argsort(stable=True)
        parts = embeddings[group][order].split(torch.bincount(own, minlength=len(feature)).tolist())
        maps = feature.float().flatten(2).unbind(0)  # B of (D, h · w)
        masks = torch.cat([part @ pixels for part, pixels in zip(parts, maps, strict=True)])
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        masks = masks[back].unflatten(1, feature.shape[2:])  # (m, h, w), by layer again
        result += masks.split(list(of_layer[start:stop]))
        start = stop
    return result


def least_by_partition(values: Tensor, count: int) -> Tensor:
    """`ops.queries.losses.least` on a CPU, several times as fast as topk: (M, P) → int64 (M, count)."""
    return torch.from_numpy(np.argpartition(values.numpy(), count - 1, axis=1)[:, :count])
