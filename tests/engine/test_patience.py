"""Early stopping: ``train.patience`` counts evaluations that are no better than the best, over a resumption too."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from pansight import models
from pansight.config import Config, override
from pansight.data import Shapes
from pansight.engine.automatic.checks import check_together
from pansight.errors import Interrupted, PansightError

sys.path.insert(0, str(Path(__file__).parent))
import toy
import toy_run


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])


DATA = Shapes(8, 24, 24)


def figures(*values: float):
    """An evaluation that gives these figures one after the other, the last one for ever."""
    left = list(values)

    def evaluate(folder: Path) -> dict:
        folder.mkdir(parents=True)
        value = left.pop(0) if len(left) > 1 else left[0]
        return {"All": {"pq": value, "n": 1}}

    return evaluate


def train(folder, evaluate, **settings):
    settings = {"steps": 20, "evaluate_every": 2, "evaluate_share": 0.0, **settings}
    return toy_run.run(folder, DATA, lambda: 0.0, evaluate, **settings)[1]


def test_a_run_stops_after_so_many_evaluations_that_are_no_better(tmp_path, capsys):
    result = train(tmp_path / "run", figures(0.1, 0.3, 0.3, 0.2, 0.25), patience=3)
    assert (result.step, result.stopped_by) == (10, "patience")  # the best at 4; 6, 8 and 10 are no better
    said = "step 10: stopped early: 3 evaluations in a row were no better than the best, 30.0 (train.patience)"
    assert said in capsys.readouterr().err
    assert toy_run.rows(tmp_path / "run", "stopped") == [{"step": 10, "kind": "stopped", "by": "patience"}]
    assert len(toy_run.rows(tmp_path / "run", "evaluation")) == 5
    assert (tmp_path / "run" / "checkpoints" / "last" / "training.pt").is_file()


def test_something_better_starts_the_count_anew(tmp_path):
    result = train(tmp_path / "run", figures(0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.3), patience=2)
    assert result.step == 14


def test_without_patience_a_run_goes_to_its_end(tmp_path):
    assert train(tmp_path / "run", figures(0.3, 0.1)).stopped_by == "steps"
    result = train(tmp_path / "other", figures(0.3, 0.1), patience=9)  # the last evaluation is the ninth that is worse
    assert (result.step, result.stopped_by) == (20, "steps")
    assert toy_run.rows(tmp_path / "other", "stopped") == []


def test_the_count_survives_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_INTERRUPT_AT", "7")  # after the evaluations of steps 2 (the best), 4 and 6
    with pytest.raises(Interrupted):
        train(tmp_path / "run", figures(0.3, 0.1), patience=3)
    monkeypatch.delenv("TOY_INTERRUPT_AT")
    result = train(tmp_path / "run", figures(0.1), patience=3, resume=True)
    assert (result.step, result.stopped_by) == (8, "patience")
    whole = train(tmp_path / "whole", figures(0.3, 0.1), patience=3)
    assert whole.step == 8
    states = [torch.load(tmp_path / f / "checkpoints/last/training.pt", weights_only=True) for f in ("run", "whole")]
    assert states[0]["waited"] == states[1]["waited"] == 3


def test_a_run_that_has_stopped_stays_so_until_it_gets_more_patience(tmp_path):
    train(tmp_path / "run", figures(0.3, 0.1), patience=1)
    result = train(tmp_path / "run", figures(0.1), patience=1, resume=True)
    assert (result.step, result.stopped_by) == (4, "patience")
    assert len(toy_run.rows(tmp_path / "run", "evaluation")) == 2
    result = train(tmp_path / "run", figures(0.1), patience=3, resume=True)
    assert (result.step, result.stopped_by) == (8, "patience")
    result = train(tmp_path / "run", figures(0.1), patience=0, resume=True)
    assert (result.step, result.stopped_by) == (20, "steps")


def test_a_run_by_the_clock_that_stops_early_says_so(tmp_path):
    clock = toy_run.Clock()
    evaluate = figures(0.3, 0.1)

    def slow(folder):
        clock.seconds += 6  # stands still for the training
        return evaluate(folder)

    settings = {"max_minutes": 10, "evaluate_every": -1, "evaluate_share": 0.0, "patience": 1, "steps": 10}
    result = toy_run.run(tmp_path / "run", DATA, clock, slow, **settings)[1]
    assert (result.step, result.stopped_by) == (4, "patience")


def test_patience_needs_evaluations():
    with pytest.raises(PansightError, match=r"train\.patience: expected evaluations to wait for"):
        check_together(override(Config(), {"train.patience": 2, "train.evaluate_every": 0}))
    with pytest.raises(PansightError, match=r"train\.patience: expected 0 or more"):
        override(Config(), {"train.patience": -1})
    assert json.loads(json.dumps(Config().to_dict()))["train"]["patience"] == 0
