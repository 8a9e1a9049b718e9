"""Saved models: what is loaded is what was saved, folders are replaced whole, faults are one clear line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from pansight.errors import PansightError
from pansight.files import replacing_folder, standing_folder
from pansight.models import build
from pansight.nn.input import CAFFE_BGR, Input
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace
from pansight.weights import load_model, save_model
from pansight.weights.native import download

LABELS = LabelSpace.from_names(["square", "disc"], ["ground", "sky"])
OPTIONS: dict[str, Any] = {
    "backbone": "resnet10t",
    "short": 0,
    "long": 0,
    "fpn_channels": 16,
    "box_features": 16,
    "mask_convs": 1,
    "mask_channels": 8,
    "semantic_width": 16,
    "anchor_sizes": [16, 32, 64, 96, 128],
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    torch.manual_seed(0)
    model = build("panoptic_fpn", LABELS, **OPTIONS).eval()
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder, model, "panoptic_fpn", OPTIONS)
    return folder, model


def copy(saved: tuple[Path, Any], to: Path) -> Path:
    return Path(shutil.copytree(saved[0], to))


def test_round_trip(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    loaded, name, options = load_model(folder)
    assert (name, options) == ("panoptic_fpn", OPTIONS)
    assert loaded.labels == LABELS
    assert loaded.input.resize == model.input.resize
    assert not loaded.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model(images).semantic_logits, loaded(images).semantic_logits)
    config = json.loads((folder / "config.json").read_text())
    assert config["labels"] == LABELS.to_json()
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_channels_last_weights_can_be_saved(tmp_path: Path, saved: tuple[Path, Any]) -> None:
    model = build("panoptic_fpn", LABELS, **OPTIONS).to(memory_format=torch.channels_last)
    save_model(tmp_path / "model", model, "panoptic_fpn", OPTIONS)
    loaded = load_model(tmp_path / "model")[0]
    assert all(torch.equal(t, loaded.state_dict()[k]) for k, t in model.state_dict().items())


def test_what_pretrained_weights_expect_of_pixels_is_kept(tmp_path: Path) -> None:
    """The packaged weights want other means than timm records for the name; loading must neither fetch nor forget."""
    options = OPTIONS | {"backbone": "tf_efficientnet_lite0", "pretrained": "packaged"}
    model = build("panoptic_fpn", LABELS, **options).eval()
    save_model(tmp_path / "model", model, "panoptic_fpn", options)
    loaded, name, found = load_model(tmp_path / "model")
    assert found["pretrained"] == "none"
    fresh = build(name, LABELS, **found).input
    for buffer in ("mean", "scale"):
        saved_value, loaded_value = (
            getattr(model.input, buffer),
            getattr(loaded.input, buffer),
        )
        assert torch.equal(saved_value, loaded_value)
    assert not torch.equal(fresh.mean, loaded.input.mean)  # else this test would see nothing


def rewritten(folder: Path, given: dict[str, Any]) -> None:
    """The folder with another "input" in its config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"input": given}))


def test_the_rule_is_kept(tmp_path: Path, saved: tuple[Path, Any]) -> None:
    model = build("panoptic_fpn", LABELS, **OPTIONS).eval()
    rules = (
        ResizeRule(97, 333, 16, "detr", "antialias"),
        ResizeRule(0, 0, 8, "transformers", "plain", 384, 640, True, 32),
    )
    for number, rule in enumerate(rules):
        model.input = Input(rule, CAFFE_BGR, black_padding=number == 1)
        save_model(tmp_path / str(number), model, "panoptic_fpn", OPTIONS)
        loaded = load_model(tmp_path / str(number))[0].input
        assert loaded.resize == rule
        assert (loaded.bgr, loaded.black_padding) == (True, number == 1)
        assert torch.equal(loaded.mean, model.input.mean)
        assert torch.equal(loaded.scale, model.input.scale)


