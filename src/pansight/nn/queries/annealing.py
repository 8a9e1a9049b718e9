"""Mask annealing: the share of queries whose attention is limited to their masks falls to zero during training.

Kerssies et al., EoMT, CVPR 2025, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MaskAnnealing(nn.Module):
    """The probability of masked attention in each block: 1 before `starts[i]`, then (1 − p) ** power, 0 from `ends[i]`
    on.

    starts, ends: shares of the run, 0 … 1. The training loop calls `set_progress` before every step; `probs` is saved
    with the model, and a model that is not trained keeps what it has.
    """

    probs: Tensor

    def __init__(self, starts: Sequence[float], ends: Sequence[float], power: float = 0.9):
        super().__init__()
        self.starts = tuple(starts)
        self.ends = tuple(ends)
        self.power = power
        self.register_buffer("probs", torch.ones(len(self.starts)))

    def set_progress(self, progress: float) -> None:
        """progress: the share of the run that is over, 0 … 1."""
        values: list[float] = []
        for start, end in zip(self.starts, self.ends, strict=True):
            inside = min(max((progress - start) / max(end - start, 1e-9), 0.0), 1.0)
            values.append(1.0 if progress < start else 0.0 if progress >= end else (1 - inside) ** self.power)
        self.probs.copy_(torch.tensor(values))

    def shares(self) -> list[float]:
        """`probs` on the host, one number a block."""
        return self.probs.tolist()
