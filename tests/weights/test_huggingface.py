"""Folders and hub ids of transformers: which files are read, how large photos become, and one line for each fault."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from fake_system import CONFIG, Fake, install, state
from safetensors.torch import load_file, save_file

from pansight.errors import PansightError
from pansight.models import MODELS, build
from pansight.types import LabelSpace
from pansight.weights import huggingface, load_model, save_model
from pansight.weights.huggingface.decode import RULES
from pansight.weights.huggingface.processor import apply_processor


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(monkeypatch)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(state(), folder / "model.safetensors")
    return folder


def complaint(path: Path | str) -> str:
    with pytest.raises(PansightError) as error:
        load_model(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_system_is_an_architecture_and_has_a_rule() -> None:
    """Export and decoding look systems up by the architecture of a model's entry."""
    assert set(RULES) == set(huggingface.SYSTEMS.values())
    assert set(RULES) <= {entry.architecture for entry in MODELS.values()} & set(huggingface.SYSTEMS)


def test_a_folder(folder: Path) -> None:
    model, name, options = load_model(folder)
    assert (name, options) == ("fake_r50", {"channels": 4})
    assert not model.training
    assert model.labels.names == ("bolt", "nut")
    expected = load_file(folder / "model.safetensors")
    assert torch.equal(model.class_embed.weight, expected["classifier.weight"])


def test_tensors_in_several_files(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    os.remove(folder / "model.safetensors")
    files = {"classifier.weight": "model-00001-of-00002.safetensors"}
    places = {key: files.get(key, "model-00002-of-00002.safetensors") for key in tensors}
    for name in set(places.values()):
        save_file({key: t for key, t in tensors.items() if places[key] == name}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    model = load_model(folder)[0]
    assert torch.equal(model.class_embed.weight, tensors["classifier.weight"])
    assert torch.equal(model.query_embed.weight, tensors["queries.weight"])

    index.write_text(json.dumps({"weight_map": places | {"more": "model-00001-of-00002.safetensors"}}))
    assert "index.json: expected tensor more in model-00001-of-00002.safetensors, found none" in complaint(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    assert "expected a file name inside the data folder" in complaint(folder)
    index.write_text(json.dumps({"weight_map": {}}))
    assert "expected weight_map, from tensors to files, found none" in complaint(folder)
    index.write_text(json.dumps({"weight_map": places}))
    os.remove(folder / "model-00001-of-00002.safetensors")
    assert "model-00001-of-00002.safetensors: no such file" in complaint(folder)


def test_pickled_tensors_go_through_the_safe_reader(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    os.remove(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    assert torch.equal(load_model(folder)[0].class_embed.weight, tensors["classifier.weight"])
    save_file(state(), folder / "model.safetensors")  # where both are, the pickle is not looked at
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02cposix\nsystem\n")
    load_model(folder)
    os.remove(folder / "model.safetensors")
    torch.save({"a": Code()}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin: expected tensors only, found the name" in complaint(folder)
    assert "could run code" in complaint(folder)
    assert not (folder / "ran").exists()


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_damaged_files(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    torch.save(load_file(folder / "model.safetensors"), folder / "other.bin")
    for length in (0, 8, 60, len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:length])
        assert "model.safetensors: expected" in complaint(folder)
    os.remove(folder / "model.safetensors")
    assert "expected tensors (model.safetensors, model.safetensors.index.json or pytorch_model.bin), found none" in (
        complaint(folder)
    )
    pickled = (folder / "other.bin").read_bytes()
    for length in (0, 60, len(pickled) // 2):
        (folder / "pytorch_model.bin").write_bytes(pickled[:length])
        assert "pytorch_model.bin: expected" in complaint(folder)


def test_tensors_that_do_not_fit_the_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | {"id2label": {"0": "a", "1": "b", "2": "c"}}))
    assert "class_embed.weight: expected shape [4, 4], found [3, 4]" in complaint(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"queries.weight": torch.ones(5, 4)}, folder / "model.safetensors")
    assert "query_embed.weight: expected shape [3, 4], found [5, 4]" in complaint(folder)
    save_file(tensors | {"encoder.layer.0": torch.ones(5, 4)}, folder / "model.safetensors")
    assert "unknown tensor encoder.layer.0 [5, 4]" in complaint(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "fake", "id2label": {"0": "a"}}))
    assert "config.json: expected the settings of a fake, found KeyError: 'hidden'" in complaint(folder)


@pytest.mark.parametrize("model_type", ["oneformer", "maskformer-swin", 3, None, ["detr"]])
def test_other_model_types(folder: Path, model_type: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    line = complaint(folder)
    assert "config.json: expected a model_type among detr, maskformer, mask2former, eomt, eomt_dinov3" in line
    assert f"found {model_type!r}" in line


def test_what_config_json_holds_decides(tmp_path: Path) -> None:
    labels = LabelSpace.from_names(["square"], ["ground"])
    options = {"backbone": "resnet10t", "fpn_channels": 16, "box_features": 16, "mask_convs": 1, "mask_channels": 8}
    save_model(tmp_path / "ours", build("panoptic_fpn", labels, **options), "panoptic_fpn", options)
    assert load_model(tmp_path / "ours")[1] == "panoptic_fpn"
    (tmp_path / "ours" / "config.json").write_text('{"hidden_size": 3}')
    assert "expected a saved model with the keys format_version, model" in complaint(tmp_path / "ours")


def test_a_file_out_of_a_folder(folder: Path) -> None:
    line = complaint(folder / "model.safetensors")
    assert line.endswith(f"; config.json lies beside it: load the folder {folder}")


def test_values_that_no_memory_holds(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | {"hidden": 10**12}))
    assert "config.json: expected the settings of a fake, found RuntimeError" in complaint(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"hidden": "4"}))
    assert "config.json: expected the settings of a fake, found TypeError" in complaint(folder)


