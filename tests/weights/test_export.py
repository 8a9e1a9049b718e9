"""``pansight export --to hf``: folders that transformers loads, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_system import Fake, install
from safetensors.torch import load_file

import pansight
from pansight.apps.cli import main
from pansight.apps.exporting.folders import _licence  # pyright: ignore[reportPrivateUsage]
from pansight.errors import PansightError
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace
from pansight.weights import licences, load_model, save_model

LABELS = LabelSpace.from_json(
    [
        {"id": 5, "name": "bolt", "isthing": 1, "color": [1, 2, 3]},
        {"id": 9, "name": "table | bench", "isthing": 0, "color": [4, 5, 6]},
    ]
)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """What load_model gives for "run", a folder with an evaluation."""
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    model = Fake(LABELS).eval()
    monkeypatch.setattr("pansight.apps.exporting.load_model", lambda _: (model, "fake_r50", {"channels": 4}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    row = {"pq": 0.5, "sq": 0.75, "rq": 0.625, "n": 2}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps({"All": row, "Things": row, "Stuff": row}))
    return model


def test_a_folder_is_read_back_exactly(fake: Fake) -> None:
    assert pansight.export("run", "out") == "FakeForSegmentation"
    assert {p.name for p in Path("out").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    config = json.loads(Path("out/config.json").read_text())
    assert config["id2label"] == {"0": "bolt", "1": "table | bench"}
    assert config["label2id"] == {"bolt": 0, "table | bench": 1}
    assert (config["num_labels"], config["model_type"]) == (2, "fake")
    again, name, options = load_model("out")
    assert (name, options) == ("fake_r50", {"channels": 4})
    assert again.labels == LABELS  # source ids, kinds and colours, which id2label does not say
    assert again.input.resize == ResizeRule(800, 1333, 32, "transformers", "antialias")
    for key, tensor in fake.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key])


def test_a_folder_of_ours_holds_every_model(fake: Fake) -> None:
    assert pansight.export("run", "saved", to="folder") == ""
    assert {p.name for p in Path("saved").iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads(Path("saved/config.json").read_text())["model"] == "fake_r50"
    loaded, name, _ = load_model("saved")
    assert name == "fake_r50"
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in fake.state_dict().items())
    with pytest.raises(PansightError, match=r"expected no export yet, found one; add --overwrite"):
        pansight.export("run", "saved", to="folder")
    pansight.export("run", "saved", to="folder", overwrite=True)
    for to, foreign in (("hf", "saved"), ("folder", "run")):
        with pytest.raises(PansightError, match=f"{foreign}: expected a new folder or an earlier export"):
            pansight.export("run", foreign, to=to, overwrite=True)


def test_model_card(fake: Fake) -> None:
    pansight.export("run", "out")
    card = Path("out/README.md").read_text()
    assert "# license: not known" in card
    assert "All       |  50.0   75.0   62.5     2" in card
    assert "FakeForSegmentation.from_pretrained" in card
    assert "| 1 | table   bench | stuff |" in card
    assert "1 thing and 1 stuff classes" in card
    assert "\n[1].\n" in card  # what post-processing has to be told
    Path("run/config.toml").write_text('[model]\nweights = "facebook/mask2former-swin-tiny-coco-panoptic"\n')
    pansight.export("run", "out", overwrite=True)
    card = Path("out/README.md").read_text()
    assert "Fine-tuned from facebook/mask2former-swin-tiny-coco-panoptic, whose weights are under CC BY-NC 4.0" in card
    assert "\nlicense:" not in card  # that is for the owner to say
    Path("start").mkdir()
    Path("start/config.json").write_text("{}")
    Path("start/README.md").write_text("---\nlicense: mit\n---\n")
    Path("run/config.toml").write_text('[model]\nweights = "start"\n')
    pansight.export("run", "out", overwrite=True)
    assert "Fine-tuned from start, whose weights are under MIT." in Path("out/README.md").read_text()
    Path("detr.pth").write_bytes(b"x")
    assert _licence("detr.pth", "detr_r50") == (licences.LICENCES["apache-2.0"], "Converted from detr.pth.")
    pansight.export("facebook/detr-resnet-50", "hub")
    card = Path("hub/README.md").read_text()
    assert card.startswith("---\n")
    assert licences.of_card(card) == licences.LICENCES["apache-2.0"]
    assert "Converted from facebook/detr-resnet-50 on the Hugging Face hub." in card


def test_nothing_is_overwritten_without_being_asked(fake: Fake) -> None:
    pansight.export("run", "out")
    with pytest.raises(PansightError, match="out: expected no export yet, found one; add --overwrite"):
        pansight.export("run", "out")
    with torch.no_grad():
        fake.class_embed.weight.fill_(3.0)
    pansight.export("run", "out", overwrite=True)
    assert load_file("out/model.safetensors")["classifier.weight"].unique().item() == 3
    Path("photos").mkdir()
    Path("photos/a.txt").write_text("mine")
    for place in ("photos", "photos/a.txt", "run", "."):
        with pytest.raises(PansightError, match="expected a new folder or an earlier export, found something else"):
            pansight.export("run", place, overwrite=True)
    assert Path("photos/a.txt").read_text() == "mine"
    Path("empty").mkdir()
    pansight.export("run", "empty")


def test_whole_or_not_at_all(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pansight.weights.huggingface.export.write_text", full)  # the last file
    with pytest.raises(PansightError, match="out: cannot be written: No space left on device"):
        pansight.export("run", "out")
    assert sorted(p.name for p in Path().iterdir()) == ["run"]


def test_models_that_transformers_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"backbone": "resnet10t", "fpn_channels": 16, "box_features": 16, "mask_convs": 1, "mask_channels": 8}
    model = pansight_model("mask_rcnn", options)
    save_model(tmp_path / "model", model, "mask_rcnn", options)
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 2
    line = "expected a model that transformers has (detr, eomt, mask2former, maskformer), found mask_rcnn"
    assert capsys.readouterr().err == f"pansight: {tmp_path / 'model'}: {line}\n"
    assert not (tmp_path / "out").exists()


def pansight_model(name: str, options: dict[str, Any]) -> Any:
    from pansight.models import build

    return build(name, LABELS, **options)


def test_command(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run", "--to", "hf", "--out", "out"]) == 0
    assert capsys.readouterr().out == "out: FakeForSegmentation.from_pretrained('out')\n"
    assert main(["export", "run", "--to", "onnxx", "--out", "out2"]) == 2
    assert "unknown export target 'onnxx'; known: folder, hf" in capsys.readouterr().err
    shutil.rmtree("run")
