"""Panoptic FCN. Li, Zhao, Qi, Wang, Li, Sun, Jia: Fully Convolutional Networks for Panoptic Segmentation, CVPR 2021.

Every segment, thing or stuff, is found as a place of the pyramid and encoded into a kernel, a 1×1 convolution, whose
product with one map of features is its mask: no boxes, no anchors, no region is cut out. Kernels of one segment that
were found at several places are fused into their mean.

COCO val2017 PQ (R50): 1x 41.1, 3x 43.6; the larger variant (Star) 44.2. Cityscapes val 59.6. Source:
github.com/dvlab-research/PanopticFCN (Apache-2.0, on detectron2). `panoptic_fcn_r50` and `panoptic_fcn_r50_star` have
its sizes and its input (channels in the order BGR, less means in the order RGB, which the weights were trained with);
the general `panoptic_fcn` takes any timm backbone, and what the paper compares with are its options.
See docs/systems/panoptic_fcn.md.
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
from pansight.models.contract import Entry, RateGroups, background_and_stuff, stuff_and_things, things
from pansight.models.options import (
    DECODE_OPTIONS,
    PYRAMID_OPTIONS,
    RCNN_OPTIONS,
    SIZE_OPTIONS,
    Option,
    choice,
    flag,
    loss_weight,
    whole,
)
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.fpn import FPN
from pansight.nn.input import IMAGENET_MEAN, Input, PixelStatistics
from pansight.nn.rcnn.roi_heads import zero_of
from pansight.nn.semantic.panoptic_fcn_heads import (
    FeatureEncoder,
    KernelHead,
    PositionHead,
    TopLevels,
    pixel_branch,
    predictor,
)
from pansight.ops.centres import kernels as truth
from pansight.ops.centres.kernels import KernelSettings, ObjectTargets
from pansight.ops.fusion import kernels as rule
from pansight.ops.fusion.exported import KernelOutputs
from pansight.ops.fusion.kernels import Candidates, KernelRules
from pansight.ops.fusion.queries import canvases_of
from pansight.ops.queries.losses import sigmoid_focal_loss
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import instance_targets, semantic_targets, valid_extents
from pansight.types import IGNORE, Batch, LabelSpace, Prediction


class PanopticFCNOutputs(NamedTuple):
    """Of each level P3 … P7, and of the whole image."""

    things: list[Tensor]  # (B, things, h, w) logits of centres
    stuff: list[Tensor]  # (B, stuff classes, h, w) logits of regions
    kernels: list[Tensor]  # (B, C, h, w)
    features: Tensor  # (B, D, H/4, W/4)
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image


class PanopticFCN(nn.Module):
    """Pyramid, position head, kernel head, feature encoder; two generators make kernels as wide as the features.

    pixel_branch: what the feature encoder reads, of P2 … P5. settings: how truth becomes targets. rules: defaults of
    decode. every_class: the stuff scores have a class for each thing, too (stuff first), as on Cityscapes; else one for
    all things together, before those of stuff. position_weight, mask_weight: of the two parts of the loss.
    """

    def __init__(
        self,
        backbone: Backbone,
        fpn: FPN,
        semantic_head: nn.Module,
        position_head: PositionHead,
        kernel_head: KernelHead,
        feature_encoder: FeatureEncoder,
        generators: tuple[nn.Conv2d, nn.Conv2d],
        labels: LabelSpace,
        input: Input,
        settings: KernelSettings,
        rules: KernelRules,
        mask_weight: float = 3.0,
        position_weight: float = 1.0,
        every_class: bool = False,
    ):
        super().__init__()
        self.backbone = backbone
        self.fpn = fpn
        self.top = TopLevels(fpn.channels)
        self.semantic_head = semantic_head
        self.position_head = position_head
        self.kernel_head = kernel_head
        self.feature_encoder = feature_encoder
        self.thing_generator, self.stuff_generator = generators
        self.labels = labels
        self.input = input
        self.settings = settings
        self.rules = rules
        self.mask_weight, self.position_weight = mask_weight, position_weight
        things_class = [IGNORE] * len(labels.things) if every_class else [IGNORE]
        stuff = [c.id for c in labels.stuff]
        self.category_of_class = stuff + things_class if every_class else things_class + stuff
        order = [*stuff, *(c.id for c in labels.things)] if every_class else [IGNORE, *stuff]
        self.class_of_category = [order.index(c.id) if c.id in order else 0 for c in labels]

    def forward(self, images: Tensor, valid: Tensor | None = None) -> PanopticFCNOutputs:
        """images uint8 (B, 3, H, W), H and W multiples of 32; valid bool (B, H, W), False on padding."""
        levels = self.fpn(self.backbone(self.input(images, valid)))  # P2 … P5
        pyramid = self.top(levels[1:])
        positions = [self.position_head(level) for level in pyramid]
        return PanopticFCNOutputs(
            [things for things, _ in positions],
            [stuff for _, stuff in positions],
            [self.kernel_head(level) for level in pyramid],
            self.feature_encoder(self.semantic_head(levels)),
            valid_extents(images, valid),
        )

    @torch.no_grad()
    def counts(self, batch: Batch) -> dict[str, float | Tensor]:
        """Images, objects and stuff classes; the last two count once for each level that learns from them."""
        boxes = [target.boxes_xyxy for target in instance_targets(batch, self.labels)]
        objects = sum(int(truth.levels_of_boxes(each, self.settings.size_ranges).sum()) for each in boxes)
        stuff = 0
        for semantic, image in zip(semantic_targets(batch, self.class_of_category), batch.truths, strict=True):
            _, levels = self._stuff_targets(semantic, image.size)
            stuff += sum(int((level.flatten(1).amax(1) > 0).sum()) for level in levels)
        return {"images": float(len(boxes)), "objects": float(objects), "stuff": float(stuff)}

    def _stuff_targets(self, semantic: Tensor, size: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        sizes = truth.level_sizes((semantic.shape[0], semantic.shape[1]))
        return truth.stuff_targets(semantic, len(self.category_of_class), size, sizes)

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """L = λ_pos · (L_things + L_stuff) + λ_seg · (L_mask + L_semantic), sections 3.2 and 3.5.

        Both position terms are focal losses, the other two weighted Dice losses of things and Dice losses of stuff.
        totals: the sum of `counts` over the parts of the step; None: `batch` is the whole of it.
        """
        outputs = self.forward(batch.images, batch.valid)
        with torch.autocast(batch.images.device.type, enabled=False):
            return self._loss(_in_float32(outputs), batch, totals or self.counts(batch))

    def _loss(
        self, outputs: PanopticFCNOutputs, batch: Batch, totals: Mapping[str, float | Tensor]
    ) -> dict[str, Tensor]:
        objects, stuff = max(1.0, float(totals["objects"])), max(1.0, float(totals["stuff"]))
        padded = (batch.images.shape[2], batch.images.shape[3])
        semantic = semantic_targets(batch, self.class_of_category)
        zero = outputs.features.new_zeros(())
        losses = {"position_things": zero, "position_stuff": zero, "mask": zero, "semantic": zero}
        for image, target in enumerate(instance_targets(batch, self.labels)):
            of_image = _of_image(outputs, image)
            size = batch.truths[image].size
            found = truth.object_targets(target, size, padded, len(self.labels.things), self.settings)
            masks, scores = self._stuff_targets(semantic[image], size)
            for level, (heat, region) in enumerate(zip(found.heat, scores, strict=True)):
                things, said = of_image.things[level], of_image.stuff[level]
                places = things.shape[1] * things.shape[2]
                focal = sigmoid_focal_loss(things.flatten(1), heat.flatten(1)).sum() * places
                losses["position_things"] = losses["position_things"] + focal / objects
                focal = sigmoid_focal_loss(said.flatten(1), region.flatten(1)).sum()
                losses["position_stuff"] = losses["position_stuff"] + focal / float(totals["images"])
                losses["mask"] = losses["mask"] + self._thing_loss(of_image, level, found) / objects
                losses["semantic"] = losses["semantic"] + self._stuff_loss(of_image, level, masks, region) / stuff
        weights = {"mask": self.mask_weight, "semantic": self.mask_weight}
        losses = {name: weights.get(name, self.position_weight) * value for name, value in losses.items()}
        losses["mask"] = losses["mask"] + self._nothing(outputs)
        return losses

    def _thing_loss(self, outputs: PanopticFCNOutputs, level: int, found: ObjectTargets) -> Tensor:
        """Σ of the weighted Dice losses of the objects that one level of one image learns from."""
        here = found.levels[level]
        if not bool(here.any()):
            return outputs.features.new_zeros(())
        masks, settings = found.masks[here], self.settings
        logits = outputs.things[level]
        places, weights = truth.pick_places(logits, masks, found.things[here], settings.picks, settings.weighted)
        vectors = outputs.kernels[level].flatten(1).T[places]  # (n, k, C)
        return truth.weighted_dice(_embedded(self.thing_generator, vectors), outputs.features, masks, weights)

    def _stuff_loss(self, outputs: PanopticFCNOutputs, level: int, masks: Tensor, region: Tensor) -> Tensor:
        """Σ of the Dice losses of the stuff classes that are there at one level of one image."""
        here = region.flatten(1).amax(1) > 0
        if not bool(here.any()):
            return outputs.features.new_zeros(())
        vectors = truth.mean_kernels(outputs.kernels[level], region[here] > 0)[:, None]  # (n, 1, C)
        embedded = _embedded(self.stuff_generator, vectors)
        return truth.weighted_dice(embedded, outputs.features, masks[here], torch.ones_like(embedded[:, :, 0]))

    def _nothing(self, outputs: PanopticFCNOutputs) -> Tensor:
        """A zero that depends on every parameter, also where nothing is labelled that a head could learn from."""
        maps = [*outputs.kernels, outputs.features]
        return 0.0 * torch.stack([each.sum() for each in maps]).sum() + zero_of(
            [self.thing_generator, self.stuff_generator]
        )

    @torch.no_grad()
    def decode(
        self,
        outputs: PanopticFCNOutputs | KernelOutputs,
        sizes: Sequence[tuple[int, int]],
        score_threshold: float | None = None,
        max_overlap: float | None = None,
        min_stuff_area: int | None = None,
        mask_threshold: float | None = None,
        thing_threshold: float | None = None,
        stuff_threshold: float | None = None,
        min_score: float | None = None,
        similarity: float | None = None,
        class_aware: bool | None = None,
        matrix_nms: bool | None = None,
    ) -> list[Prediction]:
        """Predictions at the original `sizes` (H, W). What is left out is as the model has it (`KernelRules`)."""
        given = {
            "score": score_threshold,
            "overlap": max_overlap,
            "min_stuff_area": min_stuff_area,
            "mask": mask_threshold,
            "thing": thing_threshold,
            "stuff": stuff_threshold,
            "min_score": min_score,
            "similarity": similarity,
            "class_aware": class_aware,
            "matrix_nms": matrix_nms,
        }
        rules = self.rules._replace(**{key: value for key, value in given.items() if value is not None})
        found = outputs if isinstance(outputs, KernelOutputs) else self.last_steps(outputs)
        padded = [side * truth.QUARTER for side in found.features.shape[2:]]
        with torch.autocast(found.features.device.type, enabled=False):
            return [
                rule.prediction_of_kernels(
                    KernelOutputs(*(column[image] for column in found)),
                    canvas,
                    self.labels,
                    self.category_of_class,
                    rules,
                )
                for image, canvas in enumerate(canvases_of(padded, found.extents, sizes))
            ]

    def last_steps(self, outputs: PanopticFCNOutputs) -> KernelOutputs:
        """The candidates of each image, also the unlikely ones, as an exported graph gives them."""
        with torch.autocast(outputs.features.device.type, enabled=False):
            whole = _in_float32(outputs)
            of_images = [self._candidates(_of_image(whole, image)) for image in range(len(whole.features))]
            things, classes, scores, stuff, of_stuff = (torch.stack(column) for column in zip(*of_images, strict=True))
            return KernelOutputs(things, classes, scores, stuff, of_stuff, whole.features, outputs.extents)

    def _candidates(self, outputs: PanopticFCNOutputs) -> tuple[Tensor, ...]:
        """The first five of `KernelOutputs`, of one image: of all levels, with kernels as wide as the features."""
        things: list[Candidates] = []
        stuff: list[Candidates] = []
        for level, window in enumerate(rule.WINDOWS):
            kernels = outputs.kernels[level]
            peaks = rule.thing_candidates(outputs.things[level], kernels, window, self.rules.candidates)
            regions = rule.stuff_candidates(outputs.stuff[level], kernels)
            things.append(peaks._replace(kernels=_embedded(self.thing_generator, peaks.kernels)))
            stuff.append(regions._replace(kernels=_embedded(self.stuff_generator, regions.kernels)))
        of_levels = (torch.stack([each.kernels for each in stuff]), torch.stack([each.scores for each in stuff]))
        return *rule.joined(things), *of_levels

    def set_progress(self, share: float) -> None:
        """Nothing changes as training progresses."""


def _embedded(generator: nn.Conv2d, vectors: Tensor) -> Tensor:
    """A 1×1 convolution of vectors without a map: (…, C) → (…, D)."""
    assert generator.bias is not None
    return F.linear(vectors, generator.weight.flatten(1).float(), generator.bias.float())


def _in_float32(outputs: PanopticFCNOutputs) -> PanopticFCNOutputs:
    things, stuff, kernels = ([each.float() for each in maps] for maps in outputs[:3])
    return PanopticFCNOutputs(things, stuff, kernels, outputs.features.float(), outputs.extents)


def _of_image(outputs: PanopticFCNOutputs, image: int) -> PanopticFCNOutputs:
    """The maps of one image, without the axis of images."""
    things, stuff, kernels = ([each[image] for each in maps] for maps in outputs[:3])
    return PanopticFCNOutputs(things, stuff, kernels, outputs.features[image], outputs.extents[image])


def check_ranges(size_ranges: Sequence[float]) -> None:
    """Raises PansightError where the least size of a level is above its largest."""
    for low, high in zip(size_ranges[::2], size_ranges[1::2], strict=True):
        if low > high:
            raise PansightError(expected="the least size before the largest of each level", found=(low, high))


SIZE_RANGES = KernelSettings().size_ranges
CITYSCAPES_RANGES = (1, 128, 64, 256, 128, 512, 256, 1024, 512, 2048)


def panoptic_fcn(
    labels: LabelSpace,
    backbone: str = "resnet50",
    pretrained: str = "none",
    short: int = 800,
    long: int = 1333,
    fpn_channels: int = 256,
    feature_channels: int = 64,
    position_convs: int = 3,
    kernel_convs: int = 3,
    deformable: bool = True,
    deformable_features: bool = False,
    coord_kernels: bool = True,
    coord_features: bool = True,
    features: str = "semantic_fpn",
    size_ranges: Sequence[float] = SIZE_RANGES,
    centre: str = "mass",
    picks: int = 7,
    weighted: bool = True,
    mask_weight: float = 3.0,
    position_weight: float = 1.0,
    thing_threshold: float = 0.05,
    stuff_threshold: float = 0.05,
    candidates: int = 0,
    similarity: float = 0.9,
    class_aware: bool = True,
    matrix_nms: bool = False,
    mask_threshold: float = 0.4,
    min_score: float = 0.05,
    detections: int = 100,
    min_stuff_area: int = 4096,
    frozen_bn: bool = True,
    freeze_stages: int = 0,
) -> PanopticFCN:
    """Panoptic FCN on any timm backbone. short, long: the resizing rule in pixels (short 0: keep the size).

    features: what the feature encoder reads: "semantic_fpn", the "sum" of the pyramid, or its finest map, "p2".
    """
    net = timm_backbone(backbone, pretrained, frozen_bn=frozen_bn, freeze_stages=freeze_stages)
    settings = KernelSettings(tuple(size_ranges), centre, picks, weighted)
    rules = KernelRules(
        thing=thing_threshold,
        stuff=stuff_threshold,
        candidates=candidates or -(-detections // 2),
        similarity=similarity,
        class_aware=class_aware,
        matrix_nms=matrix_nms,
        mask=mask_threshold,
        min_score=min_score,
        detections=detections,
        min_stuff_area=min_stuff_area,
    )
    groups = max(1, math.gcd(64, fpn_channels) // 2)  # 32; two channels in each, since a level may be a single place
    stuff_classes = 1 + len(labels.stuff)
    return PanopticFCN(
        net,
        FPN(net.channels, fpn_channels, extra=None),
        pixel_branch(features, fpn_channels, net.strides, groups),
        PositionHead(fpn_channels, position_convs, groups, deformable, len(labels.things), stuff_classes),
        KernelHead(fpn_channels, kernel_convs, groups, coord_kernels),
        FeatureEncoder(fpn_channels, feature_channels, coord_features, deformable_features),
        (predictor(fpn_channels, feature_channels, 1), predictor(fpn_channels, feature_channels, 1)),
        labels,
        Input(ResizeRule(short, long), net.pixels),
        settings,
        rules,
        mask_weight,
        position_weight,
    )


OFFICIAL_PIXELS = PixelStatistics(IMAGENET_MEAN, (1.0, 1.0, 1.0), bgr=True)
"""Channels in the order BGR less the means of R, G, B in this order, as the published weights were trained."""


def panoptic_fcn_r50(labels: LabelSpace) -> PanopticFCN:
    """Panoptic FCN for COCO: 36,999,511 parameters besides the frozen BatchNorm, for its 80 + 53 classes."""
    return _published(labels, 64, False, ResizeRule(800, 1333))


def panoptic_fcn_r50_star(labels: LabelSpace) -> PanopticFCN:
    """Panoptic FCN* with deformable, wider features: 38,837,710 parameters for COCO's 80 + 53 classes."""
    return _published(labels, 256, True, ResizeRule(800, 1333))


