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
        self._known = [1.0] * len(self.starts)
        self.register_load_state_dict_post_hook(_remember)

    def set_progress(self, progress: float) -> None:
        """progress: the share of the run that is over, 0 … 1."""
        values: list[float] = []
        for start, end in zip(self.starts, self.ends, strict=True):
            inside = min(max((progress - start) / max(end - start, 1e-9), 0.0), 1.0)
            values.append(1.0 if progress < start else 0.0 if progress >= end else (1 - inside) ** self.power)
        self.probs.copy_(torch.tensor(values))
        self._known = values

    def shares(self) -> list[float]:
        """`probs` on the host, one number a block.

        While a graph is exported no tensor has values: then the shares are those that were set, loaded or asked for
        last, and the graph keeps them for good.
        """
        if not torch.compiler.is_exporting():
            self.remember()
        return self._known

    def remember(self) -> None:
        """Keep what `probs` are now, where they have values, for a graph that is exported later."""
        if not self.probs.is_meta:
            self._known = self.probs.tolist()


def _remember(annealing: MaskAnnealing, _: object) -> None:
    annealing.remember()
