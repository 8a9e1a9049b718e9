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
from pansight.nn.fpn import conv_norm
from pansight.ops.regions.roi import AlignRule, Pyramid, multilevel_roi_align, pyramid_levels, roi_by_kernel

ROI_OPS = ("align", "pool")

MASK_CHUNK = 128
"""In inference, masks of so many regions are predicted at a time, which bounds the memory."""


class RoIPooler(NamedTuple):
    """Boxes to grids of features, each box from the level that suits its size (FPN, eq. 1).

    op: "align" or "pool". sampling_ratio, aligned: see `AlignRule`. The rest: see `pyramid_levels`.
    """

    size: int
    op: str = "align"
    sampling_ratio: int = 2
    aligned: bool = True
    eps_after_log: float = 0.0
    eps_in_ratio: float = 1e-8
    canonical_size: float = 224.0

    def __call__(self, pyramid: Pyramid, boxes_xyxy: Tensor, image_index: Tensor) -> Tensor:
        """boxes (N, 4) in network pixels, image_index int64 (N,) → (N, C, size, size)."""
        rule = (self.eps_after_log, self.eps_in_ratio, self.canonical_size)
        level = pyramid_levels(boxes_xyxy, len(pyramid.strides), *rule)
        if self.op == "pool":
            return roi_by_kernel(pyramid, boxes_xyxy, image_index, level, self.size, None)
        if self.op != "align":
            raise choice_error("roi_op", self.op, ROI_OPS)
        align = AlignRule(self.sampling_ratio, self.aligned)
        return multilevel_roi_align(pyramid, boxes_xyxy, image_index, level, self.size, align)


def fc_over_grid(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(x.flatten(1))`` for x (N, C, S, S) → (N, out), without turning channels_last features around.

    On a CPU in float32 a convolution over the whole grid, which oneDNN computes twice as fast as MKL the product;
    in lower precision the weight is turned to the order of the features instead. Both only pay for many regions.
    """
    count, channels, size, _ = x.shape
    weight = layer.weight
    few = 2 * count < layer.out_features
    if few or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return layer(x.flatten(1))
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        return F.conv2d(x, weight.view(-1, channels, size, size), layer.bias).flatten(1)
    # cast before turning, so that the gradient is turned in half precision too
    turned = weight.to(x.dtype).view(-1, channels, size * size).transpose(1, 2).flatten(1)  # (out, S · S · C)
    return F.linear(x.permute(0, 2, 3, 1).flatten(1), turned, layer.bias)


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

    Only the mask of the class asked for is computed. The transposed convolution (2×2, stride 2, nothing overlaps) is
    a 1×1 convolution to four times the channels; the predictor meets its output where it lies, pixel by pixel.
    """

    def __init__(self, in_channels: int, classes: int, convs: int = 4, channels: int = 256, norm: str | None = None):
        super().__init__()
        widths = [in_channels] + [channels] * convs
        self.conv = nn.ModuleList(conv_norm(a, b, 3, norm) for a, b in itertools.pairwise(widths))
        self.deconv = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        self.predictor = nn.Conv2d(channels, classes, 1)
        _msra(self.conv)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for module in (self.deconv, self.predictor):
            nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """(N, C, S, S), classes int64 (N,) → logits float32 (N, 2 S, 2 S) of each region's class."""
        for conv in self.conv:
            x = F.relu(conv(x), inplace=True)
        count, size = x.shape[0], x.shape[2]
        weight = self.deconv.weight  # (C, D, 2, 2)
        channels = weight.shape[1]
        spread = weight.permute(2, 3, 1, 0).reshape(4 * channels, -1, 1, 1)
        bias = self.deconv.bias
        assert bias is not None
        x = F.relu(F.conv2d(x, spread, bias.repeat(4)), inplace=True)  # (N, 4 D, S, S)
        x = x.permute(0, 2, 3, 1).reshape(count, 4 * size * size, channels)  # (N, S · S · 2 · 2, D); N may be 0
        row = self.predictor.weight.flatten(1)[classes]  # (N, D)
        logits = torch.bmm(x, row.unsqueeze(2).to(x.dtype)).float()  # (N, S · S · 2 · 2, 1)
        assert self.predictor.bias is not None
        logits = logits.squeeze(2) + self.predictor.bias.float()[classes][:, None]
        return logits.view(count, size, size, 2, 2).transpose(2, 3).reshape(count, 2 * size, 2 * size)


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
