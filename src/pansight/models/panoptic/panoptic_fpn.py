"""Panoptic FPN. Kirillov, Girshick, He, Dollár: Panoptic Feature Pyramid Networks, CVPR 2019.

Mask R-CNN with a second, light branch on the same pyramid that labels every pixel; both are merged by a fixed rule.
The semantic branch has one class for all things together (0) and one for each stuff class (1 …, in label space order).

COCO val2017 PQ (detectron2): R50 1x 39.4, R50 3x 41.5, R101 3x 43.0. Cityscapes val (paper, R50): 57.7.
`panoptic_fpn_r50_d2` and `panoptic_fpn_r101_d2` differ from detectron2 in nothing; the general `panoptic_fpn` takes any
timm backbone, with the stride in the 3×3 convolution and RGB input. Two variants that the paper compares with are
options: `grouped`, in which the branches share no channel of the pyramid, and `turns`, in which they learn by turns.
See docs/systems/panoptic_fpn.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.models.contract import Entry, background_and_stuff, boxes_of, things, things_and_background
from pansight.models.options import (
    RCNN_OPTIONS,
    RCNN_OPTIONS_D2,
    SEMANTIC_OPTIONS,
    Option,
    flag,
    loss_weight,
    whole,
)
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.fpn import FPN
from pansight.nn.input import CAFFE_BGR, Input
from pansight.nn.rcnn.roi_heads import zero_of
from pansight.nn.rcnn.two_stage import RCNN, detectron2_rcnn
from pansight.nn.semantic.criterion import Criterion
from pansight.nn.semantic.fpn_head import SemanticFPNHead
from pansight.nn.statistics import kept_statistics
from pansight.ops.fusion.instances import Detections, detections_to_instances, merge_by_label_map
from pansight.ops.fusion.views import frames_of, mean_map
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import instance_targets, semantic_targets, valid_extents
from pansight.types import IGNORE, Batch, LabelSpace, Prediction


class PanopticFPNOutputs(NamedTuple):
    detections: Detections
    semantic_logits: Tensor  # (B, 1 + stuff, H/4, W/4); class 0 = any thing
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image


class PanopticFPN(nn.Module):
    """A shared pyramid with an instance branch (`rcnn`) and a semantic branch (`semantic_head`).

    criterion: what the semantic branch is trained by; None: cross-entropy, as in the paper.
    semantic_weight: λ_s of the paper's eq. 1 (0.5 on COCO); λ_i is 1.
    score_threshold, max_overlap, min_stuff_area: defaults of the merge (docs/systems/merging.md).
    grouped: the instance branch reads the first half of the channels of the pyramid, the semantic one the second.
    turns: the run is cut into so many parts of equal length, in which the instance branch and the semantic branch learn
    by turns; 0: both learn in every step.
    """

    def __init__(
        self,
        backbone: Backbone,
        fpn: FPN,
        rcnn: RCNN,
        semantic_head: SemanticFPNHead,
        labels: LabelSpace,
        input: Input,
        semantic_weight: float = 0.5,
        score_threshold: float = 0.5,
        max_overlap: float = 0.5,
        min_stuff_area: int = 4096,
        criterion: Criterion | None = None,
        grouped: bool = False,
        turns: int = 0,
    ):
        super().__init__()
        self.backbone = backbone
        self.fpn = fpn
        self.rcnn = rcnn
        self.semantic_head = semantic_head
        self.labels = labels
        self.input = input
        self.criterion = Criterion() if criterion is None else criterion
        self.semantic_weight = semantic_weight
        self.score_threshold = score_threshold
        self.max_overlap = max_overlap
        self.min_stuff_area = min_stuff_area
        self.grouped = grouped
        self.turns = turns
        self.share = 0.0  # of the run that is over
        stuff_class = {c.id: index + 1 for index, c in enumerate(labels.stuff)}
        self.class_of_category = [stuff_class.get(c.id, 0) for c in labels]

    def _features(self, images: Tensor, valid: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """The levels of the pyramid for the instance branch, P2 … P6, and for the semantic one, P2 … P5."""
        levels = self.fpn(self.backbone(self.input(images, valid)))
        count = len(self.semantic_head.levels)
        if not self.grouped:
            return levels, levels[:count]
        halves = [level.chunk(2, dim=1) for level in levels]
        return [half[0] for half in halves], [half[1] for half in halves[:count]]

    def forward(self, images: Tensor, valid: Tensor | None = None) -> PanopticFPNOutputs:
        """images uint8 (B, 3, H, W), H and W multiples of 32; valid bool (B, H, W), False on padding."""
        of_instances, of_semantic = self._features(images, valid)
        extents = valid_extents(images, valid)
        return PanopticFPNOutputs(self.rcnn(of_instances, extents), self.semantic_head(of_semantic), extents)

    @torch.no_grad()
    def counts(self, batch: Batch) -> dict[str, float | Tensor]:
        """What `loss` divides by, for these images; the network runs as far as its proposals, and learns nothing."""
        counts = self.criterion.counts(batch, semantic_targets(batch, self.class_of_category))
        with kept_statistics(self):
            features, _ = self._features(batch.images, batch.valid)
            extents = valid_extents(batch.images, batch.valid)
            return {**counts, **self.rcnn.counts(features, extents, instance_targets(batch, self.labels))}

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """L = L_rpn + L_cls + L_box + L_mask + λ_s · L_s; L_s is the mean cross-entropy unless `loss` says otherwise.

        totals: the sum of `counts` over the parts of the step; None: `batch` is the whole of it.
        With `turns`, a step of training has the terms of one branch, and `idle`, a zero by which the parameters of the
        other one have gradients too. Where no gradients are wanted, both branches are measured.
        """
        of_instances, of_semantic = self._features(batch.images, batch.valid)
        resting = self._resting() if torch.is_grad_enabled() else ""
        losses: dict[str, Tensor] = {}
        if resting != "instances":
            extents, targets = valid_extents(batch.images, batch.valid), instance_targets(batch, self.labels)
            losses |= self.rcnn.loss(of_instances, extents, targets, totals)
        if resting != "semantic":
            losses["semantic"] = self.semantic_weight * self._semantic_loss(of_semantic, batch, totals)
        if resting:
            losses["idle"] = zero_of([self.rcnn if resting == "instances" else self.semantic_head])
        return losses

    def _semantic_loss(self, features: list[Tensor], batch: Batch, totals: Mapping[str, float] | None) -> Tensor:
        target = semantic_targets(batch, self.class_of_category)  # (B, H, W)
        logits = upsample(self.semantic_head(features).float(), target.shape[1:])
        return self.criterion(logits, target, totals, batch)

    def _resting(self) -> str:
        """The branch that does not learn now: "semantic" in the first part of the run, "instances" in the second, and
        so on; "" for none. A share that is a whole number of parts belongs to the part that begins there.
        """
        if not self.turns:
            return ""
        return ("semantic", "instances")[math.floor(self.share * self.turns + 1e-6) % 2]

    def decode(
        self,
        outputs: PanopticFPNOutputs,
        sizes: Sequence[tuple[int, int]],
        score_threshold: float | None = None,
        max_overlap: float | None = None,
        min_stuff_area: int | None = None,
    ) -> list[Prediction]:
        """Predictions at the original `sizes` (H, W). Thresholds left out are the model's own."""
        instances = detections_to_instances(outputs.detections, outputs.extents, sizes, self.labels)
        predictions: list[Prediction] = []
        extents: list[list[int]] = outputs.extents.tolist()
        for logits, extent, size, found in zip(outputs.semantic_logits, extents, sizes, instances, strict=True):
            assert found.masks is not None  # the builders always give the instance branch a mask head
            panoptic = merge_by_label_map(
                found.masks,
                found.scores,
                found.labels,
                self._semantic_map(logits, extent, size),
                self.labels,
                self.score_threshold if score_threshold is None else score_threshold,
                self.max_overlap if max_overlap is None else max_overlap,
                self.min_stuff_area if min_stuff_area is None else min_stuff_area,
            )
            predictions.append(Prediction(panoptic, None, found))
        return predictions

    def _semantic_map(self, logits: Tensor, extent: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Logits (C, h, w) of one image → int64 (H, W) stuff categories, IGNORE where "things" won."""
        logits = upsample(logits.float()[None], [s * self.semantic_head.stride for s in logits.shape[1:]])
        logits = upsample(logits[:, :, : extent[0], : extent[1]], size)[0]  # (C, H, W)
        classes = logits.max(0).indices  # argmax(0) is six times slower on the CPU
        category_of_class = torch.tensor([IGNORE] + [c.id for c in self.labels.stuff], device=classes.device)
        return category_of_class[classes]

    def join_views(self, views: Sequence[PanopticFPNOutputs], mirrored: Sequence[bool]) -> PanopticFPNOutputs:
        """The outputs of several views of the same photos as one, as of the first.

        Semantic logits are averaged; the detections of all views compete.
        """
        logits = [view.semantic_logits for view in views]
        frames = frames_of([view.extents for view in views], mirrored, logits, self.semantic_head.stride)
        return PanopticFPNOutputs(
            self.rcnn.join_views([view.detections for view in views], frames),
            mean_map(logits, frames),
            views[0].extents,
        )

    def set_progress(self, share: float) -> None:
        """Whose turn it is, where the branches learn by turns, follows from the share of the run that is over."""
        self.share = share


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear (B, C, h, w) → (B, C, *size), corners not aligned; x itself where the size is right already."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def panoptic_fpn(
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
    box_features: int = 1024,
    mask_convs: int = 4,
    mask_channels: int = 256,
    roi_op: str = "align",
    semantic_width: int = 128,
    semantic_weight: float = 0.5,
    loss: str = "cross_entropy",
    class_weights: Sequence[float] = (),
    min_stuff_area: int = 4096,
    grouped: bool = False,
    turns: int = 0,
    frozen_bn: bool = True,
    freeze_stages: int = 0,
) -> PanopticFPN:
    """Panoptic FPN on any timm backbone. short, long: the resizing rule in pixels (short 0: keep the size).

    grouped, turns: the variants that the paper compares with, see `PanopticFPN`.
    """
    if grouped and fpn_channels % 2:
        expected = "an even number of channels for grouped"
        raise PansightError(where="fpn_channels of model panoptic_fpn", expected=expected, found=fpn_channels)
    of_branch = fpn_channels // 2 if grouped else fpn_channels
    net = timm_backbone(backbone, pretrained, frozen_bn=frozen_bn, freeze_stages=freeze_stages)
    rcnn = detectron2_rcnn(
        len(labels.things),
        of_branch,
        anchor_sizes=anchor_sizes,
        roi_op=roi_op,
        sampling_ratio=2,
        box_features=box_features,
        mask_convs=mask_convs,
        mask_channels=mask_channels,
        roi_samples=roi_samples,
        proposals=proposals,
        detections=detections,
    )
    groups = max(1, math.gcd(64, semantic_width) // 2)  # 32; two channels in each, since P5 may be a single cell
    semantic = SemanticFPNHead(of_branch, net.strides, 1 + len(labels.stuff), semantic_width, groups)
    fpn = FPN(net.channels, fpn_channels, groups=2 if grouped else 1)
    input = Input(ResizeRule(short, long), net.pixels)
    criterion = Criterion(loss, class_weights, classes=1 + len(labels.stuff))
    return PanopticFPN(
        net,
        fpn,
        rcnn,
        semantic,
        labels,
        input,
        semantic_weight,
        min_stuff_area=min_stuff_area,
        criterion=criterion,
        grouped=grouped,
        turns=turns,
    )


def panoptic_fpn_r50_d2(labels: LabelSpace, backbone: str = "resnet50") -> PanopticFPN:
    """detectron2's panoptic_fpn_R_50: 45,973,990 parameters besides frozen BatchNorm, for COCO's 80 + 53 classes."""
    net = timm_backbone(backbone, frozen_bn=True, freeze_stages=2, stride_in_1x1=True, pixels=CAFFE_BGR)
    semantic = SemanticFPNHead(256, net.strides, 1 + len(labels.stuff))
    rcnn = detectron2_rcnn(len(labels.things))
    return PanopticFPN(net, FPN(net.channels), rcnn, semantic, labels, Input(ResizeRule(800, 1333), net.pixels))


def panoptic_fpn_r101_d2(labels: LabelSpace) -> PanopticFPN:
    """detectron2's panoptic_fpn_R_101: 64,913,894 parameters besides the frozen BatchNorm."""
    return panoptic_fpn_r50_d2(labels, "resnet101")


OPTIONS: dict[str, Option] = {
    **RCNN_OPTIONS,
    "semantic_width": whole("width of the semantic branch", 1, 4096),
    "semantic_weight": loss_weight("the semantic branch"),
    "loss": SEMANTIC_OPTIONS["loss"],
    "class_weights": replace(
        SEMANTIC_OPTIONS["class_weights"],
        meaning="weight of all things together, then of each stuff class, in the loss; empty: all are equal",
    ),
    "min_stuff_area": whole("stuff of fewer pixels is dropped", 0, 2**40),
    "grouped": flag("each branch has half of the channels of the pyramid for itself"),
    "turns": whole("parts of the run in which the branches learn by turns; 0: both in every step", 0, 10_000_000),
}

TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "fpn_channels": 16, "box_features": 16}
TINY |= {"anchor_sizes": (8, 16, 32, 64, 128), "proposals": 40, "roi_samples": 32, "detections": 20}
TINY |= {"mask_convs": 1, "mask_channels": 8, "semantic_width": 16}

