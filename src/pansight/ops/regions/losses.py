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


def mean_or_zero(values: Tensor) -> Tensor:
    """The mean; 0, still part of the graph, where there is nothing to average (torch's own mean is NaN there)."""
    return values.sum() / max(1, values.numel())


def objectness_loss(logits: Tensor, targets: Tensor, denominator: float) -> Tensor:
    """Binary cross-entropy, summed and divided: logits (N,), targets float (N,) of 0 and 1 → scalar."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum") / denominator


def class_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean cross-entropy over N sampled regions, 0 for none: logits (N, K), classes int64 (N,) → scalar."""
    return mean_or_zero(F.cross_entropy(logits.float(), classes, reduction="none"))


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over the pixels of the true class's mask: (N, M, M) both → scalar, 0 for none.

    He et al., Mask R-CNN, 3: the other classes' masks carry no loss. targets float in 0 … 1.
    """
    return mean_or_zero(F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none"))
