"""The matrix product by oneDNN gives the same as torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.nn.layers import FastLinear
from pansight.ops.fast.linear import linear

pytestmark = pytest.mark.usefixtures("both_ways")


@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12), (2, 3, 4, 12)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_equals_torch_with_its_gradients(shape: tuple[int, ...], has_bias: bool) -> None:
    results: list[list[Tensor]] = []
    for function in (linear, F.linear):
        torch.manual_seed(0)
        leaves = [torch.randn(s).requires_grad_() for s in (shape, (9, 12), (9,))][: 2 + has_bias]
        out = function(*leaves)
        assert out.shape == (*shape[:-1], 9)
        with torch.no_grad():
            torch.testing.assert_close(function(*leaves), out, rtol=1e-5, atol=1e-5)
        results.append([out, *torch.autograd.grad(out, leaves, torch.randn(out.shape))])
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_what_is_not_contiguous_frozen_or_empty() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(12, 7).t(), FastLinear(12, 9)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad.tolist() == [7.0] * 9
    assert layer(torch.zeros(0, 12)).shape == (0, 9)


def test_other_types_are_torch_s_own() -> None:
    x, layer = torch.randn(3, 12), FastLinear(12, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
