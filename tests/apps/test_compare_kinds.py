"""Evaluations of different kinds are compared by what they have in common, several of them as equals."""

from __future__ import annotations

import shutil
import sys
from itertools import combinations
from pathlib import Path

import pytest
from accelerate import Accelerator

from pansight.apps.cli import main
from pansight.apps.pages.comparison import compare
from pansight.apps.pages.comparison.pictures import side_by_side
from pansight.config import EvaluateConfig
from pansight.data import Shapes
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.engine.evaluate import evaluate
from pansight.errors import PansightError
from pansight.files import read_json, write_json
from pansight.ops.idmap import present_ids
from pansight.types import PanopticSegmentation, Prediction, Sample

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from oracle import Oracle

COUNT = 8


class PanopticOracle(Oracle):
    """The truth as a panoptic map without its smallest segment, and with objects where they are asked for."""

    objects = True

    def answer(self, index: int, sample: Sample) -> Prediction:
        ids = sample.truth.ids.clone()
        smallest = min(present_ids(ids.numpy()).tolist(), key=lambda number: int((ids == number).sum()))
        ids[ids == smallest] = 0
        kept = tuple(s._replace(score=0.8) for s in sample.truth.segments if s.id != smallest)
        found = super().answer(index, sample).instances if self.objects else None
        return Prediction(PanopticSegmentation(ids, kept), None, found)


class PlainPanopticOracle(PanopticOracle):
    """Without objects."""

    objects = False


