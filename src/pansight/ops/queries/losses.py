"""The set losses of mask transformers, computed in float32.

Letters of shapes: L decoder layers, B images, Q queries, M matched pairs.

Carion et al., DETR; Cheng et al., MaskFormer and Mask2Former; Lin et al., focal loss (eq. 5); Milletari et al., dice.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.queries.matching import Matches, class_cost, hungarian, mask_cost
from pansight.ops.queries.targets import padded_labels, sample_masks
from pansight.ops.regions.boxes import box_cxcywh_to_xyxy, generalized_iou
from pansight.ops.targets import InstanceTargets


def set_class_loss(class_logits: Tensor, matches: Matches, labels: Tensor, no_object: float = 0.1) -> Tensor:
    """Cross-entropy over all queries, a weighted mean; the target of unmatched queries is the last class: (L,).

    class_logits (L, B, Q, C + 1), labels int64 (B, N). no_object: the weight of the last class. DETR, section 3.1.
    """
    logits = class_logits.float()
    layers, images, queries, classes = logits.shape
    wanted = torch.full((layers, images, queries), classes - 1, dtype=torch.int64, device=logits.device)
    wanted[matches.layer, matches.image, matches.query] = labels[matches.image, matches.target]
    weight = (wanted == classes - 1) * (no_object - 1.0) + 1.0  # (L, B, Q)
    loss = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none").view_as(weight)
    return (loss * weight).sum((1, 2)) / weight.sum((1, 2))


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
    targets: Sequence[InstanceTargets],
    canvas: tuple[int, int],
    settings: PointSettings,
    draw: Callable[..., Tensor] = uniform,
) -> dict[str, Tensor]:
    """Mask2Former's loss of all L layers, EoMT's too: {"class", "mask", "dice"}, each weighted and summed over layers.

    class_logits (L, B, Q, C + 1); mask_embeddings (L, B, Q, D); features: L maps (B, D, h, w), which may be one map L
    times; the mask logits of a layer are their product, which is never formed as a whole. canvas: (H, W), the padded
    size that the truth is placed on. Matching is redone for each layer. Divided by the number of targets of the batch
    (at least 1). All in float32, also under autocast.

    draw(*shape, device=…) gives uniform numbers 0 … 1. It is called for (B, K, 2) first: the matching points x, y of
    each image, which all layers share; then, layer by layer where anything matched, for (M, 3 K, 2) and (M, K / 4, 2)
    (with the default settings), the candidates and the fresh points of the layer's M pairs, by image, then query.
    """
    device = class_logits.device
    class_logits, mask_embeddings = class_logits.float(), mask_embeddings.float()
    labels, counts = padded_labels(targets)
    with torch.autocast(device.type, enabled=False):
        points = draw(len(targets), settings.points, 2, device=device)  # (B, K, 2)
        matches = _match(class_logits, mask_embeddings, features, targets, points, canvas, settings)
        classes = set_class_loss(class_logits, matches, labels, settings.no_object).sum()
        binary: list[Tensor] = []
        dice: list[Tensor] = []
        embeddings = mask_embeddings[matches.layer, matches.image, matches.query]  # (M, D) of all layers
        of_layer = torch.bincount(matches.layer, minlength=len(features)).tolist()
        masks = _pair_masks(embeddings, features, matches, of_layer)  # L of (M of the layer, h, w)
        columns = [column.split(of_layer) for column in matches]
        for mask, *pairs in zip(masks, *columns, strict=True):
            if not len(mask):  # zero, but part of the graph, so that every trained parameter has a gradient
                binary.append(mask.sum())
                dice.append(mask.sum())
                continue
            where, wanted = _loss_points(mask.detach(), Matches(*pairs), targets, canvas, settings, draw)
            logits = _sample(mask, where)  # (M, K)
            binary.append(binary_loss(logits, wanted).sum())
            dice.append(dice_loss(logits, wanted).sum())
    total = max(1, sum(counts))
    return {
        "class": settings.class_weight * classes,
        "mask": settings.binary_weight * torch.stack(binary).sum() / total,
        "dice": settings.dice_weight * torch.stack(dice).sum() / total,
    }


def _match(
    class_logits: Tensor,
    mask_embeddings: Tensor,
    features: Sequence[Tensor],
    targets: Sequence[InstanceTargets],
    points: Tensor,
    canvas: tuple[int, int],
    settings: PointSettings,
) -> Matches:
    """The assignment of all layers by one cost tensor; masks at the points of an image (B, K, 2) only.

    Sampling is linear, so it is applied to the features or to the masks of one layer, whichever is less work.
    """
    labels, counts = padded_labels(targets)
    with torch.no_grad():
        cost = settings.class_weight * class_cost(class_logits, labels)  # (L, B, Q, N)
        for image, target in enumerate(targets):
            if not counts[image]:
                continue
            wanted = sample_masks(target, points[image], canvas).unsqueeze(0)  # (1, N, K)
            near, weights = _neighbours(points[image], features[0].shape[2:])  # (K, 4) both
            table = near  # of each map, below
            few = features[0][0, 0].numel() <= len(near)
            for layer, feature in enumerate(features):
                if layer == 0 or feature is not features[layer - 1]:  # often one map serves all layers
                    pixels = feature[image].float().flatten(1).T  # (h · w, D)
                    table = pixels if few else _weighted(pixels, near, weights)  # (h · w, D) or (K, D)
                logits = table @ mask_embeddings[layer, image].T  # (h · w or K, Q)
                logits = _weighted(logits, near, weights) if few else logits  # (K, Q)
                binary, dice = mask_cost(logits.T[None, None], wanted)
                part = settings.binary_weight * binary + settings.dice_weight * dice
                cost[layer, image, :, : counts[image]] += part[0, 0]
    return hungarian(cost, counts)


def _sample(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples, 0 outside: (M, h, w), points (M, P, 2) as x, y in 0 … 1 → (M, P)."""
    grid = points.unsqueeze(1).mul(2).sub_(1)
    return F.grid_sample(masks.unsqueeze(1), grid, align_corners=False)[:, 0, 0]


