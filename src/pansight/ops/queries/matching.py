"""Which query answers for which segment: the assignment of least cost (Hungarian algorithm).

Carion et al., DETR, eq. 1 and 2; Cheng et al., MaskFormer, section 3.2. Costs are computed for all decoder layers and
images of a batch at once, as one tensor (L, B, Q, N), and cross to the host once.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Matches(NamedTuple):
    """M matched pairs of all layers and images, sorted by layer, image, query; int64 (M,) each."""

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor  # index among the targets of the image


def hungarian(cost: Tensor, counts: Sequence[int]) -> Matches:
    """cost float (L, B, Q, N), columns from counts[b] on are padding; on the device of `cost`.

    An image with more targets than queries has its cheapest Q matched (and a UserWarning is given, once a process).
    Raises PansightError where a cost is not finite, naming layer and image.
    """
    raise NotImplementedError


def class_cost(class_logits: Tensor, labels: Tensor) -> Tensor:
    """−softmax probability of each target's class: (L, B, Q, C + 1), labels int64 (B, N) → float32 (L, B, Q, N)."""
    raise NotImplementedError


def box_cost(boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """(L1 distance, −GIoU) of all pairs: (L, B, Q, 4), (B, N, 4), both 0 … 1 of the image → float32 (L, B, Q, N)."""
    raise NotImplementedError


def mask_cost(point_logits: Tensor, point_targets: Tensor) -> tuple[Tensor, Tensor]:
    """(binary cross-entropy, dice) of all pairs, each the mean or ratio over P points or pixels.

    point_logits (L, B, Q, P), point_targets float (B, N, P) in 0 … 1 → float32 (L, B, Q, N). Mask2Former, eq. of 3.2.
    """
    raise NotImplementedError


def focal_cost(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """MaskFormer's focal cost over P pixels: (L, B, Q, P), (B, N, P) → float32 (L, B, Q, N)."""
    raise NotImplementedError
