"""FCIS. Li, Qi, Dai, Ji, Wei: Fully Convolutional Instance-aware Semantic Segmentation, CVPR 2017.

A detector without layers of its own for a region: the network computes, once for the whole image, position-sensitive
score maps, two for each class and cell of a region's grid ("inside" and "outside" of the object). A region reads its
cells from them; the larger of the two scores says its class, their difference its mask. So classes and masks come from
the same scores, and a region costs next to nothing. Masks of regions that overlap vote.

COCO test-dev mask AP (paper): R101 29.2 (AP50 49.5), with online hard example mining.
Different from the paper, which reads a mask of 21 × 21 cells from maps for 7 × 7: here the grids of maps and mask are
one (`cells`). Masks are learned as the share of each cell that the object covers. `roi_op` "align" reads exact cells
where the paper rounds them; maps of stride 8 are an option (`output_stride`). Any timm backbone that can be dilated
will do. The published weights, which are for another framework, are not read. See docs/systems/fcis.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.models.contract import Entry, RateGroups, things_and_background
from pansight.models.options import (
    PYRAMID_OPTIONS,
    RCNN_OPTIONS,
    SEMANTIC_OPTIONS,
    SIZE_OPTIONS,
    Option,
    choice,
    flag,
    whole,
)
from pansight.nn.backbones.pyramid import Backbone
from pansight.nn.input import Input
from pansight.nn.rcnn.rpn import RPN, Proposals
from pansight.nn.rcnn.two_stage import CODE_WEIGHTS, Regions, draw_regions
from pansight.nn.semantic.blocks import dilated_backbone
from pansight.nn.statistics import kept_statistics
from pansight.ops.fusion.instances import Detections, detections_to_instances, merge_by_label_map
from pansight.ops.regions import boxes as box_ops
from pansight.ops.regions.losses import box_loss, class_loss, mask_loss
from pansight.ops.regions.masks import mask_targets
from pansight.ops.regions.position_sensitive import (
    POOLS,
    class_and_mask_logits,
    position_sensitive_read,
    voted_masks,
)
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import InstanceTargets, instance_targets, valid_extents
from pansight.types import Batch, LabelSpace, Prediction

MASK_SIZE = 28
"""Cells of a side of the grid that masks vote on."""

MASK_THRESHOLD = 0.4
"""A pixel belongs to an object from this probability on, as in the official code."""


class FCISOutputs(NamedTuple):
    detections: Detections
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image


class Reading(NamedTuple):
    """What the score maps say of R regions."""

    class_logits: Tensor  # float32 (R, things + 1), the background last
    mask_logits: Tensor  # float32 (R, things + 1, k, k)
    codes: Tensor  # float32 (R, 4): one box for all classes


class ScoreMaps(nn.Module):
    """A 1×1 convolution to the score maps of all classes: weight (classes, 2 k², width), inside before outside.

    The first axis is the classes, so that fine-tuning can keep those of equal name.
    """

    def __init__(self, width: int, classes: int, cells: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, 2 * cells**2, width))
        self.bias = nn.Parameter(torch.zeros(classes, 2 * cells**2))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) → (B, classes · 2 k², H, W)."""
        return F.conv2d(x, self.weight.flatten(0, 1)[..., None, None], self.bias.flatten())


