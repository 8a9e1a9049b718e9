"""Norms that take maps of a single place, which torch's refuse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """torch's, for any size: a group of a single value has no deviation, and its output is the bias."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, for any size: a single value a channel has no variance, so it is normalised by the running statistics,
    which stay as they are.

    Where a graph is exported, whose number of regions may be anything, it is written as a multiplication and an
    addition: torch's own asks whether there are any values at all, which nobody knows then.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and torch.compiler.is_exporting():
            assert self.running_mean is not None
            assert self.running_var is not None
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return input * scale[:, None, None] + shift[:, None, None]
        if self.training and input.numel() == self.num_features:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)
