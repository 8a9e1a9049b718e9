"""Semantic and instance results are first class: saved, drawn, reported and compared as panoptic ones are."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from pansight.apps.cli import main
from pansight.apps.pages.report import write_overview, write_report
from pansight.config import EvaluateConfig
from pansight.data.formats.shapes import Shapes
from pansight.engine.evaluate import evaluate
from pansight.errors import PansightError
from pansight.metrics import AveragePrecision, SemanticIoU
from pansight.metrics.files.summary import summary
from pansight.types import PanopticSegmentation, Prediction, Sample, Segment

sys.path.insert(0, str(Path(__file__).parent))
from oracle import Oracle

COUNT = 16
FIGURES = {"semantic": "mIoU", "boxes": "F1", "masks": "F1"}
KINDS = {"boxes": "box", "masks": "mask"}


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes(COUNT, 40, 56, split="val")


@pytest.fixture(scope="module", params=list(FIGURES))
def measured(request, shapes, tmp_path_factory) -> tuple[str, list[Path], list[dict]]:
    """(kind, folders of a worse and a better model, their records)."""
    root = tmp_path_factory.mktemp(request.param)
    folders, records = [root / "worse", root / "better"], []
    for folder, skill in zip(folders, (0.45, 0.8)):
        model = Oracle(shapes, request.param, skill)
        records.append(evaluate(model, shapes, EvaluateConfig(sheet=2), Accelerator(cpu=True), folder))
        assert model.runs == COUNT
    return request.param, folders, records


def test_the_record_is_that_of_the_metric_with_its_interval(measured, shapes):
    kind, folders, records = measured
    for folder, record, skill in zip(folders, records, (0.45, 0.8)):
        assert json.loads((folder / "evaluation.json").read_text()) == record
        metric = SemanticIoU(shapes.labels) if kind == "semantic" else AveragePrecision(shapes.labels)
        model = Oracle(shapes, kind, skill)
        for index in range(COUNT):
            metric.update(model.answer(index, shapes[index]), shapes[index])
        part = record["semantic" if kind == "semantic" else "instances"]
        assert metric.compute() == {key: value for key, value in part.items() if key != "intervals"}
        intervals = part["intervals"] if kind == "semantic" else part["intervals"][KINDS[kind]]
        low, high = intervals["All"]["iou" if kind == "semantic" else "ap"]
        assert 0 < low < high <= 1
        assert "95 %:" in summary(record)


def test_where_no_object_counts_there_is_a_word_for_ap():
    figures = {"ap": None, "ap50": None, "ap75": None}
    line = summary({"instances": {"box": figures}})
    assert line == "box       | no AP: the images have no object that is no crowd"


class OneObject(Shapes):
    """Photos of shapes of which one square of 6 × 6 pixels is annotated."""

    def __getitem__(self, index: int) -> Sample:
        ids = torch.zeros((40, 56), dtype=torch.int32)
        ids[16:22, 20:26] = 1
        return replace(super().__getitem__(index), truth=PanopticSegmentation(ids, (Segment(1, 0),)))


class Careless(Oracle):
    """Its boxes are those of the objects and as much again on each side, so that no IoU reaches a half."""

    def answer(self, index: int, sample: Sample) -> Prediction:
        found = super().answer(index, sample).instances
        assert found is not None
        boxes = found.boxes_xyxy
        sides = boxes[:, 2:] - boxes[:, :2]
        wider = boxes + torch.cat([-sides, sides], 1)
        return Prediction(instances=replace(found, boxes_xyxy=wider, scores=torch.full_like(found.scores, 0.9)))


def test_a_box_that_is_far_too_large_is_no_hit_in_the_report(tmp_path):
    """What surrounds objects is background: were it void, a box over the whole photo would be exact."""
    dataset = OneObject(2, 40, 56, split="val")
    record = evaluate(Careless(dataset, "boxes", 1.0), dataset, EvaluateConfig(), Accelerator(cpu=True), tmp_path)
    assert record["instances"]["box"]["ap50"] == 0
    rows = json.loads((tmp_path / "predictions" / "sheet" / "sheet.json").read_text())["images"]
    assert [row["score"] for row in rows] == [0.0, 0.0]
    page = write_report(tmp_path).read_text(encoding="utf-8")
    content = json.loads(re.findall(r'id="image-0">(.*?)</script>', page, re.DOTALL)[0])
    assert [row[9] for side in ("truth", "prediction") for row in content[side]["rows"]] == pytest.approx(
        [1 / 9, 1 / 9], abs=1e-4
    )
    picture = np.asarray(Image.open(write_overview(tmp_path)))  # truth | prediction | errors of both images
    errors = picture[: picture.shape[0] // 2, -picture.shape[1] // 3 :].reshape(-1, 3).astype(int)
    blue = (errors[:, 2] > errors[:, 0] + 60).mean()  # a phantom, of which the photo shines through
    assert 0.08 < blue < 0.16  # (18² − 6²) of 40 × 56 pixels


def test_predictions_are_saved_in_the_ids_of_the_data_set(measured, shapes):
    kind, folders, _ = measured
    folder = folders[1] / "predictions"
    names = {p.name for p in folder.iterdir()}
    model = Oracle(shapes, kind, 0.8)
    if kind == "semantic":
        assert names == {"semantic", "semantic.json", "sheet"}
        rows = json.loads((folder / "semantic.json").read_text())["images"]
        assert [row["id"] for row in rows] == [shapes.image_id(index) for index in range(COUNT)]
        for index, row in enumerate(rows):
            found = np.asarray(Image.open(folder / "semantic" / row["semantic"])).astype(int)
            expected = model.answer(index, shapes[index]).semantic.numpy()
            assert np.array_equal(np.where(found == 255, -1, found - 1), expected)
        return
    assert names == {"instances.json", "sheet"}
    rows = json.loads((folder / "instances.json").read_text())
    assert len(rows) == sum(len(model.answer(index, shapes[index]).instances) for index in range(COUNT))
    assert {row["image_id"] for row in rows} <= {shapes.image_id(index) for index in range(COUNT)}
    assert all(("segmentation" in row) == (kind == "masks") for row in rows)


def test_the_sheet_shows_the_best_and_the_worst(measured, shapes):
    kind, folders, _ = measured
    listing = json.loads((folders[0] / "predictions" / "sheet" / "sheet.json").read_text())
    assert listing["figure"] == FIGURES[kind]
    assert [c["name"] for c in listing["categories"]] == list(shapes.labels.names)
    scores = [row["score"] for row in listing["images"]]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]
    for row in listing["images"]:
        categories = [s["category_id"] for s in row["truth_segments"]]
        if kind == "semantic":
            assert len(categories) == len(set(categories))  # one region for each class
        else:
            assert 4 not in categories  # the background is no object
        assert all(s.get("score", 1) >= 0.5 for s in row["prediction_segments"])


def test_the_report_shows_them(measured):
    kind, folders, _ = measured
    html = write_report(folders[1]).read_text()
    data = json.loads(re.search(r'id="viewer-data">(.*?)</script>', html, re.S).group(1))
    assert (data["figure"], len(data["images"])) == (FIGURES[kind], 4)
    assert f"{FIGURES[kind]}, worst first" in html
    assert "PQ, worst first" not in html
    contents = [json.loads(t) for t in re.findall(r'id="image-\d+">(.*?)</script>', html, re.S)]
    assert all(content["prediction"]["rows"] for content in contents[:2])
    assert f"{COUNT} images" in html
    title = "mIoU" if kind == "semantic" else "Box AP"
    assert title in html
    assert "bootstrap interval over the images" in html
    assert write_overview(folders[1]) is not None


def compared(folders: list[Path], out: Path, *words: object) -> tuple[int, dict, str]:
    command = [
        "compare",
        *folders,
        "--out",
        out / "c.html",
        "--json",
        out / "c.json",
        "--resamples",
        300,
        "--overwrite",
    ]
    code = main([str(word) for word in [*command, *words]])
    return code, json.loads((out / "c.json").read_text()), (out / "c.html").read_text()


def test_they_are_compared_by_their_own_figure(measured, tmp_path, capsys):
    kind, folders, records = measured
    name, key = {"semantic": ("mIoU (cityscapes)", "iou"), "boxes": ("Box AP", "ap"), "masks": ("Mask AP", "ap")}[kind]
    code, result, html = compared(folders, tmp_path)
    text = capsys.readouterr().out
    assert code == 0
    assert (result["measure"]["name"], result["measure"]["key"]) == (name, key)
    worse, better = (e["All"][key] for e in result["evaluations"])
    for figure, record in zip((worse, better), records):
        stated = record["semantic"]["miou"] if kind == "semantic" else record["instances"][KINDS[kind]]["ap"]
        assert figure["value"] == pytest.approx(stated, abs=1e-9)
        assert figure["low"] < figure["value"] < figure["high"]
    assert better["difference"]["p"] < 0.05
    assert result["verdict"][0].startswith(f"better is better than worse: {name} +")
    assert result["verdict"][0] in text
    assert max(map(len, text.splitlines())) <= 100
    assert name in html
    assert "PQ" not in re.sub(r"<(style|script).*?</\1>|base64,[^\"]*", "", html, flags=re.S)
    images = result["per_image"]
    figure = result["measure"]["image"][0]
    assert len(images) <= COUNT
    assert images[0]["difference"][1] == pytest.approx(images[0][figure][1] - images[0][figure][0])
    assert [abs(row["difference"][1]) for row in images] == sorted(
        (abs(r["difference"][1]) for r in images), reverse=True
    )
    classes = result["evaluations"][1]["per_class"]
    assert classes["circle"][key]["difference"]["value"] > 0
    assert ("background" in classes) == (kind == "semantic")


def test_exit_codes_and_the_least_figure(measured, tmp_path, capsys):
    _, folders, _ = measured
    assert compared(folders, tmp_path, "--fail-worse")[0] == 0
    assert compared(folders[::-1], tmp_path, "--fail-worse")[0] == 1
    assert compared(folders, tmp_path, "--fail-below", 0.999)[0] == 1  # the last one counts
    assert "at least 0.999, found" in capsys.readouterr().out
    assert compared([folders[1], folders[1]], tmp_path, "--fail-worse")[1]["verdict"] == [
        "better (2) scores exactly as better (1)."
    ]


def test_what_does_not_fit_is_named(measured, tmp_path, capsys):
    kind, folders, _ = measured
    part = "semantic" if kind == "semantic" else "instances"
    record = json.loads((folders[1] / "evaluation.json").read_text())

    def complaint(edit) -> str:
        changed = json.loads(json.dumps(record))
        edit(changed[part])
        (tmp_path / "changed.json").write_text(json.dumps(changed))
        capsys.readouterr()
        assert main(["compare", str(folders[0]), str(tmp_path / "changed.json"), "--resamples", "100"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "expected the counts of every image" in complaint(lambda p: p.pop("counts"))
    assert "image_ids: expected each image once" in complaint(
        lambda p: p["image_ids"].__setitem__(1, p["image_ids"][0])
    )
    if kind == "semantic":
        assert "counts.hits: row 0: expected at most" in complaint(lambda p: p["counts"]["hits"].__setitem__(0, 10**6))
        assert "to give the mIoU of 0.5" in complaint(lambda p: p.update(miou=0.5))
        line = complaint(lambda p: p.update(convention="semseg"))
        assert "expected mIoU with convention cityscapes" in line or "to give the mIoU" in line
        assert "convention: expected one of cityscapes" in complaint(lambda p: p.update(convention="x"))
        assert "counts.truth: expected a list" in complaint(lambda p: p["counts"].pop("truth"))
        return
    column = KINDS[kind]
    assert f"found.{column}: row 0: expected 20 bits" in complaint(
        lambda p: p["counts"]["found"][column].__setitem__(0, 1 << 20)
    )
    assert "AP of" in complaint(
        lambda p: p["counts"]["found"].update({column: [0] * len(p["counts"]["found"]["image"])})
    )
    assert "expected evaluations of the same truth, found objects" in complaint(another_truth)
    assert "with max_detections 100 as in" in complaint(lambda p: p.update(max_detections=300))
    assert "counts.found: expected a table of columns" in complaint(lambda p: p["counts"].pop("found"))


def another_truth(part: dict) -> None:
    """One object more to be found in the first row, in a file whose AP fits that."""
    part["counts"]["truth"]["n"][0] += 1
    for kind in ("box", "mask"):
        if kind in part:
            part[kind]["ap"] = ap_of(part, kind)


def ap_of(part: dict, kind: str) -> float:
    from pansight.metrics.bootstrap.detections import DetectionFigures
    from pansight.metrics.bootstrap.records import detection_counts

    index = {int(key): place for place, key in enumerate(part["per_class"])}
    return float(DetectionFigures(detection_counts(part["counts"], kind, index), len(index), COUNT).value()[0, 0])


def test_evaluations_of_different_kinds_have_nothing_in_common(shapes, tmp_path, capsys):
    for kind in ("semantic", "boxes"):
        evaluate(Oracle(shapes, kind, 0.8), shapes, EvaluateConfig(limit=4), Accelerator(cpu=True), tmp_path / kind)
    assert main(["compare", str(tmp_path / "semantic"), str(tmp_path / "boxes")]) == 2
    line = capsys.readouterr().err
    assert f"{tmp_path / 'boxes'}/evaluation.json: expected mIoU as in" in line


@pytest.mark.parametrize("convention", ["cityscapes", "detectron2", "semseg"])
def test_the_convention_is_a_setting(shapes, tmp_path, convention):
    config = EvaluateConfig(miou=convention, limit=2)
    record = evaluate(Oracle(shapes, "semantic", 0.9), shapes, config, Accelerator(cpu=True), tmp_path)
    assert record["semantic"]["convention"] == convention
    assert f"({convention})" in summary(record)
    with pytest.raises(PansightError, match=r"unknown evaluate\.miou 'voc'; known: cityscapes, detectron2, semseg"):
        EvaluateConfig(miou="voc")