class FCISHead(nn.Module):
    """Region proposals on one map, score maps on another, and what regions read from these.

    score_threshold (exclusive), nms_threshold, detections (per image): of the inference. samples: regions of an image
    to learn from; hardest: those with the largest loss (online hard example mining), else a random sample of which at
    most positive_fraction are objects. cells: k. stride: of the map that the score maps are computed from.
    """

    def __init__(
        self,
        rpn: RPN,
        in_channels: int,
        things: int,
        stride: int,
        width: int = 1024,
        cells: int = 7,
        roi_op: str = "pool",
        score_threshold: float = 0.05,
        nms_threshold: float = 0.3,
        detections: int = 100,
        samples: int = 128,
        hardest: bool = True,
        positive_fraction: float = 0.25,
    ):
        super().__init__()
        self.rpn = rpn
        self.conv = nn.Conv2d(in_channels, width, 1)
        self.score_maps = ScoreMaps(width, things + 1, cells)
        self.box_maps = nn.Conv2d(width, 4 * cells**2, 1)
        self.stride, self.cells, self.roi_op = stride, cells, roi_op
        self.score_threshold, self.nms_threshold, self.detections = score_threshold, nms_threshold, detections
        self.samples, self.hardest, self.positive_fraction = samples, hardest, positive_fraction
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.box_maps.weight, std=0.01)
        for layer in (self.conv, self.box_maps):
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def maps(self, last: Tensor) -> tuple[Tensor, Tensor]:
        """The last map of the backbone → score maps (B, (things + 1) · 2 k², H, W), box maps (B, 4 k², H, W)."""
        x = F.relu(self.conv(last))
        return self.score_maps(x), self.box_maps(x)

    def read(self, maps: tuple[Tensor, Tensor], boxes_xyxy: Tensor, image_index: Tensor) -> Reading:
        """What the maps say of regions: boxes (R, 4) in network pixels, image_index int64 (R,)."""
        region = boxes_xyxy, image_index, self.cells, self.stride, self.roi_op
        scores = position_sensitive_read(maps[0], *region)  # (R, 2 (things + 1), k, k)
        class_logits, mask_logits = class_and_mask_logits(scores.unflatten(1, (-1, 2)))
        return Reading(class_logits, mask_logits, position_sensitive_read(maps[1], *region).mean((2, 3)))

    def forward(self, features: tuple[Tensor, Tensor], extents: Tensor) -> Detections:
        """features: the maps for proposals and for scores; extents int64 (B, 2): valid (height, width) of each image.

        Regions are read twice, as proposed and with the box that the first reading gives; all of them may become
        detections, and all of them vote for the masks (section 2.3).
        """
        proposals = self.rpn.propose(self.rpn([features[0]]), extents, training=False)
        maps = self.maps(features[1])
        first = self.read(maps, proposals.boxes_xyxy, proposals.image_index)
        refined = self._refined(proposals, first, extents)
        second = self.read(maps, refined.boxes_xyxy, refined.image_index)
        regions = Proposals(*(torch.cat(pair) for pair in zip(proposals, refined, strict=True)))
        reading = Reading(*(torch.cat(pair) for pair in zip(first, second, strict=True)))
        return self._detections(regions, reading, extents)

    def _refined(self, proposals: Proposals, reading: Reading, extents: Tensor) -> Proposals:
        boxes = self._boxes(proposals, reading, extents)
        usable = box_ops.usable_boxes(boxes, torch.zeros_like(boxes[:, 0]), 0.0).nonzero().flatten()
        return Proposals(boxes[usable], proposals.image_index[usable])

    def _boxes(self, regions: Proposals, reading: Reading, extents: Tensor) -> Tensor:
        """The boxes that are read in the regions, float32 (R, 4), inside of their images."""
        boxes = box_ops.decode_boxes(reading.codes, regions.boxes_xyxy, CODE_WEIGHTS)
        return box_ops.clip_boxes(boxes, extents[regions.image_index])

    def _detections(self, regions: Proposals, reading: Reading, extents: Tensor) -> Detections:
        scores = reading.class_logits.softmax(dim=1)[:, :-1]  # (R, things)
        region, thing = (scores > self.score_threshold).nonzero(as_tuple=True)  # NaN is above nothing
        score, image_index = scores[region, thing], regions.image_index[region]
        boxes = self._boxes(regions, reading, extents)[region]
        usable = box_ops.usable_boxes(boxes, score, 0.0).nonzero().flatten()
        boxes, score, thing, image_index = boxes[usable], score[usable], thing[usable], image_index[usable]
        keep = box_ops.batched_nms(boxes, score, image_index * scores.shape[1] + thing, self.nms_threshold)
        keep = keep[box_ops.first_of_each(image_index[keep], self.detections)]
        boxes, thing, image_index = boxes[keep], thing[keep], image_index[keep]
        masks = reading.mask_logits[:, :-1].sigmoid()
        voted = voted_masks(boxes, image_index, thing, *regions, scores, masks, MASK_SIZE)
        return Detections(boxes, thing, score[keep], voted.logit(1e-6), image_index)

    @torch.no_grad()
    def counts(
        self, features: tuple[Tensor, Tensor], extents: Tensor, targets: Sequence[InstanceTargets]
    ) -> dict[str, float]:
        """What `loss` divides by for these images: "anchors", "regions" and "objects" that it learns from.

        Draws what `loss` draws, in the same order.
        """
        outputs = self.rpn([features[0]])
        anchors = self.rpn.count(self.rpn.sample(outputs, targets), len(targets))
        proposals = self.rpn.propose(outputs, extents, training=True)
        regions = self.sample_regions(proposals, targets, self.maps(features[1]))
        return {"anchors": anchors, "regions": float(len(regions.things)), "objects": float(len(regions.objects))}

    def loss(
        self,
        features: tuple[Tensor, Tensor],
        extents: Tensor,
        targets: Sequence[InstanceTargets],
        totals: Mapping[str, float] | None = None,
    ) -> dict[str, Tensor]:
        """rpn_objectness, rpn_box, box_class, box_regression and mask: scalars of weight 1.

        totals: the sum of `counts` over the parts of a step; None: these images are the whole of it.
        """
        outputs = self.rpn([features[0]])
        losses = self.rpn.loss(outputs, targets, None if totals is None else totals["anchors"])
        maps = self.maps(features[1])
        regions = self.sample_regions(self.rpn.propose(outputs, extents, training=True), targets, maps)
        if len(regions.things) == 0:
            nothing = maps[0][:0].sum() + maps[1][:0].sum()  # a zero by which every layer has gradients
            return losses | dict.fromkeys(("box_class", "box_regression", "mask"), nothing)
        reading = self.read(maps, regions.boxes_xyxy, regions.image_index)
        count = max(1, len(regions.things) if totals is None else totals["regions"])
        return losses | {
            "box_class": class_loss(reading.class_logits, self._classes(regions), count),
            "box_regression": box_loss(reading.codes[regions.objects], regions.codes, beta=1.0) / count,
            "mask": mask_loss(
                self._true_masks(reading, regions),
                self._mask_targets(regions, targets),
                None if totals is None else totals["objects"],
            ),
        }

    def _classes(self, regions: Regions) -> Tensor:
        """int64 (R,): the background is the last class."""
        return torch.where(regions.things < 0, len(self.score_maps.weight) - 1, regions.things)

    def _true_masks(self, reading: Reading, regions: Regions) -> Tensor:
        """The mask logits of each object's class, (P, k, k)."""
        return reading.mask_logits[regions.objects, regions.things[regions.objects]]

    def _mask_targets(self, regions: Regions, targets: Sequence[InstanceTargets]) -> Tensor:
        """The share of each cell that the object covers, float32 (P, k, k)."""
        boxes, image_index = regions.boxes_xyxy[regions.objects], regions.image_index[regions.objects]
        return torch.cat(
            [
                mask_targets(target, boxes[image_index == n], regions.match[image_index == n], self.cells, True, None)
                for n, target in enumerate(targets)
            ]
        )

    @torch.no_grad()
    def sample_regions(
        self, proposals: Proposals, targets: Sequence[InstanceTargets], maps: tuple[Tensor, Tensor]
    ) -> Regions:
        """The regions that this step learns from, at most `samples` of each image."""
        if not self.hardest:
            return draw_regions(proposals, targets, self.samples, self.positive_fraction, 0.5)
        regions = draw_regions(proposals, targets, len(proposals.boxes_xyxy) + 2**20, 1.0, 0.5)  # all of them
        reading = self.read(maps, regions.boxes_xyxy, regions.image_index)
        losses = F.cross_entropy(reading.class_logits, self._classes(regions), reduction="none")  # (R,)
        of_boxes = F.smooth_l1_loss(reading.codes[regions.objects], regions.codes, reduction="none").sum(1)
        of_masks = F.binary_cross_entropy_with_logits(
            self._true_masks(reading, regions), self._mask_targets(regions, targets), reduction="none"
        ).mean((1, 2))
        losses = losses.index_add(0, regions.objects, of_boxes + of_masks)
        return hardest_regions(regions, losses, self.samples)


