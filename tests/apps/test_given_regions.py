"""Fast R-CNN from the command line: regions from a file and those of another run, to train, evaluate and predict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pansight.apps.cli import main
from pansight.data import Shapes
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.ops.targets import boxes_of_ids

TINY = {"--model.backbone": "resnet10t", "--model.options.fpn-channels": 16, "--model.options.box-features": 16}
TINY |= {"--model.options.short": 0, "--model.options.long": 0, "--augment.crop": 0}
QUICK = {"--train.steps": 2, "--train.batch-size": 2, "--train.lr": 0.001, "--train.trackers": ""}
QUICK |= {"--train.evaluate-every": 0, "--data.workers": 0}


def words(*first: Any, **options: Any) -> list[str]:
    """First words, then everything tiny, then further options by their full names."""
    table = {**TINY, **QUICK, **options}
    return [str(word) for word in (*first, *(word for pair in table.items() for word in pair))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training and two validation images, and the boxes of their segments as proposals, by file name."""
    folder = tmp_path_factory.mktemp("data")
    rows: list[dict[str, Any]] = []
    for split, count in (("train", 4), ("val", 2)):
        dataset = Shapes(count, 64, 64, split=split)
        export_coco_panoptic(dataset, folder, split)
        names = [
            image["file_name"]
            for image in json.loads((folder / f"annotations/panoptic_{split}.json").read_text())["images"]
        ]
        for index, name in enumerate(names):
            truth = dataset[index].truth

            for x1, y1, x2, y2 in boxes_of_ids(truth.ids, torch.tensor([s.id for s in truth.segments])).tolist():
                rows.append({"image_id": name, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 0.5})
    (folder / "proposals.json").write_text(json.dumps(rows))
    return folder


def photo_of(data: Path) -> Path:
    return min((data / "val").glob("*.*"))


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.slow
def test_regions_from_a_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, regions = tmp_path / "run", data / "proposals.json"
    first = ("train", "--model", "fast_rcnn", "--data", data, "--out", run)
    assert "model fast_rcnn: expected regions that may hold an object" in complaint(words(*first), capsys)
    assert main(words(*first, "--data.proposals", regions)) == 0
    record = json.loads((run / "evaluation.json").read_text())
    assert set(record["instances"]["box"]) >= {"ap"}
    assert main(["evaluate", str(run), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert again["instances"]["box"] == record["instances"]["box"]
    photo = photo_of(data)
    found = ["predict", str(run), str(photo), "--out", str(tmp_path / "found")]
    assert "expected regions that may hold an object" in complaint(found, capsys)
    assert main([*found, "--proposals", str(regions)]) == 0
    assert (tmp_path / "found" / "instances.json").is_file()


def test_files_of_other_images_and_other_models(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"image_id": "elsewhere.png", "bbox": [0, 0, 4, 4]}]))
    first = ("train", "--model", "fast_rcnn", "--data", data, "--out", tmp_path / "run", "--data.proposals")
    assert "none for any of" in complaint(words(*first, other), capsys)
    assert "no such file" in complaint(words(*first, tmp_path / "nowhere.json"), capsys)
    first = ("train", "--model", "faster_rcnn", "--data", data, "--out", tmp_path / "run", "--data.proposals")
    assert "data.proposals: expected a model that is given them" in complaint(
        words(*first, data / "proposals.json"), capsys
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_regions_of_another_run(data: Path, tmp_path: Path) -> None:
    """The run is needed in training alone."""
    rpn, run = tmp_path / "rpn", tmp_path / "run"
    assert main(words("train", "--model", "faster_rcnn", "--data", data, "--out", rpn)) == 0
    first = ("train", "--model", "fast_rcnn", "--data", data, "--out", run)
    assert main(words(*first, "--model.options.proposer-weights", rpn)) == 0
    record = json.loads((run / "evaluation.json").read_text())
    shutil.rmtree(rpn)
    assert main(["evaluate", str(run), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert again["instances"]["box"] == record["instances"]["box"]
    assert main(["predict", str(run), str(photo_of(data)), "--out", str(tmp_path / "found")]) == 0
    assert main(words(*first, "--resume", **{"--train.steps": 3})) == 0
