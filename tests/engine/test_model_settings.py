"""Settings of the model are checked before data is read, and lists are read alike wherever they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pansight.apps.cli import _joined, main
from pansight.config import Config, ModelConfig, override
from pansight.engine.assemble import make_model
from pansight.models import build
from pansight.types import LabelSpace

LABELS = LabelSpace.from_names(["cell"], ["ground"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model.options.short abc", "short of model panoptic_fpn: expected a whole number, 0 … 16384, found 'abc'"),
        ("--model detr --model.options.dropout 2", "dropout of model detr: expected a number, 0 … 0.99, found 2"),
        ("--model mask2former --model.options.queries -3", "queries of model mask2former: expected a whole number, 1"),
        ("--model.options.short -5", "expected a whole number, 0 … 16384, found -5"),
        (
            "--model detr --model.options.class-hidden 128 x",
            "class_hidden of model detr: expected a list of whole numbers",
        ),
        ("--model detr --backbone resnot18", "unknown backbone 'resnot18'"),
        ("--evaluate.decode.score-threshold 2", "score_threshold of panoptic_fpn: expected a number, 0 … 1, found 2"),
        ("--evaluate.decode.scor 0.5", "unknown decode option of panoptic_fpn 'scor'"),
    ],
)
def test_mistakes_are_one_line_before_data_is_read(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")]
    assert main(["train", *out, *words.split()]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_values_of_an_option_are_joined() -> None:
    words = ["train", "--model.options.class-hidden", "128", "64", "--out", "x"]
    assert _joined(words) == ["train", "--model.options.class-hidden", "128,64", "--out", "x"]
    assert _joined(["evaluate", "--data.options.a", "1", "run"]) == ["evaluate", "--data.options.a", "1", "run"]
    assert _joined(["convert", "x", "--option.sides", "1", "2", "y"]) == ["convert", "x", "--option.sides", "1,2", "y"]
    assert _joined(["convert", "--option.a", "b", "x", "--limit", "1", "2"])[-3:] == ["--limit", "1", "2"]


@pytest.mark.parametrize("freeze", ["backbone,neck", "[backbone, neck]", ["backbone", "neck"], ["backbone,neck"]])
def test_lists_of_settings(freeze: Any) -> None:
    assert override(Config(), {"train.freeze": freeze}).train.freeze == ("backbone", "neck")


def test_a_given_size_goes_over_that_of_the_weights() -> None:
    """Whichever options of the system decide it: EoMT has none that is called short."""
    vit = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    options: dict[str, Any] = {"queries": 3, "blocks": 1, "vit_options": vit}
    source = build("eomt", LABELS, size=32, **options), "eomt", {**options, "size": 32}
    given = ModelConfig(name="eomt", weights="somewhere", options={"size": 64})
    assert make_model(given, LABELS, source)[0].input.resize.divisor == 64
    kept = ModelConfig(name="eomt", weights="somewhere", options={})
    assert make_model(kept, LABELS, source)[0].input.resize.divisor == 32