def hardest_regions(regions: Regions, losses: Tensor, count: int) -> Regions:
    """Of each image the `count` regions with the largest losses, float (R,), in the order in which they were given.

    Shrivastava, Gupta, Girshick: Training Region-based Object Detectors with Online Hard Example Mining, CVPR 2016.
    """
    order = losses.argsort(descending=True, stable=True)
    kept = order[box_ops.first_of_each(regions.image_index[order], count)].sort().values
    place = torch.full_like(regions.image_index, -1)
    place[kept] = torch.arange(len(kept), device=kept.device)
    among = place[regions.objects] >= 0
    return Regions(
        regions.boxes_xyxy[kept],
        regions.image_index[kept],
        regions.things[kept],
        place[regions.objects][among],
        regions.codes[among],
        regions.match[among],
    )


class FCIS(nn.Module):
    """A dilated backbone and the head. score_threshold, max_overlap: of the merge into a panoptic map only."""

    def __init__(
        self,
        backbone: Backbone,
        head: FCISHead,
        labels: LabelSpace,
        input: Input,
        score_threshold: float = 0.5,
        max_overlap: float = 0.5,
    ):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.labels, self.input = labels, input
        self.score_threshold, self.max_overlap = score_threshold, max_overlap

    def _features(self, images: Tensor, valid: Tensor | None) -> tuple[tuple[Tensor, Tensor], Tensor]:
        *_, fourth, last = self.backbone(self.input(images, valid))
        return (fourth, last), valid_extents(images, valid)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> FCISOutputs:
        """images uint8 (B, 3, H, W), sides multiples of 32; valid bool (B, H, W), False on padding."""
        features, extents = self._features(images, valid)
        return FCISOutputs(self.head(features, extents), extents)

    @torch.no_grad()
    def counts(self, batch: Batch) -> dict[str, float]:
        """What `loss` divides by; the network runs as far as the regions that it would learn from."""
        with kept_statistics(self):
            features, extents = self._features(batch.images, batch.valid)
            return self.head.counts(features, extents, instance_targets(batch, self.labels))

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """L = L_rpn + L_cls + L_box + L_mask.

        totals: the sum of `counts` over the parts of the step; None: `batch` is the whole of it.
        """
        features, extents = self._features(batch.images, batch.valid)
        return self.head.loss(features, extents, instance_targets(batch, self.labels), totals)

    def decode(
        self,
        outputs: FCISOutputs,
        sizes: Sequence[tuple[int, int]],
        score_threshold: float | None = None,
        max_overlap: float | None = None,
    ) -> list[Prediction]:
        """Predictions at the original `sizes` (H, W). Thresholds left out are the model's own."""
        score_threshold = self.score_threshold if score_threshold is None else score_threshold
        max_overlap = self.max_overlap if max_overlap is None else max_overlap
        predictions: list[Prediction] = []
        for found in detections_to_instances(outputs.detections, outputs.extents, sizes, self.labels, MASK_THRESHOLD):
            assert found.masks is not None  # the head always gives masks
            panoptic = merge_by_label_map(
                found.masks, found.scores, found.labels, None, self.labels, score_threshold, max_overlap
            )
            predictions.append(Prediction(panoptic, None, found))
        return predictions

    def set_progress(self, share: float) -> None:
        """Nothing changes as training progresses."""


