"""The one-to-one matching of queries to true segments with the least total cost (Hungarian algorithm).

Carion et al., DETR, eq. 1 and 2; Cheng et al., MaskFormer, section 3.2. Costs are computed for all decoder layers and
images of a batch at once, as one tensor (L, B, Q, N), which is copied to the CPU once.
"""

# torch and scipy leave some of their return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor

from pansight.errors import PansightError
from pansight.ops.regions.boxes import box_cxcywh_to_xyxy, generalized_iou


class Matches(NamedTuple):
    """M matched pairs of all layers and images, sorted by layer, image, query; int64 (M,) each."""

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor  # index among the targets of the image


def hungarian(cost: Tensor, counts: Sequence[int]) -> Matches:
    """cost float (L, B, Q, N), columns from counts[b] on are padding; on the device of `cost`.

    In an image with more targets than queries, the Q targets of the least cost are matched (with a UserWarning, which
    Python shows once in a process). Raises PansightError where a cost is not finite, naming layer and image.
    """
    layers, images, queries = cost.shape[:3]
    host = cost.detach().float().cpu().numpy()
    if max(counts, default=0) > queries:
        warnings.warn(f"an image has more objects than the {queries} queries: some teach nothing", stacklevel=2)
    parts: list[np.ndarray] = [np.zeros((4, 0), np.int64)]
    for layer in range(layers):
        for image in range(images):
            table = host[layer, image, :, : counts[image]]  # (Q, n)
            if not np.isfinite(table).all():
                found = table[~np.isfinite(table)][0]
                where = f"layer {layer}, image {image} of the batch"
                raise PansightError(
                    where=f"matching: {where}", expected="finite costs", found=f"{found} (has training diverged?)"
                )
            query, target = linear_sum_assignment(table)  # queries rise
            parts.append(np.stack((np.full_like(query, layer), np.full_like(query, image), query, target)))
    layer, image, query, target = torch.from_numpy(np.concatenate(parts, axis=1)).to(cost.device)  # (4, M)
    return Matches(layer, image, query, target)


def class_cost(class_logits: Tensor, labels: Tensor) -> Tensor:
    """−softmax probability of each target's class: (L, B, Q, C + 1), labels int64 (B, N) → float32 (L, B, Q, N)."""
    layers, _, queries, _ = class_logits.shape
    index = labels[None, :, None, :].expand(layers, -1, queries, -1)  # (L, B, Q, N)
    return -class_logits.float().softmax(-1).gather(3, index)


def box_cost(boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """(L1 distance, −GIoU) of all pairs: (L, B, Q, 4), (B, N, 4), both 0 … 1 of the image → float32 (L, B, Q, N)."""
    a = boxes_cxcywh.float().unsqueeze(3)  # (L, B, Q, 1, 4)
    b = targets_cxcywh.float()[:, None]  # (B, 1, N, 4)
    return (a - b).abs().sum(-1), -generalized_iou(box_cxcywh_to_xyxy(a), box_cxcywh_to_xyxy(b))


def mask_cost(point_logits: Tensor, point_targets: Tensor) -> tuple[Tensor, Tensor]:
    """(binary cross-entropy, dice) of all pairs, each the mean or ratio over P points or pixels.

    point_logits (L, B, Q, P), point_targets float (B, N, P) in 0 … 1 → float32 (L, B, Q, N). Mask2Former, eq. of 3.2.
    """
    logits, targets = point_logits.float(), point_targets.float()
    with torch.autocast(logits.device.type, enabled=False):
        # −t log σ(x) − (1 − t) log(1 − σ(x)) = softplus(x) − t x: one product instead of two
        total = F.softplus(logits).sum(-1, keepdim=True)  # (L, B, Q, 1)
        binary = (total - _products(logits, targets)) / logits.shape[-1]
        probability = logits.sigmoid()
        size = probability.sum(-1, keepdim=True) + targets.sum(-1)[:, None]  # (L, B, Q, N)
        dice = 1 - (2 * _products(probability, targets) + 1) / (size + 1)
    return binary, dice


def _products(values: Tensor, targets: Tensor) -> Tensor:
    """Σ over P of all pairs: (L, B, Q, P), (B, N, P) → (L, B, Q, N). The few targets come first: twice as fast."""
    return (targets @ values.transpose(2, 3)).transpose(2, 3)


def focal_cost(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """MaskFormer's focal cost over P pixels: (L, B, Q, P), (B, N, P) → float32 (L, B, Q, N)."""
    logits, targets = logits.float(), targets.float()
    with torch.autocast(logits.device.type, enabled=False):
        probability = logits.sigmoid()
        inside = alpha * (1 - probability) ** gamma * F.softplus(-logits)  # what a pixel of the segment costs
        outside = (1 - alpha) * probability**gamma * F.softplus(logits)  # and any other
        both = outside.sum(-1, keepdim=True) + _products(inside - outside, targets)
    return both / logits.shape[-1]
