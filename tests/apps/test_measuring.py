"""Evaluations say what was measured and how, never replace other figures unasked, and count images trained on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from pansight import models
from pansight.apps.cli import main
from pansight.apps.measuring.thresholds import lost_to_threshold, with_threshold
from pansight.apps.measuring.trained import HASHED, count_trained_on, write_training_images
from pansight.config import EvaluateConfig
from pansight.data import Shapes
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.errors import PansightError
from pansight.files import read_json
from pansight.types import PanopticSegmentation, Prediction, Segment

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import toy

QUICK = {"--model": "toy", "--train.steps": "1", "--train.batch-size": "2", "--train.lr": "0.01"}
QUICK |= {"--train.trackers": "", "--train.evaluate-every": "0", "--data.workers": "0"}


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path]:
    """(data in one piece, without a validation part; a run that was trained on it)."""
    root = tmp_path_factory.mktemp("whole")
    export_coco_panoptic(Shapes(10, 32, 40), root / "data", "train")
    toy.register()
    words = [word for pair in QUICK.items() for word in pair]
    words += ["--evaluate.precision", "fp32"]  # by itself it is bf16 on processors that have it
    assert main(["train", *words, "--data", str(root / "data"), "--out", str(root / "run")]) == 0
    del models.MODELS["toy"]
    return root / "data", root / "run"


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(whole[1], tmp_path / "run"))


def complaint(capsys, *words: object) -> str:
    capsys.readouterr()
    assert main(list(map(str, words))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "change",
    [
        ["--evaluate.decode.min-area", "40"],
        ["--threshold", "0.99"],
        ["--evaluate.limit", "1"],
        ["--miou", "semseg"],
        ["--evaluate.precision", "bf16"],
        ["--map", "names"],
    ],
)
def test_figures_of_other_settings_are_not_replaced_unasked(run, change, capsys):
    before = content(run)
    line = complaint(capsys, "evaluate", run, *change)
    assert "evaluation.json: expected an evaluation with" in line
    assert "--overwrite" in line
    assert content(run) == before


def test_page_and_figures_agree_after_overwriting(run, capsys):
    assert main(["evaluate", str(run), "--evaluate.decode.min-area", "400", "--overwrite"]) == 0
    record, page = read_json(run / "evaluation.json"), (run / "report.html").read_text()
    assert record["about"]["settings"]["decode"] == {"min_area": 400}
    assert "min_area" in page
    assert f"{100 * record['All']['pq']:.1f}" in page
    assert "found one with {'min_area': 400}" in complaint(capsys, "evaluate", run)
    assert main(["evaluate", str(run), "--evaluate.decode.min-area", "400"]) == 0  # the same figures once more


def test_an_evaluation_without_a_folder_of_its_own_is_kept_too(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", str(whole[1]), "--part", "train"]
    before = content(whole[1])
    assert main(words) == 0
    assert [p.name for p in (tmp_path / "evaluations").iterdir()] == ["run-data-train"]
    assert "9 of the 9 measured images were trained on" in capsys.readouterr().out
    assert "limit" in complaint(capsys, *words, "--evaluate.limit", 1)
    assert content(whole[1]) == before


@pytest.mark.parametrize("named", ["as trained", "another path to it"])
def test_a_run_is_measured_on_what_it_held_out(whole, named, tmp_path, capsys):
    data = whole[0]
    if named != "as trained":
        (tmp_path / "link").symlink_to(data)
        data = tmp_path / "link"
    assert main(["evaluate", str(whole[1]), "--data", str(data), "--out", str(tmp_path / "x")]) == 0
    record = read_json(tmp_path / "x" / "evaluation.json")
    assert len(record["images"]) == 1
    assert (record["about"]["part"], record["about"]["trained_on"]) == ("split off", 0)
    assert "trained on" not in capsys.readouterr().out


@pytest.mark.parametrize("renamed", [False, True])
def test_a_copy_of_the_training_images_is_noticed(whole, renamed, tmp_path, capsys):
    """By the pixels, whatever the files are called."""
    data = shutil.copytree(whole[0], tmp_path / "copy")
    if renamed:
        path = next((data / "annotations").glob("*.json"))
        rows = json.loads(path.read_text())
        for image in rows["images"]:
            image["id"] = f"other {image['id']}"
        for annotation in rows["annotations"]:
            annotation["image_id"] = f"other {annotation['image_id']}"
        path.write_text(json.dumps(rows))
    assert main(["evaluate", str(whole[1]), "--data", str(data), "--out", str(tmp_path / "x")]) == 0
    assert "warning    9 of the 10 measured images were trained on" in capsys.readouterr().out
    assert read_json(tmp_path / "x" / "evaluation.json")["about"]["trained_on"] == 9
    assert "9 of 10" in (tmp_path / "x" / "report.html").read_text()


def test_many_images_are_known_by_name_unless_their_content_differs(tmp_path):
    many, other = Shapes(HASHED + 1, 16, 16), Shapes(3, 16, 16, split="val")
    write_training_images(tmp_path, many)
    assert len([1 for _, _, pixels in read_json(tmp_path / "training_images.json")["images"] if pixels]) == HASHED
    assert other.file_name(0) == many.file_name(0)
    assert count_trained_on(tmp_path, many, 5) == 5
    assert count_trained_on(tmp_path, other, 3) == 0
    (tmp_path / "training_images.json").write_text("[1]")
    with pytest.raises(PansightError, match="expected the training images of a run"):
        count_trained_on(tmp_path, other, 3)


def test_the_page_goes_where_it_is_asked_for(whole, tmp_path, capsys):
    page = tmp_path / "page.html"
    words = ["evaluate", whole[1], "--out", tmp_path / "x", "--report", page]
    assert main(list(map(str, words))) == 0
    text = page.read_text()
    for expected in (str(whole[0].resolve()), "split off", "pansight", "torch"):
        assert expected in text
    assert "page.html: expected no file yet" in complaint(capsys, *words[:3], tmp_path / "y", *words[4:])


class Scored(toy.Toy):
    """One object of score 0.4 in each image, if the threshold lets it."""

    def decode(self, outputs, sizes, score_threshold=None):
        least = 0.8 if score_threshold is None else score_threshold
        kept = (Segment(1, 0, 0.4),) if least <= 0.4 else ()
        maps = [PanopticSegmentation(torch.full(size, len(kept), dtype=torch.int32), kept) for size in sizes]
        return [Prediction(panoptic=each) for each in maps]


def test_what_the_threshold_took_away_is_said():
    data = Shapes(3, 16, 16)
    model = Scored(data.labels, 4, 0, "", True)
    model.score_threshold = 0.8
    record = {"All": {"pq": 0.0, "n": 2}}
    line = lost_to_threshold(record, model, data, EvaluateConfig(), torch.device("cpu"))
    assert line == ("0 of 3 predicted segments on 3 images pass the threshold of 0.8; 3 would at 0.4 (--threshold 0.4)")
    found = {"All": {"pq": 0.3, "n": 2}}
    assert lost_to_threshold(found, model, data, EvaluateConfig(), torch.device("cpu")) is None


def test_a_threshold_in_the_terms_of_each_model():
    data = Shapes(1, 16, 16)
    scored, objects = Scored(data.labels, 4, 0, "", True), toy.build_toy(data.labels)
    assert with_threshold(EvaluateConfig(), 0.3, scored, "toy").decode == {"score_threshold": 0.3}
    assert with_threshold(EvaluateConfig(), 0.3, objects, "toy").least_score == 0.3
    assert with_threshold(EvaluateConfig(), None, objects, "toy") == EvaluateConfig()


@pytest.mark.parametrize("value", ["2", "-0.1", "nan"])
def test_a_threshold_is_a_share(whole, value, capsys):
    assert "--threshold: expected 0 … 1" in complaint(capsys, "evaluate", whole[1], f"--threshold={value}")


def test_objects_under_the_threshold_do_not_count(whole, tmp_path):
    for least in (0.0, 0.95):  # the toy's objects have the score 0.9
        out = tmp_path / str(least)
        assert main(["evaluate", str(whole[1]), "--out", str(out), "--threshold", str(least)]) == 0
        found = read_json(out / "evaluation.json")["instances"]["counts"]["found"]
        assert bool(found["score"]) == (least == 0)


def test_charts_are_files(whole, tmp_path, capsys):
    folder = tmp_path / "charts"
    words = ["evaluate", whole[1], "--out", tmp_path / "x", "--charts", folder]
    assert main(list(map(str, words))) == 0
    names = {path.name for path in folder.iterdir()}
    assert {"classes.svg", "classes.png"} <= names
    assert {Path(name).stem for name in names if name.endswith("svg")} == {
        Path(name).stem for name in names if name.endswith("png")
    }
    assert (folder / "classes.svg").read_text().startswith("<?xml")
    assert (folder / "classes.png").read_bytes().startswith(b"\x89PNG")
    assert "expected a folder without charts" in complaint(capsys, *words[:3], tmp_path / "y", *words[4:])
    both = [str(tmp_path / "x"), str(whole[1])]
    compared = [*both, "--out", str(tmp_path / "c.html"), "--resamples", "100", "--charts", str(tmp_path / "of both")]
    assert main(["compare", *compared]) == 0
    assert (tmp_path / "of both" / "all_pq.svg").is_file()


def test_files_get_a_folder_with_figures_and_page(whole, tmp_path, capsys):
    data = whole[0]
    truth = next((data / "annotations").glob("panoptic_*.json"))
    folder = next(path for path in (data / "annotations", data) for path in path.glob("panoptic_*") if path.is_dir())
    words = ["evaluate", "--gt", truth, "--gt-dir", folder, "--pred", truth, "--pred-dir", folder]
    words += ["--map", "names", "--out", tmp_path / "out", "--charts", tmp_path / "charts"]
    assert main(list(map(str, words))) == 0
    record, page = read_json(tmp_path / "out" / "evaluation.json"), (tmp_path / "out" / "report.html").read_text()
    assert record["All"]["pq"] == 1.0
    assert record["about"]["map"] == "names"
    assert str(truth) in page
    assert "Classes mapped by" in page
    assert (tmp_path / "charts" / "classes.png").is_file()
    assert "add --overwrite" in complaint(capsys, *words)
