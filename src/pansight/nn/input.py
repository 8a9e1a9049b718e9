"""From photos to the network's input: the size rule and the pixel statistics of a model, its first step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pansight.ops.resize import ResizeRule

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)


class PixelStatistics(NamedTuple):
    """What weights expect of their input: (pixel − mean) / std, in 0 … 255 units, in the order of their channels.

    bgr: that order is blue, green, red (detectron2's MSRA weights).
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    bgr: bool = False


IMAGENET_RGB = PixelStatistics()
"""torchvision and most of timm."""

CAFFE_BGR = PixelStatistics(IMAGENET_MEAN[::-1], (1.0, 1.0, 1.0), bgr=True)
"""detectron2's MSRA ResNets: BGR, mean only."""


class Input(nn.Module):
    """The size rule of a model (`resize`), which the loaders apply to a photo, and what is then done to its pixels.

    black_padding: padding is black, so that it is normalised like a black part of the photo (EoMT); otherwise it is
    zero after normalisation. mean and scale = 1 / std are buffers without a place in the state dict: official
    checkpoints have none, and the builder knows them.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, resize: ResizeRule, pixels: PixelStatistics = IMAGENET_RGB, black_padding: bool = False):
        super().__init__()
        self.resize = resize
        self.bgr = pixels.bgr
        self.black_padding = black_padding
        self.register_buffer("mean", torch.tensor(pixels.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", (1 / torch.tensor(pixels.std)).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """images uint8 or float32 0 … 255 (B, 3, H, W) RGB, valid bool (B, H, W), False on padding, None without any.

        → float32 (B, 3, H, W), normalised.
        """
        if self.black_padding and valid is not None:
            images = images * valid.unsqueeze(1)
        pixels = images.flip(1) if self.bgr else images
        pixels = (pixels.float() - self.mean) * self.scale
        return pixels if valid is None or self.black_padding else pixels * valid.unsqueeze(1)

    def statistics(self) -> PixelStatistics:
        """Mean and deviation as plain numbers."""
        mean, scale = self.mean.flatten().tolist(), self.scale.flatten().tolist()
        return PixelStatistics(tuple(mean), tuple(1 / v for v in scale), self.bgr)
