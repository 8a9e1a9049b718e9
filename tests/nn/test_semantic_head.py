"""The semantic head of Panoptic FPN: its shapes and its number of parameters."""

import torch
import torch.nn.functional as F

from pansight.nn.semantic.fpn_head import SemanticFPNHead


def pyramid(height: int, width: int, channels: int) -> list[torch.Tensor]:
    return [torch.randn(1, channels, height // s, width // s) for s in (4, 8, 16, 32)]


def test_the_published_head_has_the_published_number_of_parameters():
    head = SemanticFPNHead(256, (4, 8, 16, 32), num_classes=54)
    assert sum(p.numel() for p in head.parameters()) == 1_630_774
    assert [len(level) for level in head.levels] == [1, 1, 2, 3]


def test_levels_meet_at_the_first_stride():
    head = SemanticFPNHead(16, (4, 8, 16, 32), num_classes=5, width=8, norm_groups=4)
    assert head(pyramid(64, 96, 16)).shape == (1, 5, 16, 24)


def test_upsampling_follows_every_convolution():
    """The deepest branch, told again by hand: conv, norm, relu, ×2, three times."""
    head = SemanticFPNHead(16, (4, 8, 16, 32), num_classes=5, width=8, norm_groups=4)
    features = [f * 0 for f in pyramid(64, 64, 16)]
    features[3] = torch.randn_like(features[3])
    x = features[3]
    for stage in head.levels[3]:
        x = F.relu(F.group_norm(F.conv2d(x, stage.conv.weight, padding=1), 4, stage.norm.weight, stage.norm.bias))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(features), head.predictor(x))
