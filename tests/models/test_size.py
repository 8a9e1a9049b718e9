"""Options whose product is a network far beyond the machine's memory are refused before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contract import LABELS, SMALL

from pansight.apps.cli import main
from pansight.errors import PansightError
from pansight.models import MODELS, build, builder_options, check_size, entry
from pansight.models.options import Option

GIB = 2**30


def test_a_product_of_large_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--model.options.channels 4096 --model.options.hidden 65536 --model.options.encoder-layers 64"
    words = f"train --model detr --data {tmp_path / 'nowhere'} --out {tmp_path / 'run'} {sizes}"
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert "model detr: expected weights, gradients and the state of the optimiser of at most" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def largest(option: Option, default: Any) -> Any:
    """The largest value of a whole number that says how many, or how wide."""
    step = next((divisor for divisor in option.multiple_of if isinstance(divisor, int)), 1)
    return int(option.high) // step * step if option.high < float("inf") else default


WIDE = ("channels", "hidden", "layers", "encoder_layers", "decoder_layers", "fpn_channels", "mask_channels", "queries")
WIDE += ("mask_convs", "box_features", "width", "depth", "mask_dim")


@pytest.mark.parametrize("name", MODELS)
def test_everything_at_its_largest_is_one_line(name: str) -> None:
    """Whatever can be large at once is counted in bounded time."""
    known, declared = builder_options(name), entry(name).options
    options = {
        key: largest(declared[key], known[key])
        for key in WIDE
        if key in known and key in declared and declared[key].kind == "whole number"
    }
    options |= {"vit_options": {"embed_dim": 2**14, "depth": 2**10, "num_heads": 8}} if "vit_options" in known else {}
    if not options:
        return
    with pytest.raises(PansightError) as caught:
        check_size(name, LABELS, options, memory=2**20)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_small_models_pass(name: str) -> None:
    check_size(name, LABELS, SMALL.get(name, {}) | {}, memory=64 * GIB)


@pytest.mark.slow
def test_a_network_of_very_many_layers_is_refused_in_bounded_time() -> None:
    options = {"vit_options": {"embed_dim": 2, "depth": 2**16, "num_heads": 1}}
    with pytest.raises(PansightError, match="at most 10000 weight tensors"):
        check_size("eomt", LABELS, options)
    with pytest.raises(PansightError, match="at most 10000 weight tensors"):
        build("eomt", LABELS, **options)


def test_what_is_counted() -> None:
    """The published DETR has 41.5 million weights; with gradients and Adam's moments 620 MiB."""
    options = {"pretrained": "none"}
    check_size("detr", LABELS, options, memory=int(0.35 * GIB))
    with pytest.raises(PansightError, match=r"the optimiser of at most 0\.5 GiB, .*found 0\.6 GiB"):
        check_size("detr", LABELS, options, memory=int(0.25 * GIB))
    check_size("detr", LABELS, options, training=False, memory=int(0.25 * GIB))
    assert torch.get_default_device().type == "cpu"