def fcis(
    labels: LabelSpace,
    backbone: str = "resnet101",
    pretrained: str = "none",
    short: int = 600,
    long: int = 1000,
    output_stride: int = 16,
    width: int = 1024,
    cells: int = 7,
    roi_op: str = "pool",
    anchor_sizes: Sequence[float] = (64, 128, 256, 512),
    proposals: int = 300,
    roi_samples: int = 128,
    hardest: bool = True,
    detections: int = 100,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.3,
    frozen_bn: bool = True,
    freeze_stages: int = 0,
) -> FCIS:
    """FCIS on any timm backbone that can be dilated. short, long: the resizing rule (short 0: keep the size).

    detections: at most as many per image, of a score > score_threshold, of each class no two with an IoU above
    nms_threshold. proposals: kept per image by the first stage. roi_samples: regions per image to learn from.
    """
    if not len(anchor_sizes):
        raise PansightError(where="anchor_sizes of model fcis", expected="at least one size", found="none")
    net = dilated_backbone(backbone, pretrained, output_stride, frozen_bn, freeze_stages)
    rpn = RPN(
        net.channels[-2],
        [anchor_sizes],
        strides=(net.strides[-2],),
        pre_nms=(6000, 6000),
        post_nms=(proposals, proposals),
        channels=min(512, net.channels[-2]),
    )
    head = FCISHead(
        rpn,
        net.channels[-1],
        len(labels.things),
        net.strides[-1],
        width,
        cells,
        roi_op,
        score_threshold,
        nms_threshold,
        detections,
        roi_samples,
        hardest,
    )
    return FCIS(net, head, labels, Input(ResizeRule(short, long), net.pixels))


OPTIONS: dict[str, Option] = {
    **SIZE_OPTIONS,
    **PYRAMID_OPTIONS,
    **{key: RCNN_OPTIONS[key] for key in ("proposals", "roi_samples", "detections")},
    **{key: RCNN_OPTIONS[key] for key in ("score_threshold", "nms_threshold")},
    "output_stride": SEMANTIC_OPTIONS["output_stride"],
    "anchor_sizes": Option(
        "sides of the anchors at each place of the one map, in pixels", "numbers", 1, 2**14, longest=32, increasing=True
    ),
    "width": whole("width of the layer before the score maps", 1, 8192),
    "cells": whole("cells of each side of the grid that a region reads", 1, 64),
    "roi_op": choice("how the cells of a region are read: rounded as in the paper, or exact", *POOLS),
    "hardest": flag("learn from the regions with the largest loss instead of a random sample"),
}

TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "width": 16, "cells": 3}
TINY |= {"anchor_sizes": (16, 32, 64), "proposals": 40, "roi_samples": 32, "detections": 20}

SMALL: dict[str, Any] = {"width": 256, "roi_op": "align", "roi_samples": 64}

ENTRIES: dict[str, Entry] = {
    "fcis": Entry(
        fcis,
        architecture="fcis",
        produces=("panoptic", "instances"),
        options=OPTIONS,
        needs_things=True,
        backbone="pyramid",
        adapts=("pretrained", "frozen_bn", "short", "anchor_sizes", "detections"),
        rates=RateGroups(embeddings=(*RateGroups().embeddings, "score_maps.bias")),
        class_rows={"head.score_maps": things_and_background},
        small=SMALL,
        tiny=TINY,
    )
}
