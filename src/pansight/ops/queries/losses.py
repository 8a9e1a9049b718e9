"""The set losses of mask transformers. All are computed in float32; L layers, B images, Q queries, M matched pairs.

Carion et al., DETR; Cheng et al., MaskFormer and Mask2Former; Lin et al., focal loss (eq. 5); Milletari et al., dice.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pansight.ops.queries.matching import Matches
from pansight.ops.targets import InstanceTargets


def set_class_loss(class_logits: Tensor, matches: Matches, labels: Tensor, no_object: float = 0.1) -> Tensor:
    """Cross-entropy over all queries, weighted mean (torch's), unmatched queries wanting the last class: (L,).

    class_logits (L, B, Q, C + 1), labels int64 (B, N). no_object: the weight of the last class. DETR, section 3.1.
    """
    raise NotImplementedError


def box_losses(boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """(L1 summed over the 4 numbers, 1 − GIoU) of each pair: (M, 4) both, 0 … 1 → (M,) each. DETR, eq. 9 and 10."""
    raise NotImplementedError


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Mean over the P pixels of each pair: (M, P) both → (M,). Lin et al., eq. 5."""
    raise NotImplementedError


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − (2 Σ p g + 1) / (Σ p + Σ g + 1) of each pair: (M, P) both → (M,)."""
    raise NotImplementedError


def binary_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over the P points of each pair: (M, P) both → (M,)."""
    raise NotImplementedError


class PointSettings(NamedTuple):
    """Mask2Former, section 3.4 (K = 12,544), and its weights: of the loss and of the matching alike."""

    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75
    class_weight: float = 2.0
    binary_weight: float = 5.0
    dice_weight: float = 5.0
    no_object: float = 0.1


def point_set_loss(
    class_logits: Tensor,
    mask_embeddings: Tensor,
    features: Sequence[Tensor],
    targets: Sequence[InstanceTargets],
    canvas: tuple[int, int],
    settings: PointSettings,
    draw: Callable[..., Tensor] = torch.rand,
) -> dict[str, Tensor]:
    """Mask2Former's loss of all L layers, EoMT's too: {"class", "mask", "dice"}, each weighted and summed over layers.

    class_logits (L, B, Q, C + 1); mask_embeddings (L, B, Q, D); features: L maps (B, D, h, w), which may be one map L
    times; the mask logits of a layer are their product, which is never formed as a whole. canvas: (H, W), the padded
    size that the truth is placed on. draw(*shape, device=…) gives uniform numbers: for tests against other
    implementations. Matching is redone for each layer. Divided by the number of targets of the batch (at least 1).
    """
    raise NotImplementedError
