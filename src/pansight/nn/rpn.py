"""Region proposal network (Ren et al., 2015) on a feature pyramid (Lin et al., 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.ops.boxes import (
    batched_nms,
    box_iou_matrix,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    match_boxes,
    sample_matches,
    usable_boxes,
)
from pansight.ops.losses import box_loss
from pansight.ops.targets import InstanceTargets

RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class Anchors(NamedTuple):
    """One size per pyramid level, the same ratios (height / width) everywhere."""

    sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    rounded: bool = False  # torchvision rounds the base anchors to integers
    stride_from_image: bool = False  # torchvision: padded size // grid size, which differs at the pooled level

    def level(self, index: int, grid: Sequence[int], padded: Sequence[int], device: torch.device) -> Tensor:
        """float32 (h·w·A, 4): anchors of a level, row by row, ratio fastest; centred on (x·stride, y·stride)."""
        size, stride = self.sizes[index], self.strides[index]
        base = []
        for ratio in self.ratios:
            height = size * math.sqrt(ratio)
            width = size / math.sqrt(ratio)
            base.append([-width / 2, -height / 2, width / 2, height / 2])
        base_xyxy = torch.tensor(base, device=device)  # (A, 4)
        if self.rounded:
            base_xyxy = base_xyxy.round()
        step_y, step_x = (padded[0] // grid[0], padded[1] // grid[1]) if self.stride_from_image else (stride, stride)
        y = torch.arange(grid[0], device=device, dtype=torch.float32) * step_y
        x = torch.arange(grid[1], device=device, dtype=torch.float32) * step_x
        y, x = torch.meshgrid(y, x, indexing="ij")
        shift = torch.stack((x, y, x, y), dim=-1)  # (h, w, 4)
        return (shift[:, :, None] + base_xyxy).reshape(-1, 4)  # (h, w, A, 4) -> (h·w·A, 4)


class Proposals(NamedTuple):
    boxes_xyxy: Tensor  # float32 (R, 4), clipped to the valid part of the image
    image_index: Tensor  # int64 (R,), ascending


class RPN(nn.Module):
    """3×3 convolutions with ReLU, then one objectness logit and four deltas per anchor.

    pre_nms, post_nms: proposals (per level, per image), in training and in inference.
    normalize_by_samples: divide the loss by the sampled anchors (torchvision) or by samples × images (detectron2).
    beta: of the smooth L1 loss; 0 is L1.
    """

    def __init__(
        self,
        channels: int,
        anchors: Anchors,
        conv_depth: int = 1,
        pre_nms: tuple[int, int] = (2000, 1000),
        post_nms: tuple[int, int] = (1000, 1000),
        nms_threshold: float = 0.7,
        min_size: float = 0.0,
        samples: int = 256,
        beta: float = 0.0,
        normalize_by_samples: bool = False,
    ):
        super().__init__()
        self.conv = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(conv_depth))
        self.objectness = nn.Conv2d(channels, len(anchors.ratios), 1)
        self.deltas = nn.Conv2d(channels, 4 * len(anchors.ratios), 1)
        for layer in (*self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.anchors = anchors
        self.pre_nms, self.post_nms = pre_nms, post_nms
        self.nms_threshold, self.min_size = nms_threshold, min_size
        self.samples, self.beta, self.normalize_by_samples = samples, beta, normalize_by_samples

    def _head(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level: logits float32 (B, h·w·A) and deltas float32 (B, h·w·A, 4), in the order of the anchors."""
        logits: list[Tensor] = []
        deltas: list[Tensor] = []
        for x in features:
            for layer in self.conv:
                x = F.relu(layer(x))
            logits.append(self.objectness(x).permute(0, 2, 3, 1).flatten(1).float())  # (B, A, h, w) -> (B, h·w·A)
            deltas.append(self.deltas(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4).float())  # (B, h·w·A, 4)
        return logits, deltas

    def _level_anchors(self, features: Sequence[Tensor]) -> list[Tensor]:
        height, width = (s * self.anchors.strides[0] for s in features[0].shape[2:])
        return [self.anchors.level(k, f.shape[2:], (height, width), f.device) for k, f in enumerate(features)]

    @torch.no_grad()
    def _propose(
        self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], extents: Tensor, pre: int, post: int
    ) -> Proposals:
        """Top `pre` of each level, decoded, clipped, suppressed level by level; the best `post` of each image."""
        boxes: list[Tensor] = []
        scores: list[Tensor] = []
        levels: list[Tensor] = []
        for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
            top, index = logit.topk(min(pre, logit.shape[1]), dim=1)  # (B, k)
            chosen = delta.gather(1, index[..., None].expand(-1, -1, 4))  # (B, k, 4)
            decoded = decode_boxes(chosen.reshape(-1, 4), anchor[index.flatten()], RPN_WEIGHTS)  # (B·k, 4)
            boxes.append(decoded.view(*top.shape, 4))
            scores.append(top)
            levels.append(torch.full_like(index[0], level))
        every_box = clip_boxes(torch.cat(boxes, 1), extents[:, None])  # (B, K, 4)
        every_score, every_level = torch.cat(scores, 1), torch.cat(levels)
        kept: list[Tensor] = []
        for box, score in zip(every_box, every_score, strict=True):
            usable = usable_boxes(box, score, self.min_size)
            box, level, score = box[usable], every_level[usable], score[usable]
            kept.append(box[batched_nms(box, score, level, self.nms_threshold)[:post]])
        counts = torch.tensor([len(k) for k in kept], device=every_box.device)
        return Proposals(torch.cat(kept), torch.arange(len(kept), device=counts.device).repeat_interleave(counts))

    def forward(self, features: Sequence[Tensor], extents: Tensor) -> Proposals:
        """features P2 … P6 (B, C, h, w); extents int64 (B, 2), (height, width) of the valid part of each image."""
        logits, deltas = self._head(features)
        return self._propose(logits, deltas, self._level_anchors(features), extents, self.pre_nms[1], self.post_nms[1])

    def loss(
        self, features: Sequence[Tensor], extents: Tensor, targets: Sequence[InstanceTargets]
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Proposals for the heads, and the losses `rpn_objectness` and `rpn_box`."""
        logits, deltas = self._head(features)
        anchors = self._level_anchors(features)
        proposals = self._propose(logits, deltas, anchors, extents, self.pre_nms[0], self.post_nms[0])
        every_logit, every_delta, every_anchor = torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors)
        objectness = every_logit.sum() * 0
        regression = every_delta.sum() * 0
        drawn = 0
        for logit, delta, target in zip(every_logit, every_delta, targets, strict=True):
            match = match_boxes(box_iou_matrix(target.boxes_xyxy, every_anchor), 0.3, 0.7, low_quality=True)
            positive, negative = sample_matches(match, self.samples, 0.5)
            chosen = torch.cat((positive, negative))
            drawn += chosen.numel()
            is_object = (match[chosen] >= 0).float()
            objectness = objectness + F.binary_cross_entropy_with_logits(logit[chosen], is_object, reduction="sum")
            wanted = encode_boxes(target.boxes_xyxy[match[positive]], every_anchor[positive], RPN_WEIGHTS)
            regression = regression + box_loss(delta[positive], wanted, self.beta)
        count = drawn if self.normalize_by_samples else self.samples * len(targets)
        return proposals, {"rpn_objectness": objectness / max(count, 1), "rpn_box": regression / max(count, 1)}
