"""The second stage of the detector: pooling of regions from the pyramid, the box head and the mask head.

He et al., Mask R-CNN, ICCV 2017, figure 4 (right); Li et al., Benchmarking Detection Transfer Learning with Vision
Transformers, 2021 (four convolutions in the box head, BatchNorm in both: torchvision's V2).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.errors import choice_error
from pansight.nn.fpn import conv_norm, separable_conv
from pansight.ops.fast import use_plain
from pansight.ops.fast.convolutions import deconv_mask
from pansight.ops.fast.linear import fc_over_grid
from pansight.ops.regions.roi import (
    AlignRule,
    Pyramid,
    multilevel_roi_align,
    multilevel_roi_warp,
    pyramid_levels,
    roi_by_kernel,
)

ROI_OPS = ("align", "pool", "warp")

MASK_CHUNK = 128
"""In inference, masks of so many regions are predicted at a time, which bounds the memory."""


class RoIPooler(NamedTuple):
    """Boxes to grids of features, each box from the level that suits its size (FPN, eq. 1).

    op: one of ROI_OPS. sampling_ratio, aligned: of "align", see `AlignRule`. end_shift: pixels added to x2 and y2 where
    features are read, not where the level is chosen: −1 reads a box to its last pixel (see `legacy`). The rest: see
    `pyramid_levels`.
    """

    size: int
    op: str = "align"
    sampling_ratio: int = 2
    aligned: bool = True
    eps_after_log: float = 0.0
    eps_in_ratio: float = 1e-8
    canonical_size: float = 224.0
    end_shift: float = 0.0

    def __call__(self, pyramid: Pyramid, boxes_xyxy: Tensor, image_index: Tensor) -> Tensor:
        """boxes (N, 4) in network pixels, image_index int64 (N,) → (N, C, size, size)."""
        rule = (self.eps_after_log, self.eps_in_ratio, self.canonical_size)
        level = pyramid_levels(boxes_xyxy, len(pyramid.strides), *rule)
        boxes_xyxy = self.area_read(boxes_xyxy)
        if self.op == "pool":
            return roi_by_kernel(pyramid, boxes_xyxy, image_index, level, self.size, None)
        if self.op == "warp":
            return multilevel_roi_warp(pyramid, boxes_xyxy, image_index, level, self.size)
        if self.op != "align":
            raise choice_error("roi_op", self.op, ROI_OPS)
        align = AlignRule(self.sampling_ratio, self.aligned)
        return multilevel_roi_align(pyramid, boxes_xyxy, image_index, level, self.size, align)

    def area_read(self, boxes_xyxy: Tensor) -> Tensor:
        """The part of each box that features are read from, and that masks are learnt in: (N, 4) → (N, 4)."""
        if not self.end_shift:
            return boxes_xyxy
        return boxes_xyxy + boxes_xyxy.new_tensor((0, 0, self.end_shift, self.end_shift))


class TwoLinear(nn.Module):
    """The box head of the papers: two fully connected layers."""

    def __init__(self, in_channels: int, size: int = 7, features: int = 1024):
        super().__init__()
        self.features = features
        self.fc6 = nn.Linear(in_channels * size * size, features)
        self.fc7 = nn.Linear(features, features)
        _xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, size, size) → (N, features)."""
        x = F.relu(fc_over_grid(x, self.fc6), inplace=True)
        return F.relu(self.fc7(x), inplace=True)


class ConvLinear(nn.Module):
    """Convolutions with BatchNorm, then one fully connected layer (torchvision's V2)."""

    def __init__(self, in_channels: int, size: int = 7, convs: int = 4, channels: int = 256, features: int = 1024):
        super().__init__()
        self.features = features
        widths = [in_channels] + [channels] * convs
        self.conv = nn.ModuleList(conv_norm(a, b, 3, "bn") for a, b in itertools.pairwise(widths))
        self.fc = nn.Linear(widths[-1] * size * size, features)
        _msra(self.conv)
        _xavier(self.fc)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, size, size) → (N, features)."""
        for conv in self.conv:
            x = F.relu(conv(x), inplace=True)
        return F.relu(fc_over_grid(x, self.fc), inplace=True)


class BoxPredictor(nn.Module):
    """Class logits (rows: classes with background) and one box code for each of `regressed` classes."""

    def __init__(self, features: int, classes: int, regressed: int):
        super().__init__()
        self.cls_score = nn.Linear(features, classes)
        self.bbox_pred = nn.Linear(features, 4 * regressed)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, features) → logits (N, classes), codes (N, regressed, 4)."""
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """Convolutions, a transposed convolution that doubles the grid, and one mask per class.

    separable: the convolutions are separable and activated, as in EfficientPS, whatever `norm` says.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        convs: int = 4,
        channels: int = 256,
        norm: str | None = None,
        separable: bool = False,
    ):
        super().__init__()
        self.separable = separable
        widths = [in_channels] + [channels] * convs
        self.conv = nn.ModuleList(
            separable_conv(a, b) if separable else conv_norm(a, b, 3, norm) for a, b in itertools.pairwise(widths)
        )
        self.deconv = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        self.predictor = nn.Conv2d(channels, classes, 1)
        if not separable:  # each map of a convolution of single channels would start close to zero
            _msra(self.conv)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for module in (self.deconv, self.predictor):
            nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """(N, C, S, S), classes int64 (N,) → logits float32 (N, 2 S, 2 S) of each region's class."""
        for conv in self.conv:
            x = conv(x) if self.separable else F.relu(conv(x), inplace=True)
        if not use_plain():
            return deconv_mask(x, self.deconv, self.predictor, classes)
        logits = self.predictor(F.relu(self.deconv(x)))  # (N, C, 2 S, 2 S)
        return logits[torch.arange(x.shape[0], device=x.device), classes].float()


def _xavier(module: nn.Module) -> None:
    """Caffe2's: uniform in ±√(3 / fan_in)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)


def _msra(modules: nn.Module) -> None:
    for layer in modules.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def zero_of(modules: Sequence[nn.Module]) -> Tensor:
    """A zero that depends on every parameter: the loss of a head that got no region.

    So that all parameters receive gradients in every step, which DDP demands and the optimiser's state expects.
    """
    terms = [p.sum() for module in modules for p in module.parameters() if p.requires_grad]
    return 0.0 * torch.stack(terms).sum() if terms else torch.zeros(())
