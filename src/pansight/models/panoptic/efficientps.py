"""EfficientPS. Mohan, Valada: EfficientPS: Efficient Panoptic Segmentation, IJCV 2021.

An EfficientNet without squeeze-and-excitation and a pyramid of two ways feed two heads: an instance head, Mask R-CNN's
with separable convolutions in the mask branch, and a semantic head for all classes, which treats coarse and fine maps
each by what they lack. The fusion has no parameters: logits of masks and of classes adapt each other.

Cityscapes val PQ, fine annotations alone: 64.4 (released weights), 64.9 over several scales (paper).
`efficientps_cityscapes` is the released network, its activated BatchNorms written as ordinary layers. The general
`efficientps` takes any timm backbone. It has the anchors and regions of the other general models here; in its fusion
the logits of masks have no factor, as in the paper, and an object wins pixels inside its box alone. See
docs/systems/efficientps.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pansight.models.contract import Entry, background_and_things, boxes_of, every_class, things, things_and_background
from pansight.models.options import (
    DECODE_OPTIONS,
    RCNN_OPTIONS,
    SEMANTIC_OPTIONS,
    Option,
    flag,
    loss_weight,
    whole,
)
from pansight.nn.backbones.efficientnet import plain_efficientnet
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.fpn import TwoWayFPN, separable_conv
from pansight.nn.input import Input, PixelStatistics
from pansight.nn.rcnn.legacy import legacy_rcnn
from pansight.nn.rcnn.roi_heads import BoxPredictor, MaskHead, RoIPooler, TwoLinear
from pansight.nn.rcnn.rpn import RPN
from pansight.nn.rcnn.two_stage import RCNN
from pansight.nn.semantic.criterion import Criterion
from pansight.nn.semantic.efficientps_head import EfficientPSHead
from pansight.nn.semantic.segmenter import resized
from pansight.nn.statistics import kept_statistics
from pansight.ops.fusion.adaptive import AdaptiveRule, Objects, adaptive_fusion
from pansight.ops.fusion.instances import Detections, detections_to_instances
from pansight.ops.fusion.views import frames_of, mean_map
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import instance_targets, semantic_targets, valid_extents
from pansight.types import Batch, LabelSpace, Prediction

STRIDES = (4, 8, 16, 32)

HARD_SHARE = 0.25
"""The semantic loss of an image is the mean over this share of its pixels, those of the largest losses."""

CITYSCAPES_RGB = PixelStatistics((106.433, 116.617, 119.559), (65.496, 67.6, 74.123))
"""Mean and deviation of the released configuration."""


class EfficientPSOutputs(NamedTuple):
    detections: Detections
    semantic_logits: Tensor  # (B, C, H/4, W/4), things and stuff in the order of the label space
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image


class EfficientPS(nn.Module):
    """A shared pyramid with an instance branch (`rcnn`) and a semantic branch (`semantic_head`).

    criterion: what the semantic branch is trained by; semantic_weight: its weight beside the losses of the instance
    branch, which have 1. rule: the numbers of the fusion, which `decode` may replace.
    corners_of_pixels: the fusion is given the last pixel of a box as its far corner, as in the released code; otherwise
    the edge of that pixel.
    """

    def __init__(
        self,
        backbone: Backbone,
        fpn: TwoWayFPN,
        rcnn: RCNN,
        semantic_head: EfficientPSHead,
        labels: LabelSpace,
        input: Input,
        criterion: Criterion,
        rule: AdaptiveRule,
        semantic_weight: float = 1.0,
        corners_of_pixels: bool = False,
    ):
        super().__init__()
        self.backbone = backbone
        self.fpn = fpn
        self.rcnn = rcnn
        self.semantic_head = semantic_head
        self.labels = labels
        self.input = input
        self.criterion = criterion
        self.semantic_weight = semantic_weight
        self.rule = rule
        self.corners_of_pixels = corners_of_pixels

    def _features(self, images: Tensor, valid: Tensor | None) -> tuple[list[Tensor], Tensor]:
        return self.fpn(self.backbone(self.input(images, valid))), valid_extents(images, valid)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> EfficientPSOutputs:
        """images uint8 (B, 3, H, W), H and W multiples of 32; valid bool (B, H, W), False on padding."""
        features, extents = self._features(images, valid)
        return EfficientPSOutputs(self.rcnn(features, extents), self.semantic_head(features), extents)

    @torch.no_grad()
    def counts(self, batch: Batch) -> dict[str, float | Tensor]:
        """What `loss` divides by, for these images; the network runs as far as its proposals, and learns nothing."""
        counts = self.criterion.counts(batch, semantic_targets(batch, range(len(self.labels))))
        with kept_statistics(self):
            features, extents = self._features(batch.images, batch.valid)
            return {**counts, **self.rcnn.counts(features, extents, instance_targets(batch, self.labels))}

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """L = L_rpn + L_cls + L_box + L_mask + L_s; L_s is that of the hardest pixels unless `loss` says otherwise.

        totals: the sum of `counts` over the parts of the step; None: `batch` is the whole of it.
        """
        features, extents = self._features(batch.images, batch.valid)
        losses = self.rcnn.loss(features, extents, instance_targets(batch, self.labels), totals)
        target = semantic_targets(batch, range(len(self.labels)))  # (B, H, W)
        logits = resized(self.semantic_head(features).float(), target.shape[1:])
        losses["semantic"] = self.semantic_weight * self.criterion(logits, target, totals, batch)
        return losses

    def decode(
        self,
        outputs: EfficientPSOutputs,
        sizes: Sequence[tuple[int, int]],
        score_threshold: float | None = None,
        max_overlap: float | None = None,
        min_stuff_area: int | None = None,
        mask_factor: float | None = None,
    ) -> list[Prediction]:
        """Predictions at the original `sizes` (H, W). Numbers of the fusion left out are the model's own."""
        given = {
            "score_threshold": score_threshold,
            "max_overlap": max_overlap,
            "min_stuff_area": min_stuff_area,
            "mask_factor": mask_factor,
        }
        rule = self.rule._replace(**{key: value for key, value in given.items() if value is not None})
        instances = detections_to_instances(outputs.detections, outputs.extents, sizes, self.labels)
        extents: list[list[int]] = outputs.extents.tolist()
        predictions: list[Prediction] = []
        for image, (extent, size, found) in enumerate(zip(extents, sizes, instances, strict=True)):
            logits = self._semantic_logits(outputs.semantic_logits[image], extent, size)
            semantic = logits.max(0).indices  # argmax(0) is six times slower on the CPU
            objects = self._objects(outputs.detections, image, extent, size)
            panoptic = adaptive_fusion(logits, semantic, objects, self.labels, rule)
            predictions.append(Prediction(panoptic, semantic, found))
        return predictions

    def _semantic_logits(self, logits: Tensor, extent: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Logits (C, h, w) of one padded image → float32 (C, H, W) at the size of its file."""
        padded = [side * STRIDES[0] for side in logits.shape[1:]]
        return resized(resized(logits.float()[None], padded)[:, :, : extent[0], : extent[1]], size)[0]

    def _objects(self, found: Detections, image: int, extent: Sequence[int], size: tuple[int, int]) -> Objects:
        """The detections of one image, with boxes in pixels of its file."""
        of_image = found.image_index == image
        height, width = size[0] / extent[0], size[1] / extent[1]
        scale = found.boxes_xyxy.new_tensor([width, height, width, height])
        category = torch.tensor([c.id for c in self.labels.things], device=found.labels.device)
        boxes = found.boxes_xyxy[of_image] * scale
        if self.corners_of_pixels:
            boxes = boxes - boxes.new_tensor([0, 0, 1, 1])
        return Objects(boxes, found.mask_logits[of_image], found.scores[of_image], category[found.labels[of_image]])

    def join_views(self, views: Sequence[EfficientPSOutputs], mirrored: Sequence[bool]) -> EfficientPSOutputs:
        """The outputs of several views of the same photos as one, as of the first.

        Semantic logits are averaged; the detections of all views compete.
        """
        logits = [view.semantic_logits for view in views]
        frames = frames_of([view.extents for view in views], mirrored, logits, STRIDES[0])
        return EfficientPSOutputs(
            self.rcnn.join_views([view.detections for view in views], frames),
            mean_map(logits, frames),
            views[0].extents,
        )

    def set_progress(self, share: float) -> None:
        """Nothing changes as training progresses."""


def efficientps(
    labels: LabelSpace,
    backbone: str = "tf_efficientnet_lite0",
    pretrained: str = "none",
    short: int = 800,
    long: int = 1333,
    fpn_channels: int = 256,
    separable_fpn: bool = False,
    separable_rpn: bool = False,
    anchor_sizes: Sequence[float] = (32, 64, 128, 256),
    proposals: int = 1000,
    roi_samples: int = 256,
    detections: int = 100,
    box_features: int = 1024,
    mask_convs: int = 4,
    mask_channels: int = 256,
    roi_op: str = "align",
    semantic_width: int = 128,
    semantic_weight: float = 1.0,
    loss: str = "hard_pixels",
    class_weights: Sequence[float] = (),
    mask_factor: float = 1.0,
    min_stuff_area: int = 2048,
    frozen_bn: bool = True,
    freeze_stages: int = 0,
) -> EfficientPS:
    """EfficientPS on any timm backbone. short, long: the resizing rule in pixels (short 0: keep the size).

    The EfficientNets that have no squeeze-and-excitation in timm are called ``tf_efficientnet_lite0`` … ``lite4``.
    separable_fpn, separable_rpn: separable convolutions behind the pyramid and before the proposals.
    """
    net = timm_backbone(backbone, pretrained, STRIDES, frozen_bn=frozen_bn, freeze_stages=freeze_stages)
    count = len(labels.things)
    pool = RoIPooler(7, roi_op, sampling_ratio=2, canonical_size=224.0 * anchor_sizes[2] / 128.0)
    rcnn = RCNN(
        RPN(
            fpn_channels,
            anchor_sizes,
            strides=STRIDES,
            pre_nms=(2 * proposals, proposals),
            post_nms=(proposals, proposals),
            beta=1 / 9,
            separable=separable_rpn,
        ),
        pool,
        TwoLinear(fpn_channels, features=box_features),
        BoxPredictor(box_features, count + 1, count),
        pool._replace(size=14),
        MaskHead(fpn_channels, count, mask_convs, mask_channels, separable=True),
        detections=detections,
        samples=roi_samples,
        box_beta=1.0,
    )
    fpn = TwoWayFPN(net.channels, fpn_channels, separable_fpn)
    semantic = EfficientPSHead(fpn_channels, len(labels), semantic_width)
    input = Input(ResizeRule(short, long), net.pixels)
    rule = AdaptiveRule(min_stuff_area=min_stuff_area, mask_factor=mask_factor)
    criterion = _criterion(labels, loss, class_weights)
    return EfficientPS(net, fpn, rcnn, semantic, labels, input, criterion, rule, semantic_weight)


def _criterion(labels: LabelSpace, loss: str = "hard_pixels", class_weights: Sequence[float] = ()) -> Criterion:
    """The share of hard pixels is rounded up in each image, as in the code that the authors point to."""
    return Criterion(loss, class_weights, classes=len(labels), hard_share=HARD_SHARE, hard_rounded_up=True)


def efficientps_cityscapes(labels: LabelSpace, separable_fpn: bool = False, separable_rpn: bool = False) -> EfficientPS:
    """The released network: 42,988,744 parameters for Cityscapes' 8 things and 11 stuff classes.

    The paper describes separable convolutions behind the pyramid and before the proposals: 40,381,640 parameters with
    both. No such weights were released.
    """
    net = plain_efficientnet(pixels=CITYSCAPES_RGB)
    rcnn = released_rcnn(len(labels.things), separable_rpn)
    fpn, semantic = TwoWayFPN(net.channels, 256, separable_fpn), EfficientPSHead(256, len(labels))
    input, rule = Input(ResizeRule(1024, 2048, filter="plain"), net.pixels), AdaptiveRule(bounded=False)
    criterion = _criterion(labels)
    return EfficientPS(net, fpn, rcnn, semantic, labels, input, criterion, rule, corners_of_pixels=True)


def released_rcnn(things: int, separable_rpn: bool = False) -> RCNN:
    """The instance head of the released network, in the convention of mmdetection's first version."""
    rcnn = legacy_rcnn(
        things,
        strides=STRIDES,
        anchor_rule="mmdet1",
        end_shift=0.0,
        level_eps=0.25e-6,  # 1e-6 of 56 pixels, not of 224
        mask_head=MaskHead(256, 1 + things, separable=True),
        rpn_loss_per_budget=False,
        low_quality_iou=0.3,
        limits_shrinking=True,
        roi_samples=256,
    )
    if separable_rpn:
        rcnn.rpn.conv, rcnn.rpn.separable = nn.ModuleList([separable_conv(256, 256)]), True
    return rcnn


OPTIONS: dict[str, Option] = {
    **RCNN_OPTIONS,
    "separable_fpn": flag("the 3×3 convolutions behind the pyramid are separable, as in the paper"),
    "separable_rpn": flag("the 3×3 convolution before the proposals is separable, as in the paper"),
    "anchor_sizes": replace(
        RCNN_OPTIONS["anchor_sizes"], meaning="side of the anchors at each of the four levels, in pixels", length=4
    ),
    "semantic_width": whole("width of the semantic branch", 1, 4096),
    "semantic_weight": loss_weight("the semantic branch"),
    "loss": SEMANTIC_OPTIONS["loss"],
    "class_weights": SEMANTIC_OPTIONS["class_weights"],
    "mask_factor": DECODE_OPTIONS["mask_factor"],
    "min_stuff_area": DECODE_OPTIONS["min_stuff_area"],
}

TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "fpn_channels": 16, "box_features": 16}
TINY |= {"anchor_sizes": (8, 16, 32, 64), "proposals": 40, "roi_samples": 32, "detections": 20}
TINY |= {"mask_convs": 1, "mask_channels": 8, "semantic_width": 8}

