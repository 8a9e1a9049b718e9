"""Boxes: areas, overlaps, the R-CNN box code, suppression, matching and sampling.

Boxes are float32 (N, 4) as x1, y1, x2, y2 in pixels; x2 and y2 are exclusive edges, so widths carry no "+ 1".
Girshick et al., CVPR 2014 (appendix C: the code); Ren et al., NeurIPS 2015 (matching, sampling).
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torchvision  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

MAX_LOG_SCALE = math.log(1000.0 / 16)
"""The largest growth of a decoded side, as a logarithm (16 pixels to 1000), so that exp() stays finite."""

BELOW = -1
"""The match of an anchor that is background (`match_boxes`)."""

BETWEEN = -2
"""The match of an anchor that is neither object nor background, and is left out of the loss."""


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """(…, 4) → (…), pixels²."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def box_iou_matrix(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union of every pair: (N, 4), (M, 4) → float32 (N, M); 0 where both are empty."""
    # one (N, M) map at a time: a broadcast over (N, M, 2) corners would cost four times the memory
    x1 = torch.maximum(a_xyxy[:, None, 0], b_xyxy[None, :, 0])  # (N, M)
    overlap = torch.minimum(a_xyxy[:, None, 2], b_xyxy[None, :, 2]).sub_(x1).clamp_(min=0)
    y1 = torch.maximum(a_xyxy[:, None, 1], b_xyxy[None, :, 1])
    overlap *= torch.minimum(a_xyxy[:, None, 3], b_xyxy[None, :, 3]).sub_(y1).clamp_(min=0)
    union = (box_area(a_xyxy)[:, None] + box_area(b_xyxy)[None, :]).sub_(overlap)
    return overlap.div_(union.masked_fill_(union <= 0, 1))


def box_cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Centre and sides → corners, (…, 4)."""
    center, half = boxes_cxcywh[..., :2], 0.5 * boxes_cxcywh[..., 2:]
    return torch.cat((center - half, center + half), dim=-1)


def box_xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Corners → centre and sides, (…, 4)."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat((0.5 * (low + high), high - low), dim=-1)


def generalized_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """IoU − (hull − union) / hull of (…, 4) and (…, 4), which broadcast → (…), −1 … 1; two empty boxes: −1 … 0.

    Rezatofighi et al., CVPR 2019, algorithm 1.
    """
    low = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    union = box_area(a_xyxy) + box_area(b_xyxy) - overlap
    low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = (high - low).clamp(min=0).prod(-1)
    tiny = torch.finfo(hull.dtype).tiny
    return overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def encode_boxes(boxes_xyxy: Tensor, anchors_xyxy: Tensor, weights: Sequence[float]) -> Tensor:
    """The codes by which a regressor moves each anchor onto its box: (N, 4), (N, 4) → (N, 4) dx, dy, dw, dh.

    dx = wx (x − xa) / wa and dw = ww ln(w / wa), of centres and sides; weights (wx, wy, ww, wh).
    """
    anchor_size = anchors_xyxy[:, 2:] - anchors_xyxy[:, :2]  # (N, 2) width, height
    anchor_center = anchors_xyxy[:, :2] + 0.5 * anchor_size
    size = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    center = boxes_xyxy[:, :2] + 0.5 * size
    code = torch.cat(((center - anchor_center) / anchor_size, torch.log(size / anchor_size)), dim=1)  # (N, 4)
    return code * code.new_tensor(weights)


def decode_boxes(
    deltas: Tensor, anchors_xyxy: Tensor, weights: Sequence[float], limits_shrinking: bool = False
) -> Tensor:
    """The inverse of `encode_boxes`, growth limited to MAX_LOG_SCALE: (…, 4), (…, 4) → float32 (…, 4).

    limits_shrinking: a side shrinks by no more than it may grow, either (mmdet).
    """
    deltas = deltas.float() / torch.tensor(weights, dtype=torch.float32, device=deltas.device)
    anchor_size = anchors_xyxy[..., 2:] - anchors_xyxy[..., :2]
    center = deltas[..., :2] * anchor_size + (anchors_xyxy[..., :2] + 0.5 * anchor_size)
    least = -MAX_LOG_SCALE if limits_shrinking else None
    half = 0.5 * (deltas[..., 2:].clamp(min=least, max=MAX_LOG_SCALE).exp() * anchor_size)
    return torch.cat((center - half, center + half), dim=-1)


def clip_boxes(boxes_xyxy: Tensor, extents: Tensor) -> Tensor:
    """Corners moved into their image: boxes (…, 4), extents (…, 2) as (height, width) of each box's image → (…, 4)."""
    limit = extents.to(boxes_xyxy.dtype)[..., [1, 0, 1, 0]]
    return boxes_xyxy.clamp(min=0).minimum(limit)


