"""Panoptic-DeepLab. Cheng et al.: Panoptic-DeepLab: A Simple, Strong, and Fast Baseline for Bottom-Up Panoptic
Segmentation, CVPR 2020.

No boxes and no proposals: a dilated backbone, and two decoders with an ASPP each. One says the class of each pixel, the
other a heat map of the centres of things and, at each pixel, the way to its centre. Pixels of things that point to the
same centre are one object, and its class is what most of them say (ops/fusion/centres.py).

Cityscapes val PQ / AP / mIoU: detectron2's R52 60.3 / 33.2 / 78.2, with separable convolutions 60.3 / 32.1 / 78.7; the
authors' R50 59.8 / 28.3 / 78.6; paper, Xception-71: 63.0 / 35.3 / 80.5. COCO val PQ: R52 35.5; paper 39.7.
The `…_d2_…` builders differ from detectron2's project in two things: its pooling windows refuse maps that they do not
divide, here such a map passes, and the hardest pixels are those of each image, not of a batch, so that a step in parts
is the same as in one. `panoptic_deeplab_r50_cityscapes` is that of the authors' PyTorch code. The general
`panoptic_deeplab` is detectron2's on any backbone, with means over the whole map for any size of photo. See
docs/systems/panoptic_deeplab.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.models.contract import Entry, every_class
from pansight.models.options import (
    DECODE_OPTIONS,
    PYRAMID_OPTIONS,
    SEMANTIC_OPTIONS,
    Option,
    drop_rate,
    flag,
    loss_weight,
    number,
    whole,
)
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.input import IMAGENET_RGB, Input
from pansight.nn.semantic.blocks import ASPP, ImagePooling, conv_norm, dilated_backbone, size_divisor
from pansight.nn.semantic.criterion import Criterion, criterion_of
from pansight.nn.semantic.segmenter import resized
from pansight.ops.centres.heatmaps import CentreSettings, CentreTargets, batched_targets, centre_targets
from pansight.ops.fusion.centres import CentreRule, group_pixels
from pansight.ops.fusion.components import objects_of
from pansight.ops.fusion.views import Frame, mean_map
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import semantic_targets, valid_extents
from pansight.types import Batch, LabelSpace, Prediction

STRIDE = 4
"""Of the maps that the decoders end with."""

CITYSCAPES_WINDOW = (32, 64)
"""Places that detectron2's pooling covers: a sixteenth of its crop of 512 × 1024 pixels."""


class PanopticDeepLabOutputs(NamedTuple):
    semantic_logits: Tensor  # (B, C, H/4, W/4), things and stuff in the order of the label space
    heat: Tensor  # (B, 1, H/4, W/4): how much a place is the centre of a thing
    offsets_yx: Tensor  # (B, 2, H/4, W/4): from a place to the centre of its thing, in pixels, y first
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image
    canvas: Tensor  # int64 (2,): (height, width) that the maps cover


class Decoder(nn.Module):
    """ASPP on the last map, then for each finer map of the backbone, coarse to fine: `project` it, join, `fuse`."""

    def __init__(self, aspp: ASPP, project: Sequence[nn.Module], fuse: Sequence[nn.Module], align_corners: bool):
        super().__init__()
        self.aspp = aspp
        self.project = nn.ModuleList(project)
        self.fuse = nn.ModuleList(fuse)
        self.align_corners = align_corners

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of the backbone, fine to coarse → (B, width, H/4, W/4)."""
        x = self.aspp(maps[-1])
        finer = reversed(maps[: len(self.project)])
        for project, fuse, fine in zip(self.project, self.fuse, finer, strict=True):
            low = project(fine)
            x = fuse(torch.cat([low, resized(x, low.shape[2:], self.align_corners)], 1))
        return x


class Head(nn.Module):
    """Convolutions, then a 1×1 `predictor`."""

    def __init__(self, layers: nn.Module, width: int, outputs: int):
        super().__init__()
        self.layers = layers
        self.predictor = nn.Conv2d(width, outputs, 1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        assert self.predictor.bias is not None
        nn.init.zeros_(self.predictor.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h, w)."""
        return self.predictor(self.layers(x))


class Weights(NamedTuple):
    """Of the three terms of the loss."""

    semantic: float = 1.0
    centre: float = 200.0
    offset: float = 0.01


