"""Graphs of whole numbers, and the figures of a graph beside those of its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pansight import runtime
from pansight.apps.exporting import graphs
from pansight.apps.exporting.graphs import report_of_graph, write_graph
from pansight.apps.exporting.quantizing import calibration
from pansight.apps.exporting.scoring import open_annotated
from pansight.apps.exporting.tracing import Size
from pansight.data.formats import shapes
from pansight.errors import PansightError
from pansight.models import MODELS, build
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace

LABELS = LabelSpace.from_names(["a", "b"], ["c"])
TARGETS = ("onnx", "openvino")
ALL = [name for name, entry in MODELS.items() if not entry.variant_of]


def tiny(name: str, labels: LabelSpace = LABELS) -> Any:
    torch.manual_seed(0)
    return build(name, labels, **MODELS[name].tiny).eval()  # pyright: ignore[reportAttributeAccessIssue]


def photos(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for number in range(count):
        image = np.empty((96, 128, 3), np.uint8)
        shapes.draw_shapes(image, np.random.default_rng(number))
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def _marks(name: str, target: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if (name, target) == ("segnet", "onnx") else [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize(("name", "target"), [pytest.param(n, t, marks=_marks(n, t)) for n in ALL for t in TARGETS])
@pytest.mark.timeout(1200)
def test_whole_numbers_say_almost_what_real_ones_say(name: str, target: str, tmp_path: Path) -> None:
    """The file is smaller where it is not small already, says so, and the runtime reads it."""
    out, folder = tmp_path / "out", photos(tmp_path / "photos")
    found = write_graph(tiny(name), name, dict(MODELS[name].tiny), target, out, int8=folder)
    assert 0 < found.alike <= 1
    about = json.loads((out / "export.json").read_text())
    assert about["precision"] == "int8"
    files = {path.name for path in out.iterdir()}
    assert files == {"export.json", *({"model.onnx"} if target == "onnx" else {"model.xml", "model.bin"})}
    written = (out / about["file"]).read_bytes()
    assert (b"QuantizeLinear" if target == "onnx" else b"FakeQuantize") in written
    runtime.open(out).predict(np.zeros((96, 128, 3), np.uint8))


@pytest.mark.slow
def test_figures_of_model_and_graph_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph of real numbers has the figures of its model."""
    model = tiny("segnet", shapes.LABELS)
    assert len(open_annotated("shapes", model)) == 200
    monkeypatch.setattr(graphs, "open_annotated", lambda *_: shapes.Shapes(4, 64, 96, split="val"))
    found = write_graph(model, "segnet", dict(MODELS["segnet"].tiny), "torch", tmp_path / "out", data="shapes")
    title, _, miou = report_of_graph(found).splitlines()[-3:]
    assert title.split("|")[1].split() == ["model", "graph", "change"]
    name, figures = miou.split("|")
    model, graph, change = figures.split()
    assert (name.strip(), model, change) == ("mIoU", graph, "+0.0")


def test_at_most_so_many_photos_spread_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pansight.apps.exporting import quantizing

    monkeypatch.setattr(quantizing, "MOST", 3)
    folder = photos(tmp_path / "photos", 5)
    found = calibration(folder, (Size(ResizeRule(0, 0), None),), ("images", "valid"), ("images",))
    assert [list(each) for each in found] == [["images"]] * 3
    for each, number in zip(found, (0, 2, 4), strict=True):
        expected = np.array(Image.open(folder / f"{number}.png")).transpose(2, 0, 1)
        np.testing.assert_array_equal(each["images"][0], expected)


def test_what_has_no_whole_numbers_and_no_figures_is_refused(tmp_path: Path) -> None:
    options = dict(MODELS["segnet"].tiny)
    with pytest.raises(PansightError, match="int8: expected a graph for openvino or onnx, found to torch"):
        write_graph(tiny("segnet"), "segnet", options, "torch", tmp_path / "out", int8=tmp_path)
    model = tiny("maskformer")
    with pytest.raises(PansightError, match="data: expected a graph without the rule inside"):
        write_graph(model, "maskformer", {}, "onnx", tmp_path / "out", rule_inside=True, data=tmp_path)
    assert list(tmp_path.iterdir()) == []
