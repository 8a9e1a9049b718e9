"""A new system is one file and one line: a toy that gives classes alone goes the whole way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import toy_semantic

import pansight
from pansight import models
from pansight.apps.cli import main
from pansight.config import ModelConfig
from pansight.data import Shapes
from pansight.data.images import read_index_png, write_png
from pansight.engine.assemble import make_model
from pansight.types import LabelSpace

SETTINGS = {"--data.options.count": 8, "--data.options.height": 32, "--data.options.width": 48, "--data.workers": 0}
SETTINGS |= {"--data.validation-options.count": 3, "--train.batch-size": 4, "--train.lr": 0.01, "--train.trackers": ""}
SETTINGS |= {"--train.steps": 40, "--train.precision": "fp32", "--train.evaluate-every": 0}


@pytest.fixture(autouse=True)
def _one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in toy_semantic.ENTRIES.items():
        monkeypatch.setitem(models.MODELS, name, entry)


def run(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


def train(out: Path, **more: int) -> Path:
    """more: settings of train."""
    settings = SETTINGS | {f"--train.{name}".replace("_", "-"): value for name, value in more.items()}
    words = [str(word) for pair in settings.items() for word in pair]
    run("train", "--model", "toy", "--data", "shapes", "--out", out, *words)
    return out


def test_it_is_one_short_file() -> None:
    assert len(Path(toy_semantic.__file__).read_text().splitlines()) <= 60


def test_from_training_to_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = train(tmp_path / "run")
    record = json.loads((out / "evaluation.json").read_text())
    assert 0 < record["semantic"]["miou"] < 1
    assert "All" not in record  # no segments
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if row["kind"] == "train"]
    assert losses[-1] < losses[0]
    assert "mIoU" in (out / "report.html").read_text()
    run("evaluate", out, "--out", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert again["semantic"] == record["semantic"]
    sample = Shapes(1, 40, 56, seed=9)[0]
    photo = tmp_path / "photo.png"
    write_png(photo, sample.image.permute(1, 2, 0).numpy())  # (3, H, W) → (H, W, 3)
    run("predict", out, photo, "--out", tmp_path / "found")
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"overlays", "semantic", "semantic.json"}
    run("export", out, "--to", "folder", "--out", tmp_path / "saved")
    assert "pansight.load(" in capsys.readouterr().out
    semantic = pansight.load(tmp_path / "saved").predict(photo).semantic
    assert semantic is not None
    assert torch.equal(semantic, pansight.load(out).predict(photo).semantic)
    source_ids = torch.tensor([category.source_id for category in Shapes(1).labels])
    written = torch.from_numpy(read_index_png(tmp_path / "found" / "semantic" / "photo.png"))
    assert torch.equal(written, source_ids[semantic].to(written.dtype))
    other = train(tmp_path / "other", seed=5)
    run("compare", out, other, "--out", tmp_path / "compared.html")
    assert "mIoU" in capsys.readouterr().out
    assert "gains and losses in IoU" in (tmp_path / "compared.html").read_text()


def test_resumed_is_as_unbroken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by a loss that fails in step 6, after the checkpoint of step 4."""
    short = {"steps": 8, "checkpoint_every": 4}
    whole, broken = train(tmp_path / "whole", **short), tmp_path / "broken"
    loss, calls = toy_semantic.ToySemantic.loss, iter(range(5))

    def failing(self: toy_semantic.ToySemantic, *given: object) -> dict[str, torch.Tensor]:
        next(calls)  # the sixth raises StopIteration, which stands for a crash
        return loss(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(toy_semantic.ToySemantic, "loss", failing)
        with pytest.raises(StopIteration):
            train(broken, **short)
    run("train", "--resume", "--out", broken)
    a, b = (pansight.load(folder).model.state_dict() for folder in (whole, broken))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_its_rows_follow_the_classes(tmp_path: Path) -> None:
    """Fine-tuned on other classes, what its entry calls class rows is kept by name."""
    model = models.build("toy", LabelSpace.from_names(["circle"], ["sky", "background"]))
    pansight.Predictor(model, "toy", {}, device="cpu").save(tmp_path / "old")
    tuned, *_, lines = make_model(ModelConfig("toy", weights=str(tmp_path / "old")), Shapes(1).labels)
    old, new = model.state_dict()["head.bias"], tuned.state_dict()["head.bias"]
    assert tuned.labels.names == ("square", "circle", "triangle", "background")
    assert (new[1], new[3]) == (old[0], old[2])
    assert any("2 classes kept: circle, background" in line for line in lines)