class PanopticDeepLab(nn.Module):
    """Backbone, a decoder and a head for classes, another decoder with heads for centres and offsets.

    criterion: what the classes are trained by. settings: how truth becomes targets. rule: the numbers of the grouping,
    which `decode` may replace. align_corners: how maps are resized; images are then padded to a multiple of 32 and one
    pixel more, as such maps need. keeps_offsets: where the file has another size than the network saw, the offsets stay
    in the pixels of the latter, as in detectron2; otherwise they are those of the file.
    """

    def __init__(
        self,
        backbone: Backbone,
        semantic_decoder: Decoder,
        semantic_head: Head,
        instance_decoder: Decoder,
        centre_head: Head,
        offset_head: Head,
        labels: LabelSpace,
        input: Input,
        criterion: Criterion,
        settings: CentreSettings,
        weights: Weights,
        rule: CentreRule,
        align_corners: bool = False,
        keeps_offsets: bool = False,
    ):
        super().__init__()
        self.backbone = backbone
        self.semantic_decoder, self.semantic_head = semantic_decoder, semantic_head
        self.instance_decoder, self.centre_head, self.offset_head = instance_decoder, centre_head, offset_head
        self.labels, self.input, self.criterion = labels, input, criterion
        self.settings, self.weights, self.rule = settings, weights, rule
        self.align_corners, self.keeps_offsets = align_corners, keeps_offsets

    def forward(self, images: Tensor, valid: Tensor | None = None) -> PanopticDeepLabOutputs:
        """images uint8 (B, 3, H, W) of any size, valid bool (B, H, W), False on padding."""
        pixels = self.input(images, valid)
        if self.align_corners:  # a map of (H - 1) / 32 + 1 places has its first and last on the edges of the image
            down, across = (-(side - 1) % 32 for side in pixels.shape[2:])
            pixels = F.pad(pixels, (0, across, 0, down))
        maps = self.backbone(pixels)
        semantic = self.semantic_head(self.semantic_decoder(maps))
        x = self.instance_decoder(maps)
        canvas = torch.tensor(pixels.shape[2:], device=images.device)
        offsets = STRIDE * self.offset_head(x)
        return PanopticDeepLabOutputs(semantic, self.centre_head(x), offsets, valid_extents(images, valid), canvas)

    def _targets(self, batch: Batch) -> CentreTargets:
        """What heat, offsets and weights should be at each pixel of the padded images."""
        targets = [centre_targets(truth, self.labels, self.settings) for truth in batch.truths]
        height, width = batch.images.shape[2:]
        return batched_targets(targets, (height, width), batch.images.device)

    def counts(self, batch: Batch) -> dict[str, Tensor | float]:
        """What `loss` divides by: labelled pixels and images, pixels whose heat and whose offset is learned."""
        return self._counts(batch, semantic_targets(batch, range(len(self.labels))), self._targets(batch))

    def _counts(self, batch: Batch, target: Tensor, centres: CentreTargets) -> dict[str, Tensor | float]:
        pixels = {"centre_pixels": centres.has_heat.sum(), "thing_pixels": centres.has_offset.sum()}
        return {**self.criterion.counts(batch, target), **pixels}

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """L = L_semantic + 200 · MSE of the heat + 0.01 · L1 of the offsets, y and x added up (section 3.2).

        totals: the sum of `counts` over the parts of the step; None: `batch` is the whole of it.
        """
        outputs = self(batch.images, batch.valid)
        target = semantic_targets(batch, range(len(self.labels)))  # (B, H, W)
        centres = self._targets(batch)
        divisors = self._counts(batch, target, centres) if totals is None else totals
        logits, heat, offsets = (self._full_size(maps, target.shape[1:], outputs.canvas) for maps in outputs[:3])
        squares = ((heat[:, 0] - centres.heat) ** 2)[centres.has_heat].sum()
        ways = (offsets - centres.offsets_yx).abs().sum(1)[centres.has_offset].sum()
        semantic = self.criterion(logits, target, divisors, batch, centres.class_weight)
        return {
            "semantic": self.weights.semantic * semantic,
            "centre": self.weights.centre * squares / max(1.0, float(divisors["centre_pixels"])),
            "offset": self.weights.offset * ways / max(1.0, float(divisors["thing_pixels"])),
        }

    def _full_size(self, maps: Tensor, size: Sequence[int], canvas: Tensor) -> Tensor:
        """Maps (B, C, h, w) → float32 (B, C, H, W), the first `size` (H, W) pixels of what they cover."""
        return resized(maps.float(), canvas.tolist(), self.align_corners)[:, :, : size[0], : size[1]]

    def decode(
        self,
        outputs: PanopticDeepLabOutputs,
        sizes: Sequence[tuple[int, int]],
        thing_threshold: float | None = None,
        centre_window: int | None = None,
        centres: int | None = None,
        min_stuff_area: int | None = None,
        grouping: str | None = None,
    ) -> list[Prediction]:
        """Predictions at the original `sizes` (H, W). Numbers of the grouping left out are the model's own."""
        given = {
            "threshold": thing_threshold,
            "window": centre_window,
            "centres": centres,
            "min_stuff_area": min_stuff_area,
            "grouping": grouping,
        }
        rule = self.rule._replace(**{key: value for key, value in given.items() if value is not None})
        extents: list[list[int]] = outputs.extents.tolist()
        predictions: list[Prediction] = []
        for index, (extent, size) in enumerate(zip(extents, sizes, strict=True)):
            logits, heat, offsets = (
                resized(self._full_size(maps[index][None], extent, outputs.canvas), size)[0] for maps in outputs[:3]
            )
            if not self.keeps_offsets:
                scale = offsets.new_tensor([file / seen for file, seen in zip(size, extent, strict=True)])
                offsets = offsets * scale[:, None, None]
            panoptic, semantic = group_pixels(logits, heat[0], offsets, self.labels, rule)
            predictions.append(Prediction(panoptic, semantic, objects_of(panoptic, self.labels)))
        return predictions

    def class_scores(self, outputs: PanopticDeepLabOutputs, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """float32 (C, H, W) of each image: the probability of each class, resized to `sizes` (H, W)."""
        extents: list[list[int]] = outputs.extents.tolist()
        maps = (
            self._full_size(logits[None], extent, outputs.canvas)
            for logits, extent in zip(outputs.semantic_logits, extents, strict=True)
        )
        return [resized(logits.softmax(1), size)[0] for logits, size in zip(maps, sizes, strict=True)]

    def join_views(self, views: Sequence[PanopticDeepLabOutputs], mirrored: Sequence[bool]) -> PanopticDeepLabOutputs:
        """The outputs of several views of the same photos as one, as of the first.

        Averaged are the probabilities of classes, the heat, and the offsets, which a mirrored view has to the other
        side and a larger view as longer ways.
        """
        frames: list[Frame] = []
        offsets: list[Tensor] = []
        for view, turned in zip(views, mirrored, strict=True):
            height, width = view.canvas.tolist()
            frames.append(Frame(view.extents, (height, width), turned))
            factors = (views[0].extents / view.extents) * view.extents.new_tensor([1, -1 if turned else 1])  # (B, 2)
            offsets.append(view.offsets_yx * factors[:, :, None, None])
        chances = [view.semantic_logits.float().softmax(1) for view in views]
        return PanopticDeepLabOutputs(
            mean_map(chances, frames, self.align_corners).log(),
            mean_map([view.heat for view in views], frames, self.align_corners),
            mean_map(offsets, frames, self.align_corners),
            views[0].extents,
            views[0].canvas,
        )

    def set_progress(self, share: float) -> None:
        """Nothing changes as training progresses."""


def _decoder(
    net: Backbone, aspp: ASPP, aspp_width: int, width: int, low: Sequence[int], separable: bool, align: bool = False
) -> Decoder:
    """low: widths of what is taken from the finer maps of the backbone, coarse to fine. separable: what fuses them."""
    finer = net.channels[: len(low)][::-1]
    project = [conv_norm(channels, outputs, 1) for channels, outputs in zip(finer, low, strict=True)]
    inputs = [aspp_width, *[width] * (len(low) - 1)]
    fuse = [_two_layers(of + joined, width, separable) for of, joined in zip(inputs, low, strict=True)]
    return Decoder(aspp, project, fuse, align)


def _two_layers(inputs: int, outputs: int, separable: bool, middle: int | None = None) -> nn.Sequential:
    """Two 3×3 convolutions, the first of which ends with `middle` channels; or a separable one of 5×5."""
    if separable:
        return nn.Sequential(conv_norm(inputs, outputs, 5, 1, True, True))
    middle = outputs if middle is None else middle
    return nn.Sequential(conv_norm(inputs, middle, 3), conv_norm(middle, outputs, 3))


def panoptic_deeplab(
    labels: LabelSpace,
    backbone: str = "resnet50",
    pretrained: str = "none",
    short: int = 512,
    long: int = 2048,
    output_stride: int = 16,
    rates: Sequence[int] = (6, 12, 18),
    multi_grid: Sequence[int] = (),
    width: int = 256,
    instance_width: int = 128,
    low_widths: Sequence[int] = (64, 32),
    instance_low_widths: Sequence[int] = (64, 32),
    head_width: int = 32,
    separable: bool = False,
    dropout: float = 0.1,
    loss: str = "hard_pixels",
    class_weights: Sequence[float] = (),
    small_weight: float = 3.0,
    small_area: int = 4096,
    sigma: float = 8.0,
    semantic_weight: float = 1.0,
    centre_weight: float = 200.0,
    offset_weight: float = 0.01,
    thing_threshold: float = 0.1,
    centre_window: int = 7,
    centres: int = 200,
    min_stuff_area: int = 2048,
    frozen_bn: bool = False,
    freeze_stages: int = 0,
) -> PanopticDeepLab:
    """Panoptic-DeepLab on any timm backbone that can be dilated.

    short, long: the resizing rule (short 0: keep the size). rates: of ASPP at stride 16; other strides scale them.
    low_widths, instance_low_widths: what each decoder takes from the finer maps of the backbone, coarse to fine, of as
    many maps as there are numbers.
    """
    net = dilated_backbone(backbone, pretrained, output_stride, frozen_bn, freeze_stages, multi_grid)
    for name, low in (("low_widths", low_widths), ("instance_low_widths", instance_low_widths)):
        if not 1 <= len(low) <= 3:
            raise PansightError(where=f"{name} of model panoptic_deeplab", expected="1 to 3 numbers", found=len(low))
    scaled = [max(1, rate * 16 // output_stride) for rate in rates]
    last, decoders = net.channels[-1], list[Decoder]()
    for outputs, low in ((width, low_widths), (instance_width, instance_low_widths)):
        pooling = ImagePooling(last, width, norm=False)
        aspp = ASPP(last, width, scaled, pooling, dropout, separable, norm_between=True)
        decoders.append(_decoder(net, aspp, width, outputs, low, separable))
    return PanopticDeepLab(
        net,
        decoders[0],
        Head(_two_layers(width, width, separable), width, len(labels)),
        decoders[1],
        Head(_two_layers(instance_width, head_width, False, instance_width), head_width, 1),
        Head(_two_layers(instance_width, head_width, separable, instance_width), head_width, 2),
        labels,
        Input(ResizeRule(short, long, size_divisor(net)), net.pixels),
        criterion_of(labels, loss, class_weights),
        CentreSettings(sigma, small_area, small_weight),
        Weights(semantic_weight, centre_weight, offset_weight),
        CentreRule(thing_threshold, centre_window, centres, min_stuff_area),
    )


def panoptic_deeplab_r52_d2_cityscapes(labels: LabelSpace, separable: bool = False) -> PanopticDeepLab:
    """detectron2's R52 for Cityscapes: 59,770,166 parameters for 19 classes, 30,271,350 with separable convolutions."""
    return _of_detectron2(labels, separable, CITYSCAPES_WINDOW, ResizeRule(1024, 2048, divisor=1), sigma=10.0)


def panoptic_deeplab_r52_d2_coco(labels: LabelSpace) -> PanopticDeepLab:
    """detectron2's R52 for COCO, with separable convolutions: 30,300,648 parameters for 133 classes."""
    model = _of_detectron2(labels, True, (40, 40), ResizeRule(640, 640, divisor=640), sigma=8.0)
    model.criterion, model.keeps_offsets = Criterion("hard_pixels", hard_share=1.0), True  # the mean over all pixels
    model.rule = CentreRule(window=41, min_stuff_area=4096)
    return model


def _of_detectron2(
    labels: LabelSpace, separable: bool, window: tuple[int, int], rule: ResizeRule, sigma: float
) -> PanopticDeepLab:
    model = panoptic_deeplab(labels, "resnet50s", multi_grid=(1, 2, 4), separable=separable, sigma=sigma)
    for decoder in (model.semantic_decoder, model.instance_decoder):
        decoder.aspp.branches[-1] = ImagePooling(model.backbone.channels[-1], 256, norm=False, window=window)
    model.input = Input(rule, IMAGENET_RGB)
    return model


def panoptic_deeplab_r50_cityscapes(labels: LabelSpace) -> PanopticDeepLab:
    """The R50 of the authors' PyTorch code, whose last map has stride 32: 55,308,870 parameters for 19 classes."""
    net, decoders = timm_backbone("resnet50", pixels=IMAGENET_RGB), list[Decoder]()
    last = net.channels[-1]
    for width, low in ((256, (128, 64, 32)), (128, (64, 32, 16))):
        pooling = ImagePooling(last, 256, norm=False, window=(33, 65))  # of its crop of 1025 × 2049 pixels
        pooling.layers[0] = nn.Conv2d(last, 256, 1, bias=False)
        decoders.append(_decoder(net, ASPP(last, 256, (3, 6, 9), pooling, 0.5), 256, width, low, True, align=True))
    heads = [
        Head(_two_layers(of, width, True), width, outputs)
        for of, width, outputs in ((256, 256, len(labels)), (128, 32, 1), (128, 32, 2))
    ]
    return PanopticDeepLab(
        net,
        decoders[0],
        heads[0],
        decoders[1],
        heads[1],
        heads[2],
        labels,
        Input(ResizeRule(1024, 2048, divisor=1), IMAGENET_RGB),
        criterion_of(labels, "hard_pixels"),
        CentreSettings(),
        Weights(offset=0.005),  # there the mean of y and x, not their sum
        CentreRule(),
        align_corners=True,
    )


OPTIONS: dict[str, Option] = {
    **PYRAMID_OPTIONS,
    **{key: SEMANTIC_OPTIONS[key] for key in ("short", "long", "loss", "class_weights", "output_stride")},
    "rates": Option("dilations of ASPP at stride 16; other strides scale them", "whole numbers", 1, 512),
    "multi_grid": Option(
        "factors on the dilations of the blocks of a ResNet's last stage; empty: all alike", "whole numbers", 1, 64
    ),
    "width": whole("width of both ASPPs and of the decoder of classes", 1, 8192),
    "instance_width": whole("width of the decoder of centres and offsets", 1, 8192),
    "low_widths": Option(
        "what the decoder of classes takes from each finer map, coarse to fine", "whole numbers", 1, 8192, longest=3
    ),
    "instance_low_widths": Option(
        "what the decoder of centres takes from each finer map, coarse to fine", "whole numbers", 1, 8192, longest=3
    ),
    "head_width": whole("width of the layers before centres and offsets", 1, 8192),
    "separable": flag("convolutions of each channel by itself, one of 5×5 for two of 3×3"),
    "dropout": drop_rate("dropout behind both ASPPs"),
    "small_weight": number("weight of the pixels of small things in the semantic loss", 0, 1000),
    "small_area": whole("things of fewer pixels are small", 0, 2**40),
    "sigma": number("deviation of the Gaussian around a centre, in pixels", 0.1, 1000),
    "semantic_weight": loss_weight("the classes"),
    "centre_weight": loss_weight("the heat of centres"),
    "offset_weight": loss_weight("the offsets"),
    **{key: DECODE_OPTIONS[key] for key in ("thing_threshold", "centre_window", "centres", "min_stuff_area")},
}

TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "width": 16, "instance_width": 16}
TINY |= {"low_widths": (8, 8), "instance_low_widths": (8, 8), "head_width": 8, "frozen_bn": True, "min_stuff_area": 0}

SMALL: dict[str, Any] = {"width": 128, "instance_width": 64, "separable": True}

GENERAL = Entry(
    panoptic_deeplab,
    architecture="panoptic_deeplab",
    produces=("panoptic", "semantic", "instances"),
    options=OPTIONS,
    backbone="pyramid",
    adapts=("pretrained", "frozen_bn", "short", "min_stuff_area"),
    class_rows={"semantic_head.predictor": every_class},
    small=SMALL,
    tiny=TINY,
)
D2 = replace(GENERAL, options={}, licence="cc-by-sa-3.0")
ENTRIES: dict[str, Entry] = {
    "panoptic_deeplab": GENERAL,
    "panoptic_deeplab_r52_d2_cityscapes": replace(D2, options={"separable": OPTIONS["separable"]}).published(
        panoptic_deeplab_r52_d2_cityscapes, "panoptic_deeplab"
    ),
    "panoptic_deeplab_r52_d2_coco": D2.published(panoptic_deeplab_r52_d2_coco, "panoptic_deeplab"),
    "panoptic_deeplab_r50_cityscapes": replace(GENERAL, options={}, licence="apache-2.0").published(
        panoptic_deeplab_r50_cityscapes, "panoptic_deeplab"
    ),
}
