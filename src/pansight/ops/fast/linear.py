"""Linear maps on a CPU by oneDNN, where torch takes MKL. The plain twin is ``torch.nn.functional.linear``."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pansight.ops.fast import use_plain


def _has_onednn_linear() -> bool:
    """Whether this build of torch has the operation that its compiler uses for linear maps; it is not a public one."""
    try:
        operation: Any = torch.ops.mkldnn._linear_pointwise.default
        return torch.backends.mkldnn.is_available() and operation is not None
    except AttributeError:
        return False


AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
ONEDNN_LINEAR = AVX512 and _has_onednn_linear()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``; float32 on the CPU by oneDNN, which uses all of AVX-512 also where MKL, not of its own maker's
    processor, stops at AVX2: twice as fast there. On processors without AVX-512 MKL is the faster one. Everything else,
    and what is exported or compiled, is torch's own.
    """
    if (
        not ONEDNN_LINEAR
        or use_plain()
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.numel() == 0
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    ):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _OneDNNLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return _product(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight = ctx.saved_tensors
        gradient = grad_outputs[0]
        rows = gradient.flatten(0, -2)  # (all rows, out)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if of_x else None,
            _product(rows.t(), x.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def fc_over_grid(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(x.flatten(1))`` for x (N, C, S, S) → (N, out), without turning channels_last features around.

    On a CPU with AVX-512 in float32 a convolution over the whole grid, which oneDNN computes twice as fast as MKL the
    product; on others it would take ten times as long. In lower precision the weight is turned to the order of the
    features instead. Both only pay for many regions.
    """
    count, channels, size, _ = x.shape
    weight = layer.weight
    if torch.compiler.is_exporting() or use_plain():  # of an exported graph nobody knows how many regions it will see
        return layer(x.flatten(1))
    few = 2 * count < layer.out_features
    if few or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return layer(x.flatten(1))
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        if not AVX512:
            return layer(x.flatten(1))
        return F.conv2d(x, weight.view(-1, channels, size, size), layer.bias).flatten(1)
    # cast before turning, so that the gradient is turned in half precision too
    turned = weight.to(x.dtype).view(-1, channels, size * size).transpose(1, 2).flatten(1)  # (out, S · S · C)
    return F.linear(x.permute(0, 2, 3, 1).flatten(1), turned, layer.bias)
