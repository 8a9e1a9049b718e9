"""Faster and Mask R-CNN on a pyramid: the two stages together, their losses, and detections at image size.

Ren et al., Faster R-CNN, NeurIPS 2015; He et al., Mask R-CNN, ICCV 2017; Lin et al., FPN, CVPR 2017.
The two conventions that published weights follow, torchvision's and detectron2's, differ in many small ways
(docs/systems/faster_rcnn.md lists them); every one is a constructor argument, and `torchvision_rcnn` and
`detectron2_rcnn` set them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pansight.errors import choice_error
from pansight.nn.rcnn.roi_heads import (
    MASK_CHUNK,
    ROI_OPS,
    BoxPredictor,
    ConvLinear,
    MaskHead,
    RoIPooler,
    TwoLinear,
    zero_of,
)
from pansight.nn.rcnn.rpn import RPN, Proposals
from pansight.ops.fusion.instances import Detections
from pansight.ops.fusion.views import Frame, pooled
from pansight.ops.regions import boxes as box_ops
from pansight.ops.regions.losses import box_loss, class_loss, mask_loss
from pansight.ops.regions.masks import mask_targets
from pansight.ops.regions.roi import Pyramid, make_pyramid
from pansight.ops.targets import InstanceTargets

CODE_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class Regions(NamedTuple):
    """The R sampled proposals that the second stage is trained on, and the P objects among them, image by image."""

    boxes_xyxy: Tensor  # float32 (R, 4)
    image_index: Tensor  # int64 (R,)
    things: Tensor  # int64 (R,): index among labels.things, −1 = background
    objects: Tensor  # int64 (P,): rows of the above that are objects
    codes: Tensor  # float32 (P, 4): the target codes of their boxes
    match: Tensor  # int64 (P,): the row of their truth within their image's InstanceTargets


@torch.no_grad()
def draw_regions(
    proposals: Proposals,
    targets: Sequence[InstanceTargets],
    samples: int,
    positive_fraction: float,
    iou_threshold: float,
) -> Regions:
    """Proposals and the true boxes themselves, matched and sampled: at most `samples` of each image, of which at most
    that fraction are objects, by torch's global generator. An object overlaps a true box by an IoU ≥ iou_threshold.
    """
    columns: list[Regions] = []
    count = 0
    for image, target in enumerate(targets):
        boxes = torch.cat((proposals.boxes_xyxy[proposals.image_index == image], target.boxes_xyxy))
        iou = box_ops.box_iou_matrix(target.boxes_xyxy, boxes)
        match = box_ops.match_boxes(iou, iou_threshold, iou_threshold, low_quality=False)
        positive, negative = box_ops.sample_matches(match, samples, positive_fraction)
        chosen, truth = torch.cat((positive, negative)), match[positive]
        columns.append(
            Regions(
                boxes[chosen],
                torch.full_like(chosen, image),
                torch.cat((target.things[truth], torch.full_like(negative, -1))),
                torch.arange(len(positive), device=chosen.device) + count,
                box_ops.encode_boxes(target.boxes_xyxy[truth], boxes[positive], CODE_WEIGHTS),
                truth,
            )
        )
        count += len(chosen)
    return Regions(*(torch.cat(column) for column in zip(*columns, strict=True)))


class RCNN(nn.Module):
    """Region proposals, then a class, a box and (where there is a mask head) a mask for each.

    background_first: class 0 is the background (torchvision), which then has rows of its own in the box and mask
    predictors too; else it is the last class (detectron2), without.
    score_threshold (exclusive), nms_threshold, detections (per image), min_size (pixels): of the inference.
    samples, positive_fraction, iou_threshold: of the regions learnt from. box_beta: smooth-L1, 0 = L1.
    mask_threshold: None trains on soft masks (torchvision), 0.5 on binary ones (detectron2).
    rpn: None where regions are proposed from outside (Fast R-CNN), which then calls `detect`, `counts_of_regions` and
    `loss_of_regions` by itself.
    mask_head: a `MaskHead`, or a module that is called as one.
    """

    def __init__(
        self,
        rpn: RPN | None,
        box_pooler: RoIPooler,
        box_head: TwoLinear | ConvLinear,
        box_predictor: BoxPredictor,
        mask_pooler: RoIPooler | None = None,
        mask_head: nn.Module | None = None,
        strides: Sequence[int] = (4, 8, 16, 32),
        background_first: bool = False,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections: int = 100,
        min_size: float = 0.0,
        samples: int = 512,
        positive_fraction: float = 0.25,
        iou_threshold: float = 0.5,
        box_beta: float = 0.0,
        mask_threshold: float | None = 0.5,
    ):
        super().__init__()
        if rpn is not None:
            self.rpn = rpn
        self.limits_shrinking = rpn is not None and rpn.limits_shrinking
        self.box_pooler, self.box_head, self.box_predictor = box_pooler, box_head, box_predictor
        self.mask_pooler, self.mask_head = mask_pooler, mask_head
        self.strides = tuple(strides)
        self.background_first = background_first
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.detections, self.min_size = detections, min_size
        self.samples, self.positive_fraction, self.iou_threshold = samples, positive_fraction, iou_threshold
        self.box_beta, self.mask_threshold = box_beta, mask_threshold

    def forward(self, features: Sequence[Tensor], extents: Tensor) -> Detections:
        """features P2 … P6 [(B, C, H_l, W_l)], extents int64 (B, 2): valid (height, width) of each image."""
        return self.detect(features, self._proposed(features, extents), extents)

    def detect(self, features: Sequence[Tensor], proposals: Proposals, extents: Tensor) -> Detections:
        """The second stage alone, for these proposals."""
        pyramid, candidates = self._candidates(features, proposals, extents)
        found = _rows(candidates, self._kept(candidates, self._by_class(candidates)))
        return found._replace(mask_logits=self._masks(pyramid, found))

    def both_suppressions(self, features: Sequence[Tensor], extents: Tensor) -> tuple[Detections, Detections]:
        """(what `forward` finds, what is left where boxes suppress those of all other classes too); arguments as there.

        The mask of an object that is in both is computed once.
        """
        pyramid, candidates = self._candidates(features, self._proposed(features, extents), extents)
        kept = [self._kept(candidates, group) for group in (self._by_class(candidates), candidates.image_index)]
        is_in_one = torch.zeros_like(candidates.labels, dtype=torch.bool)
        is_in_one[torch.cat(kept)] = True
        masks = self._masks(pyramid, _rows(candidates, is_in_one.nonzero().flatten()))
        place = is_in_one.cumsum(0) - 1
        within, among = (_rows(candidates, keep)._replace(mask_logits=masks[place[keep]]) for keep in kept)
        return within, among

    def join_views(
        self, found: Sequence[Detections], frames: Sequence[Frame], among_classes: bool = False
    ) -> Detections:
        """What several views of the same photos found, as one: boxes of all of them suppress each other.

        among_classes: boxes suppress those of other classes, too.
        """
        candidates = pooled(found, frames)
        groups = candidates.image_index if among_classes else self._by_class(candidates)
        return _rows(candidates, self._kept(candidates, groups))

    def masks_in(self, features: Sequence[Tensor], boxes_xyxy: Tensor, image_index: Tensor, things: Tensor) -> Tensor:
        """Mask logits float32 (N, M, M) of the given things in given boxes, with gradients; features as in `forward`.

        boxes float32 (N, 4) in network pixels, image_index int64 (N,), things int64 (N,): index among labels.things.
        """
        assert self.mask_head is not None
        assert self.mask_pooler is not None
        pyramid = make_pyramid(features[: len(self.strides)], self.strides)
        classes = things + int(self.background_first)
        return self.mask_head(self.mask_pooler(pyramid, boxes_xyxy, image_index), classes)

    def _proposed(self, features: Sequence[Tensor], extents: Tensor) -> Proposals:
        return self.rpn.propose(self.rpn(features), extents, training=False)

    def _candidates(
        self, features: Sequence[Tensor], proposals: Proposals, extents: Tensor
    ) -> tuple[Pyramid, Detections]:
        """All pairs of a region and a class above the threshold, without masks, before any is suppressed."""
        pyramid = make_pyramid(features[: len(self.strides)], self.strides)
        logits, codes = self._classify(pyramid, proposals.boxes_xyxy, proposals.image_index)
        scores = logits.float().softmax(dim=1)
        scores = scores[:, 1:] if self.background_first else scores[:, :-1]  # (P, K) things
        # from here on only (region, class) pairs above the threshold exist; NaN is above nothing
        region, thing = (scores > self.score_threshold).nonzero(as_tuple=True)
        score, image_index = scores[region, thing], proposals.image_index[region]
        code = codes[region, thing + 1 if self.background_first else thing]
        boxes = box_ops.decode_boxes(code, proposals.boxes_xyxy[region], CODE_WEIGHTS, self.limits_shrinking)
        boxes = box_ops.clip_boxes(boxes, extents[image_index])
        usable = box_ops.usable_boxes(boxes, score, self.min_size).nonzero().flatten()
        no_masks = boxes.new_zeros((boxes.shape[0], 0, 0))
        return pyramid, _rows(Detections(boxes, thing, score, no_masks, image_index), usable)

    def _by_class(self, candidates: Detections) -> Tensor:
        """int64 (N,): one number for each class of each image."""
        return candidates.image_index * (self.box_predictor.cls_score.out_features - 1) + candidates.labels

    def _kept(self, candidates: Detections, groups: Tensor) -> Tensor:
        """int64 (D,): rows that no better one of their group suppresses, the best of each image, grouped by image."""
        keep = box_ops.batched_nms(candidates.boxes_xyxy, candidates.scores, groups, self.nms_threshold)
        return keep[box_ops.first_of_each(candidates.image_index[keep], self.detections)]

    def _classify(self, pyramid: Pyramid, boxes_xyxy: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        return self.box_predictor(self.box_head(self.box_pooler(pyramid, boxes_xyxy, image_index)))

    def _masks(self, pyramid: Pyramid, found: Detections) -> Tensor:
        if self.mask_head is None or self.mask_pooler is None:
            return found.mask_logits
        classes = found.labels + int(self.background_first)
        if torch.compiler.is_exporting() or torch.is_grad_enabled():  # an exported graph has no loops of unknown length
            return self.mask_head(self.mask_pooler(pyramid, found.boxes_xyxy, found.image_index), classes)
        parts = [
            self.mask_head(self.mask_pooler(pyramid, boxes, image_index), part)
            for boxes, image_index, part in zip(
                found.boxes_xyxy.split(MASK_CHUNK), found.image_index.split(MASK_CHUNK), classes.split(MASK_CHUNK)
            )
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def counts(
        self, features: Sequence[Tensor], extents: Tensor, targets: Sequence[InstanceTargets]
    ) -> dict[str, float]:
        """What `loss` divides by for these images: "anchors", "regions" and "objects" that it learns from.

        Draws what `loss` draws, in the same order, so that both see the same proposals after the same seed, even where
        the layers before them draw too (stochastic depth).
        """
        outputs = self.rpn(features)
        anchors = self.rpn.count(self.rpn.sample(outputs, targets), len(targets))
        proposals = self.rpn.propose(outputs, extents, training=True)
        return {"anchors": anchors, **self.counts_of_regions(proposals, targets)}

    def counts_of_regions(self, proposals: Proposals, targets: Sequence[InstanceTargets]) -> dict[str, float]:
        """What `loss_of_regions` divides by: "regions" and "objects". Draws what that draws."""
        regions = self.sample_regions(proposals, targets)
        return {"regions": float(len(regions.things)), "objects": float(len(regions.objects))}

    def loss(
        self,
        features: Sequence[Tensor],
        extents: Tensor,
        targets: Sequence[InstanceTargets],
        totals: Mapping[str, float] | None = None,
    ) -> dict[str, Tensor]:
        """rpn_objectness, rpn_box, box_class, box_regression and, with a mask head, mask: scalars of weight 1.

        Finite, and with gradients for every parameter, also where no image of the batch has an object.
        totals: the sum of `counts` over the parts of a step; None: these images are the whole of it.
        """
        outputs = self.rpn(features)
        losses = self.rpn.loss(outputs, targets, None if totals is None else totals["anchors"])
        proposals = self.rpn.propose(outputs, extents, training=True)
        return losses | self.loss_of_regions(features, proposals, targets, totals)

    def loss_of_regions(
        self,
        features: Sequence[Tensor],
        proposals: Proposals,
        targets: Sequence[InstanceTargets],
        totals: Mapping[str, float] | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the second stage alone, for these proposals."""
        regions = self.sample_regions(proposals, targets)
        pyramid = make_pyramid(features[: len(self.strides)], self.strides)
        losses = self._box_losses(pyramid, regions, None if totals is None else totals["regions"])
        if self.mask_head is not None:
            total = None if totals is None else totals["objects"]
            losses["mask"] = self._mask_loss(pyramid, regions, targets, total)
        return losses

    def sample_regions(self, proposals: Proposals, targets: Sequence[InstanceTargets]) -> Regions:
        """`draw_regions` by the rule of this detector."""
        return draw_regions(proposals, targets, self.samples, self.positive_fraction, self.iou_threshold)

    def _box_losses(self, pyramid: Pyramid, regions: Regions, total: float | None) -> dict[str, Tensor]:
        if len(regions.things) == 0:
            nothing = zero_of([self.box_head, self.box_predictor])
            return {"box_class": nothing, "box_regression": nothing}
        logits, codes = self._classify(pyramid, regions.boxes_xyxy, regions.image_index)
        background = 0 if self.background_first else logits.shape[1] - 1
        shift = int(self.background_first)
        classes = torch.where(regions.things < 0, background, regions.things + shift)  # (R,)
        predicted = codes[regions.objects, classes[regions.objects]]  # (P, 4)
        count = max(1, len(regions.things) if total is None else total)
        return {
            "box_class": class_loss(logits, classes, total),
            "box_regression": box_loss(predicted, regions.codes, self.box_beta) / count,
        }

    def _mask_loss(
        self, pyramid: Pyramid, regions: Regions, targets: Sequence[InstanceTargets], total: float | None
    ) -> Tensor:
        assert self.mask_head is not None
        assert self.mask_pooler is not None
        if len(regions.objects) == 0:
            return zero_of([self.mask_head])
        boxes = regions.boxes_xyxy[regions.objects]
        image_index = regions.image_index[regions.objects]
        features = self.mask_pooler(pyramid, boxes, image_index)
        logits = self.mask_head(features, regions.things[regions.objects] + int(self.background_first))
        wanted = [
            mask_targets(
                target,
                self.mask_pooler.area_read(boxes[image_index == image]),
                regions.match[image_index == image],
                logits.shape[1],
                self.mask_pooler.aligned,
                self.mask_threshold,
            )
            for image, target in enumerate(targets)
        ]
        return mask_loss(logits, torch.cat(wanted), total)


