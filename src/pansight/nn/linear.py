"""Linear layers by the fast function."""

from __future__ import annotations

from torch import Tensor, nn

from pansight.ops.fast.linear import linear


class FastLinear(nn.Linear):
    """nn.Linear, parameters and all, computed by `ops.fast.linear.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
