"""Normalisation: uint8 pixels to the values that a backbone was trained on; the first step of every model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)


class Normalize(nn.Module):
    """uint8 RGB images → (x − mean) / std, padding set to zero afterwards.

    mean and std are given in 0..255 units in the channel order the backbone expects; ``bgr`` says that this order is
    reversed (detectron2's MSRA weights). They are buffers without a place in the state dict: official checkpoints
    have none, and the builder knows them.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD, bgr: bool = False):
        super().__init__()
        self.bgr = bgr
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", (1 / torch.tensor(std)).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """images uint8 (B, 3, H, W), valid bool (B, H, W) or None (no padding) → float32 (B, 3, H, W)."""
        pixels = images.flip(1) if self.bgr else images
        pixels = (pixels.float() - self.mean) * self.scale
        return pixels if valid is None else pixels * valid.unsqueeze(1)


def imagenet_rgb() -> Normalize:
    """torchvision and most of timm."""
    return Normalize(IMAGENET_MEAN, IMAGENET_STD)


def caffe_bgr() -> Normalize:
    """detectron2's MSRA ResNets: BGR, mean only (PIXEL_MEAN and PIXEL_STD of its config/defaults.py)."""
    return Normalize(IMAGENET_MEAN[::-1], (1.0, 1.0, 1.0), bgr=True)
