"""The first step of every model: channel order, mean and deviation, and what becomes of padding."""

from __future__ import annotations

import pytest
import torch

from pansight.nn.input import CAFFE_BGR, Input, PixelStatistics
from pansight.ops.resize import ResizeRule

RULE = ResizeRule(0, 0)
IMAGE = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
VALID = torch.tensor([[[True, False], [True, True]]])


def test_order_of_channels_and_padding_after_normalising() -> None:
    out = Input(RULE, PixelStatistics((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)))(IMAGE, VALID)
    assert out[0, :, 0, 0].tolist() == pytest.approx([9, 9, 9])
    assert out[0, :, 0, 1].tolist() == [0, 0, 0]
    bgr = Input(RULE, CAFFE_BGR)(IMAGE)
    assert bgr[0, :, 0, 0].tolist() == pytest.approx([30 - 103.53, 20 - 116.28, 10 - 123.675], abs=1e-4)


def test_black_padding_is_normalised() -> None:
    black = Input(RULE, PixelStatistics((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)), black_padding=True)(IMAGE, VALID)
    assert black[0, :, 0, 0].tolist() == pytest.approx([9, 9, 9])
    assert black[0, :, 0, 1].tolist() == pytest.approx([-1, -1, -1])


def test_float_photos_are_normalised_as_they_are() -> None:
    given = Input(RULE)
    assert torch.equal(given(IMAGE.float(), VALID), given(IMAGE, VALID))
    half = given(IMAGE.float() + 0.5) - given(IMAGE)
    assert half[0, :, 0, 0].tolist() == pytest.approx([0.5 / 58.395, 0.5 / 57.12, 0.5 / 57.375], rel=1e-3)


def test_no_tensor_of_it_is_saved() -> None:
    given = Input(RULE, CAFFE_BGR)
    assert not given.state_dict()
    assert given.statistics().bgr
    assert given.statistics().mean == pytest.approx(CAFFE_BGR.mean)
    assert given.statistics().std == (1.0, 1.0, 1.0)
