"""The deformable convolution beside a plain one, and beside its definition, sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.errors import PansightError
from pansight.nn.deformable import DeformableConv


def value_at(channel: Tensor, y: float, x: float) -> float:
    """Bilinear, zero outside of the map."""
    total, (height, width) = 0.0, channel.shape
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * float(channel[row, column])
    return total


def by_definition(layer: DeformableConv, x: Tensor) -> Tensor:
    said = layer.offset(x)[0]
    outputs, inputs, kernel, _ = layer.weight.shape
    result = torch.zeros(outputs, *said.shape[1:])
    for row in range(said.shape[1]):
        for column in range(said.shape[2]):
            for sample in range(kernel * kernel):
                i, j = divmod(sample, kernel)
                y = row * layer.stride - layer.padding + i * layer.dilation + float(said[2 * sample, row, column])
                z = column * layer.stride - layer.padding + j * layer.dilation
                z += float(said[2 * sample + 1, row, column])
                share = float(said[2 * kernel * kernel + sample, row, column].sigmoid()) if layer.modulated else 1.0
                for c in range(inputs):
                    result[:, row, column] += share * value_at(x[0, c], y, z) * layer.weight[:, c, i, j]
    return result if layer.bias is None else result + layer.bias[:, None, None]


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
@torch.no_grad()
def test_each_sample_is_where_its_offset_says(modulated: bool, stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    layer = DeformableConv(2, 3, stride=stride, dilation=dilation, modulated=modulated, still=False)
    layer.offset.weight.mul_(4)
    x = torch.randn(1, 2, 5, 6)
    torch.testing.assert_close(layer(x)[0], by_definition(layer, x), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_still_layer_is_an_ordinary_convolution() -> None:
    torch.manual_seed(1)
    layer, x = DeformableConv(4, 5), torch.randn(2, 4, 7, 6)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), atol=1e-5, rtol=1e-4)


def test_everything_learns_and_a_half_stays_a_half() -> None:
    layer = DeformableConv(2, 3, modulated=True, still=False)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(1, 2, 4, 4))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in layer.parameters())


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(PansightError, match="odd number"):
        DeformableConv(2, 2, kernel=4)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "size"),
    [(3, 1, 1, (7, 9)), (3, 2, 1, (8, 5)), (3, 1, 2, (6, 6)), (1, 1, 1, (1, 1))],
)
@pytest.mark.parametrize("modulated", [False, True])
def test_the_way_of_training_gives_the_same_values_and_gradients(
    kernel: int, stride: int, dilation: int, size: tuple[int, int], modulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples move up to several pixels, also out of the map."""
    torch.manual_seed(0)
    layer = DeformableConv(4, 5, kernel, stride, dilation, modulated=modulated, still=False)
    with torch.no_grad():
        layer.offset.weight.mul_(4)
    x = torch.randn(2, 4, *size, requires_grad=True)
    found: list[list[torch.Tensor]] = []
    for plain in (False, True):
        monkeypatch.setenv("PANSIGHT_PLAIN", "1" if plain else "0")
        y = layer(x)
        gradients = torch.autograd.grad((y * torch.arange(y.numel()).view_as(y).cos()).sum(), [x, *layer.parameters()])
        found.append([y, *gradients])
    assert len(found[0]) == 6
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "size"),
    [(3, 1, 1, (7, 9)), (3, 2, 1, (8, 5)), (3, 1, 2, (6, 6)), (1, 1, 1, (1, 1)), (3, 1, 1, (50, 70))],
)
@pytest.mark.parametrize("modulated", [False, True])
@torch.no_grad()
def test_the_way_without_gradients_gives_the_same(
    kernel: int, stride: int, dilation: int, size: tuple[int, int], modulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples move up to several pixels, also out of the map, one of them very far; the last map comes in pieces."""
    torch.manual_seed(0)
    layer = DeformableConv(4, 5, kernel, stride, dilation, modulated=modulated, still=False)
    layer.offset.weight.mul_(4)
    assert layer.offset.bias is not None
    layer.offset.bias[0] = 1e12
    x = torch.randn(2, 4, *size)
    given, found = x.clone(), []
    for plain in (False, True):
        monkeypatch.setenv("PANSIGHT_PLAIN", "1" if plain else "0")
        found.append(layer(x))
    assert torch.equal(x, given)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
