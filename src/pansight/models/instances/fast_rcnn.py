"""Fast R-CNN. Girshick: Fast R-CNN, ICCV 2015; on a pyramid: Lin et al., Feature Pyramid Networks, CVPR 2017.

The second stage of Faster R-CNN alone: it says the class and corrects the box of regions that something else proposes.
Either they are given, with each image, by files of any tool (Selective Search, EdgeBoxes, another detector), or they
come from the region proposal network of another, trained detector, which becomes a frozen part of the model
(`proposer`).

The model predicts boxes only. VOC 2007 test (paper, VGG16): mAP 66.9; COCO test-dev box AP 19.7 (VGG16).
Different from the paper: a feature pyramid and any timm backbone instead of one map of VGG16, RoIAlign unless `roi_op`
says "pool", 512 regions of an image instead of 64, the true boxes among them, and every region with an IoU below 0.5 is
background, where the paper asks for 0.1 at least. See docs/systems/fast_rcnn.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.models.contract import Entry, Model, boxes_of, things, things_and_background
from pansight.models.options import PYRAMID_OPTIONS, RCNN_OPTIONS, SIZE_OPTIONS, Option, number
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.fpn import FPN
from pansight.nn.input import Input
from pansight.nn.rcnn.rpn import RPN, Proposals
from pansight.nn.rcnn.two_stage import RCNN, detectron2_rcnn
from pansight.nn.statistics import kept_statistics
from pansight.ops.fusion.instances import Detections, detections_to_instances
from pansight.ops.regions.boxes import first_of_each, usable_boxes
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import instance_targets, valid_extents
from pansight.types import Batch, LabelSpace, Prediction


class FastRCNNOutputs(NamedTuple):
    detections: Detections
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image


class Proposer(nn.Module):
    """The first stage of another detector: its input, backbone, pyramid and RPN. Frozen, and always in eval mode.

    detector: of which these modules are taken. Mean and deviation of its input belong to the state, because the weights
    are useless without them.
    """

    def __init__(self, detector: Any):
        super().__init__()
        self.input: Input = detector.input
        self.backbone: Backbone = detector.backbone
        self.fpn: FPN = detector.fpn
        self.rpn: RPN = detector.rcnn.rpn
        for name, buffer in list(self.input.named_buffers()):
            self.input.register_buffer(name, buffer, persistent=True)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Proposer:
        """Stays in eval mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor, valid: Tensor | None, extents: Tensor) -> Proposals:
        features = self.fpn(self.backbone(self.input(images, valid)))
        return self.rpn.propose(self.rpn(features), extents, training=False)


