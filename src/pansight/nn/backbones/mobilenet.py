"""torchvision's MobileNetV3-Large as a backbone, under the names of its own weights.

Howard et al.: Searching for MobileNetV3, ICCV 2019. timm's network of this name has other statistics of BatchNorm and
dilates other blocks.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large

from pansight.nn.backbones.pyramid import Backbone
from pansight.nn.input import IMAGENET_RGB

TAPS = (2, 4, 16)
"""The places in torchvision's list of layers behind which maps of stride 4, 8 and the last one are taken."""


class _Stages(nn.Sequential):
    """Layers one behind the other; forward gives the maps behind those at TAPS."""

    def forward(self, input: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for place, layer in enumerate(self):
            input = layer(input)
            if place in TAPS:
                maps.append(input)
        return maps


def dilated_mobilenet_v3_large() -> Backbone:
    """Maps of 24, 40 and 960 channels at strides 4, 8 and 16: the last three blocks are dilated instead of strided."""
    network = mobilenet_v3_large(weights=None, dilated=True)
    layers = cast(nn.Sequential, network.features)
    return Backbone(_Stages(*layers), (24, 40, 960), (4, 8, 16), IMAGENET_RGB)
