"""The instance branch shared by Faster R-CNN, Mask R-CNN and Panoptic FPN: proposals, boxes, masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pansight.nn.roi_heads import BoxHead, BoxPredictor, ConvBoxHead, MaskHead, RoIPooler
from pansight.nn.rpn import RPN, Anchors, Proposals
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
from pansight.ops.losses import box_loss, class_loss, mask_loss
from pansight.ops.masks import paste_masks, sample_masks
from pansight.ops.targets import InstanceTargets
from pansight.types import Instances, LabelSpace

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class Detections(NamedTuple):
    """D objects of a batch, image by image, each image by falling score."""

    boxes_xyxy: Tensor  # float32 (D, 4), pixels of the network's input
    labels: Tensor  # int64 (D,), index among the things
    scores: Tensor  # float32 (D,)
    mask_logits: Tensor  # float32 (D, M, M) of the predicted class; (D, 0, 0) without a mask head
    image_index: Tensor  # int64 (D,), ascending


class RCNN(nn.Module):
    """RPN, box head and (optionally) mask head on a feature pyramid.

    samples, positive_share: RoIs an image in training, and the share of objects among them.
    score_threshold, nms_threshold, detections: what inference keeps, per class and per image; boxes with a side of
    min_size pixels or less are dropped. beta: of the box loss (0: L1).
    soft_mask_targets: RoIAligned masks as they are, else ≥ 0.5. integer_paste: masks are pasted into integer boxes.
    Both are torchvision's; detectron2's are the defaults.
    """

    def __init__(
        self,
        rpn: RPN,
        pooler: RoIPooler,
        box_head: BoxHead | ConvBoxHead,
        box_predictor: BoxPredictor,
        mask_head: MaskHead | None,
        samples: int = 512,
        positive_share: float = 0.25,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections: int = 100,
        beta: float = 0.0,
        soft_mask_targets: bool = False,
        integer_paste: bool = False,
        min_size: float = 0.0,
    ):
        super().__init__()
        self.rpn, self.pooler = rpn, pooler
        self.box_head, self.box_predictor, self.mask_head = box_head, box_predictor, mask_head
        self.samples, self.positive_share = samples, positive_share
        self.score_threshold, self.nms_threshold, self.detections = score_threshold, nms_threshold, detections
        self.beta, self.min_size = beta, min_size
        self.soft_mask_targets, self.integer_paste = soft_mask_targets, integer_paste

    @property
    def background_first(self) -> bool:
        return self.box_predictor.background_first

    def forward(self, features: Sequence[Tensor], extents: Tensor) -> Detections:
        """features P2 … P6 (B, C, h, w); extents int64 (B, 2), (height, width) of the valid part of each image."""
        proposals = self.rpn(features, extents)
        pooled = self.pooler(features, proposals.boxes_xyxy, proposals.image_index, self.box_head.pool)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        boxes, labels, scores, image_index = self._select(proposals, logits, deltas, extents)
        if self.mask_head is None:
            return Detections(boxes, labels, scores, boxes.new_zeros((len(boxes), 0, 0)), image_index)
        pooled = self.pooler(features, boxes, image_index, self.mask_head.pool)
        return Detections(boxes, labels, scores, self.mask_head(pooled, labels), image_index)

    def _select(
        self, proposals: Proposals, logits: Tensor, deltas: Tensor, extents: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Every class of every proposal is a candidate; keep the good ones, suppressed class by class."""
        scores = logits.softmax(1)[:, :-1]  # (R, K)
        row, label = (scores > self.score_threshold).nonzero(as_tuple=True)  # NaN compares False
        score, image = scores[row, label], proposals.image_index[row]
        boxes = decode_boxes(deltas[row, label], proposals.boxes_xyxy[row], BOX_WEIGHTS)
        boxes = clip_boxes(boxes, extents[image])
        large = usable_boxes(boxes, score, self.min_size)
        boxes, label, score, image = boxes[large], label[large], score[large], image[large]
        kept: list[Tensor] = []
        for index in range(extents.shape[0]):
            rows = (image == index).nonzero().flatten()
            kept.append(rows[batched_nms(boxes[rows], score[rows], label[rows], self.nms_threshold)[: self.detections]])
        chosen = torch.cat(kept)
        return boxes[chosen], label[chosen], score[chosen], image[chosen]

    def loss(
        self, features: Sequence[Tensor], extents: Tensor, targets: Sequence[InstanceTargets]
    ) -> dict[str, Tensor]:
        """`rpn_objectness`, `rpn_box`, `box_class`, `box_regression` and, with a mask head, `mask`."""
        proposals, losses = self.rpn.loss(features, extents, targets)
        boxes, image_index, truth_index, labels = self._sample(proposals, targets)
        pooled = self.pooler(features, boxes, image_index, self.box_head.pool)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        losses["box_class"] = class_loss(logits, labels)
        positive = (labels < self.box_predictor.num_classes).nonzero().flatten()
        truth_boxes = torch.cat([t.boxes_xyxy for t in targets])
        wanted = encode_boxes(truth_boxes[truth_index[positive]], boxes[positive], BOX_WEIGHTS)
        found = deltas[positive, labels[positive]]
        losses["box_regression"] = box_loss(found, wanted, self.beta) / max(len(labels), 1) + deltas.sum() * 0
        if self.mask_head is not None:
            rows = (boxes[positive], image_index[positive], truth_index[positive], labels[positive])
            losses["mask"] = self._mask_loss(self.mask_head, features, *rows, targets)
        return losses

    @torch.no_grad()
    def _sample(
        self, proposals: Proposals, targets: Sequence[InstanceTargets]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes (S, 4), image index, index into all truth objects of the batch, label (K = background); all (S,)."""
        boxes: list[Tensor] = []
        images: list[Tensor] = []
        truths: list[Tensor] = []
        labels: list[Tensor] = []
        offset = 0
        for index, target in enumerate(targets):
            candidates = torch.cat((proposals.boxes_xyxy[proposals.image_index == index], target.boxes_xyxy))
            match = match_boxes(box_iou_matrix(target.boxes_xyxy, candidates), 0.5, 0.5, low_quality=False)
            positive, negative = sample_matches(match, self.samples, self.positive_share)
            chosen = torch.cat((positive, negative))
            boxes.append(candidates[chosen])
            images.append(torch.full_like(chosen, index))
            truths.append(match[chosen] + offset)  # of no meaning for the negatives
            background = torch.full_like(negative, self.box_predictor.num_classes)
            labels.append(torch.cat((target.labels[match[positive]], background)))
            offset += len(target.labels)
        return torch.cat(boxes), torch.cat(images), torch.cat(truths), torch.cat(labels)

    def _mask_loss(
        self,
        mask_head: MaskHead,
        features: Sequence[Tensor],
        boxes: Tensor,
        image_index: Tensor,
        truth_index: Tensor,
        labels: Tensor,
        targets: Sequence[InstanceTargets],
    ) -> Tensor:
        """On the channel of the true class; without objects the loss is zero and still reaches the head."""
        logits = mask_head(self.pooler(features, boxes, image_index, mask_head.pool), labels)  # (P, M, M)
        offsets = [0]
        for target in targets:
            offsets.append(offsets[-1] + len(target.labels))
        wanted: list[Tensor] = []
        for index, target in enumerate(targets):
            rows = image_index == index
            own = truth_index[rows] - offsets[index]
            index_and_value = target.mask_index[own], target.mask_value[own]
            side, aligned = logits.shape[-1], self.pooler.rule.aligned
            sampled = sample_masks(target.mask_stack, *index_and_value, boxes[rows], side, aligned)
            wanted.append(sampled if self.soft_mask_targets else (sampled >= 0.5).float())
        target_masks = torch.cat(wanted)  # (P, M, M), image by image as the rows are
        return mask_loss(logits, target_masks)


def detections_to_instances(
    detections: Detections,
    extents: Tensor,
    sizes: Sequence[tuple[int, int]],
    labels: LabelSpace,
    integer_paste: bool = False,
) -> list[Instances]:
    """Detections at the network's size → Instances at the original `sizes` (H, W), labels as LabelSpace indices.

    Boxes that become empty there are dropped. Masks are bool (N, H, W), or None where there are no mask logits.
    """
    thing_ids = torch.tensor([c.id for c in labels.things], dtype=torch.int64, device=detections.labels.device)
    result: list[Instances] = []
    for index, ((height, width), extent) in enumerate(zip(sizes, extents.tolist(), strict=True)):
        rows = detections.image_index == index
        scale = detections.boxes_xyxy.new_tensor([width / extent[1], height / extent[0]] * 2)
        limit = detections.boxes_xyxy.new_tensor([width, height] * 2)
        boxes = torch.minimum(detections.boxes_xyxy[rows] * scale, limit)
        seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
        rows, boxes = rows.nonzero().flatten()[seen], boxes[seen]
        logits = detections.mask_logits[rows]
        masks = None
        if logits.shape[-1]:
            # a half-precision context must not touch the two small matrix products of each mask
            with torch.autocast(logits.device.type, enabled=False):
                masks = paste_masks(logits.sigmoid(), boxes, (height, width), integer_boxes=integer_paste)
        result.append(Instances(boxes, thing_ids[detections.labels[rows]], detections.scores[rows], masks))
    return result


def general_rcnn(
    channels: int,
    num_classes: int,
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    proposals: int = 1000,
    roi_samples: int = 512,
    detections: int = 100,
    box_features: int = 1024,
    mask_convs: int | None = 4,
    mask_width: int = 256,
    mask_pool: int = 14,
    roi_op: str = "align",
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
) -> RCNN:
    """detectron2's conventions with sizes to choose and two sampling points a cell; mask_convs None: boxes only.

    The pyramid level of a box follows the anchors: as 224 px belongs to the level of the 128 px anchors, so in
    proportion for others.
    """
    anchors = Anchors(tuple(float(s) for s in anchor_sizes))
    mask_head = None if mask_convs is None else MaskHead(channels, num_classes, mask_width, mask_convs, mask_pool)
    return RCNN(
        RPN(channels, anchors, pre_nms=(2 * proposals, proposals), post_nms=(proposals, proposals)),
        RoIPooler(op=roi_op, canonical_size=224.0 * anchors.sizes[2] / 128.0),
        BoxHead(channels, features=box_features),
        BoxPredictor(box_features, num_classes),
        mask_head,
        samples=roi_samples,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        detections=detections,
    )


def detectron2_rcnn(num_classes: int, mask: bool = True) -> RCNN:
    """The branch of detectron2's R-CNN and Panoptic FPN models (spec 01): adaptive sampling, background last, L1."""
    return RCNN(
        RPN(256, Anchors(), pre_nms=(2000, 1000), post_nms=(1000, 1000)),
        RoIPooler(sampling=0),
        BoxHead(256),
        BoxPredictor(1024, num_classes),
        MaskHead(256, num_classes) if mask else None,
    )


def torchvision_rcnn(num_classes: int, mask: bool = True, v2: bool = False) -> RCNN:
    """The branch of torchvision's R-CNN models (spec 01): background first, rounded anchors, unaligned RoIAlign."""
    return RCNN(
        RPN(
            256,
            Anchors(rounded=True, stride_from_image=True),
            conv_depth=2 if v2 else 1,
            pre_nms=(2000, 1000),
            post_nms=(2000, 1000),
            min_size=1e-3,
            beta=1 / 9,
            normalize_by_samples=True,
        ),
        RoIPooler(aligned=False, log_eps=1e-6, ratio_eps=0.0),
        ConvBoxHead(256) if v2 else BoxHead(256),
        BoxPredictor(1024, num_classes, background_first=True),
        MaskHead(256, num_classes, norm=v2, background_first=True) if mask else None,
        beta=1 / 9,
        soft_mask_targets=True,
        integer_paste=True,
        min_size=1e-2,
    )
