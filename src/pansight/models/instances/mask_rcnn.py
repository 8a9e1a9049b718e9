"""Mask R-CNN. He, Gkioxari, Dollár, Girshick: Mask R-CNN, ICCV 2017.

Faster R-CNN on a feature pyramid, with a small mask for every box. Instances may overlap. `decode` also gives a
panoptic map, in which instances are merged by score; if there is exactly one stuff class, it gets the remaining pixels.

COCO val2017 box / mask AP: torchvision R50 37.9 / 34.6, V2 47.4 / 41.8; detectron2 R50 1x 38.6 / 35.2,
3x 41.0 / 37.2, R101 3x 42.9 / 38.6. The builders with ``_tv`` and ``_d2`` in their names differ from them in nothing;
the general `mask_rcnn` takes any timm backbone, with the stride in the 3×3 convolution and RGB input. See
docs/systems/mask_rcnn.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pansight.models.contract import Entry, background_and_things, boxes_of, things, things_and_background
from pansight.models.options import RCNN_OPTIONS, RCNN_OPTIONS_D2
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.fpn import FPN
from pansight.nn.input import CAFFE_BGR, IMAGENET_RGB, Input
from pansight.nn.rcnn.two_stage import RCNN, detectron2_rcnn, torchvision_rcnn
from pansight.nn.statistics import kept_statistics
from pansight.ops.fusion.instances import Detections, detections_to_instances, merge_by_label_map
from pansight.ops.fusion.views import frames_of
from pansight.ops.resize import TORCHVISION, ResizeRule
from pansight.ops.targets import instance_targets, valid_extents
from pansight.types import Batch, LabelSpace, Prediction


class MaskRCNNOutputs(NamedTuple):
    detections: Detections
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image


class MaskRCNN(nn.Module):
    """Faster R-CNN with a mask head. score_threshold, max_overlap: of the merge into a panoptic map only.

    integer_paste: masks are pasted into integer boxes, torchvision's way.
    """

    def __init__(
        self,
        backbone: Backbone,
        fpn: FPN,
        rcnn: RCNN,
        labels: LabelSpace,
        input: Input,
        score_threshold: float = 0.5,
        max_overlap: float = 0.5,
        integer_paste: bool = False,
    ):
        super().__init__()
        self.backbone, self.fpn, self.rcnn = backbone, fpn, rcnn
        self.labels, self.input = labels, input
        self.score_threshold, self.max_overlap = score_threshold, max_overlap
        self.integer_paste = integer_paste

    def _features(self, images: Tensor, valid: Tensor | None) -> tuple[list[Tensor], Tensor]:
        return self.fpn(self.backbone(self.input(images, valid))), valid_extents(images, valid)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> MaskRCNNOutputs:
        """images uint8 or float32 (B, 3, H, W), sides multiples of 32; valid bool (B, H, W), False on padding."""
        features, extents = self._features(images, valid)
        return MaskRCNNOutputs(self.rcnn(features, extents), extents)

    @torch.no_grad()
    def counts(self, batch: Batch) -> dict[str, float]:
        """What `loss` divides by, for these images; the network runs as far as its proposals, and learns nothing."""
        with kept_statistics(self):
            features, extents = self._features(batch.images, batch.valid)
            return self.rcnn.counts(features, extents, instance_targets(batch, self.labels))

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """L = L_rpn + L_cls + L_box + L_mask.

        totals: the sum of `counts` over the parts of the step; None: `batch` is the whole of it.
        """
        features, extents = self._features(batch.images, batch.valid)
        return self.rcnn.loss(features, extents, instance_targets(batch, self.labels), totals)

    def decode(
        self,
        outputs: MaskRCNNOutputs,
        sizes: Sequence[tuple[int, int]],
        score_threshold: float | None = None,
        max_overlap: float | None = None,
    ) -> list[Prediction]:
        """Predictions at the original `sizes` (H, W). Thresholds left out are the model's own."""
        score_threshold = self.score_threshold if score_threshold is None else score_threshold
        max_overlap = self.max_overlap if max_overlap is None else max_overlap
        predictions: list[Prediction] = []
        for found in detections_to_instances(
            outputs.detections, outputs.extents, sizes, self.labels, integer_paste=self.integer_paste
        ):
            assert found.masks is not None  # the builders always give a mask head
            panoptic = merge_by_label_map(
                found.masks, found.scores, found.labels, None, self.labels, score_threshold, max_overlap
            )
            predictions.append(Prediction(panoptic, None, found))
        return predictions

    def join_views(self, views: Sequence[MaskRCNNOutputs], mirrored: Sequence[bool]) -> MaskRCNNOutputs:
        """The outputs of several views of the same photos as one, as of the first: their detections compete."""
        frames = frames_of([view.extents for view in views], mirrored)
        return MaskRCNNOutputs(self.rcnn.join_views([view.detections for view in views], frames), views[0].extents)

    def set_progress(self, share: float) -> None:
        """Nothing changes as training progresses."""