SMALL: dict[str, Any] = {"fpn_channels": 96, "proposals": 100, "roi_samples": 32, "box_features": 256}
SMALL |= {"mask_convs": 2, "mask_channels": 96, "semantic_width": 64}

GENERAL = Entry(
    efficientps,
    architecture="efficientps",
    produces=("panoptic", "semantic", "instances"),
    options=OPTIONS,
    needs_things=True,
    backbone="pyramid",
    adapts=("pretrained", "frozen_bn", "short", "anchor_sizes", "detections", "min_stuff_area"),
    class_rows={
        "rcnn.box_predictor.cls_score": things_and_background,
        "rcnn.box_predictor.bbox_pred": boxes_of(things),
        "rcnn.mask_head.predictor": things,
        "semantic_head.predictor": every_class,
    },
    small=SMALL,
    tiny=TINY,
)
RELEASED = replace(
    GENERAL,
    options={key: OPTIONS[key] for key in ("separable_fpn", "separable_rpn")},
    class_rows={
        "rcnn.box_predictor.cls_score": background_and_things,
        "rcnn.box_predictor.bbox_pred": boxes_of(background_and_things),
        "rcnn.mask_head.predictor": background_and_things,
        "semantic_head.predictor": every_class,
    },
    licence="gpl-3.0",
)
ENTRIES: dict[str, Entry] = {
    "efficientps": GENERAL,
    "efficientps_cityscapes": RELEASED.published(efficientps_cityscapes, "efficientps"),
}
