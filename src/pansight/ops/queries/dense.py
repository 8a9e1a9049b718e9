"""MaskFormer's loss, which compares masks at every pixel. Cheng, Schwing, Kirillov, NeurIPS 2021, section 3.3."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.fast.memory import checkpointed
from pansight.ops.queries.losses import dice_loss, set_class_loss, sigmoid_focal_loss
from pansight.ops.queries.matching import Matches, class_cost, focal_cost, hungarian, mask_cost
from pansight.ops.queries.targets import SegmentTargets, dense_masks, padded_categories

CHUNK = 1 << 22
"""The number of pixels at full size that are in memory at once, for any number of masks."""


class DenseSettings(NamedTuple):
    """The weights of MaskFormer's losses, which are those of its matching costs too."""

    class_weight: float = 1.0
    focal_weight: float = 20.0
    dice_weight: float = 1.0
    no_object: float = 0.1


def dense_set_loss(
    class_logits: Tensor,
    mask_embeddings: Tensor,
    features: Tensor,
    targets: Sequence[SegmentTargets],
    canvas: tuple[int, int],
    settings: DenseSettings,
    totals: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """MaskFormer's loss of all L layers: {"class", "mask", "dice"}, each weighted and summed over layers.

    class_logits (L, B, Q, C + 1); mask_embeddings (L, B, Q, D); features (B, D, h, w): their product is the mask
    logits. canvas: (H, W), the padded size that the truth is placed on. Matching is redone for each layer, at (h, w)
    with the nearest pixel of the truth; matched logits are compared at full size. Divided by the number of targets
    (at least 1). All in float32, also under autocast. totals: `set_counts` of the whole step where these images are a
    part of it; None: these are all.
    """
    class_logits, mask_embeddings, features = class_logits.float(), mask_embeddings.float(), features.float()
    labels, counts = padded_categories(targets)
    total = None if totals is None else totals["query_weight"]
    segments = max(1, sum(counts) if totals is None else totals["segments"])
    with torch.autocast(features.device.type, enabled=False):
        matches = _match(class_logits, mask_embeddings, features, targets, canvas, settings)
        classes = set_class_loss(class_logits, matches, labels, settings.no_object, total).sum()
        focal = dice = 0.0 * (mask_embeddings.sum() + features.sum())  # a gradient, if zero, where nothing matched
        step = max(1, CHUNK // (canvas[0] * canvas[1]))
        for image, target in enumerate(targets):
            chosen = matches.image == image
            embeddings = mask_embeddings[matches.layer[chosen], image, matches.query[chosen]]  # (M, D)
            masks = (embeddings @ features[image].flatten(1)).unflatten(1, features.shape[2:])  # (M, h, w)
            for part, index in zip(masks.split(step), matches.target[chosen].split(step), strict=True):
                pair = checkpointed(_full_size, part, target, index, canvas)
                focal, dice = focal + pair[0], dice + pair[1]
    return {
        "class": settings.class_weight * classes,
        "mask": settings.focal_weight * focal / segments,
        "dice": settings.dice_weight * dice / segments,
    }


def _full_size(masks: Tensor, target: SegmentTargets, index: Tensor, canvas: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(focal, dice), summed over the pairs: masks (M, h, w), index int64 (M,) among the targets.

    The function is checkpointed: several maps of full size for each pair are computed again in the backward pass.
    """
    logits = F.interpolate(masks.unsqueeze(1), size=canvas, mode="bilinear", align_corners=False).flatten(1)
    wanted = dense_masks(target, canvas, index).flatten(1)  # (M, H · W)
    return sigmoid_focal_loss(logits, wanted).sum(), dice_loss(logits, wanted).sum()


def _match(
    class_logits: Tensor,
    mask_embeddings: Tensor,
    features: Tensor,
    targets: Sequence[SegmentTargets],
    canvas: tuple[int, int],
    settings: DenseSettings,
) -> Matches:
    labels, counts = padded_categories(targets)
    size = (features.shape[2], features.shape[3])
    with torch.no_grad():
        cost = settings.class_weight * class_cost(class_logits, labels)  # (L, B, Q, N)
        for image, target in enumerate(targets):
            if not counts[image]:
                continue
            wanted = nearest_masks(target, canvas, size).flatten(1).unsqueeze(0)  # (1, N, h · w)
            for layer in range(len(cost)):  # a layer at a time: the masks of all queries are large
                logits = (mask_embeddings[layer, image] @ features[image].flatten(1))[None, None]  # (1, 1, Q, h · w)
                part = settings.focal_weight * focal_cost(logits, wanted)
                part += settings.dice_weight * mask_cost(logits, wanted)[1]
                cost[layer, image, :, : counts[image]] += part[0, 0]
    return hungarian(cost, counts)


def nearest_masks(targets: SegmentTargets, canvas: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The masks on the padded `canvas`, shrunk to `size` by torch's "nearest": float32 (N, h, w) of 0 and 1."""
    stack = targets.mask_stack  # (S, H, W), not padded
    for axis, side in ((1, 0), (2, 1)):
        source = torch.arange(size[side], device=stack.device) * canvas[side] // size[side]
        stack = stack.index_select(axis, source[source < stack.shape[axis]])  # padding has no pixel of its own
    return dense_masks(targets._replace(mask_stack=stack), size)
