"""The feature pyramid: its shapes, and the same output as torchvision's."""

import pytest
import torch
import torchvision
from torch import nn

from pansight.nn.fpn import FPN


@pytest.mark.parametrize("norm", [None, "bn"])
def test_it_is_torchvisions_pyramid(norm):
    channels = (8, 16, 24, 32)
    ours = FPN(channels, 12, norm=norm).eval()
    theirs = torchvision.ops.FeaturePyramidNetwork(
        list(channels),
        12,
        extra_blocks=torchvision.ops.feature_pyramid_network.LastLevelMaxPool(),
        norm_layer=nn.BatchNorm2d if norm else None,
    ).eval()
    names = {"inner_blocks": "lateral", "layer_blocks": "output"}
    state = {}
    for key, value in theirs.state_dict().items():  # inner_blocks.0.0.weight; ours without a norm: lateral.0.weight
        kind, level, place, name = key.split(".")
        state[f"{names[kind]}.{level}.{place}.{name}" if norm else f"{names[kind]}.{level}.{name}"] = value
    ours.load_state_dict(state)
    maps = [torch.randn(2, c, s, s + 1) for c, s in zip(channels, (32, 16, 8, 4))]
    expected = theirs({str(i): m for i, m in enumerate(maps)})
    found = ours(maps)
    assert [tuple(p.shape[2:]) for p in found] == [(32, 33), (16, 17), (8, 9), (4, 5), (2, 3)]
    for a, b in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_odd_sizes_and_no_extra_level():
    pyramid = FPN((4, 4, 4, 4), 6, extra=None)([torch.randn(1, 4, s, s) for s in (33, 17, 9, 5)])
    assert [p.shape[2] for p in pyramid] == [33, 17, 9, 5]


def test_inputs_are_left_alone():
    maps = [torch.randn(1, 4, s, s) for s in (32, 16, 8, 4)]
    before = [m.clone() for m in maps]
    FPN((4, 4, 4, 4), 4)(maps)
    assert all(torch.equal(a, b) for a, b in zip(maps, before))