def panoptic_fcn_r50_cityscapes(labels: LabelSpace) -> PanopticFCN:
    """Panoptic FCN for Cityscapes, 8 things and all 19 classes as stuff: 36,752,876 parameters."""
    settings = KernelSettings(size_ranges=CITYSCAPES_RANGES)
    rules = KernelRules(0.01, 0.1, candidates=100, similarity=0.97, mask=0.5, min_stuff_area=2048)
    resize = ResizeRule(1024, 2048)
    return _published(labels, 64, False, resize, settings, rules, mask_weight=4.0, every_class=True)


def _published(
    labels: LabelSpace,
    feature_channels: int,
    deformable_features: bool,
    resize: ResizeRule,
    settings: KernelSettings | None = None,
    rules: KernelRules | None = None,
    mask_weight: float = 3.0,
    every_class: bool = False,
) -> PanopticFCN:
    net = timm_backbone("resnet50", frozen_bn=True, freeze_stages=2, stride_in_1x1=True, pixels=OFFICIAL_PIXELS)
    stuff_classes = len(labels) if every_class else 1 + len(labels.stuff)
    return PanopticFCN(
        net,
        FPN(net.channels, extra=None),
        pixel_branch("semantic_fpn", 256, net.strides, 32),
        PositionHead(256, 3, 32, True, len(labels.things), stuff_classes, published_start=True),
        KernelHead(256, 3, 32, True, published_start=True),
        FeatureEncoder(256, feature_channels, True, deformable_features, published_start=True),
        (predictor(256, feature_channels, 1), predictor(256, feature_channels, 1)),
        labels,
        Input(resize, net.pixels),
        KernelSettings() if settings is None else settings,
        KernelRules() if rules is None else rules,
        mask_weight,
        every_class=every_class,
    )


