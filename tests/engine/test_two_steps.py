"""Training in two steps with one command: a first run, its best weights, and a second run from them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import pansight
from pansight import models
from pansight.apps.cli import main
from pansight.config import read_config
from pansight.models.contract import Entry
from pansight.nn.input import Input
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace

sys.path.insert(0, str(Path(__file__).parent))
import toy


def build_second(labels: LabelSpace, width: int = 4, quiet: bool = False) -> toy.Toy:
    """The toy under another name, with fewer options."""
    return toy.Toy(labels, width, 0, "", quiet)


class Stranger(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = toy.ToyBackbone(4)
        self.input = Input(ResizeRule(0, 0, 8))

    def decode(self, outputs, sizes):
        """Never called."""


def build_stranger(labels: LabelSpace) -> Stranger:
    """Another architecture."""
    return Stranger()


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    second = replace(toy.ENTRIES["toy"], build=build_second)
    stranger = Entry(build_stranger, "stranger", ("panoptic",))
    for name, entry in (*toy.ENTRIES.items(), ("toy_second", second), ("stranger", stranger)):
        monkeypatch.setitem(models.MODELS, name, entry)


@pytest.fixture
def recipe(tmp_path) -> Path:
    """The second step's; the first one's stands beside it and has an option that the second model lacks."""
    (tmp_path / "first.toml").write_text(
        '[model]\nname = "toy"\n[model.options]\nmemory_limit = 0\nwidth = 6\n'
        "[augment]\ncrop = 0\n[train]\nsteps = 3\nlr = 0.01\nevaluate_every = 0\n"
    )
    second = tmp_path / "second.toml"
    second.write_text(
        f'[model]\nname = "toy_second"\nfirst_recipe = "{tmp_path / "first.toml"}"\n'
        '[data]\nsource = "shapes"\nworkers = 0\n[data.options]\ncount = 4\nheight = 32\nwidth = 32\n'
        "[augment]\ncrop = 0\n"
        '[train]\nsteps = 2\nlr = 0.01\nevaluate_every = 0\nfreeze = ["backbone"]\n'
    )
    return second


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    small = ["--train.batch-size", "2", "--train.trackers", "", "--evaluate.sheet", "1"]
    return ["train", "--recipe", str(recipe), "--out", str(out), *small, *more]


def complaint(words: list[str], capsys) -> str:
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_second_step_starts_from_the_best_of_the_first(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(recipe, out)) == 0
    said = capsys.readouterr().out
    assert f"step 1     {tmp_path / 'first.toml'}, in {out / 'first'}" in said
    assert "step 2     toy_second, from PQ " in said
    steps = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["step"] for folder in (out, out / "first")
    ]
    assert steps == [2, 3]
    first, second = (pansight.load(folder).model for folder in (out / "first", out))
    assert second.backbone.conv.weight.shape[0] == 6  # the width of the first step's recipe
    assert torch.equal(first.backbone.conv.weight, second.backbone.conv.weight)  # frozen
    assert not torch.equal(first.head.weight, second.head.weight)
    facts = json.loads((out / "run.json").read_text())["first"]
    assert facts["recipe"] == str(tmp_path / "first.toml")
    assert facts["figure"] == "PQ"
    assert facts["value"] == json.loads((out / "first" / "evaluation.json").read_text())["All"]["pq"]
    assert f"{facts['recipe']}, PQ {100 * facts['value']:.1f}" in (out / "report.html").read_text()
    config = read_config(out / "config.toml")
    assert (config.model.weights, config.train.freeze) == ("", ("backbone",))  # as it is repeated
    assert read_config(out / "first" / "config.toml").train.freeze == ()


def test_settings_of_the_command_line_hold_for_both_steps(recipe, tmp_path):
    out = tmp_path / "run"
    more = ["--train.steps", "1", "--model.options.width", "2", "--train.seed", "7", "--data.options.count", "3"]
    assert main(command(recipe, out, *more)) == 0
    for folder in (out, out / "first"):
        config = read_config(folder / "config.toml")
        assert (config.train.steps, config.train.seed, config.model.options["width"]) == (1, 7, 2)
        assert config.data.options["count"] == 3


def test_given_weights_skip_the_first_step(recipe, tmp_path):
    assert main(command(recipe, tmp_path / "whole")) == 0
    out = tmp_path / "run"
    assert main(command(recipe, out, "--weights", str(tmp_path / "whole" / "first"))) == 0
    assert not (out / "first").exists()
    a, b = (pansight.load(folder).model.state_dict() for folder in (tmp_path / "whole", out))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 4])
def test_whichever_step_is_unfinished_is_resumed(recipe, tmp_path, monkeypatch, capsys, stop):
    """Interrupted after step 2 of the first run, or after step 1 of the second."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(command(recipe, whole)) == 0
    loss, calls = toy.Toy.loss, iter(range(1, 100))

    def interrupting(self, batch, totals=None):
        if next(calls) == stop:
            monkeypatch.setenv("TOY_INTERRUPT_AT", str(self.calls + 1))
        return loss(self, batch, totals)

    with monkeypatch.context() as patch:
        patch.setattr(toy.Toy, "loss", interrupting)
        assert main(command(recipe, broken)) == 130
    monkeypatch.delenv("TOY_INTERRUPT_AT")
    assert (broken / "first" / "report.html").exists() == (stop == 4)
    assert main(["train", "--resume", "--out", str(broken)]) == 0
    for name in ("", "first"):
        a, b = (pansight.load(folder / name).model.state_dict() for folder in (whole, broken))
        assert all(torch.equal(a[key], b[key]) for key in a)
    facts = [json.loads((folder / "run.json").read_text())["first"] for folder in (whole, broken)]
    assert facts[0] == facts[1]


def test_mistakes_of_either_step_are_named_before_the_first_begins(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    assert "no parameter's name starts with 'spine'" in complaint(
        command(recipe, out, "--train.freeze", "spine"), capsys
    )
    line = complaint(command(recipe, out, "--model.first-recipe", "shapes/detr"), capsys)
    assert "unknown recipe 'shapes/detr'; known: camvid/" in line
    line = complaint(command(recipe, out, "--model.first-recipe", "shapes/mask_rcnn"), capsys)
    assert (
        "model.first_recipe: expected a recipe for weights of toy_second, found shapes/mask_rcnn of mask_rcnn" in line
    )
    line = complaint(command(recipe, out, "--model.first-recipe", str(recipe)), capsys)
    assert f"model.first_recipe: expected a recipe of one step, found {recipe} with two" in line
    line = complaint(command(recipe, out, "--model.first", str(recipe)), capsys)
    assert "Unknown option: --model.first. Did you mean --model.first-recipe?" in line
    line = complaint(command(recipe, out, "--evaluate.decode.overlap", "3"), capsys)
    assert "unknown decode option of toy_second 'overlap'; known: min_area, panoptic" in line
    assert not out.exists()
    assert main(command(recipe, out)) == 0
    assert "expected no run yet, found one; add --resume or --overwrite" in complaint(command(recipe, out), capsys)
    assert main(command(recipe, out, "--overwrite", "--train.steps", "1")) == 0


def test_weights_of_another_architecture_are_refused(recipe, tmp_path, capsys):
    assert main(command(recipe, tmp_path / "run")) == 0
    words = ["train", "--model", "stranger", "--weights", str(tmp_path / "run"), "--data", "shapes", "--out"]
    line = complaint([*words, str(tmp_path / "other")], capsys)
    assert "expected weights of stranger, found toy_second (--model toy_second)" in line