@pytest.mark.parametrize(("floor", "rounding"), [(False, "detectron2"), (True, "torchvision")])
def test_folders_of_before_the_filters_mean_what_they_meant(
    tmp_path: Path, saved: tuple[Path, Any], floor: bool, rounding: str
) -> None:
    """Photos were sampled between their nearest pixels then, whatever the model."""
    folder = copy(saved, tmp_path / "old")
    old = {"mean": [1.0, 2.0, 3.0], "scale": [0.5, 0.25, 0.1], "bgr": False}
    rewritten(folder, old | {"resize": {"short": 64, "long": 128, "divisor": 32, "floor": floor}})
    loaded = load_model(folder)[0].input
    assert loaded.resize == ResizeRule(64, 128, 32, rounding, "plain")
    assert not loaded.black_padding
    assert loaded.mean.flatten().tolist() == [1.0, 2.0, 3.0]
    assert loaded.scale.flatten().tolist() == pytest.approx([0.5, 0.25, 0.1])


def test_padding_of_old_eomt_folders_stays_black(tmp_path: Path) -> None:
    options = {"size": 32, "queries": 3, "blocks": 1, "vit_options": {"embed_dim": 24, "depth": 2, "num_heads": 2}}
    save_model(tmp_path / "model", build("eomt", LABELS, **options), "eomt", options)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    given = {key: value for key, value in config["input"].items() if key != "black_padding"}
    rewritten(tmp_path / "model", given | {"resize": {"short": 32, "long": 32, "divisor": 32, "floor": False}})
    assert load_model(tmp_path / "model")[0].input.black_padding


@pytest.mark.parametrize(
    "resize",
    [
        {"short": 64, "long": 128, "filter": "sharp"},
        {"short": 64, "long": 128, "filter": "plain", "rounding": "up"},
        {"short": 64, "long": -1, "filter": "plain"},
        {"short": 64, "long": 128, "filter": "plain", "colour": 1},
        {"short": 64, "long": 128, "filter": "plain", "divisor": 0},
        {"short": 64, "long": 128, "filter": "plain", "height": 64},
        {"short": 64},
        [],
    ],
)
def test_rules_that_cannot_be(tmp_path: Path, saved: tuple[Path, Any], resize: Any) -> None:
    folder = copy(saved, tmp_path / "bad")
    rewritten(folder, {"mean": [1.0] * 3, "scale": [1.0] * 3, "bgr": False, "resize": resize})
    with pytest.raises(PansightError, match=r"config.json: expected input with mean, scale, bgr and resize, found"):
        load_model(folder)


