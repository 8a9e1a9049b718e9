"""`pansight models`: what is said of each model is true, and each option is explained."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from pansight.apps.cli import main
from pansight.apps.commands.listing import describe_model, facts_of, parts_of
from pansight.apps.commands.listing.published import MILLIONS, SCORES, SCORES_ELSEWHERE
from pansight.data.formats.shapes import Shapes
from pansight.engine.optim import freeze
from pansight.models import MODELS, build, builder_options
from pansight.types import LabelSpace

COCO = LabelSpace.from_names([f"thing {n}" for n in range(80)], [f"stuff {n}" for n in range(53)])

SEMANTIC = [name for name, entry in MODELS.items() if entry.produces == ("semantic",)]


def test_every_model_has_a_size() -> None:
    assert set(MILLIONS) == set(MODELS)
    assert set(SCORES) < set(MODELS)
    assert set(SCORES_ELSEWHERE) < set(MODELS)
    assert all(MODELS[name].variant_of for name in (*SCORES, *SCORES_ELSEWHERE))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mask_rcnn_r50_d2",
        "efficientps",
        "efficientps_cityscapes",
        "detr_panoptic_r50",
        "mask2former_swin_tiny",
        "eomt_small_640",
        *SEMANTIC,
    ],
)
def test_sizes_are_those_of_the_networks(name: str) -> None:
    with torch.device("meta"):
        model = build(name, COCO)
    assert isinstance(model, torch.nn.Module)
    assert MILLIONS[name] == round(sum(p.numel() for p in model.parameters()) / 1e6, 1)


def test_the_list_is_grouped_by_system(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("mask_rcnn") < lines.index("detr") < lines.index("eomt")
    (line,) = [line for line in lines if line.startswith("  mask2former_r50 ")]
    assert "44.0 M" in line
    assert "PQ 51.9" in line
    assert "not for commercial use" in line


@pytest.mark.parametrize("name", ["mask_rcnn", "detr_panoptic", "eomt", "mask_rcnn_r50_d2"])
def test_each_option_has_a_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", name]) == 0
    said = capsys.readouterr().out
    for key, option in MODELS[name].options.items():
        assert (f"--model.options.{key} " in said) == (key in builder_options(name)), key
        assert key not in builder_options(name) or option.meaning in said
    assert "--evaluate.decode.score_threshold " in said
    assert "0 … 1" in said


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(MODELS)
    assert main(["models", "detr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(facts_of("detr")))


def test_the_keys_of_a_table_are_explained() -> None:
    text, keys = describe_model("eomt"), facts_of("eomt")["options"]["vit_options"]["keys"]
    assert "  vit_options.depth " in text
    assert keys["embed_dim"] == "width of the tokens; a whole number from 1"
    assert all(f"  vit_options.{key} " in text and told in text for key, told in keys.items())


@pytest.mark.parametrize(
    ("command", "nearest"),
    [(["models", "mask_rcn"], "mask_rcnn"), (["datasets", "coco_panoptc"], "coco_panoptic")],
)
def test_the_nearest_name_is_suggested(command: list[str], nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 2
    assert f"did you mean '{nearest}'?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_closed_pipe_is_quiet() -> None:
    """As where `head` has seen enough: the pipe's end is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "import sys; from pansight.apps.cli import main; sys.exit(main(['models']))"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr.decode() == ""
    assert done.returncode == 141


@pytest.mark.parametrize("name", ["detr", "mask_rcnn", "eomt"])
def test_the_parts_that_are_listed_can_be_frozen(name: str) -> None:
    parts = parts_of(name)
    assert "backbone" in parts
    assert ", ".join(parts) in describe_model(name)
    with torch.device("meta"):
        model = build(name, Shapes().labels, pretrained="none")
    freeze(model, parts[:-1])
    assert any(p.requires_grad for p in model.parameters())
    freeze(model, parts)
    assert not any(p.requires_grad for p in model.parameters())
