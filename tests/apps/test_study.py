"""``pansight study``: what a study may say, what is measured again, and the table beside the published one."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from pansight import models
from pansight.apps import measuring
from pansight.apps.cli import main
from pansight.apps.sweeping import runner, runs
from pansight.apps.sweeping.grid import Run
from pansight.apps.sweeping.measures import measures_of, put_together
from pansight.apps.sweeping.plan import check_same, read_plan, studies, write_plan
from pansight.apps.sweeping.study import (
    Pair,
    Published,
    Study,
    figure,
    plain_study,
    read_study,
    study_table,
    study_text,
)
from pansight.config import Config, override
from pansight.data import Shapes, open_dataset
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.errors import PansightError
from pansight.files import read_json
from pansight.weights import save_model

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import run_folder
import toy

HEAD = """
[sweep]
seeds = 2
[settings]
"model.name" = "toy"
[vary]
"train.lr" = [0.1, 0.2]
"""
STUDY = """
[study]
title = "Is the larger rate better?"
columns = ["PQ", "PQ_th", "AP"]
[study.published]
source = "A paper"
recalled = true
note = "small"
[study.published.rows]
"lr=0.1" = { PQ = 40 }
"lr=0.5" = { PQ = 50, RQ = 60.5 }
"""
DECODED = """
[study]
columns = ["PQ"]
[study.evaluate]
all = { min_area = 1 }
large = { min_area = 40 }
"""


def read(text: str) -> Study:
    return read_study(tomllib.loads(text).get("study", {}))


# --- what a study may say --------------------------------------------------------------------------------------------


def test_a_study_is_read_and_written_back(tmp_path):
    study = read(STUDY)
    assert study.columns == ("PQ", "PQ_th", "AP")
    rows = {"lr=0.1": {"PQ": 40.0}, "lr=0.5": {"PQ": 50.0, "RQ": 60.5}}
    assert study.published == Published("A paper", rows, True, "small")
    pairs = Study(combine={"both": Pair("lr=0.1", "lr=0.2", {"min_stuff_area": 3})})
    for each in (study, read(DECODED), pairs, Study(), Study(published=Published("A", note="none"))):
        assert read_study(json.loads(json.dumps(plain_study(each)))) == each
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + STUDY)
    plan, _ = read_plan(path)
    write_plan(plan, tmp_path / "sweep", "")
    assert read_plan(tmp_path / "sweep")[0] == plan


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("study = 3", "study: expected a table"),
        ("[study]\ncolumn = ['PQ']", "column"),
        ("[study]\ntitle = 3", "a text"),
        ("[study]\ncolumns = 'PQ'", "a list of figures"),
        ("[study]\ncolumns = ['PQQ']", "did you mean 'PQ'"),
        ("[study]\ncolumns = ['IoU ']", "column of a study"),
        ("[study]\nevaluate = 3", "a table"),
        ("[study.evaluate]\na = 3", "evaluate: a: expected a table"),
        ("[study.combine.a]\ninstances = 'x'", "a variant for instances and one for semantic"),
        ("[study.combine.a]\ninstances = 'x'\nsemantics = 'y'", "semantics"),
        ("[study.combine.a]\ninstances = 'x'\nsemantic = 'y'\n[study.evaluate]\nb = {}", "evaluate or combine"),
        ("[study.published]\nrow = 3", "row"),
        ("[study.published.rows]\na = { PQ = 3 }", "the source of its rows"),
        ("[study.published]\nsource = 'A'\nrows = { a = { PQ = 300 } }", "percent"),
        ("[study.published]\nsource = 'A'\nrows = { a = { PQ = 'x' } }", "percent"),
        ("[study.published]\nsource = 'A'\nrows = { a = { P = 3 } }", "column of a study"),
        ("[study.published]\nsource = 'A'\nrecalled = 1", "true or false"),
    ],
)
def test_a_wrong_study_is_one_line(text, complaint):
    with pytest.raises(PansightError) as caught:
        read(text)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_figures_of_a_record():
    record = {
        "All": {"pq": 0.4, "sq": 0.7, "rq": 0.5},
        "per_class": {"1": {"name": "cat", "pq": 0.3}},
        "semantic": {"miou": 0.6, "per_class": {"1": {"name": "dog", "iou": 0.2}}},
        "instances": {"box": {"ap": 0.1}},
    }
    names = ("PQ", "RQ", "PQ_th", "mIoU", "AP", "box AP", "PQ cat", "IoU dog", "IoU cat")
    assert [figure(record, name) for name in names] == [0.4, 0.5, None, 0.6, None, 0.1, 0.3, 0.2, None]
    assert figure({}, "PQ") is None
    assert figure({}, "IoU cat") is None


def test_the_table_has_ours_to_the_left_and_theirs_to_the_right():
    records = {"lr=0.1": [{"All": {"pq": 0.4}}, {"All": {"pq": 0.5}}], "lr=0.2": [{"All": {"pq": 0.25}}]}
    table = study_table(read(STUDY), records)
    assert table["columns"] == ["PQ", "PQ_th", "AP", "RQ"]
    assert [row["name"] for row in table["rows"]] == ["lr=0.1", "lr=0.2", "lr=0.5"]
    first, second, third = table["rows"]
    assert first["ours"]["PQ"]["mean"] == pytest.approx(0.45)
    assert first["published"] == {"PQ": 0.4, "PQ_th": None, "AP": None, "RQ": None}
    assert second["ours"]["PQ"]["spread"] is None
    assert third["ours"]["PQ"] is None
    lines = study_text(table).splitlines()
    assert lines[0] == "Is the larger rate better?"
    ours, theirs = lines[1].split("|")
    assert ours.split() == ["measured", "here", "PQ", "PQ_th", "AP", "RQ"]
    assert theirs.split() == ["PQ", "PQ_th", "AP", "RQ", "published"]
    assert lines[2].split() == ["lr=0.1", "45.0", "±", "7.1", "–", "–", "–", "|", "40.0", "–", "–", "–"]
    assert lines[4].split() == ["lr=0.5", "–", "–", "–", "–", "|", "50.0", "–", "–", "60.5"]
    assert lines[5] == "published: A paper; recalled, not checked"
    alone = study_text(study_table(read(DECODED), {"all": [{"All": {"pq": 0.4}}]}))
    assert "|" not in alone
    assert "published" not in alone


def test_what_is_measured_again():
    trainings = [Run(f"lr={rate},seed={seed}", f"lr={rate}", seed, {}) for seed in (0, 1) for rate in (1, 2)]
    found = measures_of(Study(evaluate={"a b": {"overlap": 0.5}, "A-B": {}}), trainings)
    assert len(found) == 8
    assert found[0] == Run("lr=1,a-b,seed=0", "lr=1, a b", 0, {"evaluate.decode.overlap": 0.5}, ("lr=1,seed=0",))
    assert found[1].name == "lr=1,A-B,seed=0-2"  # some file systems do not tell capitals apart
    both = measures_of(Study(combine={"both": Pair("lr=1", "lr=2")}), trainings)
    assert [run.of for run in both] == [("lr=1,seed=0", "lr=2,seed=0"), ("lr=1,seed=1", "lr=2,seed=1")]
    with pytest.raises(PansightError, match="unknown variant of combine: both"):
        measures_of(Study(combine={"both": Pair("lr=1", "lr=3")}), trainings)
    with pytest.raises(PansightError, match="a name of its own"):
        measures_of(Study(combine={"lr=1": Pair("lr=1", "lr=2")}), trainings)


# --- studies from end to end -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of a fake model, which every training and measurement below ends with."""
    folder = tmp_path_factory.mktemp("made") / "run"
    run_folder.make_run(folder, images=3)
    (folder / "report.html").write_text("<!doctype html>")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    export_coco_panoptic(Shapes(3, 32, 40), folder, "train")
    export_coco_panoptic(Shapes(2, 32, 40, split="val"), folder, "val")
    return folder