def mask_rcnn(
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
    mask_convs: int = 4,
    mask_channels: int = 256,
    roi_op: str = "align",
    frozen_bn: bool = True,
    freeze_stages: int = 0,
) -> MaskRCNN:
    """Mask R-CNN on any timm backbone. short, long: the resizing rule in pixels (short 0: keep the size).

    detections: at most as many per image, of a score > score_threshold, of each class no two with an IoU above
    nms_threshold. proposals: kept per image by the first stage. roi_samples: regions per image to learn from.
    roi_op: "align", "pool" or "warp".
    """
    net = timm_backbone(backbone, pretrained, frozen_bn=frozen_bn, freeze_stages=freeze_stages)
    rcnn = detectron2_rcnn(
        len(labels.things),
        fpn_channels,
        anchor_sizes=anchor_sizes,
        roi_op=roi_op,
        sampling_ratio=2,
        box_features=box_features,
        mask_convs=mask_convs,
        mask_channels=mask_channels,
        roi_samples=roi_samples,
        proposals=proposals,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        detections=detections,
    )
    return MaskRCNN(net, FPN(net.channels, fpn_channels), rcnn, labels, Input(ResizeRule(short, long), net.pixels))


def mask_rcnn_r50_tv(labels: LabelSpace, pretrained: str = "none", bn_eps: float = 0.0) -> MaskRCNN:
    """torchvision's maskrcnn_resnet50_fpn: 44,401,393 parameters for COCO's 90 ids. Its COCO weights need eps 0."""
    net = timm_backbone(
        "resnet50.tv_in1k", pretrained, frozen_bn=True, freeze_stages=2, bn_eps=bn_eps, pixels=IMAGENET_RGB
    )
    return MaskRCNN(
        net,
        FPN(net.channels),
        torchvision_rcnn(len(labels.things)),
        labels,
        Input(TORCHVISION, net.pixels),
        integer_paste=True,
    )


def mask_rcnn_r50_tv_v2(labels: LabelSpace, pretrained: str = "none") -> MaskRCNN:
    """torchvision's maskrcnn_resnet50_fpn_v2: BatchNorm everywhere, trained; 46,359,409 parameters for 90 ids."""
    net = timm_backbone("resnet50.tv_in1k", pretrained, pixels=IMAGENET_RGB)
    return MaskRCNN(
        net,
        FPN(net.channels, norm="bn"),
        torchvision_rcnn(len(labels.things), v2=True),
        labels,
        Input(TORCHVISION, net.pixels),
        integer_paste=True,
    )


def mask_rcnn_r50_d2(labels: LabelSpace, backbone: str = "resnet50") -> MaskRCNN:
    """detectron2's mask_rcnn_R_50_FPN: 44,343,216 parameters besides the frozen BatchNorm, for COCO's 80 things."""
    net = timm_backbone(backbone, frozen_bn=True, freeze_stages=2, stride_in_1x1=True, pixels=CAFFE_BGR)
    rcnn = detectron2_rcnn(len(labels.things))
    return MaskRCNN(net, FPN(net.channels), rcnn, labels, Input(ResizeRule(800, 1333), net.pixels))


def mask_rcnn_r101_d2(labels: LabelSpace) -> MaskRCNN:
    """detectron2's mask_rcnn_R_101_FPN."""
    return mask_rcnn_r50_d2(labels, "resnet101")


TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "fpn_channels": 16, "box_features": 16}
TINY |= {"anchor_sizes": (8, 16, 32, 64, 128), "proposals": 40, "roi_samples": 32, "detections": 20}
TINY |= {"mask_convs": 1, "mask_channels": 8}

SMALL: dict[str, Any] = {"fpn_channels": 96, "proposals": 200, "roi_samples": 64, "box_features": 256}
SMALL |= {"mask_convs": 2, "mask_channels": 96}

GENERAL = Entry(
    mask_rcnn,
    architecture="mask_rcnn",
    produces=("panoptic", "instances"),
    options=RCNN_OPTIONS,
    needs_things=True,
    backbone="pyramid",
    adapts=("pretrained", "frozen_bn", "short", "anchor_sizes", "detections"),
    class_rows={
        "rcnn.box_predictor.cls_score": things_and_background,
        "rcnn.box_predictor.bbox_pred": boxes_of(things),
        "rcnn.mask_head.predictor": things,
    },
    small=SMALL,
    tiny=TINY,
)
OF_DETECTRON2 = replace(GENERAL, options=RCNN_OPTIONS_D2, licence="cc-by-sa-3.0")
OF_TORCHVISION = replace(
    GENERAL,
    licence="bsd-3-clause",
    class_rows={
        "rcnn.box_predictor.cls_score": background_and_things,
        "rcnn.box_predictor.bbox_pred": boxes_of(background_and_things),
        "rcnn.mask_head.predictor": background_and_things,
    },
)
ENTRIES: dict[str, Entry] = {
    "mask_rcnn": GENERAL,
    "mask_rcnn_r50_tv": OF_TORCHVISION.published(mask_rcnn_r50_tv, "mask_rcnn", "pretrained"),
    "mask_rcnn_r50_tv_v2": OF_TORCHVISION.published(mask_rcnn_r50_tv_v2, "mask_rcnn", "pretrained"),
    "mask_rcnn_r50_d2": OF_DETECTRON2.published(mask_rcnn_r50_d2, "mask_rcnn"),
    "mask_rcnn_r101_d2": OF_DETECTRON2.published(mask_rcnn_r101_d2, "mask_rcnn"),
}
