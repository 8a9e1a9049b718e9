"""Deformable convolutions in a ResNet. Dai et al.: Deformable Convolutional Networks, ICCV 2017, 4.1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pansight.errors import PansightError
from pansight.nn.backbones.pyramid import Backbone
from pansight.nn.deformable import DeformableConv


def deform(backbone: Backbone, stages: Sequence[str] = ("layer2", "layer3", "layer4")) -> None:
    """Make the 3×3 convolution of each block of these stages deformable; it keeps its weights, and offsets start at 0.

    Raises PansightError for a backbone that is no ResNet of bottleneck blocks.
    """
    children = dict(backbone.features.named_children())
    blocks = [block for stage in stages for block in children.get(stage, nn.Module()).children()]
    old = [dict(block.named_children()).get("conv2") for block in blocks]
    if not blocks or not all(_is_plain(conv) for conv in old):
        expected, found = "a ResNet of bottleneck blocks", f"{type(backbone.features).__name__} without such blocks"
        raise PansightError(where="deformable backbone", expected=expected, found=found)
    for block, conv in zip(blocks, old, strict=True):
        assert isinstance(conv, nn.Conv2d)
        new = DeformableConv(
            conv.in_channels, conv.out_channels, 3, conv.stride[0], conv.dilation[0], bias=conv.bias is not None
        )
        with torch.no_grad():
            new.weight.copy_(conv.weight)
        new.weight.requires_grad_(conv.weight.requires_grad)
        block.register_module("conv2", new)


def _is_plain(conv: nn.Module | None) -> bool:
    return isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.groups == 1 and conv.bias is None
