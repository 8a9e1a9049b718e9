"""An exported folder predicts, on either engine, and says in a line what is wrong with it; torch is never loaded."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from pansight import runtime
from pansight.runtime.__main__ import main
from pansight.runtime.folder import digest_of
from pansight.runtime.photos import input_of
from pansight.runtime.resizing import ResizeRule

LABELS = [
    {"name": name, "is_thing": False, "color": [10 * n, 0, 0], "source_id": n + 7}
    for n, name in enumerate(("sky", "road", "tree"))
]


def graph() -> onnx.ModelProto:
    """A network whose logits are the three colours of a pixel."""
    nodes = [
        helper.make_node("Cast", ["images"], ["logits"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["valid"], ["seen"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["seen", "last"], ["rows"], keepdims=0),
        helper.make_node("ReduceSum", ["rows", "middle"], ["height"], keepdims=1),
        helper.make_node("ReduceMax", ["seen", "middle"], ["columns"], keepdims=0),
        helper.make_node("ReduceSum", ["columns", "middle"], ["width"], keepdims=1),
        helper.make_node("Concat", ["height", "width"], ["extents"], axis=1),
        helper.make_node("Shape", ["images"], ["canvas"], start=2),
    ]
    axes = [helper.make_tensor(name, TensorProto.INT64, [1], [at]) for name, at in (("middle", 1), ("last", 2))]
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 3, "H", "W"]),
        helper.make_tensor_value_info("valid", TensorProto.BOOL, [1, "H", "W"]),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, "H", "W"]),
        helper.make_tensor_value_info("extents", TensorProto.INT64, [1, 2]),
        helper.make_tensor_value_info("canvas", TensorProto.INT64, [2]),
    ]
    made = helper.make_graph(nodes, "colours", inputs, outputs, axes)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def exported(folder: Path, **changes: Any) -> Path:
    """A folder as `pansight export` writes it, with some of what it says changed; None: left out."""
    folder.mkdir()
    onnx.save(graph(), folder / "model.onnx")
    said = {
        "format": "pansight export",
        "version": 1,
        "target": "onnx",
        "file": "model.onnx",
        "sha256": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest(),
        "inputs": ["images", "valid"],
        "outputs": ["logits", "extents", "canvas"],
        "rule": {"name": "fcn", "options": {"align_corners": False}},
        "labels": LABELS,
        "input": {**ResizeRule(30, 100)._asdict(), "dtype": "uint8"},
        "tasks": [],
    }
    kept = {key: value for key, value in (said | changes).items() if value is not None}
    (folder / "export.json").write_text(json.dumps(kept))
    return folder


def photo() -> Any:
    return np.random.default_rng(3).integers(0, 256, (30, 44, 3), np.uint8)


@pytest.mark.parametrize("engine", ["auto", "onnxruntime", "openvino"])
def test_prediction_of_a_folder(tmp_path: Path, engine: str) -> None:
    model = runtime.open(exported(tmp_path / "model"), engine, threads=1)
    assert [label.name for label in model.labels] == ["sky", "road", "tree"]
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    for given in (photo(), tmp_path / "photo.png"):
        found = model.predict(given).semantic
        assert found is not None
        np.testing.assert_array_equal(found, photo().argmax(2))


def test_errors_of_one_line(tmp_path: Path) -> None:
    wrong = {
        "version": ({"version": 2}, "expected version 1, found 2"),
        "format": ({"format": "other"}, 'expected "format": "pansight export"'),
        "sha": ({"sha256": "0" * 64}, "expected the graph that export.json describes, found another one"),
        "rule": ({"rule": {"name": "yolo", "options": {}}}, "use a newer pansight-runtime"),
        "gap": ({"labels": None}, "a gap or an odd value"),
        "inputs": ({"inputs": ["pixels"]}, "expected the inputs pixels, found images, valid"),
        "outputs": ({"outputs": ["logits"]}, "expected the outputs logits"),
        "file": ({"file": "none.onnx"}, "no such file"),
    }
    for name, (changes, words) in wrong.items():
        folder = exported(tmp_path / name, **changes)
        with pytest.raises(runtime.RuntimeFault) as caught:
            runtime.open(folder)
        assert words in f"{caught.value}"
        assert "\n" not in f"{caught.value}"
    with pytest.raises(runtime.RuntimeFault, match=r"no export\.json in it"):
        runtime.open(tmp_path)
    good = exported(tmp_path / "good")
    with pytest.raises(runtime.RuntimeFault, match="expected one of auto, onnxruntime, openvino"):
        runtime.open(good, "tensorrt")
    with pytest.raises(runtime.RuntimeFault, match="expected none, found 'panoptic'"):
        runtime.open(good).predict(photo(), task="panoptic")
    with pytest.raises(runtime.RuntimeFault, match="uint8"):
        runtime.open(good).predict(photo().astype(np.float32))


def test_a_missing_engine_and_a_graph_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(runtime.RuntimeFault, match="pip install onnxruntime"):
        runtime.open(folder)
    (folder / "model.pt2").write_bytes(b"graph")
    said = json.loads((folder / "export.json").read_text()) | {"file": "model.pt2"}
    (folder / "export.json").write_text(json.dumps(said | {"sha256": digest_of(folder / "model.pt2")}))
    with pytest.raises(runtime.RuntimeFault, match="export it with --to onnx"):
        runtime.open(folder)


def test_maps_as_files(tmp_path: Path) -> None:
    ids = np.zeros((4, 5), np.int32)
    ids[1:3, 2:], ids[3, 0] = 70000, 3
    panoptic = runtime.Panoptic(ids, (runtime.Segment(70000, 1, 0.5), runtime.Segment(3, 0)))
    labels = runtime.open(exported(tmp_path / "model")).labels
    table = runtime.write(tmp_path / "out", [("a", runtime.Prediction(panoptic))], labels)
    said = json.loads(table.read_text())
    box = {"bbox": [2, 1, 3, 2], "iscrowd": 0, "score": 0.5}
    assert said["annotations"][0]["segments_info"] == [
        {"id": 70000, "category_id": 8, "area": 6, **box},
        {"id": 3, "category_id": 7, "area": 1, "bbox": [0, 3, 1, 1], "iscrowd": 0},
    ]
    assert [row["id"] for row in said["categories"]] == [7, 8, 9]
    colours = np.array(Image.open(tmp_path / "out" / "panoptic" / "a.png")).astype(np.int64)
    np.testing.assert_array_equal(colours @ [1, 256, 65536], ids)
    with pytest.raises(runtime.RuntimeFault, match="expected a new folder"):
        runtime.write(tmp_path / "out", [], labels)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = exported(tmp_path / "model")
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    assert main([str(folder), str(tmp_path / "photo.png"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == "photo: expected a panoptic map, found none: the model has other outputs\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "photo.png"]


def test_torch_is_never_loaded() -> None:
    code = "import sys, pansight.runtime, pansight.runtime.__main__; print(sorted({'torch', 'cv2'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_photo_that_is_too_large_for_a_graph_of_one_size() -> None:
    with pytest.raises(runtime.RuntimeFault, match="export for a larger size"):
        input_of(photo(), ResizeRule(0, 0, size=(16, 16)))