class FastRCNN(nn.Module):
    """Backbone, pyramid and the second stage of a detector. proposals: at most so many regions of an image are read.

    proposer: None where the regions are always given.
    """

    def __init__(
        self,
        backbone: Backbone,
        fpn: FPN,
        rcnn: RCNN,
        proposer: Proposer | None,
        labels: LabelSpace,
        input: Input,
        proposals: int = 2000,
    ):
        super().__init__()
        self.backbone, self.fpn, self.rcnn, self.proposer = backbone, fpn, rcnn, proposer
        self.labels, self.input = labels, input
        self.proposals = proposals

    @property
    def needs_proposals(self) -> bool:
        """Whether it finds no regions by itself."""
        return self.proposer is None

    def _features(self, images: Tensor, valid: Tensor | None) -> list[Tensor]:
        return self.fpn(self.backbone(self.input(images, valid)))

    def _regions(
        self, images: Tensor, valid: Tensor | None, extents: Tensor, given: Sequence[Tensor | None]
    ) -> Proposals:
        """The regions of each image in network pixels: those that are given, else those that the proposer finds.

        Raises PansightError where an image has neither.
        """
        if not any(each is not None for each in given):
            found = self._found(images, valid, extents, images.shape[0])
            best = first_of_each(found.image_index, self.proposals)
            return Proposals(found.boxes_xyxy[best], found.image_index[best])
        lacking = sum(each is None for each in given)
        found = self._found(images, valid, extents, lacking) if lacking else None
        columns: list[Proposals] = []
        for image, shares in enumerate(given):
            if shares is None:
                assert found is not None
                boxes = found.boxes_xyxy[found.image_index == image]
            else:
                boxes = shares.to(extents.device, torch.float32) * extents[image, [1, 0, 1, 0]]
                boxes = boxes[usable_boxes(boxes, torch.zeros_like(boxes[:, 0]), 0.0)]
            boxes = boxes[: self.proposals]
            columns.append(Proposals(boxes, torch.full((len(boxes),), image, device=boxes.device)))
        return Proposals(*(torch.cat(column) for column in zip(*columns, strict=True)))

    def _found(self, images: Tensor, valid: Tensor | None, extents: Tensor, lacking: int) -> Proposals:
        """What the proposer finds. Raises PansightError where there is none, for `lacking` images that need it."""
        if self.proposer is None:
            hint = "proposals from a file, or a proposer (proposer_weights)"
            expected = f"regions for each of {len(images)} images"
            raise PansightError(where="fast_rcnn", expected=expected, found=f"none for {lacking}", hint=hint)
        return self.proposer(images, valid, extents)

    def forward(
        self, images: Tensor, valid: Tensor | None = None, proposals: Sequence[Tensor | None] = ()
    ) -> FastRCNNOutputs:
        """images uint8 or float32 (B, 3, H, W), sides multiples of 32; valid bool (B, H, W), False on padding.

        proposals: of each image as ``Sample.proposals`` has them; (): of none.
        """
        extents = valid_extents(images, valid)
        regions = self._regions(images, valid, extents, proposals)
        return FastRCNNOutputs(self.rcnn.detect(self._features(images, valid), regions, extents), extents)

    @torch.no_grad()
    def counts(self, batch: Batch) -> dict[str, float]:
        """What `loss` divides by, for these images; the network runs as far as it must to draw what `loss` draws."""
        extents = valid_extents(batch.images, batch.valid)
        with kept_statistics(self):
            self._features(batch.images, batch.valid)  # layers that draw (stochastic depth) come before the regions
            regions = self._regions(batch.images, batch.valid, extents, batch.proposals)
            return self.rcnn.counts_of_regions(regions, instance_targets(batch, self.labels))

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """L = L_cls + L_box.

        totals: the sum of `counts` over the parts of the step; None: `batch` is the whole of it.
        """
        extents = valid_extents(batch.images, batch.valid)
        features = self._features(batch.images, batch.valid)
        regions = self._regions(batch.images, batch.valid, extents, batch.proposals)
        return self.rcnn.loss_of_regions(features, regions, instance_targets(batch, self.labels), totals)

    def decode(self, outputs: FastRCNNOutputs, sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        """Predictions at the original `sizes` (H, W)."""
        instances = detections_to_instances(outputs.detections, outputs.extents, sizes, self.labels)
        return [Prediction(None, None, found) for found in instances]

    def set_progress(self, share: float) -> None:
        """Nothing changes as training progresses."""


def fast_rcnn(
    labels: LabelSpace,
    *,
    build: Callable[..., Model],
    backbone: str = "resnet50",
    pretrained: str = "none",
    short: int = 800,
    long: int = 1333,
    fpn_channels: int = 256,
    region_size: float = 224.0,
    proposals: int = 2000,
    roi_samples: int = 512,
    detections: int = 100,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    box_features: int = 1024,
    roi_op: str = "align",
    proposer: str | None = None,
    proposer_options: Mapping[str, Any] | None = None,
    proposer_weights: str | None = None,
    frozen_bn: bool = True,
    freeze_stages: int = 0,
) -> FastRCNN:
    """Fast R-CNN on any timm backbone, for regions from files or from another detector.

    short, long: the resizing rule in pixels (short 0: keep the size). region_size: side of the regions that are read
    from the third level. proposer, proposer_options: the model whose first stage proposes, which `build` makes;
    proposer_weights is read by training, which then sets these two and copies the weights.
    Raises PansightError for a proposer without an RPN, and for options without a proposer.
    """
    net = timm_backbone(backbone, pretrained, frozen_bn=frozen_bn, freeze_stages=freeze_stages)
    third = 128.0 * region_size / 224.0
    rcnn = detectron2_rcnn(
        len(labels.things),
        fpn_channels,
        masks=False,
        first_stage=False,
        anchor_sizes=[third / 4, third / 2, third, third * 2, third * 4],
        roi_op=roi_op,
        sampling_ratio=2,
        box_features=box_features,
        roi_samples=roi_samples,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        detections=detections,
    )
    first = _proposer(build, proposer, proposer_options)
    input = Input(ResizeRule(short, long), net.pixels)
    return FastRCNN(net, FPN(net.channels, fpn_channels), rcnn, first, labels, input, proposals)


def _proposer(build: Callable[..., Model], name: str | None, options: Mapping[str, Any] | None) -> Proposer | None:
    if name is None:
        if options:
            found = f"{next(iter(options)):.80} without a proposer"
            raise PansightError(where="proposer_options of model fast_rcnn", expected="a proposer", found=found)
        return None
    try:
        detector: Any = build(name, LabelSpace.from_names(["thing"]), **(options or {}))  # its classes play no part
    except PansightError as error:
        raise error.at("proposer of model fast_rcnn") from error
    if not isinstance(getattr(getattr(detector, "rcnn", None), "rpn", None), RPN):
        expected = "a detector with region proposals, such as faster_rcnn or mask_rcnn"
        raise PansightError(where="proposer of model fast_rcnn", expected=expected, found=name)
    return Proposer(detector)


def check_folder(path: str) -> None:
    """Raises PansightError where there is nothing that weights could be read from."""
    try:
        is_there = bool(path) and Path(path).exists()
    except (OSError, ValueError):  # a name that no file can have
        is_there = False
    if not is_there:
        expected = "a run, a saved model or a checkpoint file"
        raise PansightError(where="proposer_weights", expected=expected, found=f"nothing at {path:.80}")


OPTIONS: dict[str, Option] = {
    **SIZE_OPTIONS,
    **PYRAMID_OPTIONS,
    **{key: RCNN_OPTIONS[key] for key in ("fpn_channels", "roi_samples", "detections", "box_features", "roi_op")},
    **{key: RCNN_OPTIONS[key] for key in ("score_threshold", "nms_threshold")},
    "proposals": Option("regions of an image that are looked at, the best first", "whole number", 1, 20_000),
    "region_size": number("side of the regions that are read from the third level, in pixels", 1, 2**14),
    "proposer": Option("the model whose first stage proposes regions; left out: they are given", "text", optional=True),
    "proposer_options": Option("options of that model", "table", optional=True),
    "proposer_weights": Option(
        "a trained detector whose first stage proposes regions, frozen; training reads it",
        "text",
        optional=True,
        further=check_folder,
    ),
}

TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "fpn_channels": 16, "box_features": 16}
TINY |= {"region_size": 24.0, "proposals": 400, "roi_samples": 400, "detections": 20}
TINY_PROPOSER: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "fpn_channels": 16, "box_features": 16}
TINY_PROPOSER |= {"anchor_sizes": (8, 16, 32, 64, 128), "proposals": 400}

SMALL: dict[str, Any] = {"fpn_channels": 96, "roi_samples": 64, "box_features": 256}

ENTRIES: dict[str, Entry] = {
    "fast_rcnn": Entry(
        fast_rcnn,
        architecture="fast_rcnn",
        produces=("instances",),
        options=OPTIONS,
        needs_things=True,
        backbone="pyramid",
        adapts=("pretrained", "frozen_bn", "short", "detections"),
        class_rows={
            "rcnn.box_predictor.cls_score": things_and_background,
            "rcnn.box_predictor.bbox_pred": boxes_of(things),
        },
        borrows="proposer",
        small=SMALL,
        tiny=TINY | {"proposer": "faster_rcnn", "proposer_options": TINY_PROPOSER},
    )
}
