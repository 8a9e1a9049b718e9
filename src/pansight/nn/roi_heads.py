"""The second stage of the R-CNN family: features of each proposal, its class, its box, its mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.errors import choice_error
from pansight.ops.roi import AlignRule, multilevel_roi_align, multilevel_roi_pool, pyramid_levels

ROI_OPS = ("align", "pool")


class RoIPooler:
    """Cuts a fixed grid of features out of the pyramid level that fits a box (Lin et al., eq. 1).

    strides: of the levels used. op: "align" (Mask R-CNN) or "pool" (Fast R-CNN). sampling: points per cell and axis,
    0 = one per map pixel. aligned: shift by half a pixel. canonical_size: the box side that belongs to stride 16.
    torchvision adds 1e-6 to the logarithm of eq. 1, detectron2 1e-8 to the ratio inside.
    """

    def __init__(
        self,
        strides: Sequence[int] = (4, 8, 16, 32),
        op: str = "align",
        sampling: int = 2,
        aligned: bool = True,
        canonical_size: float = 224.0,
        log_eps: float = 0.0,
        ratio_eps: float = 1e-8,
    ):
        if op not in ROI_OPS:
            raise choice_error("roi_op", op, ROI_OPS)
        self.strides, self.op, self.rule = tuple(strides), op, AlignRule(sampling, aligned)
        self.canonical_size, self.log_eps, self.ratio_eps = canonical_size, log_eps, ratio_eps

    def __call__(self, features: Sequence[Tensor], boxes_xyxy: Tensor, image_index: Tensor, size: int) -> Tensor:
        """features (B, C, h, w) for at least each stride; boxes float32 (R, 4) in input pixels, image_index int64 (R,)
        → (R, C, size, size)."""
        levels = features[: len(self.strides)]
        level = pyramid_levels(boxes_xyxy, len(levels), self.log_eps, self.ratio_eps, self.canonical_size)
        if self.op == "pool":
            return multilevel_roi_pool(levels, self.strides, boxes_xyxy, image_index, level, size)
        return multilevel_roi_align(levels, self.strides, boxes_xyxy, image_index, level, size, self.rule)


class BoxHead(nn.Module):
    """The classic two fully connected layers (Lin et al.). (R, C, pool, pool) → (R, features)."""

    def __init__(self, channels: int, pool: int = 7, features: int = 1024):
        super().__init__()
        self.pool, self.features = pool, features
        self.fc6 = nn.Linear(channels * pool * pool, features)
        self.fc7 = nn.Linear(features, features)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))


class ConvBoxHead(nn.Module):
    """torchvision V2: 3×3 convolutions with BatchNorm, then one fully connected layer."""

    def __init__(self, channels: int, convs: int = 4, pool: int = 7, features: int = 1024):
        super().__init__()
        self.pool, self.features = pool, features
        self.conv = nn.ModuleList(_conv(channels, channels, norm=True) for _ in range(convs))
        self.fc = nn.Linear(channels * pool * pool, features)
        nn.init.kaiming_normal_(self.fc.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.conv:
            x = F.relu(layer(x))
        return F.relu(self.fc(x.flatten(1)))


class BoxPredictor(nn.Module):
    """Class logits and box deltas, with the background row first (torchvision, whose deltas have a row for it too)
    or last (detectron2). What it returns always has the background last."""

    def __init__(self, features: int, num_classes: int, background_first: bool = False):
        super().__init__()
        self.num_classes, self.background_first = num_classes, background_first
        self.cls_score = nn.Linear(features, num_classes + 1)
        self.bbox_pred = nn.Linear(features, 4 * (num_classes + background_first))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, features) → logits float32 (R, K + 1) with the background last, deltas float32 (R, K, 4)."""
        logits = self.cls_score(x).float()
        deltas = (
            self.bbox_pred(x).float().view(x.shape[0], self.bbox_pred.out_features // 4, 4)
        )  # (R, 4·K) -> (R, K, 4)
        return (logits.roll(-1, 1), deltas[:, 1:]) if self.background_first else (logits, deltas)


class MaskHead(nn.Module):
    """3×3 convolutions, a ×2 deconvolution, one logit map per class (He et al., figure 4, right)."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        width: int = 256,
        convs: int = 4,
        pool: int = 14,
        norm: bool = False,
        background_first: bool = False,
    ):
        super().__init__()
        self.pool, self.background_first = pool, background_first
        self.conv = nn.ModuleList(_conv(channels if k == 0 else width, width, norm) for k in range(convs))
        self.deconv = nn.ConvTranspose2d(width, width, 2, 2)
        self.predictor = nn.Conv2d(width, num_classes + background_first, 1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (self.deconv, self.predictor):
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """(R, C, pool, pool), labels int64 (R,) → logits float32 (R, 2·pool, 2·pool), each of its own class only."""
        for layer in self.conv:
            x = F.relu(layer(x))
        x = F.relu(self.deconv(x))
        rows = labels + self.background_first
        assert self.predictor.bias is not None
        weight, bias = self.predictor.weight.flatten(1)[rows], self.predictor.bias[rows]  # (R, C), (R,)
        cells = x.permute(0, 2, 3, 1).flatten(1, 2)  # (R, C, M, M) -> (R, M·M, C)
        logits = torch.bmm(cells, weight[:, :, None].to(cells.dtype))  # (R, M·M, 1)
        return logits.view(-1, *x.shape[2:]).float() + bias[:, None, None].float()


def _conv(in_channels: int, channels: int, norm: bool) -> nn.Module:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=not norm)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if norm:
        return nn.Sequential(conv, nn.BatchNorm2d(channels))
    nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    return conv
