"""Gradient checkpointing gives the gradients and statistics of a step without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from contract import SMALL, shapes_batch, small
from torch import Tensor, nn

from pansight.config import TrainConfig
from pansight.engine.train import gradients, train
from pansight.models import MODELS
from pansight.nn.checkpointing import set_checkpointing
from pansight.nn.statistics import running_statistics


def step(model: Any, recomputes: bool = False) -> tuple[dict[str, Tensor], list[Tensor]]:
    """(gradients by name, running statistics) after one step of the loop."""
    model.train()
    gradients(model, shapes_batch(2, 64), 1, (0, 0), "fp32", Accelerator(cpu=True), recomputes)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found, [tensor.clone() for tensor in running_statistics(model)]


ON_TIMM = [name for name in SMALL if MODELS[name].backbone]
"""The networks of fixed layers (VGG16, the U-Net of 2015) have nothing that can be computed again."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_TIMM)
def test_gradients_are_the_same(name: str) -> None:
    expected, statistics = step(small(name))
    model = small(name)
    parts = set_checkpointing(model, True)
    assert parts
    assert parts[0] == "backbone"
    found, statistics_found = step(model, recomputes=True)
    assert found.keys() == expected.keys()
    assert found
    largest = max(float(g.abs().max()) for g in expected.values())
    for key, gradient in expected.items():
        assert torch.allclose(found[key], gradient, rtol=1e-5, atol=1e-6 * max(1.0, largest)), key
    assert all(torch.equal(a, b) for a, b in zip(statistics, statistics_found, strict=True))


def test_a_training_counts_each_image_once(tmp_path: Path) -> None:
    """The loop hands the setting on: BatchNorm, which sees an image twice, has the statistics of seeing it once."""

    def trained(on: bool) -> list[Tensor]:
        model = small("fcn")
        config = TrainConfig(steps=1, batch_size=2, lr=1e-3, checkpointing=on, precision="fp32", checkpoint_every=0)
        folder = tmp_path / str(on)
        folder.mkdir()
        train(model, lambda _: iter([shapes_batch(2, 64)]), config, folder, Accelerator(cpu=True), lambda _: None)
        return running_statistics(model)

    plain, again = trained(False), trained(True)
    assert plain
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("name", ["detr", "mask2former"])
def test_layers_are_run_again_only_where_it_is_switched_on(name: str) -> None:
    def calls(on: bool) -> int:
        model, count = small(name), 0

        def counted(*_: object) -> None:
            nonlocal count
            count += 1

        set_checkpointing(model, True)
        set_checkpointing(model, on)
        norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
        for norm in norms:
            norm.register_forward_hook(counted)
        step(model)
        return count

    assert calls(True) > calls(False)


def test_a_network_without_layers_that_know_it_is_told_apart() -> None:
    assert set_checkpointing(nn.Sequential(nn.Linear(2, 2)), True) == ()
