"""The resize rule: target sizes by hand and as the official code computes them."""

import pytest

from pansight.ops.resize import ResizeRule


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((400, 1333), (400, 1333)), ((100, 1000), (133, 1333)), ((1, 10_000), (1, 1333))],
)
def test_short_side_unless_the_long_one_passes_its_limit(size, expected):
    assert ResizeRule(800, 1333).target(*size) == expected


def test_torchvision_rounds_down():
    assert ResizeRule(800, 1333, floor=True).target(480, 640) == (800, 1066)


def test_zero_keeps_the_size_and_padding_reaches_the_divisor():
    rule = ResizeRule(0, 0, 32)
    assert rule.target(333, 500) == (333, 500)
    assert rule.padded(333, 512) == (352, 512)