@pytest.fixture
def fake(monkeypatch, made):
    """Trainings and measurements that take milliseconds."""
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])
    monkeypatch.setattr(runs, "PROGRAM", (sys.executable, str(Path(__file__).parent / "fake_training.py")))
    monkeypatch.setattr(runner, "POLL", 0.01)
    monkeypatch.setenv("FAKE_RUN", str(made))


def words(data: Path, folder: Path, text: str, *more: str) -> list[str]:
    path = folder / "mine.toml"
    path.write_text(text)
    return ["study", str(path), "--data", str(data), "--out", str(folder / "out"), *more]


def calls(folder: Path, name: str) -> list[list[str]]:
    lines = (folder / "out" / "runs" / name / "words.txt").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_trainings_that_differ_stand_beside_what_was_published(data, tmp_path, capsys, fake):
    assert main(words(data, tmp_path, HEAD + STUDY, "--steps", "7", "--seeds", "1")) == 0
    printed = capsys.readouterr().out
    assert "Is the larger rate better?" in printed
    assert "published: A paper; recalled, not checked" in printed
    assert {"--train.steps=7", "--train.max_minutes=0.0"} <= set(calls(tmp_path, "lr=0.1,seed=0")[0])
    table = read_json(tmp_path / "out" / "comparison.json")["study"]
    assert [row["name"] for row in table["rows"]] == ["lr=0.1", "lr=0.2", "lr=0.5"]
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "Is the larger rate better?" in page
    assert "RQ, published" in page
    assert main(["compare", str(tmp_path / "out")]) == 0  # made anew from the folder alone
    assert "published: A paper" in capsys.readouterr().out


