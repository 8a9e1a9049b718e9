"""Training under `accelerate launch` and torchrun: the result of one process, resumed as one, and ended together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pansight import load, models
from pansight.apps.cli import main
from pansight.engine.distributed import SPLITTING, make_accelerator
from pansight.errors import PansightError

sys.path.insert(0, str(Path(__file__).parent))
import toy

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
FAILS = str(Path(__file__).with_name("one_fails.py"))

TRAIN = ["train", "--model", "toy", "--data", "shapes", "--train.steps", "4", "--train.batch-size", "4"]
TRAIN += ["--data.options.count", "12", "--data.options.height", "32", "--data.options.width", "32"]
TRAIN += ["--data.validation-options.count", "2", "--train.trackers", "", "--train.precision", "fp32"]
TRAIN += ["--train.lr", "0.05", "--train.checkpoint-every", "1", "--data.workers", "0"]


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])


def run(launcher: list[str], script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)


def same_weights(one: Path, two: Path, tolerance: float) -> None:
    states = [load(folder).model.state_dict() for folder in (one, two)]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], atol=tolerance, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_accelerate_launch_gives_what_one_process_gives(tmp_path):
    quiet = [*TRAIN, "--model.options.quiet", "true"]
    done = run(LAUNCH, toy.__file__, *quiet, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report  ") == 1  # the first process alone speaks
    assert main([*quiet, "--out", str(tmp_path / "one")]) == 0
    same_weights(tmp_path / "one", tmp_path / "two", 1e-5)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_error_of_one_process_ends_all_and_the_run_goes_on(tmp_path):
    """A resumed run of two processes has, bit for bit, the weights of an unbroken one of two processes."""
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    done = run(TORCHRUN, FAILS, *TRAIN, "--out", str(broken))
    assert done.returncode != 0
    assert done.stderr.count("pansight: b.png: expected a whole PNG, found no end chunk (truncated)") == 1
    assert "[rank0]" not in done.stderr  # the other one has no traceback, which would hide the reason
    assert not (broken / "report.html").exists()
    done = run(TORCHRUN, toy.__file__, "train", "--resume", "--out", str(broken))
    assert done.returncode == 0, done.stderr
    done = run(TORCHRUN, toy.__file__, *TRAIN, "--out", str(whole))
    assert done.returncode == 0, done.stderr
    same_weights(whole, broken, 0)


@pytest.mark.parametrize("variable", sorted(SPLITTING))
def test_engines_that_split_the_model_are_refused(variable, monkeypatch):
    monkeypatch.setenv(variable, "true")
    expected = f"{variable}: expected a whole model in each process .*, found {SPLITTING[variable]}"
    with pytest.raises(PansightError, match=expected):
        make_accelerator()
