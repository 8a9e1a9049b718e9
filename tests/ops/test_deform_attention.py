"""The compiled deformable attention beside sampling by grid_sample, and on cases done by hand."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from pansight.ops.attention.deformable import deform_attention, deform_attention_plain

SHAPES = [(3, 4), (5, 1), (1, 2)]
HEADS, CHANNELS, POINTS = 2, 5, 3
Case = tuple[Tensor, list[tuple[int, int]], Tensor, Tensor, Tensor]


def case(dtype: torch.dtype = torch.float64, spread: float = 2.0, seed: int = 0) -> Case:
    """Points inside, on the border and outside of maps of one pixel's width or height."""
    torch.manual_seed(seed)
    total = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, total, HEADS, CHANNELS, dtype=dtype)
    reference = torch.rand(7, 2, dtype=dtype)
    offsets = spread * torch.randn(2, 7, HEADS, len(SHAPES), POINTS, 2, dtype=dtype)
    weights = torch.randn(2, 7, HEADS, len(SHAPES), POINTS, dtype=dtype)
    return value, SHAPES, reference, offsets, weights


@pytest.mark.parametrize("threads", [1, 3])
def test_equals_the_plain_form_with_its_gradients(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pansight.ops.fast.deformable.WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    results: list[list[Tensor]] = []
    for function in (deform_attention, deform_attention_plain):
        value, shapes, reference, offsets, weights = case()
        leaves = [value.requires_grad_(), offsets.requires_grad_(), weights.requires_grad_()]
        out = function(value, shapes, reference, offsets, weights)
        assert out.shape == (2, 7, HEADS * CHANNELS)
        torch.manual_seed(1)
        results.append([out, *torch.autograd.grad(out, leaves, torch.randn(out.shape, dtype=out.dtype))])
    for ours, plain in zip(*results):
        assert plain.abs().max() > 0.1
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_small_steps() -> None:
    value, shapes, reference, offsets, weights = case(spread=0.7)
    leaves = (value.requires_grad_(), offsets.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda v, o, w: deform_attention(v, shapes, reference, o, w), leaves, fast_mode=True
    )


def test_float32_and_half_precision() -> None:
    exact = deform_attention_plain(*case())
    inputs = case()
    for dtype, tolerance in [(torch.float32, 1e-5), (torch.bfloat16, 0.1)]:
        value, shapes, *rest = inputs
        out = deform_attention(value.to(dtype), shapes, *(t.float() for t in rest))
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)


def test_by_hand() -> None:
    """A map of 2 × 2 with values 1, 2, 3, 4: a pixel itself, the middle, half outside, all outside, NaN."""
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    reference = torch.tensor([[0.25, 0.25]])  # the centre of the first pixel
    offsets = torch.tensor(
        [[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [-0.5, 0.0], [-1.0, 0.0], [5.0, 0.0], [0.0, float("nan")]]
    )
    found: list[float] = []
    for offset in offsets:
        offset = offset.view(1, 1, 1, 1, 1, 2)
        out = deform_attention(value, [(2, 2)], reference, offset, torch.full((1, 1, 1, 1, 1), 2.0))
        found.append(out.item())
    assert found[:6] == [2.0, 8.0, 5.0, 1.0, 0.0, 0.0]
    assert found[6] != found[6]


def test_what_is_not_contiguous_and_left_alone() -> None:
    value, shapes, reference, offsets, weights = case(torch.float32)
    expected = deform_attention(value, shapes, reference, offsets, weights)
    turned = value.transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    copy = turned.clone()
    assert torch.equal(deform_attention(turned, shapes, reference, offsets, weights), expected)
    assert torch.equal(turned, copy)


def test_several_python_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pansight.ops.fast.deformable.WORTH_A_THREAD", 1)
    inputs = case(torch.float32)
    expected = deform_attention(*inputs)
    found: list[Tensor] = []
    workers = [threading.Thread(target=lambda: found.append(deform_attention(*inputs))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert all(torch.equal(out, expected) for out in found)


def test_exported_programs_hold_torch_operations_alone() -> None:
    class Layer(torch.nn.Module):
        def forward(self, value: Tensor, reference: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
            return deform_attention(value, SHAPES, reference, offsets, weights)

    value, _, reference, offsets, weights = case(torch.float32)
    program = torch.export.export(Layer(), (value, reference, offsets, weights))
    assert any("grid_sampler" in str(node.target) for node in program.graph.nodes)
    out = program.module()(value, reference, offsets, weights)
    torch.testing.assert_close(out, deform_attention(value, SHAPES, reference, offsets, weights), rtol=1e-4, atol=1e-5)