def test_one_training_is_measured_with_every_choice_of_decoding(data, tmp_path, capsys, fake):
    given = words(data, tmp_path, HEAD.replace(", 0.2", "") + DECODED)
    assert main(given) == 0
    assert "2 runs: 1 variants, 2 seeds each, 4 measured again" in capsys.readouterr().out
    (command,) = calls(tmp_path, "lr=0.1,large,seed=1")
    assert command[:2] == ["evaluate", str(tmp_path / "out" / "runs" / "lr=0.1,seed=1")]
    assert "--evaluate.decode.min_area=40" in command
    result = read_json(tmp_path / "out" / "comparison.json")
    assert [row["name"] for row in result["study"]["rows"]] == ["lr=0.1, all", "lr=0.1, large"]
    assert [row["name"] for row in result["variants"]] == ["lr=0.1, all", "lr=0.1, large"]
    shutil.rmtree(tmp_path / "out" / "runs" / "lr=0.1,large,seed=1")
    shutil.rmtree(tmp_path / "out" / "runs" / "lr=0.1,seed=0")  # whose measurements are out of date then
    assert main(["study", str(tmp_path / "out")]) == 0
    names = ("lr=0.1,all,seed=0", "lr=0.1,large,seed=0", "lr=0.1,all,seed=1", "lr=0.1,large,seed=1", "lr=0.1,seed=1")
    assert [len(calls(tmp_path, name)) for name in names] == [2, 2, 1, 1, 1]


def test_a_training_that_fails_is_not_measured_and_the_others_are(data, tmp_path, capsys, fake):
    assert main(words(data, tmp_path, HEAD.replace("0.1", "13") + DECODED, "--seeds", "1")) == 1
    printed = capsys.readouterr().out
    assert "FAILED     lr=13,seed=0: the rate is unlucky" in printed
    assert "left out   lr=13,all,seed=0: its training failed" in printed
    rows = read_json(tmp_path / "out" / "comparison.json")["study"]["rows"]
    assert [row["name"] for row in rows] == ["lr=0.2, all", "lr=0.2, large"]


def test_networks_that_cannot_be_put_together_stop_nobody(data, tmp_path, capsys, fake, monkeypatch):
    """The runs of the fake training have no weights."""
    pair = '[study]\ncolumns = ["PQ"]\n[study.combine.both]\ninstances = "lr=0.1"\nsemantic = "lr=0.2"\n'
    monkeypatch.setitem(models.NEEDED, "semantic", {"panoptic"})
    head = HEAD.replace("[0.1, 0.2]", "[0.1, 0.2, 0.3]")
    assert main(words(data, tmp_path, head + pair, "--seeds", "1")) == 1
    assert "FAILED     both,seed=0: " in capsys.readouterr().out
    rows = read_json(tmp_path / "out" / "comparison.json")["study"]["rows"]
    assert [row["name"] for row in rows] == ["lr=0.3"]  # a part of a pair is no row


