"""The set losses of mask transformers, computed in float32.

Letters of shapes: L decoder layers, B images, Q queries, M matched pairs.

Carion et al., DETR; Cheng et al., MaskFormer and Mask2Former; Lin et al., focal loss (eq. 5); Milletari et al., dice.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.fast import use_plain
from pansight.ops.fast.points import least_by_partition, pair_masks_by_map, products_at_points
from pansight.ops.queries.matching import Matches, class_cost, hungarian, mask_cost
from pansight.ops.queries.targets import SegmentTargets, bilinear_samples, dense_masks, padded_categories, sample_masks
from pansight.ops.regions.boxes import box_cxcywh_to_xyxy, generalized_iou


def set_counts(targets: Sequence[SegmentTargets], queries: int, no_object: float) -> dict[str, float]:
    """What the set losses of these images are divided by; it follows from the truth alone.

    "segments": the number of targets, of mask and box losses. "query_weight": of the class loss, the weights of all
    queries in one layer, 1 for each that is matched (an image matches at most all its `queries`), else `no_object`.
    """
    of_image = [len(target.categories) for target in targets]
    matched = sum(min(count, queries) for count in of_image)
    unmatched = len(of_image) * queries - matched
    return {"segments": float(sum(of_image)), "query_weight": matched + unmatched * no_object}


def set_class_loss(
    class_logits: Tensor, matches: Matches, labels: Tensor, no_object: float = 0.1, total: float | None = None
) -> Tensor:
    """Cross-entropy over all queries, weighted mean (torch's), unmatched queries wanting the last class: (L,).

    class_logits (L, B, Q, C + 1), labels int64 (B, N). no_object: the weight of the last class. DETR, section 3.1.
    total: what to divide by instead of the weights of these images, see `set_counts`.
    """
    logits = class_logits.float()
    layers, images, queries, classes = logits.shape
    wanted = torch.full((layers, images, queries), classes - 1, dtype=torch.int64, device=logits.device)
    wanted[matches.layer, matches.image, matches.query] = labels[matches.image, matches.target]
    weight = (wanted == classes - 1) * (no_object - 1.0) + 1.0  # (L, B, Q)
    loss = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none").view_as(weight)
    return (loss * weight).sum((1, 2)) / (weight.sum((1, 2)) if total is None else total)


def box_losses(boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """(L1 summed over the 4 numbers, 1 − GIoU) of each pair: (M, 4) both, 0 … 1 → (M,) each. DETR, eq. 9 and 10."""
    boxes, targets = boxes_cxcywh.float(), targets_cxcywh.float()
    overlap = generalized_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(targets))
    return (boxes - targets).abs().sum(1), 1 - overlap


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Mean over the P pixels of each pair: (M, P) both → (M,). Lin et al., eq. 5."""
    logits, targets = logits.float(), targets.float()
    probability = logits.sigmoid()
    wrong = probability + targets - 2 * probability * targets  # 1 − p_t
    weight = (1 - alpha) + (2 * alpha - 1) * targets  # alpha where the target is 1
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (weight * wrong**gamma * loss).mean(1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 − (2 Σ p g + 1) / (Σ p + Σ g + 1) of each pair: (M, P) both → (M,)."""
    probability, targets = logits.float().sigmoid(), targets.float()
    overlap = (probability * targets).sum(1)
    return 1 - (2 * overlap + 1) / (probability.sum(1) + targets.sum(1) + 1)


def pixel_losses(
    logits: Tensor, targets: SegmentTargets, index: Tensor, canvas: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(focal loss, dice loss), each summed over M masks: logits (M, h, w) on the padded canvas, index int64 (M,)."""
    logits = F.interpolate(logits.unsqueeze(1), canvas, mode="bilinear", align_corners=False).flatten(1)  # (M, H · W)
    wanted = dense_masks(targets, canvas, index).flatten(1)
    return sigmoid_focal_loss(logits, wanted).sum(), dice_loss(logits, wanted).sum()


def binary_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over the P points of each pair: (M, P) both → (M,)."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none").mean(1)


class PointSettings(NamedTuple):
    """Mask2Former's points (section 3.3, K = 12,544) and weights, which loss and matching share."""

    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75
    class_weight: float = 2.0
    binary_weight: float = 5.0
    dice_weight: float = 5.0
    no_object: float = 0.1


def uniform(*shape: int, device: torch.device) -> Tensor:
    """``torch.rand``, on the CPU by a generator that is eight times faster; torch's own gives its seed."""
    if device.type != "cpu":
        return torch.rand(shape, device=device)
    seed = int(torch.randint(1 << 62, ()))
    return torch.from_numpy(np.random.Generator(np.random.SFC64(seed)).random(shape, dtype=np.float32))


def point_set_loss(
    class_logits: Tensor,
    mask_embeddings: Tensor,
    features: Sequence[Tensor],
    targets: Sequence[SegmentTargets],
    canvas: tuple[int, int],
    settings: PointSettings,
    draw: Callable[..., Tensor] = uniform,
    totals: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """Mask2Former's loss of all L layers, EoMT's too: {"class", "mask", "dice"}, each weighted and summed over layers.

    class_logits (L, B, Q, C + 1); mask_embeddings (L, B, Q, D); features: L maps (B, D, h, w), which may be one map L
    times; the mask logits of a layer are their product, which is never formed as a whole. canvas: (H, W), the padded
    size that the truth is placed on. Matching is redone for each layer. Divided by the number of targets (at
    least 1). All in float32, also under autocast. totals: `set_counts` of the whole step where these images are a part
    of it; None: these are all.

    draw(*shape, device=…) gives uniform numbers 0 … 1. It is called for (B, K, 2) first: the matching points x, y of
    each image, which all layers share; then, layer by layer where anything matched, for (M, 3 K, 2) and (M, K / 4, 2)
    (with the default settings), the candidates and the fresh points of the layer's M pairs, by image, then query.
    """
    device = class_logits.device
    class_logits, mask_embeddings = class_logits.float(), mask_embeddings.float()
    labels, counts = padded_categories(targets)
    total = None if totals is None else totals["query_weight"]
    segments = max(1, sum(counts) if totals is None else totals["segments"])
    with torch.autocast(device.type, enabled=False):
        points = draw(len(targets), settings.points, 2, device=device)  # (B, K, 2)
        matches = _match(class_logits, mask_embeddings, features, targets, points, canvas, settings)
        classes = set_class_loss(class_logits, matches, labels, settings.no_object, total).sum()
        binary: list[Tensor] = []
        dice: list[Tensor] = []
        embeddings = mask_embeddings[matches.layer, matches.image, matches.query]  # (M, D) of all layers
        of_layer = torch.bincount(matches.layer, minlength=len(features)).tolist()
        masks = pair_masks(embeddings, features, matches, of_layer)  # L of (M of the layer, h, w)
        columns = [column.split(of_layer) for column in matches]
        for mask, *pairs in zip(masks, *columns, strict=True):
            if not len(mask):  # zero, but part of the graph, so that every trained parameter has a gradient
                binary.append(mask.sum())
                dice.append(mask.sum())
                continue
            where, wanted = _loss_points(mask.detach(), Matches(*pairs), targets, canvas, settings, draw)
            logits = bilinear_samples(mask, where)  # (M, K)
            binary.append(binary_loss(logits, wanted).sum())
            dice.append(dice_loss(logits, wanted).sum())
    return {
        "class": settings.class_weight * classes,
        "mask": settings.binary_weight * torch.stack(binary).sum() / segments,
        "dice": settings.dice_weight * torch.stack(dice).sum() / segments,
    }


def _match(
    class_logits: Tensor,
    mask_embeddings: Tensor,
    features: Sequence[Tensor],
    targets: Sequence[SegmentTargets],
    points: Tensor,
    canvas: tuple[int, int],
    settings: PointSettings,
) -> Matches:
    """The assignment of all layers by one cost tensor; masks at the points of an image (B, K, 2) only."""
    labels, counts = padded_categories(targets)
    with torch.no_grad():
        cost = settings.class_weight * class_cost(class_logits, labels)  # (L, B, Q, N)
        for image, target in enumerate(targets):
            if not counts[image]:
                continue
            wanted = sample_masks(target, points[image], canvas).unsqueeze(0)  # (1, N, K)
            every = point_logits(mask_embeddings[:, image], features, image, points[image])
            for layer, logits in enumerate(every):  # (Q, K)
                binary, dice = mask_cost(logits[None, None], wanted)
                part = settings.binary_weight * binary + settings.dice_weight * dice
                cost[layer, image, :, : counts[image]] += part[0, 0]
    return hungarian(cost, counts)


def point_logits(embeddings: Tensor, features: Sequence[Tensor], image: int, points: Tensor) -> Iterator[Tensor]:
    """The masks of all queries of an image at K points, layer by layer: float32 (Q, K) each.

    embeddings float32 (L, Q, D); features: L maps (B, D, h, w); points (K, 2): x, y in 0 … 1.
    """
    if not use_plain():
        yield from products_at_points(embeddings, features, image, points)
        return
    for each, feature in zip(embeddings, features, strict=True):
        masks = torch.einsum("qd,dhw->qhw", each, feature[image].float())
        yield bilinear_samples(masks, points.expand(len(masks), -1, -1))


def pair_masks(
    embeddings: Tensor, features: Sequence[Tensor], matches: Matches, of_layer: Sequence[int]
) -> list[Tensor]:
    """The mask logits of each pair, from the map of its layer and image: (M, D) → L of (M of the layer, h, w).

    Pairs are by layer, then image; of_layer: how many there are of each layer.
    """
    if not use_plain():
        return pair_masks_by_map(embeddings, features, matches.layer, matches.image, of_layer)
    result: list[Tensor] = []
    layers = zip(features, embeddings.split(list(of_layer)), matches.image.split(list(of_layer)), strict=True)
    for feature, own, image in layers:
        parts = [torch.einsum("md,dhw->mhw", own[image == b], pixels.float()) for b, pixels in enumerate(feature)]
        result.append(torch.cat(parts))
    return result


def least(values: Tensor, count: int) -> Tensor:
    """Where the `count` least values of each row are, in any order: (M, P) → int64 (M, count)."""
    if values.device.type == "cpu" and not use_plain():
        return least_by_partition(values, count)
    return values.topk(count, dim=1, largest=False, sorted=False).indices


def _loss_points(
    masks: Tensor,
    pairs: Matches,
    targets: Sequence[SegmentTargets],
    canvas: tuple[int, int],
    settings: PointSettings,
    draw: Callable[..., Tensor],
) -> tuple[Tensor, Tensor]:
    """The points at which each pair is compared, mostly of uncertain logits, and the truth there: (M, K, 2), (M, K)."""
    with torch.no_grad():
        count, device = len(masks), masks.device
        uncertain = int(settings.importance * settings.points)
        points = draw(count, int(settings.oversample * settings.points), 2, device=device)
        best = least(bilinear_samples(masks, points).abs_(), uncertain)  # (M, U)
        points = points.gather(1, best.unsqueeze(2).expand(-1, -1, 2))  # (M, U, 2)
        if settings.points > uncertain:
            points = torch.cat((points, draw(count, settings.points - uncertain, 2, device=device)), dim=1)
        parts = [
            sample_masks(target, points[pairs.image == b], canvas, pairs.target[pairs.image == b])
            for b, target in enumerate(targets)
        ]
        return points, torch.cat(parts)  # pairs are sorted by image
