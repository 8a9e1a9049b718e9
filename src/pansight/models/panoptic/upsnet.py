"""UPSNet. Xiong, Liao, Zhao, Hu, Bai, Yumer, Urtasun: UPSNet: A Unified Panoptic Segmentation Network, CVPR 2019.

Mask R-CNN and a semantic branch of deformable convolutions on one pyramid. A head without parameters lets the stuff
classes, the objects found and a class "unknown" compete for every pixel, and is trained along with them, end to end.

PQ, R50: COCO val2017 42.5, Cityscapes val 59.3; R101 with deformable convolutions: COCO test-dev 46.6; R101, trained on
COCO first: Cityscapes val 61.8 at several scales.
Written from the paper, since the public code may not be used commercially. `upsnet_r50_coco` and its siblings have the
published sizes and rules; docs/systems/upsnet.md says where rounding may differ. The general `upsnet` takes any timm
backbone, with the stride in the 3×3 convolution and RGB input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.models.contract import Entry, background_and_things, boxes_of, stuff_and_things
from pansight.models.options import RCNN_OPTIONS, SEMANTIC_OPTIONS, Option, flag, loss_weight, share, whole
from pansight.nn.backbones.deformable import deform
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.fpn import FPN
from pansight.nn.input import Input, PixelStatistics
from pansight.nn.rcnn.legacy import legacy_rcnn
from pansight.nn.rcnn.two_stage import RCNN
from pansight.nn.semantic.criterion import Criterion
from pansight.nn.semantic.deformable_head import DeformableHead
from pansight.nn.semantic.segmenter import resized
from pansight.nn.statistics import kept_statistics
from pansight.ops.fusion import panoptic_head as rule
from pansight.ops.fusion.contest import Canvas
from pansight.ops.fusion.instances import Detections, detections_to_instances
from pansight.ops.fusion.views import frames_of, mean_map
from pansight.ops.regions.roi import AlignRule, make_pyramid, multilevel_roi_align
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import InstanceTargets, instance_targets, semantic_targets, valid_extents
from pansight.types import IGNORE, Batch, Instances, LabelSpace, PanopticSegmentation, Prediction

CAFFE_BGR = PixelStatistics((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), bgr=True)
"""Of the ResNets that UPSNet starts from."""

GRID = 28
"""The region loss looks at so many by so many places of each object."""


class UPSNetOutputs(NamedTuple):
    """detections: for AP, where boxes suppress those of their class. objects: of the panoptic head, where they suppress
    those of all classes."""

    detections: Detections
    objects: Detections
    semantic_logits: Tensor  # (B, S + T, H/4, W/4): stuff, then things
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image


class Weights(NamedTuple):
    """Weights of the loss terms beyond those of Mask R-CNN, which are 1."""

    semantic: float
    regions: float
    panoptic: float


class UPSNet(nn.Module):
    """A shared pyramid with an instance branch (`rcnn`), a semantic branch (`semantic_head`), and the panoptic head.

    criterion: what the semantic branch is trained by; None: cross-entropy, as in the paper.
    kept_things: share of the true objects that the panoptic head is shown in training; the others are "unknown".
    score_threshold (exclusive), max_overlap, min_stuff_area: of the inference (docs/systems/upsnet.md).
    """

    def __init__(
        self,
        backbone: Backbone,
        fpn: FPN,
        rcnn: RCNN,
        semantic_head: DeformableHead,
        labels: LabelSpace,
        input: Input,
        weights: Weights,
        kept_things: float = 0.7,
        score_threshold: float = 0.6,
        max_overlap: float = 0.3,
        min_stuff_area: int = 4096,
        criterion: Criterion | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.fpn = fpn
        self.rcnn = rcnn
        self.semantic_head = semantic_head
        self.labels = labels
        self.input = input
        self.weights = weights
        self.kept_things = kept_things
        self.score_threshold = score_threshold
        self.max_overlap = max_overlap
        self.min_stuff_area = min_stuff_area
        self.criterion = Criterion() if criterion is None else criterion
        self.progress = 0.0
        in_order = [c.id for c in (*labels.stuff, *labels.things)]
        self.class_of_category = [in_order.index(c.id) for c in labels]
        self.register_buffer("category_of_class", torch.tensor(in_order), persistent=False)

    category_of_class: Tensor

    def _features(self, images: Tensor, valid: Tensor | None) -> tuple[list[Tensor], Tensor]:
        return self.fpn(self.backbone(self.input(images, valid))), valid_extents(images, valid)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> UPSNetOutputs:
        """images uint8 (B, 3, H, W), H and W multiples of 32; valid bool (B, H, W), False on padding."""
        features, extents = self._features(images, valid)
        detections, objects = self.rcnn.both_suppressions(features, extents)
        return UPSNetOutputs(detections, objects, self.semantic_head(features), extents)

    @torch.no_grad()
    def counts(self, batch: Batch) -> dict[str, float | Tensor]:
        """What `loss` divides by, for these images; the network runs as far as its proposals, and learns nothing."""
        targets = instance_targets(batch, self.labels)
        counts = self._counts_of_pixels(batch, semantic_targets(batch, self.class_of_category), targets)
        with kept_statistics(self):
            features, extents = self._features(batch.images, batch.valid)
            return {**counts, **self.rcnn.counts(features, extents, targets)}

    def _counts_of_pixels(
        self, batch: Batch, target: Tensor, targets: Sequence[InstanceTargets]
    ) -> dict[str, float | Tensor]:
        """Those that follow from the truth alone. "panoptic_pixels": of all images, at the size of the head's maps."""
        stride = self.semantic_head.stride
        pixels = sum(-(-truth.size[0] // stride) * -(-truth.size[1] // stride) for truth in batch.truths)
        regions = (rule.region_classes(target, *_boxes_of_all(targets), GRID) != IGNORE).sum()
        return {**self.criterion.counts(batch, target), "panoptic_pixels": float(pixels), "region_pixels": regions}

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """The eight terms of the paper: five of Mask R-CNN, semantic, semantic_regions, panoptic.

        totals: the sum of `counts` over the parts of the step; None: `batch` is the whole of it.
        """
        features, extents = self._features(batch.images, batch.valid)
        targets = instance_targets(batch, self.labels)
        losses = self.rcnn.loss(features, extents, targets, totals)
        logits = self.semantic_head(features).float()  # (B, C, H/4, W/4)
        target = semantic_targets(batch, self.class_of_category)  # (B, H, W)
        known = self._counts_of_pixels(batch, target, targets) if totals is None else totals
        enlarged = resized(logits, target.shape[1:])
        losses["semantic"] = self.weights.semantic * self.criterion(enlarged, target, known, batch)
        if self.weights.regions:
            regions = self._region_loss(logits, target, targets)
            losses["semantic_regions"] = self.weights.regions * regions / max(1.0, float(known["region_pixels"]))
        panoptic = self._panoptic_loss(features, logits, batch, targets)
        losses["panoptic"] = self.weights.panoptic * panoptic / max(1.0, float(known["panoptic_pixels"]))
        return losses

    def _region_loss(self, logits: Tensor, target: Tensor, targets: Sequence[InstanceTargets]) -> Tensor:
        """The semantic branch once more on the true boxes, so that small objects count as much as large ones: a sum.

        Regions are read from the logits, not from the maps before the 1×1 convolution that makes them: both are linear.
        """
        boxes, image_index = _boxes_of_all(targets)
        if len(boxes) == 0:
            return 0.0 * logits.sum()
        pyramid = make_pyramid([logits], (self.semantic_head.stride,))
        level = torch.zeros_like(image_index)
        read = multilevel_roi_align(pyramid, boxes, image_index, level, GRID, AlignRule(2, aligned=False))
        classes = rule.region_classes(target, boxes, image_index, GRID)  # (N, 28, 28)
        return F.cross_entropy(read.float(), classes, ignore_index=IGNORE, reduction="sum")

    def _panoptic_loss(
        self, features: Sequence[Tensor], logits: Tensor, batch: Batch, targets: Sequence[InstanceTargets]
    ) -> Tensor:
        """The panoptic head on true boxes and the masks that the mask head gives them: a sum over pixels."""
        kept = [rule.kept_objects(target.boxes_xyxy, self.kept_things, self.progress) for target in targets]
        shown = [
            target._replace(boxes_xyxy=target.boxes_xyxy[index], things=target.things[index])
            for target, index in zip(targets, kept, strict=True)
        ]
        boxes, image_index = _boxes_of_all(shown)
        things = torch.cat([each.things for each in shown])
        masks = logits.new_zeros((0, GRID, GRID))
        if len(boxes):
            masks = self.rcnn.masks_in(features, boxes, image_index, things)
        stride = self.semantic_head.stride
        loss = logits.new_zeros(())
        parts = masks.split([len(index) for index in kept])
        for image, (truth, target, mask) in enumerate(zip(batch.truths, shown, parts, strict=True)):
            wanted = rule.panoptic_target(truth, targets[image], kept[image], self.labels, stride)
            size = (wanted.shape[0], wanted.shape[1])
            objects = rule.Objects(rule.crops_of(target.boxes_xyxy, size, stride), target.things, mask)
            said = rule.panoptic_logits(logits[image, :, : size[0], : size[1]], len(self.labels.stuff), objects)
            loss = loss + rule.panoptic_loss(said, wanted)
        return loss

    def decode(
        self,
        outputs: UPSNetOutputs,
        sizes: Sequence[tuple[int, int]],
        score_threshold: float | None = None,
        max_overlap: float | None = None,
        min_stuff_area: int | None = None,
        heuristic: bool = False,
    ) -> list[Prediction]:
        """Predictions at the original `sizes` (H, W). Thresholds left out are the model's own.

        heuristic: merge the two branches by a rule, without the panoptic head: what the paper calls MR-CNN-PSP.
        """
        threshold = self.score_threshold if score_threshold is None else score_threshold
        overlap = self.max_overlap if max_overlap is None else max_overlap
        area = self.min_stuff_area if min_stuff_area is None else min_stuff_area
        instances = detections_to_instances(outputs.detections, outputs.extents, sizes, self.labels)
        counts = outputs.objects.image_index.bincount(minlength=len(sizes)).tolist()
        objects = zip(*(column.split(counts) for column in outputs.objects), strict=True)
        extents: list[list[int]] = outputs.extents.tolist()
        stride = self.semantic_head.stride
        predictions: list[Prediction] = []
        for logits, (height, width), size, found, columns in zip(
            outputs.semantic_logits, extents, sizes, instances, objects, strict=True
        ):
            canvas = Canvas((logits.shape[1] * stride, logits.shape[2] * stride), (height, width), size)
            candidates = _rows(Detections(*columns), columns[2] > (torch.inf if heuristic else threshold))
            winners, kept = self._winners(logits, canvas, candidates, overlap)
            semantic = self.category_of_class[winners.semantic]
            if heuristic:
                panoptic = self._merged(found, semantic, threshold, overlap, area)
            else:
                panoptic = rule.segments_of_winners(winners, kept.labels, kept.scores, self.labels, area)
            predictions.append(Prediction(panoptic, semantic, found))
        return predictions

    def _winners(
        self, logits: Tensor, canvas: Canvas, found: Detections, max_overlap: float
    ) -> tuple[rule.Winners, Detections]:
        """The panoptic head for one image, and the objects that are left of those found."""
        objects = rule.Objects(rule.crops_of(found.boxes_xyxy, canvas.extent), found.labels, found.mask_logits)
        kept = rule.prune_masks(objects, canvas.extent, max_overlap)
        winners = rule.panoptic_winners(logits, len(self.labels.stuff), canvas, objects.some(kept))
        return winners, _rows(found, kept)

    def _merged(
        self, found: Instances, semantic: Tensor, score_threshold: float, max_overlap: float, min_stuff_area: int
    ) -> PanopticSegmentation:
        assert found.masks is not None  # the builders always give the instance branch a mask head
        thresholds = (score_threshold, max_overlap, min_stuff_area)
        return rule.merge_beside_stuff(found.masks, found.scores, found.labels, semantic, self.labels, *thresholds)

    def join_views(self, views: Sequence[UPSNetOutputs], mirrored: Sequence[bool]) -> UPSNetOutputs:
        """The outputs of several views of the same photos as one, as of the first.

        Semantic logits are averaged; the detections of all views compete.
        """
        logits = [view.semantic_logits for view in views]
        frames = frames_of([view.extents for view in views], mirrored, logits, self.semantic_head.stride)
        return UPSNetOutputs(
            self.rcnn.join_views([view.detections for view in views], frames),
            self.rcnn.join_views([view.objects for view in views], frames, among_classes=True),
            mean_map(logits, frames),
            views[0].extents,
        )

    def set_progress(self, share: float) -> None:
        """Which objects are "unknown" to the panoptic head is drawn anew in every step."""
        self.progress = share


def _rows(found: Detections, index: Tensor) -> Detections:
    return Detections(*(column[index] for column in found))


def _boxes_of_all(targets: Sequence[InstanceTargets]) -> tuple[Tensor, Tensor]:
    """(boxes float32 (N, 4), image_index int64 (N,)) of the objects of all images."""
    boxes = torch.cat([target.boxes_xyxy for target in targets])
    counts = torch.tensor([len(target.things) for target in targets], device=boxes.device)
    return boxes, torch.arange(len(targets), device=boxes.device).repeat_interleave(counts)


def upsnet(
    labels: LabelSpace,
    backbone: str = "resnet50",
    pretrained: str = "none",
    short: int = 800,
    long: int = 1333,
    fpn_channels: int = 256,
    fpn_gap: bool = False,
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    proposals: int = 1000,
    roi_samples: int = 512,
    detections: int = 100,
    box_features: int = 1024,
    mask_convs: int = 4,
    mask_channels: int = 256,
    roi_op: str = "align",
    semantic_width: int = 128,
    semantic_convs: int = 2,
    semantic_weight: float = 1.0,
    region_weight: float = 0.2,
    panoptic_weight: float = 0.5,
    kept_things: float = 0.7,
    loss: str = "cross_entropy",
    class_weights: Sequence[float] = (),
    min_stuff_area: int = 4096,
    deformable: bool = False,
    frozen_bn: bool = True,
    freeze_stages: int = 0,
) -> UPSNet:
    """UPSNet on any timm backbone. short, long: the resizing rule in pixels (short 0: keep the size).

    deformable: a ResNet whose last three stages are deformable. semantic_weight, region_weight, panoptic_weight: of the
    terms that Mask R-CNN has not; the paper's are 1, 0, 0.5 on Cityscapes and 0.2, 0.04, 0.1 on COCO.
    """
    net = timm_backbone(backbone, pretrained, frozen_bn=frozen_bn, freeze_stages=freeze_stages)
    if deformable:
        deform(net)
    rcnn = legacy_rcnn(
        len(labels.things),
        fpn_channels,
        anchor_sizes=anchor_sizes,
        roi_op=roi_op,
        canonical_size=224.0 * anchor_sizes[2] / 128.0,
        box_features=box_features,
        mask_convs=mask_convs,
        mask_channels=mask_channels,
        pre_nms=(2 * proposals, proposals),
        post_nms=(proposals, proposals),
        roi_samples=roi_samples,
        detections=detections,
    )
    return UPSNet(
        net,
        FPN(net.channels, fpn_channels, gap=fpn_gap),
        rcnn,
        DeformableHead(fpn_channels, net.strides, len(labels), semantic_width, semantic_convs),
        labels,
        Input(ResizeRule(short, long), net.pixels),
        Weights(semantic_weight, region_weight, panoptic_weight),
        kept_things,
        min_stuff_area=min_stuff_area,
        criterion=Criterion(loss, class_weights, classes=len(labels)),
    )


COCO, CITYSCAPES = Weights(0.2, 0.04, 0.1), Weights(1.0, 0.0, 0.5)


def upsnet_r50_coco(labels: LabelSpace, backbone: str = "resnet50", deformable: bool = False) -> UPSNet:
    """UPSNet-50 for COCO: 46,129,904 parameters with those of the frozen BatchNorm, for its 80 + 53 classes."""
    resize = ResizeRule(800, 1333, rounding="eomt", filter="plain")
    return _published(labels, backbone, deformable, True, 3, resize, COCO, 4096)


def upsnet_r101_dcn_coco(labels: LabelSpace) -> UPSNet:
    """UPSNet-101 with deformable convolutions in its backbone, for COCO: 66,408,204 parameters."""
    return upsnet_r50_coco(labels, "resnet101", deformable=True)


def upsnet_r50_cityscapes(labels: LabelSpace, backbone: str = "resnet50", deformable: bool = False) -> UPSNet:
    """UPSNet-50 for Cityscapes: 44,527,804 parameters for its 8 + 11 classes."""
    resize = ResizeRule(1024, 2048, rounding="eomt", filter="plain")
    return _published(labels, backbone, deformable, False, 2, resize, CITYSCAPES, 2048)


def upsnet_r101_cityscapes(labels: LabelSpace, deformable: bool = False) -> UPSNet:
    """UPSNet-101 for Cityscapes, which its authors trained on COCO first."""
    return upsnet_r50_cityscapes(labels, "resnet101", deformable)


def _published(
    labels: LabelSpace,
    backbone: str,
    deformable: bool,
    fpn_gap: bool,
    semantic_convs: int,
    resize: ResizeRule,
    weights: Weights,
    min_stuff_area: int,
) -> UPSNet:
    net = timm_backbone(backbone, frozen_bn=True, freeze_stages=2, stride_in_1x1=True, pixels=CAFFE_BGR)
    if deformable:
        deform(net)
    head = DeformableHead(256, net.strides, len(labels), 128, semantic_convs)
    fpn, input = FPN(net.channels, gap=fpn_gap), Input(resize, net.pixels)
    rcnn = legacy_rcnn(len(labels.things))
    return UPSNet(net, fpn, rcnn, head, labels, input, weights, min_stuff_area=min_stuff_area)


OPTIONS: dict[str, Option] = {
    **{key: option for key, option in RCNN_OPTIONS.items() if not key.endswith("_threshold")},
    "fpn_gap": flag("the mean of the coarsest map is added to it"),
    "semantic_width": whole("width of the semantic branch", 1, 4096),
    "semantic_convs": whole("deformable convolutions of the semantic branch", 1, 16),
    "semantic_weight": loss_weight("the semantic branch"),
    "region_weight": loss_weight("the semantic branch on the true boxes"),
    "panoptic_weight": loss_weight("the panoptic head"),
    "kept_things": share("share of the true objects that the panoptic head is shown; the others are unknown to it"),
    "loss": SEMANTIC_OPTIONS["loss"],
    "class_weights": replace(
        SEMANTIC_OPTIONS["class_weights"],
        meaning="weight of each stuff class, then of each thing class, in the loss; empty: all are equal",
    ),
    "min_stuff_area": whole("stuff of fewer pixels is dropped", 0, 2**40),
    "deformable": flag("a ResNet's last three stages have deformable convolutions"),
}

TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "fpn_channels": 16, "box_features": 16}
TINY |= {"anchor_sizes": (8, 16, 32, 64, 128), "proposals": 40, "roi_samples": 32, "detections": 20}
TINY |= {"mask_convs": 1, "mask_channels": 8, "semantic_width": 16, "semantic_convs": 1}

SMALL: dict[str, Any] = {"fpn_channels": 96, "proposals": 100, "roi_samples": 32, "box_features": 256}
SMALL |= {"mask_convs": 2, "mask_channels": 96, "semantic_width": 64}

GENERAL = Entry(
    upsnet,
    architecture="upsnet",
    produces=("panoptic", "semantic", "instances"),
    options=OPTIONS,
    needs_things=True,
    backbone="pyramid",
    adapts=("pretrained", "frozen_bn", "short", "anchor_sizes", "detections", "min_stuff_area"),
    class_rows={
        "rcnn.box_predictor.cls_score": background_and_things,
        "rcnn.box_predictor.bbox_pred": boxes_of(background_and_things),
        "rcnn.mask_head.predictor": background_and_things,
        "semantic_head.predictor": stuff_and_things,
    },
    pixel_classes=stuff_and_things,
    small=SMALL,
    tiny=TINY,
)
BACKBONES = "resnet50", "resnet101"
OF_AUTHORS = replace(
    GENERAL,
    options={
        "backbone": replace(OPTIONS["backbone"], choices=BACKBONES, further=None, meaning="a ResNet as Caffe has it"),
        "deformable": OPTIONS["deformable"],
    },
    licence="upsnet",
)
ENTRIES: dict[str, Entry] = {
    "upsnet": GENERAL,
    "upsnet_r50_coco": OF_AUTHORS.published(upsnet_r50_coco, "upsnet"),
    "upsnet_r101_dcn_coco": OF_AUTHORS.published(upsnet_r101_dcn_coco, "upsnet"),
    "upsnet_r50_cityscapes": OF_AUTHORS.published(upsnet_r50_cityscapes, "upsnet"),
    "upsnet_r101_cityscapes": OF_AUTHORS.published(upsnet_r101_cityscapes, "upsnet"),
}
