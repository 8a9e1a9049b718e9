"""PANSIGHT_PLAIN=1 reaches whole jobs: with fast functions that raise, they run plainly, and only plainly."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pansight.data import Shapes
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.ops.fast import PLAIN, plain, use_plain

pytestmark = pytest.mark.slow

SCRIPT = """
import inspect, pkgutil, shutil, sys
from importlib import import_module
import pansight
from pansight.ops import fast

def broken(*args, **kwargs):
    raise RuntimeError("a fast function ran")

# these ask themselves whether to be plain; what they call is broken instead
ASK_THEMSELVES = {"linear", "fc_over_grid", "dilated_conv", "checkpointed"}
found = set()
for entry in pkgutil.iter_modules(fast.__path__):
    if entry.ispkg:
        continue
    module = import_module(f"pansight.ops.fast.{entry.name}")
    for name, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name not in ASK_THEMSELVES:
            if not name.startswith("_") or name in ("_product", "_by_places"):
                value.__code__ = broken.__code__  # wherever it has been imported to
                found.add(name)
import_module("pansight.ops.fast.memory").checkpoint = broken
import_module("pansight.ops.fast.png").PairTable.count = broken
assert len(found) == 25, sorted(found)

def train():
    options = {"short": 0, "long": 0, "channels": 32, "heads": 4, "hidden": 32, "queries": 8, "layers": 2}
    options |= {"encoder_layers": 1, "encoder_hidden": 32, "loss_points": 64}
    settings = {"model": {"options": options}, "train.steps": 1, "train.batch_size": 2, "train.lr": 1e-3}
    settings |= {"train.trackers": [], "evaluate.batch_size": 2, "data.workers": 0}
    pansight.train("mask2former", "resnet10t", data="data", out="run", overwrite=True, settings=settings)

jobs = {
    "training": train,
    "evaluation": lambda: pansight.evaluate("saved", out="again", overwrite=True),
    "figures from files": lambda: pansight.evaluate_files("data/annotations/panoptic_val.json", PREDICTIONS),
}
PREDICTIONS = "saved/predictions/predictions.json"
for name, job in jobs.items():
    try:
        job()
        print("ran:", name)
    except RuntimeError as error:
        assert "a fast function ran" in str(error), error
        print("stopped:", name)
    if name == "training" and not shutil.os.path.exists("saved"):
        shutil.copytree("run", "saved")
"""


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in {None: False, "0": False, "": False, "1": True}.items():
        monkeypatch.delenv(PLAIN, raising=False)
        if value is not None:
            monkeypatch.setenv(PLAIN, value)
        assert use_plain() == expected
        with plain():
            assert use_plain()
            with plain(False):
                assert not use_plain()
            assert use_plain()
        assert os.environ.get(PLAIN) == value
    monkeypatch.delenv(PLAIN)
    with pytest.raises(ZeroDivisionError), plain():
        1 / 0  # noqa: B018
    assert PLAIN not in os.environ


def test_the_switch_reaches_threads_and_processes() -> None:
    found: list[bool] = []
    with plain():
        thread = threading.Thread(target=lambda: found.append(use_plain()))
        thread.start()
        thread.join()
        code = "from pansight.ops.fast import use_plain; print(use_plain())"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == [True]
    assert said == "True\n"


def test_training_evaluation_and_figures_from_files(tmp_path: Path) -> None:
    export_coco_panoptic(Shapes(2, 64, 64), tmp_path / "data", "train")
    export_coco_panoptic(Shapes(2, 64, 64, split="val"), tmp_path / "data", "val")
    for value, outcome in (("1", "ran"), ("0", "stopped")):
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            cwd=tmp_path,
            env=os.environ | {PLAIN: value},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        said = [line for line in result.stdout.splitlines() if line.startswith(("ran:", "stopped:"))]
        assert said == [f"{outcome}: {job}" for job in ("training", "evaluation", "figures from files")]
