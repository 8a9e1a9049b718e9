"""The losses of the R-CNN family as pure functions, computed in float32 whatever the input's type."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def box_loss(deltas: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Sum of smooth-L1 over all entries, (N, 4) both → scalar; beta 0 is L1 (Girshick, Fast R-CNN, eq. 3: beta 1)."""
    if beta == 0:
        return (deltas.float() - targets).abs().sum()
    return F.smooth_l1_loss(deltas.float(), targets, beta=beta, reduction="sum")


def objectness_loss(logits: Tensor, targets: Tensor, denominator: float) -> Tensor:
    """Binary cross-entropy, summed and divided: logits (N,), targets float (N,) of 0 and 1 → scalar."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum") / denominator


def class_loss(logits: Tensor, classes: Tensor, total: float | None = None) -> Tensor:
    """Mean cross-entropy over N sampled regions, 0 for none: logits (N, K), classes int64 (N,) → scalar.

    total: what to divide by instead of N, where these regions are a part of a step.
    """
    losses = F.cross_entropy(logits.float(), classes, reduction="none")
    return losses.sum() / max(1, len(losses) if total is None else total)


def mask_loss(logits: Tensor, targets: Tensor, total: float | None = None) -> Tensor:
    """Mean binary cross-entropy over the pixels of the true class's mask: (N, M, M) both → scalar, 0 for none.

    He et al., Mask R-CNN, 3: the other classes' masks carry no loss. targets float in 0 … 1.
    total: the number of masks to divide by instead of N, where these are a part of a step.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    masks = len(logits) if total is None else total
    return losses.sum() / max(1, masks * logits.shape[1] * logits.shape[2])
