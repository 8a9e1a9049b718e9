"""Faster R-CNN with FPN. Ren, He, Girshick, Sun: NeurIPS 2015; Lin et al.: Feature Pyramid Networks, CVPR 2017.

The model predicts boxes only: `decode` gives Instances without masks, and no panoptic map.

COCO val2017 box AP: torchvision R50 37.0, V2 46.7; detectron2 R50 1x 37.9, 3x 40.2. The builders with ``_tv`` and
``_d2`` in their names differ from them in nothing; the general `faster_rcnn` takes any timm backbone, with RGB input
and the stride in the 3×3 convolution. See docs/systems/faster_rcnn.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.fpn import FPN
from pansight.nn.normalize import caffe_bgr, imagenet_rgb
from pansight.nn.rcnn.two_stage import (
    RCNN,
    Detections,
    detections_to_instances,
    detectron2_rcnn,
    torchvision_rcnn,
)
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import instance_targets, valid_extents
from pansight.types import Batch, LabelSpace, Prediction


class FasterRCNNOutputs(NamedTuple):
    detections: Detections
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image


class FasterRCNN(nn.Module):
    """Backbone, pyramid and an instance branch without a mask head."""

    def __init__(self, backbone: Backbone, fpn: FPN, rcnn: RCNN, labels: LabelSpace, resize: ResizeRule):
        super().__init__()
        self.backbone, self.fpn, self.rcnn = backbone, fpn, rcnn
        self.labels, self.resize = labels, resize

    def forward(self, images: Tensor, valid: Tensor | None = None) -> FasterRCNNOutputs:
        """images uint8 (B, 3, H, W), H and W multiples of 32; valid bool (B, H, W), False on padding."""
        extents = valid_extents(images, valid)
        return FasterRCNNOutputs(self.rcnn(self.fpn(self.backbone(images, valid)), extents), extents)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """L = L_rpn + L_cls + L_box."""
        features = self.fpn(self.backbone(batch.images, batch.valid))
        extents = valid_extents(batch.images, batch.valid)
        return self.rcnn.loss(features, extents, instance_targets(batch, self.labels))

    def decode(self, outputs: FasterRCNNOutputs, sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        """Predictions at the original `sizes` (H, W)."""
        instances = detections_to_instances(outputs.detections, outputs.extents, sizes, self.labels)
        return [Prediction(None, None, found) for found in instances]


def faster_rcnn(
    labels: LabelSpace,
    backbone: str = "resnet50",
    pretrained: str = "none",
    short: int = 800,
    long: int = 1333,
    fpn_channels: int = 256,
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    proposals: int = 1000,
    roi_samples: int = 512,
    detections: int = 100,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    box_features: int = 1024,
    roi_op: str = "align",
    frozen_bn: bool = True,
    freeze_stages: int = 0,
) -> FasterRCNN:
    """Faster R-CNN on any timm backbone. short, long: the resizing rule in pixels (short 0: keep the size).

    detections: at most as many per image, of a score > score_threshold, of each class no two with an IoU above
    nms_threshold. proposals: kept per image by the first stage. roi_samples: regions per image to learn from.
    roi_op: "align" or "pool".
    """
    net = timm_backbone(backbone, pretrained, frozen_bn=frozen_bn, freeze_stages=freeze_stages)
    rcnn = detectron2_rcnn(
        len(labels.things),
        fpn_channels,
        masks=False,
        anchor_sizes=anchor_sizes,
        roi_op=roi_op,
        sampling_ratio=2,
        box_features=box_features,
        roi_samples=roi_samples,
        proposals=proposals,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        detections=detections,
    )
    return FasterRCNN(net, FPN(net.channels, fpn_channels), rcnn, labels, ResizeRule(short, long))


def faster_rcnn_r50_tv(labels: LabelSpace, pretrained: str = "none", bn_eps: float = 0.0) -> FasterRCNN:
    """torchvision's fasterrcnn_resnet50_fpn: 41,755,286 parameters for COCO's 90 ids. Its COCO weights need eps 0."""
    net = timm_backbone(
        "resnet50.tv_in1k", pretrained, frozen_bn=True, freeze_stages=2, bn_eps=bn_eps, normalize=imagenet_rgb()
    )
    rcnn = torchvision_rcnn(len(labels.things), masks=False)
    return FasterRCNN(net, FPN(net.channels), rcnn, labels, ResizeRule(800, 1333, floor=True))


def faster_rcnn_r50_tv_v2(labels: LabelSpace, pretrained: str = "none") -> FasterRCNN:
    """torchvision's fasterrcnn_resnet50_fpn_v2: BatchNorm everywhere, trained; 43,712,278 parameters for 90 ids."""
    net = timm_backbone("resnet50.tv_in1k", pretrained, normalize=imagenet_rgb())
    rcnn = torchvision_rcnn(len(labels.things), masks=False, v2=True)
    return FasterRCNN(net, FPN(net.channels, norm="bn"), rcnn, labels, ResizeRule(800, 1333, floor=True))


def faster_rcnn_r50_d2(labels: LabelSpace, backbone: str = "resnet50") -> FasterRCNN:
    """detectron2's faster_rcnn_R_50_FPN: 41,699,936 parameters besides the frozen BatchNorm, for COCO's 80 things."""
    net = timm_backbone(backbone, frozen_bn=True, freeze_stages=2, stride_in_1x1=True, normalize=caffe_bgr())
    rcnn = detectron2_rcnn(len(labels.things), masks=False)
    return FasterRCNN(net, FPN(net.channels), rcnn, labels, ResizeRule(800, 1333))


def faster_rcnn_r101_d2(labels: LabelSpace) -> FasterRCNN:
    """detectron2's faster_rcnn_R_101_FPN."""
    return faster_rcnn_r50_d2(labels, "resnet101")
