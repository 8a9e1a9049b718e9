"""Two CPU processes under torchrun give what one gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from pansight import load, models
from pansight.apps.cli import main
from pansight.engine.distributed import synchronise_batch_norm
from pansight.engine.optim import freeze
from pansight.nn.backbones.pyramid import FrozenBatchNorm

sys.path.insert(0, str(Path(__file__).parent))
import toy

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])


@pytest.mark.slow
def test_two_processes_give_the_metrics_and_weights_of_one(tmp_path):
    """5 validation images are shared out as 3 + 2; a batch of 4 as 2 + 2, one of which runs out of memory."""
    command = ["train", "--model", "toy", "--data", "shapes", "--train.steps", "4", "--train.batch-size", "4"]
    command += ["--data.options.count", "12", "--data.options.height", "32", "--data.options.width", "32"]
    command += ["--data.validation-options.count", "5", "--train.trackers", "", "--train.precision", "fp32"]
    command += ["--train.lr", "0.05", "--train.evaluate-every", "2", "--data.workers", "0"]
    command += [
        "--model.options.quiet",
        "true",
        "--model.options.memory-limit",
        "1",
        "--evaluate.decode.min-area",
        "1",
    ]
    done = subprocess.run(
        [*TORCHRUN, toy.__file__, *command, "--out", str(tmp_path / "two")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report  ") == 1  # the first process alone speaks
    assert done.stderr.count("out of memory at step 0: from now on 2 micro-batches of 1") == 1
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    for key, value in load(tmp_path / "one").model.state_dict().items():
        other = load(tmp_path / "two").model.state_dict()[key]
        torch.testing.assert_close(value, other, atol=1e-5, rtol=1e-5)
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    for key in ("All", "per_class", "semantic", "instances"):
        assert one[key] == two[key], key
    assert sorted(r["image_id"] for r in two["images"]) == sorted(r["image_id"] for r in one["images"])
    logs = [
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")
    ]
    assert [(r["kind"], r["step"]) for r in logs[0]] == [(r["kind"], r["step"]) for r in logs[1]]
    for a, b in zip(*logs, strict=True):
        if a["kind"] == "train":
            assert abs(a["loss"] - b["loss"]) < 1e-5
    predictions = [json.loads((tmp_path / n / "predictions" / "predictions.json").read_text()) for n in ("one", "two")]
    by_image = [{a["image_id"]: a["segments_info"] for a in p["annotations"]} for p in predictions]
    assert by_image[0] == by_image[1]
    folders = [{p.name for p in (tmp_path / n / "predictions").iterdir()} for n in ("one", "two")]
    assert folders[0] == folders[1] == {"predictions", "predictions.json", "sheet"}
    objects = ["evaluate", str(tmp_path / "one"), "--evaluate.decode.panoptic", "false"]
    done = subprocess.run(
        [*TORCHRUN, toy.__file__, *objects, "--out", str(tmp_path / "b")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert main([*objects, "--out", str(tmp_path / "a")]) == 0
    rows = [json.loads((tmp_path / name / "predictions" / "instances.json").read_text()) for name in "ab"]
    assert len(rows[0]) > 0
    assert sorted(rows[0], key=str) == sorted(rows[1], key=str)
    assert {p.name for p in (tmp_path / "b" / "predictions").iterdir()} <= {"instances.json", "sheet"}


@pytest.mark.slow
def test_two_processes_share_statistics_and_failures(tmp_path):
    """Each of them sees other images and counts its own; pair.py says what is tried."""
    script = str(Path(__file__).with_name("pair.py"))
    done = subprocess.run([*TORCHRUN, script, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "found.json").read_text()) == {
        "evaluations": 2,
        "moved": True,
        "equal buffers": True,
        "counts fails": [True, True],
        "loss fails": [False, True],  # the loop tells the first one
        "sync_bn": "train.sync_bn: expected processes on cuda, xpu, hpu, found them on cpu",
        "stopped": [["interrupted in the evaluation after step 1, which is saved; go on with --resume", 15]] * 2,
        "due": True,
        "left": ["checkpoints"],
    }
    assert done.stderr.count("the model trains BatchNorm, which sees the batch in 2 pieces") == 1


def test_trained_batch_norm_is_synchronised_and_frozen_is_not():
    model = nn.Sequential(nn.BatchNorm2d(2), FrozenBatchNorm(2), BatchNormAct2d(2), nn.GroupNorm(1, 2))
    model[2].act = nn.Tanh()
    weight = model[0].weight
    alone = SimpleNamespace(num_processes=1, device=torch.device("cuda"))
    synchronise_batch_norm(model, alone)
    assert type(model[0]) is nn.BatchNorm2d
    synchronise_batch_norm(model, SimpleNamespace(num_processes=2, device=torch.device("cuda")))
    assert isinstance(model[0], nn.SyncBatchNorm)
    assert model[0].weight is weight
    assert type(model[1]) is FrozenBatchNorm
    assert isinstance(model[2], nn.SyncBatchNorm)
    assert isinstance(model[2].act, nn.Tanh)  # torch's own conversion would drop it
    assert freeze(model, ["0"]) == [model[0]]