def test_hub_id(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    assert load_model("someone/bolts")[1] == "fake_r50"
    (folder / "config.json").write_text('{"model_type": "yolo"}')
    assert complaint("someone/bolts").startswith("someone/bolts: config.json: expected a model_type among")


def test_every_file_here_knows_its_model_types() -> None:
    for name in sorted(set(huggingface.SYSTEMS.values())):
        types = {model_type for model_type, file in huggingface.SYSTEMS.items() if file == name}
        assert set(huggingface.system(next(iter(types))).MODEL_TYPES) == types, name


# --- preprocessor_config.json ----------------------------------------------------------------------------------------


def processed(processor: dict[str, Any], model_type: str = "detr") -> Fake:
    model = Fake(LabelSpace.from_names(["a"]))
    apply_processor(model, processor, model_type, "x")
    return model


def test_mean_and_deviation() -> None:
    own = processed({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]})
    assert torch.equal(own.input.mean.flatten(), torch.tensor([123.675, 116.28, 103.53]))
    half = processed({"image_mean": 0.5, "image_std": [0.5, 0.5, 0.25]}).input
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert torch.allclose(half(image).flatten(), torch.tensor([-1.0, -0.6, 2.0]))
    plain = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    unscaled = processed(plain | {"do_rescale": False, "image_mean": [127.5] * 3}).input
    assert torch.allclose(unscaled(image).flatten(), torch.tensor([-255.0, -153.0, 255.0]))
    scaled_only = processed(plain | {"do_normalize": False}).input
    assert torch.allclose(scaled_only(image).flatten(), torch.tensor([0.0, 0.2, 1.0]))


@pytest.mark.parametrize(
    "processor",
    [
        [],
        {"image_mean": [0.5], "image_std": [0.5]},
        {"image_mean": [0.5] * 3, "image_std": [0.0] * 3},
        {"image_mean": ["a"] * 3, "image_std": [0.5] * 3},
        {"size": {"shortest_edge": -1, "longest_edge": 640}},
        {"size": {"shortest_edge": "x", "longest_edge": 640}},
        {"size": {"height": 10**9, "width": 10**9}},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 0},
    ],
)
def test_faults_of_a_processor(folder: Path, processor: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    assert "preprocessor_config.json: expected" in complaint(folder)