def test_run_folders(tmp_path: Path, saved: tuple[Path, Any]) -> None:
    run = tmp_path / "runs" / "a"
    copy(saved, run / "checkpoints" / "last")
    assert load_model(run)[1] == "panoptic_fpn"
    best = copy(saved, run / "checkpoints" / "best")
    config = json.loads((best / "config.json").read_text())
    config["labels"][0]["name"] = "from the best"
    (best / "config.json").write_text(json.dumps(config))
    assert load_model(run)[0].labels[0].name == "from the best"
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(PansightError, match=r"expected a saved model .* or a run"):
        load_model(run)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_class_count_that_does_not_match(tmp_path: Path, saved: tuple[Path, Any]) -> None:
    folder = copy(saved, tmp_path / "model")
    change(folder / "config.json", labels=LabelSpace.from_names(["a", "b", "c"], ["d", "e"]).to_json())
    name = r"rcnn\.box_predictor\.cls_score\.weight: expected shape \[4, 16\], found \[3, 16\]"
    with pytest.raises(PansightError, match=name) as error:
        load_model(folder)
    assert "model.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format_version": 99}, "expected format_version 1, found 99"),
        ({"model": "yolo"}, "unknown model 'yolo'; known: .*panoptic_fpn"),
        ({"options": {"depth": 3}}, "unknown option of model panoptic_fpn: 'depth'; known: "),
        ({"input": {"mean": [1]}}, "expected input with mean, scale, bgr and resize"),
        ({"labels": [{"id": 1}]}, "expected keys id, name, isthing"),
    ],
)
def test_faults_in_the_config(tmp_path: Path, saved: tuple[Path, Any], values: Any, message: str) -> None:
    folder = copy(saved, tmp_path / "model")
    change(folder / "config.json", **values)
    with pytest.raises(PansightError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_damaged_files(tmp_path: Path, saved: tuple[Path, Any]) -> None:
    folder = copy(saved, tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    for length in (0, 4, 100, len(whole) // 2):
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(PansightError, match=r"model\.safetensors: expected"):
            load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(PansightError, match=r"model\.safetensors: no such file"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(PansightError, match=r"config\.json: expected JSON"):
        load_model(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(PansightError, match=r"config\.json: expected a saved model"):
        load_model(folder)


def test_tensors_missing_and_unexpected(tmp_path: Path, saved: tuple[Path, Any]) -> None:
    folder = copy(saved, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    save_file(state | {"more": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(PansightError, match="expected no tensor more"):
        load_model(folder)
    del state["fpn.lateral.0.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(PansightError, match=r"expected tensor fpn\.lateral\.0\.bias \[16\], found none"):
        load_model(folder)


def test_options_that_are_no_json(tmp_path: Path, saved: tuple[Path, Any]) -> None:
    with pytest.raises(PansightError, match="expected options that JSON can hold"):
        save_model(tmp_path / "model", saved[1], "panoptic_fpn", {"backbone": object()})
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    with replacing_folder(folder) as temporary:
        (temporary / "a").write_text("1")
    with replacing_folder(folder) as temporary:
        (temporary / "b").write_text("2")
    assert [p.name for p in folder.iterdir()] == ["b"]

    def fail_half_way() -> None:
        with replacing_folder(folder) as temporary:
            (temporary / "c").write_text("3")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert [p.name for p in folder.iterdir()] == ["b"]
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_killed_between_the_two_moves(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    with replacing_folder(folder) as temporary:
        (temporary / "a").write_text("1")
    folder.rename(tmp_path / ".last.old")  # the state in which a kill would leave the disk
    assert (standing_folder(folder) / "a").read_text() == "1"
    with replacing_folder(folder) as temporary:
        (temporary / "b").write_text("2")
    assert [p.name for p in tmp_path.iterdir()] == ["last"]
    assert standing_folder(folder) == folder


def test_full_disk_and_unwritable_place(tmp_path: Path, saved: tuple[Path, Any], monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PansightError, match="cannot be written"):
        save_model(tmp_path / "file" / "model", saved[1], "panoptic_fpn", OPTIONS)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pansight.weights.native.save_file", full)
    with pytest.raises(PansightError, match="cannot be written: No space left on device"):
        save_model(tmp_path / "model", saved[1], "panoptic_fpn", OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_hub_ids(tmp_path: Path, saved: tuple[Path, Any], monkeypatch: Any) -> None:
    asked: list[tuple[str, Any]] = []

    def snapshot_download(hub_id: str, allow_patterns: Any) -> str:
        asked.append((hub_id, allow_patterns))
        return str(saved[0])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_model("someone/some-model")[1] == "panoptic_fpn"
    patterns = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "README.md"]
    assert asked == [("someone/some-model", patterns)]  # no pickle is fetched where there is something better


def test_hub_ids_with_pickled_tensors_only(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[Any] = []

    def snapshot_download(_: str, allow_patterns: Any) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert download("someone/old-model") == tmp_path
    assert asked[1:] == [["pytorch_model*.bin", "pytorch_model.bin.index.json"]]


def test_hub_offline(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PansightError, match="someone/some-model: no such file or folder here, and the hub") as error:
        load_model("someone/some-model")
    assert "\n" not in str(error.value)


def test_neither_file_nor_hub_id(tmp_path: Path) -> None:
    with pytest.raises(PansightError, match="no such file"):
        load_model(tmp_path / "deep" / "down" / "none.pth")
    torch.save({"some.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(PansightError, match=r"expected a checkpoint of torchvision or .* found .*some\.weight"):
        load_model(tmp_path / "other.pth")
