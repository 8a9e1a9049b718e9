"""``pansight sweep``: what runs, what is skipped, resumed and refused, how it ends, and what is compared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from pansight import models
from pansight.apps.cli import main
from pansight.apps.pages.comparison.sweeps import compare_sweep
from pansight.apps.sweeping import compare_folder, runner, runs
from pansight.apps.sweeping.runner import surroundings
from pansight.data import Shapes
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.errors import PansightError
from pansight.files import read_json, write_json

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import run_folder
import toy

SEEDS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> list[Path]:
    """Runs of a fake model on the same images, with mistakes of their own."""
    folder = tmp_path_factory.mktemp("made")
    for seed in range(SEEDS):
        run_folder.make_run(folder / str(seed), images=6, seed=seed)
        (folder / str(seed) / "report.html").write_text("<!doctype html>")
        facts = {"parameters": 1_234_567, "memory_bytes": 3 * 2**30, "stopped_by": "patience" if seed else "steps"}
        write_json(folder / str(seed) / "run.json", facts)
    return [folder / str(seed) for seed in range(SEEDS)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    export_coco_panoptic(Shapes(3, 32, 40), folder, "train")
    export_coco_panoptic(Shapes(2, 32, 40, split="val"), folder, "val")
    return folder


@pytest.fixture(autouse=True)
def _fake(monkeypatch, made):
    """Trainings that take milliseconds, of the toy model."""
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])
    monkeypatch.setattr(runs, "PROGRAM", (sys.executable, str(Path(__file__).parent / "fake_training.py")))
    monkeypatch.setattr(runner, "POLL", 0.01)
    monkeypatch.setenv("FAKE_RUN", str(made[0]))


def words(data: Path, out: Path, *more: str) -> list[str]:
    return ["sweep", "--data", str(data), "--model.name", "toy", "--out", str(out), *more]


def commands_of(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "words.txt").read_text().splitlines()]


def test_a_sweep_runs_all_skips_what_is_finished_and_compares(data, tmp_path, capsys):
    out = tmp_path / "sweep"
    given = words(data, out, "--vary", "train.lr=0.1,0.2", "--vary", "train.freeze=[];[backbone]", "--seeds", "2")
    assert main([*given, "--jobs", "3"]) == 0
    printed = capsys.readouterr().out
    assert "8 runs: 4 variants, 2 seeds each" in printed
    assert "finished   8 of 8 runs" in printed
    names = sorted(path.name for path in (out / "runs").iterdir())
    assert len(names) == 8
    assert "lr=0.1,freeze=backbone,seed=1" in names
    (command,) = commands_of(out / "runs" / "lr=0.1,freeze=backbone,seed=1")
    assert {"--train.lr=0.1", "--train.freeze=backbone", "--train.seed=1", "--model.name=toy"} <= set(command)
    assert (out / "logs" / "lr=0.1,freeze=backbone,seed=1.log").read_text().startswith("$ ")
    assert (out / "comparison.html").is_file()
    assert read_json(out / "comparison.json")["images"] == 6
    shutil.rmtree(out / "runs" / names[0])
    assert main(["sweep", str(out)]) == 0  # the folder is enough
    assert "skipped    7 runs" in capsys.readouterr().out
    assert [len(commands_of(out / "runs" / name)) for name in names] == [1] * 8
    assert main([*given[:-1], "3"]) == 0  # more of them
    assert len(list((out / "runs").iterdir())) == 12


def test_sweep_toml_is_written_before_the_first_run(data, tmp_path, monkeypatch):
    out = tmp_path / "sweep"
    seen: list[bool] = []
    start = runner._start
    monkeypatch.setattr(runner, "_start", lambda *a: seen.append((out / "sweep.toml").is_file()) or start(*a))
    assert main(words(data, out)) == 0
    assert seen == [True]
    assert [path.name for path in (out / "runs").iterdir()] == ["seed=0"]


def test_a_broken_run_is_named_at_the_end_and_stops_nobody(data, tmp_path, capsys):
    out = tmp_path / "sweep"
    assert main(words(data, out, "--vary", "train.lr=13,0.1,0.2")) == 1
    printed = capsys.readouterr().out
    failed = next(line for line in printed.splitlines() if line.startswith("FAILED"))
    assert failed.startswith("FAILED     lr=13,seed=0: the rate is unlucky (log: ")
    assert "finished   2 of 3 runs" in printed
    assert {row["name"] for row in read_json(out / "comparison.json")["variants"]} == {"lr=0.1", "lr=0.2"}
    assert main(["sweep", str(out)]) == 1  # it is tried again, and alone
    assert len(commands_of(out / "runs" / "lr=13,seed=0")) == 2
    assert len(commands_of(out / "runs" / "lr=0.1,seed=0")) == 1


def test_a_run_that_left_out_data_is_finished_and_told(data, tmp_path, capsys):
    out = tmp_path / "sweep"
    assert main(words(data, out, "--vary", "train.lr=17,0.1")) == 1
    printed = capsys.readouterr().out
    assert "finished   2 of 2 runs" in printed
    assert f"left out   parts of the data, in 1 run (log: {out / 'logs' / 'lr=17,seed=0.log'})" in printed
    assert {row["name"] for row in read_json(out / "comparison.json")["variants"]} == {"lr=17", "lr=0.1"}
    assert main(["sweep", str(out)]) == 0  # nothing is left to do


def test_where_every_run_is_broken_there_is_nothing_to_compare(data, tmp_path, capsys):
    assert main(words(data, tmp_path / "sweep", "--train.lr", "13")) == 1
    assert "finished   0 of 1 runs" in capsys.readouterr().out
    assert not (tmp_path / "sweep" / "comparison.html").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM to a process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_run_once_and_the_sweep_goes_on_later(data, tmp_path, capsys, monkeypatch, number):
    out = tmp_path / "sweep"
    folders = [out / "runs" / f"lr=99,seed={seed}" for seed in (0, 1)]

    def signal_when_ready(*arguments):
        if all((folder / "ready").is_file() for folder in folders) and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    sent: list[int] = []
    monkeypatch.setattr(runner, "LOOK", 0.0)
    monkeypatch.setattr(runner, "_show", signal_when_ready)
    given = words(data, out, "--vary", "train.lr=99,0.1", "--seeds", "2", "--jobs", "2")
    # both runs that wait come first, since one job's rate is the other's seed
    monkeypatch.setattr(runner.Listed, "take", lambda self: self._left.pop(0 if len(self._left) != 3 else 1))
    assert main(given) == 128 + number
    error = capsys.readouterr().err
    assert "again to stop at once" in error
    assert "pansight: interrupted: 0 of 4 runs are finished; the same command goes on with the others" in error
    assert [(folder / "heard").read_text() for folder in folders] == ["1", "1"]
    monkeypatch.undo()
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])
    monkeypatch.setattr(runs, "PROGRAM", (sys.executable, str(Path(__file__).parent / "fake_training.py")))
    monkeypatch.setenv("FAKE_RUN", str(folders[0].parents[3] / "none"))
    for folder in folders:
        assert runs.command(out, runs.read_listing(out)[0], None, {})[-1] == "--resume"
        assert "--resume" not in commands_of(folder)[0]


def test_a_run_that_was_killed_before_it_saved_starts_anew(tmp_path):
    folder = tmp_path / "runs" / "seed=0"
    run = runs.Run("seed=0", "", 0, {"train.seed": 0})
    assert "--overwrite" not in runs.command(tmp_path, run, None, {})
    folder.mkdir(parents=True)
    (folder / "config.toml").touch()
    assert "--overwrite" in runs.command(tmp_path, run, "shapes/eomt", {})
    (folder / "first").mkdir()
    (folder / "first" / "config.toml").touch()  # the first of two steps has begun
    assert runs.command(tmp_path, run, "shapes/eomt", {})[-1] == "--resume"


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--vary", "train.lrr=1"], "unknown key 'lrr'"),
        (["--vary", "model.options.wdith=4,8"], "unknown option of model toy: 'wdith'"),
        (["--vary", "model.name=toy,toi"], "name=toi: unknown model 'toi'"),
        (["--vary", "train.freeze=[],[backbnoe]"], "freeze=backbnoe: train.freeze"),
        (["--vary", "data.validation_split=val,vall"], "validation_split=vall: "),
        (["--vary", "train.evaluate_every=0,-1", "--train.patience", "2"], "evaluate_every=0: train.patience"),
        (["--vary", "train.lr=1..2"], "--search tpe"),
        (["--train.batch-size", "x"], "batch-size"),
        (["--seeds", "0"], "--seeds"),
        (["--jobs", "0"], "--jobs"),
        (["--trials", "3"], "--search"),
    ],
)
def test_what_is_wrong_with_any_run_is_one_line_before_anything_starts(data, tmp_path, capsys, more, complaint):
    out = tmp_path / "sweep"
    given = words(data, out, *more)
    if "model.name=toy,toi" in more:
        given = [word for word in given if word not in ("--model.name", "toy")]
    assert main(given) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert complaint in line
    assert not out.exists()


def test_a_folder_of_something_else_is_left_alone(data, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(words(data, tmp_path)) == 2
    assert "expected an empty folder, or a sweep, found other files" in capsys.readouterr().err
    assert main(words(data, tmp_path / "file")) == 2
    assert "expected a folder for the sweep, found a file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_same_folder_with_other_settings_is_refused(data, tmp_path, capsys):
    assert main(words(data, tmp_path / "s", "--train.lr", "0.1")) == 0
    before = (tmp_path / "s" / "sweep.toml").read_bytes()
    capsys.readouterr()
    assert main(words(data, tmp_path / "s", "--train.lr", "0.2")) == 2
    assert "train.lr: expected 0.1, as the sweep began, found 0.2" in capsys.readouterr().err
    assert (tmp_path / "s" / "sweep.toml").read_bytes() == before


def test_a_dry_run_prints_commands_and_writes_nothing(data, tmp_path, capsys):
    assert main(words(data, tmp_path / "s", "--vary", "train.lr=0.1,0.2", "--dry-run")) == 0
    assert capsys.readouterr().out.count("--train.lr=0.") == 2
    assert not (tmp_path / "s").exists()


def test_the_search_without_optuna_is_one_line(data, tmp_path, capsys, monkeypatch):
    from pansight.apps.sweeping import search

    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    given = words(data, tmp_path / "s", "--vary", "train.lr=0.1..0.2", "--search", "tpe", "--trials", "2")
    assert main(given) == 2
    assert "--search: expected the package optuna, found none; pip install 'pansight[sweep]'" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("slot", "jobs", "devices", "given", "expected"),
    [
        (0, 1, 0, {}, {}),
        (1, 2, 0, {}, {"OMP_NUM_THREADS": "4"}),
        (0, 3, 0, {}, {"OMP_NUM_THREADS": "2"}),
        (0, 20, 0, {}, {"OMP_NUM_THREADS": "1"}),
        (0, 2, 0, {"OMP_NUM_THREADS": "7"}, {}),
        (1, 2, 2, {}, {"CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "4"}),
        (3, 4, 2, {}, {"CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "2"}),
        (1, 2, 2, {"CUDA_VISIBLE_DEVICES": "5,7"}, {"CUDA_VISIBLE_DEVICES": "7", "OMP_NUM_THREADS": "4"}),
    ],
)
def test_devices_and_cores_are_shared_out(slot, jobs, devices, given, expected):
    assert surroundings(slot, jobs, devices, 8, given) == expected


# --- comparison ------------------------------------------------------------------------------------------------------


def test_mean_spread_and_intervals(made, tmp_path, capsys):
    pqs = [read_json(folder / "evaluation.json")["All"]["pq"] for folder in made]
    variants = {"a": [("a0", 0, made[0]), ("a1", 1, made[1])], "b": [("b0", 0, made[2])], "c": [("c0", 0, made[0])]}
    result = compare_sweep(variants, tmp_path / "page.html", None, 200)
    a, b, _ = result["variants"]
    assert a["mean"] == pytest.approx((pqs[0] + pqs[1]) / 2)
    assert a["spread"] == pytest.approx(abs(pqs[0] - pqs[1]) / 2**0.5)
    assert b["spread"] is None
    assert a["low"] <= a["mean"] <= a["high"]
    assert (a["parameters"], a["memory_bytes"], a["seeds"]) == (1_234_567, 3 * 2**30, [0, 1])
    assert a["train_speed"] == pytest.approx(14.5, abs=0.3)
    assert a["predict_speed"] == 12.5
    pairs = {(row["first"], row["second"]): row for row in result["pairs"]}
    assert set(pairs) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert pairs["a", "b"]["value"] == pytest.approx(b["mean"] - a["mean"])
    assert pairs["a", "b"]["low"] <= pairs["a", "b"]["value"] <= pairs["a", "b"]["high"]
    same = compare_sweep({"x": [("x0", 0, made[0])], "y": [("y0", 0, made[0])]}, tmp_path / "page2.html", None, 100)
    assert {same["pairs"][0][key] for key in ("value", "low", "high")} == {0.0}
    printed = capsys.readouterr().out
    assert f"{100 * a['mean']:.1f} ± {100 * a['spread']:.1f}" in printed
    assert "1.23 M" in printed
    page = (tmp_path / "page.html").read_text()
    # the fake runs kept photos and truth, but no predictions
    assert page.count('<img src="data:image') == page.count('<section class="same card">') > 2
    assert page.count("no prediction in the folder") == 4 * page.count('<section class="same card">')
    assert "stopped early" in page
    for name in ("a0", "a1", "b0", "c0"):
        assert name in page
    charts = json.loads(page.partition('id="chart-data">')[2].partition("</script>")[0])
    assert [chart["title"] for chart in charts] == ["PQ on the validation images", "Loss"]
    assert [series["color"] for series in charts[0]["series"]] == [0, 0, 1, 2]


def test_many_variants_are_compared_with_the_best(made, tmp_path):
    variants = {f"v{k}": [(f"v{k}", 0, made[k % SEEDS])] for k in range(9)}
    result = compare_sweep(variants, tmp_path / "page.html", None, 100)
    best = max(result["variants"], key=lambda row: row["mean"])["name"]
    assert {row["first"] for row in result["pairs"]} == {best}
    assert len(result["pairs"]) == 8


def test_runs_of_other_images_are_compared_without_intervals(made, tmp_path, capsys):
    other = run_folder.make_run(tmp_path / "other", images=6, seed=5)
    other["image_ids"] = [f"x{k}" for k in range(6)]
    write_json(tmp_path / "other" / "evaluation.json", other)
    variants = {"a": [("a", 0, made[0])], "b": [("b", 0, tmp_path / "other")]}
    result = compare_sweep(variants, tmp_path / "page.html", None, 100)
    assert result["pairs"] == []
    assert result["variants"][1]["mean"] == pytest.approx(other["All"]["pq"])
    assert "not measured alike" in capsys.readouterr().out


def test_compare_takes_the_folder_of_a_sweep(data, tmp_path, capsys):
    out = tmp_path / "sweep"
    assert main(words(data, out, "--vary", "train.lr=0.1,0.2")) == 0
    capsys.readouterr()
    (out / "comparison.html").unlink()
    assert main(["compare", str(out)]) == 0
    assert (out / "comparison.html").is_file()
    assert "lr=0.2 - lr=0.1: +0.00 [+0.00, +0.00]" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["compare", str(out), "--out", str(page)]) == 0
    capsys.readouterr()
    assert main(["compare", str(out), "--out", str(page)]) == 2
    assert "expected no file yet" in capsys.readouterr().err


def test_a_damaged_listing_is_one_line(tmp_path):
    (tmp_path / "sweep.toml").write_text("[sweep]\n")
    for text, complaint in [
        ("[{}]", "the runs of a sweep"),
        ('[{"name": "../x", "variant": "", "seed": 0, "settings": {}}]', "the name of a folder"),
        ("[]", "a finished run"),
    ]:
        (tmp_path / "runs.json").write_text(text)
        with pytest.raises(PansightError, match=complaint):
            compare_folder(tmp_path)