SMALL: dict[str, Any] = {"fpn_channels": 96, "proposals": 100, "roi_samples": 32, "box_features": 256}
SMALL |= {"mask_convs": 2, "mask_channels": 96, "semantic_width": 64}

GENERAL = Entry(
    panoptic_fpn,
    architecture="panoptic_fpn",
    produces=("panoptic", "instances"),
    options=OPTIONS,
    needs_things=True,
    backbone="pyramid",
    adapts=("pretrained", "frozen_bn", "short", "anchor_sizes", "detections", "min_stuff_area"),
    class_rows={
        "rcnn.box_predictor.cls_score": things_and_background,
        "rcnn.box_predictor.bbox_pred": boxes_of(things),
        "rcnn.mask_head.predictor": things,
        "semantic_head.predictor": background_and_stuff,
    },
    pixel_classes=background_and_stuff,
    small=SMALL,
    tiny=TINY,
)
OF_DETECTRON2 = replace(GENERAL, options=RCNN_OPTIONS_D2, licence="cc-by-sa-3.0")
ENTRIES: dict[str, Entry] = {
    "panoptic_fpn": GENERAL,
    "panoptic_fpn_r50_d2": OF_DETECTRON2.published(panoptic_fpn_r50_d2, "panoptic_fpn"),
    "panoptic_fpn_r101_d2": OF_DETECTRON2.published(panoptic_fpn_r101_d2, "panoptic_fpn"),
}