MODELS = {
    "boxes": (Oracle, "boxes"),
    "masks": (Oracle, "masks"),
    "semantic": (Oracle, "semantic"),
    "panoptic": (PanopticOracle, "masks"),
    "plain": (PlainPanopticOracle, "masks"),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """A folder of an evaluation for each kind of model."""
    root, shapes = tmp_path_factory.mktemp("kinds"), Shapes(COUNT, 40, 56, split="val")
    for name, (build, kind) in MODELS.items():
        evaluate(build(shapes, kind, 0.7), shapes, EvaluateConfig(sheet=2), Accelerator(cpu=True), root / name)
    return root


COMMON = {
    ("boxes", "masks"): "Box AP",
    ("boxes", "panoptic"): "Box AP",
    ("masks", "panoptic"): "Mask AP",
    ("masks", "plain"): None,
    ("semantic", "panoptic"): "mIoU (cityscapes)",
    ("semantic", "plain"): "mIoU (cityscapes)",
    ("panoptic", "plain"): "PQ",
    ("boxes", "semantic"): None,
    ("masks", "semantic"): None,
    ("boxes", "plain"): None,
}


def test_every_pair_of_kinds_is_tried():
    assert {frozenset(pair) for pair in COMMON} == {frozenset(pair) for pair in combinations(MODELS, 2)}


@pytest.mark.parametrize("pair", list(COMMON), ids="-".join)
@pytest.mark.parametrize("turned", [False, True])
def test_two_kinds_by_what_both_have(measured, pair, turned):
    folders = [measured / name for name in (reversed(pair) if turned else pair)]
    if COMMON[pair] is None:
        with pytest.raises(PansightError, match="no other figure of all"):
            compare(folders, resamples=100)
        return
    result = compare(folders, resamples=100)
    assert result["measure"]["name"] == COMMON[pair]
    assert result["images"] == COUNT


def test_several_are_compared_as_equals(measured, tmp_path, capsys):
    folders = [measured / name for name in ("boxes", "masks", "panoptic")]
    result = compare(folders, tmp_path / "page.html", resamples=200)
    assert [(row["second"], row["first"]) for row in result["pairs"]] == [
        ("masks", "boxes"),
        ("panoptic", "boxes"),
        ("panoptic", "masks"),
    ]
    values = {e["name"]: e["All"]["ap"]["value"] for e in result["evaluations"]}
    for row in result["pairs"]:
        assert row["value"] == pytest.approx(values[row["second"]] - values[row["first"]])
        assert row["low"] <= row["value"] <= row["high"]
        alone = compare([measured / row["first"], measured / row["second"]], resamples=200)
        assert alone["evaluations"][1]["All"]["ap"]["difference"]["p"] == row["p"]
    assert set(result["ranking"]) == set(values)
    assert [values[n] for n in result["ranking"]] == sorted(values.values(), reverse=True)
    assert "from best to worst" in capsys.readouterr().out
    assert "Every pair" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("others", [["boxes", "masks", "panoptic"], ["semantic", "plain"]])
def test_the_same_images_stand_side_by_side(measured, others, tmp_path):
    folders = [measured / name for name in others]
    before = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    result = compare(folders, tmp_path / "page.html", resamples=100)
    rows = side_by_side(result, [folder / "evaluation.json" for folder in folders])
    assert 2 <= len(rows) <= 8
    for row in rows:
        assert [name for name, _, _ in row["pictures"]] == ["truth", *others]
        assert all(picture.startswith("data:image/jpeg;base64,") for _, _, picture in row["pictures"])
    text = (tmp_path / "page.html").read_text()
    assert text.count("<img") == len(rows) * (1 + len(others))
    assert before == {path: path.read_bytes() for path in before}
    for folder in folders:
        shutil.copytree(folder, tmp_path / folder.name)
        shutil.rmtree(tmp_path / folder.name / "predictions")
    alone = [tmp_path / folder.name for folder in folders]
    compare(alone, tmp_path / "plain.html", resamples=100)  # without pictures there are figures all the same
    assert "<img" not in (tmp_path / "plain.html").read_text()


def test_predictions_are_compared_as_files(measured, tmp_path):
    export_coco_panoptic(Shapes(COUNT, 40, 56, split="val"), tmp_path, "val")
    truth = next((tmp_path / "annotations").glob("panoptic_*.json"))
    file = measured / "plain" / "predictions" / "predictions.json"
    result = compare([measured / "plain", file], resamples=100, gt=truth, names=["measured", "file"])
    pq = [e["All"]["pq"] for e in result["evaluations"]]
    assert pq[0]["value"] == pq[1]["value"]
    assert pq[1]["difference"]["value"] == 0
    with pytest.raises(PansightError, match="found predictions; name their truth: --gt FILE"):
        compare([file, file], resamples=100)


def renamed(source: Path, folder: Path, names: dict[str, str]) -> Path:
    record = read_json(source / "evaluation.json")
    for part in (record, record.get("semantic", {}), record.get("instances", {})):
        for row in part.get("per_class", {}).values():
            row["name"] = names.get(row["name"], row["name"])
    write_json(folder / "evaluation.json", record)
    return folder


@pytest.mark.parametrize("kind", ["plain", "masks", "semantic"])
def test_classes_that_all_have_are_compared(measured, kind, tmp_path):
    other = renamed(measured / kind, tmp_path / "other", {"circle": "disc"})
    with pytest.raises(PansightError, match="none named circle; --map names compares those that all have"):
        compare([measured / kind, other], resamples=100)
    result = compare([measured / kind, other], resamples=100, class_map="names")
    assert "circle" not in result["evaluations"][0]["per_class"]
    assert "left out of other: disc" in " ".join(result["notes"])
    (tmp_path / "map.toml").write_text('disc = "circle"\n')
    whole = compare([measured / kind, other], resamples=100, class_map=tmp_path / "map.toml")
    alone = compare([measured / kind, measured / kind], resamples=100)
    key = whole["measure"]["key"]
    assert whole["evaluations"][1]["All"][key]["value"] == alone["evaluations"][1]["All"][key]["value"]
    assert whole["notes"] == []


def test_mistakes_with_a_map_are_one_line(measured, tmp_path, capsys):
    other = renamed(measured / "plain", tmp_path / "other", {"circle": "disc"})
    for text, words in {
        'ring = "circle"': "class of the others",
        'disc = "ring"': "'ring'",
        'disc = "square"': "evaluate with --map",
    }.items():
        (tmp_path / "map.toml").write_text(text)
        capsys.readouterr()
        assert main(["compare", str(measured / "plain"), str(other), "--map", str(tmp_path / "map.toml")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert words in lines[0]
