"""A search by Optuna over the runner of the sweeps; skipped where Optuna is missing."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from pansight.apps.sweeping import runner, runs
from pansight.apps.sweeping.grid import Range, make_axis, parse_varied
from pansight.apps.sweeping.plan import Plan
from pansight.apps.sweeping.runner import run_all
from pansight.apps.sweeping.search import JOURNAL, Trials

sys.path.insert(0, str(Path(__file__).parent))
import run_folder


@pytest.fixture(autouse=True)
def _fake(monkeypatch, tmp_path):
    """Trainings whose figure is the better the nearer the rate is to 0.3."""
    run_folder.make_run(tmp_path / "made", images=2)
    (tmp_path / "made" / "report.html").write_text("<!doctype html>")
    shutil.rmtree(tmp_path / "made" / "predictions")
    monkeypatch.setattr(runs, "PROGRAM", (sys.executable, str(Path(__file__).parent / "fake_training.py")))
    monkeypatch.setattr(runner, "POLL", 0.01)
    monkeypatch.setenv("FAKE_RUN", str(tmp_path / "made"))
    monkeypatch.setenv("FAKE_FIGURE", "1")


LEAST, MOST = 0.0, 1.0
PLAN = Plan(varied=(Range("train.lr", LEAST, MOST),), search="tpe", trials=12)


def run(plan: Plan, folder: Path, jobs: int = 1) -> tuple[Trials, runner.Outcome]:
    trials = Trials(plan, folder)
    return trials, run_all(trials, folder, jobs, lambda each: runs.command(folder, each, None, plan.settings))


def values(trials: Trials) -> list[float | None]:
    return [trial.value for trial in trials._study.get_trials(deepcopy=False)]


def test_a_search_comes_near_the_best_and_goes_on(tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    trials, outcome = run(replace(PLAN, trials=5), folder)
    assert len(outcome.finished) == 5
    assert (folder / JOURNAL).is_file()
    before = values(trials)
    again, outcome = run(PLAN, folder, jobs=2)
    assert len(outcome.finished) == 7  # those of before count, and are not trained again
    assert values(again)[:5] == before
    assert len(set(values(again))) == 12  # what is drawn after the break is not what was drawn at the start
    assert max(value or 0.0 for value in values(again)) > 0.9
    listed = runs.read_listing(folder)
    assert [each.name.partition(",")[0] for each in listed] == [f"trial={number}" for number in range(12)]
    assert all(LEAST <= each.settings["train.lr"] <= MOST for each in listed)
    _, outcome = run(PLAN, folder)
    assert outcome.finished == []


def test_a_trial_is_the_mean_over_its_seeds(tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    trials, outcome = run(replace(PLAN, trials=2, seeds=(4, 5)), folder)
    assert len(outcome.finished) == 4
    assert trials.total == 4
    for value, each in zip(values(trials), runs.read_listing(folder)[::2]):
        assert value == pytest.approx(1 - abs(each.settings["train.lr"] - 0.3))
    assert [each.seed for each in runs.read_listing(folder)] == [4, 5, 4, 5]


def test_a_trial_that_was_running_is_trained_to_its_end(tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    first = Trials(replace(PLAN, trials=2), folder)
    broken = first.take()  # and the sweep was killed
    again, outcome = run(replace(PLAN, trials=2), folder)
    assert outcome.finished[0] == broken.name
    assert len(outcome.finished) == 2
    assert None not in values(again)


def test_a_failed_trial_does_not_stop_the_search(tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    plan = replace(PLAN, varied=(make_axis("train.lr", [13, 0.3]),), trials=6)
    trials, outcome = run(plan, folder)
    assert outcome.failed
    assert all(line == "the rate is unlucky" for line in outcome.failed.values())
    assert len(outcome.failed) + len(outcome.finished) == 6
    assert values(trials).count(None) == len(outcome.failed)


def test_lists_whole_numbers_and_logarithms_are_drawn(tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    texts = ["train.batch_size=4..64", "train.lr=1e-5..1e-1:log", "train.milestones=[0.5,0.8];[0.6]"]
    plan = replace(PLAN, varied=tuple(map(parse_varied, texts)), trials=4)
    run(plan, folder)
    for each in runs.read_listing(folder):
        assert type(each.settings["train.batch_size"]) is int
        assert 1e-5 <= each.settings["train.lr"] <= 0.1
        assert each.settings["train.milestones"] in ([0.5, 0.8], [0.6])