def _rows(detections: Detections, index: Tensor) -> Detections:
    return Detections(*(column[index] for column in detections))


def torchvision_rcnn(
    things: int,
    in_channels: int = 256,
    masks: bool = True,
    v2: bool = False,
    box_features: int = 1024,
    mask_convs: int = 4,
    mask_channels: int = 256,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections: int = 100,
) -> RCNN:
    """The heads of torchvision's *_resnet50_fpn, or of their V2, for `things` classes."""
    rpn = RPN(
        in_channels,
        strides=None,
        rounded_anchors=True,
        conv_depth=2 if v2 else 1,
        post_nms=(2000, 1000),
        min_size=1e-3,
        beta=1 / 9,
        loss_per_budget=False,
    )
    pool = RoIPooler(7, aligned=False, eps_after_log=1e-6, eps_in_ratio=0.0)
    box_head = ConvLinear(in_channels, features=box_features) if v2 else TwoLinear(in_channels, features=box_features)
    return RCNN(
        rpn,
        pool,
        box_head,
        BoxPredictor(box_head.features, things + 1, things + 1),
        pool._replace(size=14) if masks else None,
        MaskHead(in_channels, things + 1, mask_convs, mask_channels, "bn" if v2 else None) if masks else None,
        background_first=True,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        detections=detections,
        min_size=1e-2,
        box_beta=1 / 9,
        mask_threshold=None,
    )


