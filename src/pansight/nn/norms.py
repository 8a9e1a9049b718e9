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
    which stay as they are."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == self.num_features:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)