def usable_boxes(boxes_xyxy: Tensor, scores: Tensor, min_size: float) -> Tensor:
    """bool (N,): score and corners are finite, both sides are ≥ min_size and > 0. A NaN never reaches a sort."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return ((sides >= min_size) & (sides > 0)).all(1) & boxes_xyxy.isfinite().all(1) & scores.isfinite()


def batched_nms(boxes_xyxy: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression within each group.

    boxes (N, 4), scores (N,), groups int64 (N,) → int64 (K,), the indices kept, by falling score, ties in input order.
    A box is dropped where its IoU with a kept one of its group is > threshold.
    """
    boxes_xyxy, scores = boxes_xyxy.float(), scores.float()
    if torch.compiler.is_exporting():  # whose number of boxes is unknown, so that nothing may be decided by it
        return _nms_of_moved_boxes(boxes_xyxy, scores, groups, threshold)
    if boxes_xyxy.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes_xyxy.device)
    if boxes_xyxy.device.type == "cpu" and len(boxes_xyxy) > 1000:
        # quadratic in the group size: on the CPU many small problems beat one large one
        order = torch.argsort(groups, stable=True)  # (N,), group after group
        _, counts = torch.unique_consecutive(groups[order], return_counts=True)
        parts = [
            part[torchvision.ops.nms(boxes_xyxy[part], scores[part], threshold)]
            for part in order.split(counts.tolist())
        ]
        keep = torch.cat(parts).sort().values
        return keep[scores[keep].argsort(descending=True, stable=True)]
    return _nms_of_moved_boxes(boxes_xyxy, scores, groups, threshold)


def _nms_of_moved_boxes(boxes_xyxy: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """`batched_nms` by a single suppression: groups are moved so far apart that boxes of two never meet."""
    farthest = torch.cat((boxes_xyxy.flatten(), boxes_xyxy.new_zeros(1))).max()  # the zero is for no boxes at all
    offset = groups.to(boxes_xyxy.dtype)[:, None] * (farthest + 1)
    return torchvision.ops.nms(boxes_xyxy + offset, scores, threshold)


def highest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row and their places: (B, N) → (B, K) and int64 (B, K), falling; K = min(count, N).

    In an exported graph, where N may be any number, K is `count`: what is missing has the score −∞ and a place in 0 …
    N − 1.
    """
    if not torch.compiler.is_exporting():
        return scores.topk(min(count, scores.shape[1]), dim=1)
    missing = scores.new_full((scores.shape[0], count), -math.inf)
    best, place = torch.cat((scores, missing), dim=1).topk(count, dim=1)
    return best, place.clamp(max=scores.shape[1] - 1)


def first_of_each(image_index: Tensor, limit: int) -> Tensor:
    """The first `limit` entries of each image, grouped by image: int64 (N,) → int64 (K,), positions in the input."""
    place = torch.arange(image_index.shape[0], device=image_index.device)
    # one key for each entry: not every engine that runs an exported graph sorts stably
    order = torch.argsort(image_index * image_index.shape[0] + place, stable=True)
    sorted_index = image_index[order]
    start = torch.searchsorted(sorted_index, sorted_index)  # (N,): where the entry's image begins
    rank = place - start
    return order[rank < limit]


def match_boxes(iou: Tensor, low: float, high: float, low_quality: bool, low_quality_iou: float = 0.0) -> Tensor:
    """The true object that each of N anchors is matched with: iou (G, N) → int64 (N,), a row 0 … G − 1, BELOW or
    BETWEEN.

    IoU ≥ high: the best truth; < low: BELOW; else BETWEEN. low_quality: besides, an anchor that no other exceeds in
    IoU with some truth is given its own best one, if that IoU is ≥ low_quality_iou (Ren et al., 3.1.2 condition i: 0).
    """
    if iou.shape[0] == 0:
        return torch.full((iou.shape[1],), BELOW, dtype=torch.int64, device=iou.device)
    best, match = iou.max(dim=0)  # (N,)
    result = match.masked_fill(best < high, BETWEEN).masked_fill_(best < low, BELOW)
    if low_quality and iou.shape[1]:
        best_of_truth = iou.amax(dim=1, keepdim=True)  # (G, 1)
        wanted = ((iou == best_of_truth) & (best_of_truth >= low_quality_iou)).any(0)  # (N,)
        result = torch.where(wanted, match, result)
    return result


def sample_matches(match: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """At most `count` anchors at random, at most count · positive_fraction of them objects; torch's global generator.

    match int64 (N,) as of `match_boxes` → (positives int64 (P,), negatives int64 (M,)), indices, ascending.
    """
    positive = (match >= 0).nonzero().flatten()
    negative = (match == BELOW).nonzero().flatten()
    positive = _some_of(positive, int(count * positive_fraction))
    negative = _some_of(negative, count - len(positive))
    return positive, negative


def _some_of(index: Tensor, count: int) -> Tensor:
    if len(index) <= count:
        return index
    return index[torch.randperm(len(index), device=index.device)[:count]].sort().values