def detectron2_rcnn(
    things: int,
    in_channels: int = 256,
    masks: bool = True,
    first_stage: bool = True,
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    roi_op: str = "align",
    sampling_ratio: int = 0,
    box_features: int = 1024,
    mask_convs: int = 4,
    mask_channels: int = 256,
    roi_samples: int = 512,
    proposals: int = 1000,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections: int = 100,
) -> RCNN:
    """The heads of detectron2's *_FPN for `things` classes; our own models have them too.

    sampling_ratio: 0 is detectron2's (adaptive); 2 is faster. proposals: kept per image after suppression, twice as
    many per level before it in training. Boxes go to the level whose anchors are of their size: 224 pixels belong to
    that of the 128 pixel anchors, others in proportion. first_stage: whether there is an RPN.
    """
    if roi_op not in ROI_OPS:
        raise choice_error("roi_op", roi_op, ROI_OPS)
    strides = [4 * 2**level for level in range(len(anchor_sizes))]
    rpn = RPN(
        in_channels,
        anchor_sizes,
        anchor_ratios,
        strides,
        pre_nms=(2 * proposals, proposals),
        post_nms=(proposals, proposals),
    )
    pool = RoIPooler(7, roi_op, sampling_ratio, canonical_size=224.0 * anchor_sizes[2] / 128.0)
    return RCNN(
        rpn if first_stage else None,
        pool,
        TwoLinear(in_channels, 7, box_features),
        BoxPredictor(box_features, things + 1, things),
        pool._replace(size=14) if masks else None,
        MaskHead(in_channels, things, mask_convs, mask_channels) if masks else None,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        detections=detections,
        samples=roi_samples,
    )
