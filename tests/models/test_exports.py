"""Every model as a graph for other engines: what docs/export.md says of it, entry by entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pansight
from pansight.apps.cli import main
from pansight.apps.exporting.graphs import Exported, write_graph
from pansight.errors import PansightError
from pansight.models import MODELS, build
from pansight.types import LabelSpace
from pansight.weights import save_model

LABELS = LabelSpace.from_names(["a", "b"], ["c"])
TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "exports.json"
ROWS: list[dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))["rows"]
CHEAP = ("segnet", "onnx")
"""An export takes half a minute, so this one stands for all outside of ``make test-long``."""


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    return build(name, LABELS, **MODELS[name].tiny).eval()  # pyright: ignore[reportAttributeAccessIssue]


def _marks(row: dict[str, Any]) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if (row["model"], row["target"]) == CHEAP else [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{row['model']}-{row['target']}", marks=_marks(row)) for row in ROWS]
)
@pytest.mark.timeout(1200)
def test_each_entry_is_exported_as_the_table_says(row: dict[str, Any], tmp_path: Path) -> None:
    """What is exported says what its model says on photos of several sizes: `write_graph` raises where it does not."""
    name, out = row["model"], tmp_path / "out"
    if not row["exported"]:
        with pytest.raises(PansightError) as refused:
            write_graph(tiny(name), name, dict(MODELS[name].tiny), row["target"], out)
        assert refused.value.what == row["why"]
        assert not out.exists()
        return
    found = write_graph(tiny(name), name, dict(MODELS[name].tiny), row["target"], out)
    size = "any" if found.size is None else f"{found.size[0]} × {found.size[1]}"
    assert (size, found.why_fixed) == (row["size"], row["why"])
    assert found.alike >= 0.999
    about = json.loads((out / "export.json").read_text(encoding="utf-8"))
    assert (about["model"], about["rule"]["name"], about["dynamic"]) == (name, name, found.size is None)
    assert about["outputs"] == row["outputs"]


@pytest.mark.slow
def test_the_command_writes_a_folder_that_describes_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny("segnet")
    save_model("ours", model, "segnet", dict(MODELS["segnet"].tiny))
    assert main(["export", "ours", "--to", "onnx", "--out", "graph", "--size", "96", "128"]) == 0
    out = capsys.readouterr().out
    assert "model.onnx, for a photo that fits into 96 × 128" in out
    assert "the same maps as the model on 100" in out
    about = json.loads(Path("graph/export.json").read_text())
    assert (about["format"], about["version"], about["target"], about["size"]) == (
        "pansight export",
        1,
        "onnx",
        [96, 128],
    )
    assert about["inputs"] == ["images", "valid"]
    assert [row["name"] for row in about["labels"]] == ["a", "b", "c"]
    assert (about["input"]["height"], about["input"]["width"]) == (96, 128)
    assert {path.name for path in Path("graph").iterdir()} == {"model.onnx", "export.json"}
    with pytest.raises(PansightError, match="add --overwrite"):
        pansight.export("ours", "graph", to="onnx")
    Path("foreign").mkdir()
    Path("foreign/export.json").write_text('{"format": "another"}')
    with pytest.raises(PansightError, match="a new folder or an earlier export, found something else"):
        pansight.export("ours", "foreign", to="onnx", overwrite=True)


def test_what_cannot_be_said_of_a_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PansightError, match=r"size: expected a graph \(onnx, openvino, torch\), found to hf"):
        pansight.export("run", tmp_path / "out", to="hf", size=(64, 64))
    with pytest.raises(PansightError, match=r"unknown export target 'onxx'.*did you mean 'onnx'"):
        pansight.export("run", tmp_path / "out", to="onxx")
    with pytest.raises(PansightError, match="size: expected multiples of 32 pixels, found 65 × 64"):
        write_graph(tiny("fcn"), "fcn", dict(MODELS["fcn"].tiny), "onnx", tmp_path / "out", (65, 64))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_says_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose logits are turned round: the folder never appears."""
    from pansight.apps.exporting import engines, graphs

    def write(program: Any, file: Path) -> None:
        file.write_text("")

    model = tiny("segnet")

    def run(tensors: Any) -> list[torch.Tensor]:
        with torch.no_grad():
            logits, _, extents, canvas = model(*tensors)
        return [-logits, extents, canvas]

    wrong = engines.Engine("", "model.onnx", write, lambda _, names: (list(names), run))
    monkeypatch.setitem(graphs.GRAPHS, "onnx", wrong)
    monkeypatch.setattr(graphs, "traced", lambda *_: None)
    with pytest.raises(
        PansightError, match=r"export of segnet to onnx: expected the model's own maps on at least 99.9%"
    ):
        write_graph(model, "segnet", dict(MODELS["segnet"].tiny), "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert isinstance(Exported(tmp_path, "onnx", 1.0, 3, None, ""), tuple)