def _neighbours(points: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
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


def _pair_masks(
    embeddings: Tensor, features: Sequence[Tensor], matches: Matches, of_layer: Sequence[int]
) -> list[Tensor]:
    """The mask logits of each pair, from the map of its layer and image: (M, D) → L of (M of the layer, h, w).

    Pairs are by layer, then image. Layers that share a map are one product an image, and one sum of gradients.
    """
    result: list[Tensor] = []
    start = 0
    while start < len(features):
        feature = features[start]
        stop = start + 1
        while stop < len(features) and features[stop] is feature:
            stop += 1
        group = (matches.layer >= start) & (matches.layer < stop)
        image = matches.image[group]  # (m,)
        order = image.argsort(stable=True)
        parts = embeddings[group][order].split(torch.bincount(image, minlength=len(feature)).tolist())
        maps = feature.float().flatten(2).unbind(0)  # B of (D, h · w)
        masks = torch.cat([part @ pixels for part, pixels in zip(parts, maps, strict=True)])
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        masks = masks[back].unflatten(1, feature.shape[2:])  # (m, h, w), by layer again
        result += masks.split(list(of_layer[start:stop]))
        start = stop
    return result


def _smallest(values: Tensor, count: int) -> Tensor:
    """Where the `count` least values of each row are, in any order: (M, P) → int64 (M, count)."""
    if values.device.type == "cpu":  # several times as fast as topk
        return torch.from_numpy(np.argpartition(values.numpy(), count - 1, axis=1)[:, :count])
    return values.topk(count, dim=1, largest=False, sorted=False).indices


def _loss_points(
    masks: Tensor,
    pairs: Matches,
    targets: Sequence[InstanceTargets],
    canvas: tuple[int, int],
    settings: PointSettings,
    draw: Callable[..., Tensor],
) -> tuple[Tensor, Tensor]:
    """The points at which each pair is compared, mostly of uncertain logits, and the truth there: (M, K, 2), (M, K)."""
    with torch.no_grad():
        count, device = len(masks), masks.device
        uncertain = int(settings.importance * settings.points)
        points = draw(count, int(settings.oversample * settings.points), 2, device=device)
        best = _smallest(_sample(masks, points).abs_(), uncertain)  # (M, U)
        points = points.gather(1, best.unsqueeze(2).expand(-1, -1, 2))  # (M, U, 2)
        if settings.points > uncertain:
            points = torch.cat((points, draw(count, settings.points - uncertain, 2, device=device)), dim=1)
        parts = [
            sample_masks(target, points[pairs.image == b], canvas, pairs.target[pairs.image == b])
            for b, target in enumerate(targets)
        ]
        return points, torch.cat(parts)  # pairs are sorted by image