@pytest.mark.parametrize(
    ("text", "more", "complaint"),
    [
        (HEAD + DECODED.replace("min_area = 40", "min_are = 40"), (), "evaluate: large: unknown decode option of toy"),
        (HEAD + DECODED.replace("min_area = 40", "min_area = -1"), (), "evaluate: large: min_area of toy"),
        (
            HEAD + "[study]\ncolumns=['PQ']\n[study.combine.b]\ninstances='lr=0.1'\nsemantic='lr=0.2'",
            (),
            "combine: b: semantic",
        ),
        (
            HEAD + "[study]\ncolumns=['PQ']\n[study.combine.b]\ninstances='lr=0.1'\nsemantic='lr=9'",
            (),
            "unknown variant",
        ),
        (HEAD + STUDY, ("--minutes", "1", "--steps", "2"), "--minutes or --steps"),
        (HEAD + STUDY, ("--minutes", "-1"), "--minutes: expected more than 0"),
        (HEAD + STUDY, ("--steps", "0"), "--steps: expected more than 0"),
        (HEAD, (), "expected a study, with figures to tell"),
        (HEAD + STUDY, ("--train.lrr", "1"), "lrr"),
        (HEAD.replace("[settings]", 'search = "tpe"\ntrials = 2\n[settings]') + DECODED, (), "a grid"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_starts(data, tmp_path, capsys, fake, text, more, complaint):
    assert main(words(data, tmp_path, text, *more)) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_study_is_one_line_and_lists_those_there_are(capsys):
    assert main(["study", "upsnet_heads"]) == 2
    assert "did you mean 'upsnet_head'" in capsys.readouterr().err


def test_the_list_and_a_dry_run(tmp_path, capsys):
    assert main(["study"]) == 0
    listed = capsys.readouterr().out
    assert all(name.removeprefix("studies/") in listed for name in studies())
    assert main(["study", "upsnet_head", "--minutes", "2", "--dry-run", "--out", str(tmp_path / "out")]) == 0
    train, first, second = capsys.readouterr().out.splitlines()
    assert "--train.max_minutes=2.0" in train
    assert first.endswith("--evaluate.decode.heuristic=false")
    assert second.endswith("--evaluate.decode.heuristic=true")
    assert main(["study", "panoptic_fpn_joint", "--dry-run", "--out", str(tmp_path / "out")]) == 0
    combine, measure = capsys.readouterr().out.splitlines()[-2:]
    assert combine.split()[-1] == measure.split()[measure.split().index("evaluate") + 1]
    assert not (tmp_path / "out").exists()


def test_rows_of_another_meaning_need_another_folder(tmp_path):
    for name, text in (("a", DECODED), ("b", DECODED.replace("40", "50")), ("c", DECODED + "more = { min_area = 9 }")):
        (tmp_path / f"{name}.toml").write_text(HEAD.replace('"model.name" = "toy"', "") + text)
    first, other, more = (read_plan(tmp_path / f"{name}.toml")[0] for name in "abc")
    with pytest.raises(PansightError, match=r"evaluate: large.*as the sweep began"):
        check_same(first, other, tmp_path)
    check_same(first, more, tmp_path)


def test_two_networks_are_put_together_and_measured_on_the_data_of_both(tmp_path):
    """With the settings of evaluation that the runs have, but not with the decode options of one of them."""
    labels = open_dataset("shapes", split="val", options={"count": 2}).labels
    given = {"data.source": "shapes", "data.validation_options.count": 2, "evaluate.limit": 1, "evaluate.sheet": 0}
    given |= {"data.options.count": 2, "data.workers": 0}
    for name in ("mask_rcnn", "semantic_fpn"):
        folder = tmp_path / "runs" / name
        tiny = models.MODELS[name].tiny
        save_model(folder, models.build(name, labels, **tiny), name, tiny)
        override(Config(), {"model.name": name, **given}).save(folder / "config.toml")
    run = Run("both", "both", 0, {}, ("mask_rcnn", "semantic_fpn"))
    put_together(tmp_path, run)
    put_together(tmp_path, run)  # as a study does that is gone on with
    record = measuring.evaluate(tmp_path / "combined" / "both", out=tmp_path / "runs" / "both")
    assert record["about"]["model"] == "combined"
    assert len(record["image_ids"]) == 1
    for name in ("PQ", "AP", "mIoU"):
        assert figure(record, name) is not None


@pytest.mark.slow
@pytest.mark.long  # four processes, each of which loads torch; test_sweep_trainings.py has fewer
def test_a_study_of_the_toy_with_real_trainings(data, tmp_path, monkeypatch):
    """Two trainings that differ in their rate, each measured with another choice of decoding."""
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])
    monkeypatch.setattr(runs, "PROGRAM", (sys.executable, toy.__file__))
    text = HEAD.replace('"toy"', '"toy"\n"train.batch_size" = 2\n"train.trackers" = []\n"train.warmup_steps" = 0')
    text = text.replace("[0.1, 0.2]", "[0.01, 0.02]") + DECODED.replace("all = { min_area = 1 }", "")
    assert main(words(data, tmp_path, text, "--steps", "3", "--seeds", "1")) == 0
    rows = read_json(tmp_path / "out" / "comparison.json")["study"]["rows"]
    assert [row["name"] for row in rows] == ["lr=0.01, large", "lr=0.02, large"]
    assert all(row["ours"]["PQ"] is not None for row in rows)
    record = read_json(tmp_path / "out" / "runs" / "lr=0.01,large,seed=0" / "evaluation.json")
    assert record["about"]["settings"]["decode"] == {"min_area": 40}