OF_DECODE = ("thing_threshold", "stuff_threshold", "similarity", "class_aware", "matrix_nms", "mask_threshold")
OPTIONS: dict[str, Option] = {
    **SIZE_OPTIONS,
    **PYRAMID_OPTIONS,
    **{key: DECODE_OPTIONS[key] for key in (*OF_DECODE, "min_score")},
    "fpn_channels": RCNN_OPTIONS["fpn_channels"],
    "feature_channels": whole("width of the features that kernels are multiplied with", 1, 4096),
    "position_convs": whole("convolutions of the head that finds places", 1, 16),
    "kernel_convs": whole("convolutions of the head that makes kernels", 1, 16),
    "deformable": flag("the head that finds places has deformable convolutions"),
    "deformable_features": flag("the feature encoder has deformable convolutions"),
    "coord_kernels": flag("the head that makes kernels is told where on the map a place is"),
    "coord_features": flag("the feature encoder is told where on the map a place is"),
    "features": choice(
        "what the feature encoder reads: a semantic branch, the sum of the pyramid, or its finest map",
        "semantic_fpn",
        "sum",
        "p2",
    ),
    "size_ranges": Option(
        "least and largest √area of the boxes that each of the five levels learns from, in pixels",
        "numbers",
        0,
        2**16,
        length=10,
        further=check_ranges,
    ),
    "centre": choice("the centre of an object: of its pixels, or of its box", "mass", "box"),
    "picks": whole("kernels of an object that the loss looks at", 1, 1000),
    "weighted": flag("these count by the scores of their places"),
    "mask_weight": loss_weight("masks of things and stuff"),
    "position_weight": loss_weight("places of things and stuff"),
    "candidates": whole("peaks of each level that are looked at; 0: half as many as detections", 0, 10_000),
    "detections": RCNN_OPTIONS["detections"],
    "min_stuff_area": DECODE_OPTIONS["min_stuff_area"],
}

TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "fpn_channels": 16, "feature_channels": 8}
TINY |= {"position_convs": 1, "kernel_convs": 1, "thing_threshold": 0.0, "stuff_threshold": 0.0, "min_score": 0.0}

SMALL: dict[str, Any] = {"fpn_channels": 96, "feature_channels": 32, "position_convs": 2, "kernel_convs": 2}

GENERAL = Entry(
    panoptic_fcn,
    architecture="panoptic_fcn",
    produces=("panoptic", "instances"),
    options=OPTIONS,
    needs_things=True,
    backbone="pyramid",
    adapts=("pretrained", "frozen_bn", "short", "detections", "min_stuff_area"),
    rates=RateGroups(slow=r"\.conv\.offset\."),
    class_rows={"position_head.things": things, "position_head.stuff": background_and_stuff},
    small=SMALL,
    tiny=TINY,
)
OF_AUTHORS = replace(GENERAL, options={}, licence="apache-2.0")
OF_CITYSCAPES = replace(
    OF_AUTHORS,
    class_rows={"position_head.things": things, "position_head.stuff": stuff_and_things},
)
ENTRIES: dict[str, Entry] = {
    "panoptic_fcn": GENERAL,
    "panoptic_fcn_r50": OF_AUTHORS.published(panoptic_fcn_r50, "panoptic_fcn"),
    "panoptic_fcn_r50_star": OF_AUTHORS.published(panoptic_fcn_r50_star, "panoptic_fcn"),
    "panoptic_fcn_r50_cityscapes": OF_CITYSCAPES.published(panoptic_fcn_r50_cityscapes, "panoptic_fcn"),
}
