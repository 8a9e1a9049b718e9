"""Sweeps of real trainings in processes of their own: of the toy network, and of a shipped recipe."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pansight import models
from pansight.apps.cli import main
from pansight.apps.sweeping import runs
from pansight.data import Shapes
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.files import read_json

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import toy


@pytest.mark.slow  # four processes, each of which loads torch
def test_trainings_of_the_toy_are_swept_broken_and_compared(tmp_path, monkeypatch, capsys):
    """One of the two variants breaks after its first checkpoint; the second sweep resumes it."""
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])
    monkeypatch.setattr(runs, "PROGRAM", (sys.executable, toy.__file__))
    export_coco_panoptic(Shapes(4, 32, 40), tmp_path / "data", "train")
    export_coco_panoptic(Shapes(2, 32, 40, split="val"), tmp_path / "data", "val")
    settings = {"steps": 4, "batch-size": 2, "checkpoint-every": 1, "evaluate-every": 0, "trackers": "", "log-every": 1}
    given = [word for name, value in settings.items() for word in (f"--train.{name}", str(value))]
    out = tmp_path / "sweep"
    words = ["sweep", "--data", str(tmp_path / "data"), "--model.name", "toy", "--out", str(out), *given]
    monkeypatch.setenv("TOY_KILL_AT", "3")
    assert main([*words, "--vary", "train.lr=0.01,0.02"]) == 1
    assert capsys.readouterr().out.count("killed by SIGKILL") == 2
    monkeypatch.delenv("TOY_KILL_AT")
    shutil.rmtree(out / "runs" / "lr=0.02,seed=0")
    assert main(["sweep", str(out), "--jobs", "2"]) == 0
    first, second = (
        [line for line in (out / "logs" / f"lr={rate},seed=0.log").read_text().splitlines() if line.startswith("$ ")]
        for rate in ("0.01", "0.02")
    )
    assert [line.endswith("--resume") for line in first] == [False, True]
    assert [line.endswith("--resume") for line in second] == [False, False]
    log = (out / "runs" / "lr=0.01,seed=0" / "metrics.jsonl").read_text().splitlines()
    assert [row["step"] for row in map(json.loads, log) if row["kind"] == "train"] == [1, 2, 3, 4]
    result = read_json(out / "comparison.json")
    assert [row["name"] for row in result["variants"]] == ["lr=0.01", "lr=0.02"]
    assert all(row["parameters"] and row["memory_bytes"] and row["train_speed"] for row in result["variants"])
    assert (out / "comparison.html").read_text().count('<img src="data:image') == 2 * 3


@pytest.mark.slow
@pytest.mark.long  # a minute and a half
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_recipe_with_two_backbones_and_two_seeds(tmp_path):
    """One run is killed in the middle by SIGKILL; the same command resumes it and skips what is finished."""
    out = tmp_path / "sweep"
    settings = {"steps": 6, "batch-size": 2, "max-minutes": 0, "checkpoint-every": 1, "evaluate-every": 0}
    given = [word for name, value in settings.items() for word in (f"--train.{name}", str(value))]
    words = [sys.executable, "-m", "pansight.apps.cli", "sweep", "shapes/panoptic_fpn", "--out", str(out), *given]
    words += ["--vary", "model.backbone=resnet18,convnext_atto", "--seeds", "2", "--model.pretrained", "none"]
    words += ["--data.limit", "4", "--train.trackers", "", "--train.log-every", "1"]
    victim = out / "runs" / "backbone=convnext_atto,seed=0"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as sweep:
        while sweep.poll() is None and not (victim / "checkpoints" / "last" / "training.pt").is_file():
            time.sleep(0.02)
        pid = next(pid for pid in _processes() if f"--out\0{victim}\0" in _words(pid))
        os.kill(pid, signal.SIGKILL)
        printed = sweep.communicate()[0]
    assert sweep.returncode == 1, printed
    assert "FAILED     backbone=convnext_atto,seed=0: killed by SIGKILL" in printed
    assert "finished   3 of 4 runs" in printed
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    assert "skipped    3 runs that were finished before" in done.stdout
    log = (victim.parents[1] / "logs" / f"{victim.name}.log").read_text()
    assert log.count("$ ") == 2
    assert "--resume" in log
    result = read_json(out / "comparison.json")
    assert [len(row["seeds"]) for row in result["variants"]] == [2, 2]
    assert all(row["spread"] is not None for row in result["variants"])


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _words(pid: int) -> str:
    """The command line of a process, its words ended by zero bytes; empty where it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
