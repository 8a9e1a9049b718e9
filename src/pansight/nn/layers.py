"""Layers of torch, parameters and all, that are computed by the fast functions."""

from __future__ import annotations

from torch import Tensor, nn

from pansight.ops.fast.convolutions import dilated_conv
from pansight.ops.fast.linear import linear


class FastLinear(nn.Linear):
    """nn.Linear, computed by `ops.fast.linear.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class DilatedConv2d(nn.Conv2d):
    """nn.Conv2d of stride 1 that keeps the size, computed by `ops.fast.convolutions.dilated_conv`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: tuple[int, int] = (1, 1), groups: int = 1):
        """kernel: odd. dilation: down and right, in places. There is no bias; `nn.backbones.folding` may add one."""
        down, right = (step * (kernel // 2) for step in dilation)
        super().__init__(inputs, outputs, kernel, padding=(down, right), dilation=dilation, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        down, right = self.dilation
        return dilated_conv(input, self.weight, self.bias, (down, right), self.groups)
