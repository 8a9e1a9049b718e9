"""EfficientNet without squeeze-and-excitation and with activated BatchNorm: the backbone of EfficientPS.

Tan, Le: EfficientNet, ICML 2019; Mohan, Valada: EfficientPS, IJCV 2021, section 3.1. timm has no such network by a name
of its own, but builds it from the definitions of its blocks. The tensors have the names of its ``tf_efficientnet_b5``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.efficientnet import EfficientNet, decode_arch_def, round_channels
from torch import Tensor, nn

from pansight.nn.backbones.pyramid import Backbone
from pansight.nn.input import IMAGENET_RGB, PixelStatistics

STAGES = [
    ["ds_r1_k3_s1_e1_c16"],
    ["ir_r2_k3_s2_e6_c24"],
    ["ir_r2_k5_s2_e6_c40"],
    ["ir_r3_k3_s2_e6_c80"],
    ["ir_r3_k5_s1_e6_c112"],
    ["ir_r4_k5_s2_e6_c192"],
    ["ir_r1_k3_s1_e6_c320"],
]
"""The stages of EfficientNet in timm's words: kind, repeats, kernel, stride, expansion and channels of B0."""

BEFORE_A_STRIDE = (1, 2, 3)
"""The maps of strides 4, 8 and 16 among those that timm counts: each is the last one before the next stride."""

BN_EPS = 1e-3


class EfficientNetMaps(nn.Module):
    """timm's network; forward gives its maps of strides 4, 8 and 16, and the one behind its last 1×1 convolution."""

    def __init__(self, network: EfficientNet):
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """pixels float (B, 3, H, W) → [(B, C, H/s, W/s) for s = 4, 8, 16, 32]."""
        last, maps = self.network.forward_intermediates(pixels, indices=[*BEFORE_A_STRIDE])
        return [*maps, last]


def plain_efficientnet(width: float = 1.6, depth: float = 2.2, pixels: PixelStatistics = IMAGENET_RGB) -> Backbone:
    """Four maps of strides 4, 8, 16 and 32. width, depth: what B0 is scaled by; B5 has 1.6 and 2.2.

    Those of B5 have 40, 64, 176 and 2,048 channels. Every convolution but the last one of an inverted residual is
    followed by BatchNorm and a leaky ReLU; so are the projections of the first stage, which are linear in EfficientNet.
    """
    blocks = decode_arch_def(STAGES, depth)
    for block in blocks[0]:
        block["pw_act"] = True
    rounded = partial(round_channels, multiplier=width)
    network = EfficientNet(
        blocks,
        num_classes=0,
        num_features=rounded(1280),
        pad_type="same",
        act_layer=nn.LeakyReLU,
        norm_layer=partial(nn.BatchNorm2d, eps=BN_EPS),
        round_chs_fn=rounded,
        global_pool="",
    )
    stages: list[dict[str, Any]] = network.feature_info
    channels = [stages[index]["num_chs"] for index in BEFORE_A_STRIDE]
    return Backbone(EfficientNetMaps(network), [*channels, rounded(1280)], (4, 8, 16, 32), pixels)
