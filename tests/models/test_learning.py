"""Every system learns: a few steps on two images bring its loss down; test_overfit.py asks for more.

A wrong sign, a frozen head or a target in the wrong place all leave the loss where it was.
"""

from __future__ import annotations

import pytest
import torch
from contract import SMALL, shapes_batch, small

STEPS, RATE = 20, 3e-3


QUICK = ("panoptic_fpn", "eomt", "segnet")
"""The others are for make test-all, and make test-long."""
SLOW = ("mask_rcnn", "panoptic_deeplab", "deeplabv3plus")


def _marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if name in SLOW else [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=_marks(n)) for n in SMALL if n not in QUICK)])
def test_a_few_steps_bring_the_loss_down(name: str) -> None:
    model, batch = small(name).train(), shapes_batch()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    totals: list[float] = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.stack(list(model.loss(batch).values())).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        totals.append(loss.item())
    # a step may throw a large loss back for a moment, so the least of the last ten counts
    assert min(totals[-10:]) < 0.8 * totals[0]
