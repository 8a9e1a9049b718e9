"""check and split of data that is not COCO, parts of three, and data from which little can be learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pansight
from pansight.apps.cli import main
from pansight.data import open_dataset
from pansight.data.images import write_png
from pansight.errors import PansightError

NAMES = [f"b{n:02d}" for n in range(10)]


@pytest.fixture
def blobs(tmp_path) -> Path:
    """Ten images of two objects each, in Penn-Fudan's layout."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        mask = np.zeros((12, 16), np.uint8)
        mask[1:5, 1:6], mask[6:11, 8:14] = 1, 2
        write_png(tmp_path / "blobs" / "PNGImages" / f"{name}.png", rng.integers(0, 256, (12, 16, 3), np.uint8))
        write_png(tmp_path / "blobs" / "PedMasks" / f"{name}_mask.png", mask)
    return tmp_path / "blobs"


@pytest.fixture
def outlines(tmp_path) -> Path:
    """Four images with LabelMe's files, which do not say what is a thing."""
    rng = np.random.default_rng(0)
    for name in NAMES[:4]:
        write_png(tmp_path / "outlines" / f"{name}.png", rng.integers(0, 256, (12, 16, 3), np.uint8))
        shapes = [{"label": "cell", "shape_type": "polygon", "points": [[1, 1], [9, 1], [9, 8], [1, 8]]}]
        content = {"version": "5", "shapes": shapes, "imagePath": f"{name}.png", "imageHeight": 12, "imageWidth": 16}
        (tmp_path / "outlines" / f"{name}.json").write_text(json.dumps(content))
    return tmp_path / "outlines"


def coco(folder: Path, crowds: list[int], classes: int = 1) -> Path:
    """One image with an object of class 1 for every entry of `crowds`, which is its flag."""
    write_png(folder / "images" / "a.png", np.zeros((20, 20, 3), np.uint8))
    boxes = [[1, 1 + 4 * n, 10, 3] for n in range(len(crowds))]
    annotations = [
        {
            "id": n + 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": crowd,
        }
        for n, ((x, y, w, h), crowd) in enumerate(zip(boxes, crowds))
    ]
    images = [{"id": 1, "file_name": "a.png", "height": 20, "width": 20}]
    categories = [{"id": n + 1, "name": f"class{n + 1}"} for n in range(classes)]
    (folder / "annotations").mkdir()
    file = folder / "annotations" / "instances_train.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return folder


def test_check_reads_instance_pngs(blobs):
    report = pansight.check(blobs)
    assert report.images == 10
    assert sum(c.statistics.segments(True) for c in report.parts) == 20
    assert report.findings.number("error") == 0
    assert any("instance_png" in note for note in report.notes)


def test_check_prints_what_it_read_and_leaves_the_data_alone(blobs, capsys):
    before = sorted(blobs.rglob("*"))
    assert main(["check", str(blobs)]) == 0
    text = capsys.readouterr().out
    assert "read as instance_png" in text
    assert "10 images" in text
    assert sorted(blobs.rglob("*")) == before


def test_check_of_data_that_does_not_say_what_is_a_thing(outlines):
    report = pansight.check(outlines)
    assert report.images == 4
    assert any("count as things here: cell" in note for note in report.notes)


def test_a_converted_report_cannot_be_repaired_later(blobs, tmp_path):
    from pansight.data.check.fix import fix

    with pytest.raises(PansightError, match="another format"):
        fix(pansight.check(blobs), tmp_path / "out")
    assert main(["check", str(blobs), "--fix", str(tmp_path / "out")]) == 0  # the command still has the files
    assert len(open_dataset(tmp_path / "out", split="train")) == 10


def test_split_of_instance_pngs_opens_in_three_parts(blobs, tmp_path):
    result = pansight.split(blobs, tmp_path / "out", val=0.2, test=0.3)
    assert result.images == (5, 2, 3)
    assert result.sides == ("train", "val", "test")
    names = []
    for side, number in zip(result.sides, result.images):
        dataset = open_dataset(tmp_path / "out", split=side)
        assert len([dataset[n] for n in range(len(dataset))]) == number
        copies = list((tmp_path / "out" / side).iterdir())
        assert not any(copy.is_symlink() for copy in copies)
        names += [copy.stem for copy in copies]
    assert sorted(names) == NAMES
    assert pansight.check(tmp_path / "out").findings.number("error") == 0


def test_split_on_the_command_line(blobs, outlines, tmp_path, capsys):
    assert main(["split", str(blobs), "--val", "0.2", "--test", "0.2", "--link", "--out", str(tmp_path / "o")]) == 0
    assert "6 train, 2 val (20.0 %), 2 test (20.0 %)" in capsys.readouterr().out
    assert main(["split", str(outlines), "--val", "0.5"]) == 2  # somebody must say what is a thing
    assert "--things" in capsys.readouterr().err
    assert main(["split", str(outlines), "--val", "0.5", "--things", "all"]) == 0
    assert "2 train, 2 val" in capsys.readouterr().out


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.2, -0.1), (0.2, 1.0), (0.2, float("nan"))])
def test_shares_that_leave_nothing_to_train_on(blobs, tmp_path, val, test):
    with pytest.raises(PansightError, match="shares for val and test"):
        pansight.split(blobs, tmp_path / "out", val=val, test=test)
    assert not (tmp_path / "out").exists()


def test_things_are_refused_for_coco(tmp_path):
    with pytest.raises(PansightError, match="COCO annotations"):
        pansight.split(coco(tmp_path / "data", [0]), tmp_path / "out", things=["all"])


@pytest.mark.parametrize(
    ("crowds", "classes", "codes"),
    [
        ([1, 1], 1, {"no-objects", "only-crowds"}),
        ([0, 1], 1, set()),
        ([0], 3, {"one-class"}),
    ],
)
def test_little_to_learn(tmp_path, crowds, classes, codes):
    counts = pansight.check(coco(tmp_path / "data", crowds, classes)).findings.counts
    assert {code for code in ("no-objects", "only-crowds", "one-class", "no-stuff") if counts[code]} == codes


@pytest.mark.parametrize("fill", [None, "ground"])
def test_stuff_without_a_pixel(outlines, tmp_path, fill):
    pansight.convert(outlines, tmp_path / "data", things=["cell"], fill=fill)
    file = tmp_path / "data" / "annotations" / "panoptic_train.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 99, "name": "sky", "isthing": 0})
    file.write_text(json.dumps(content))
    assert pansight.check(tmp_path / "data").findings.counts["no-stuff"] == (fill is None)


def panoptic(root: Path) -> Path:
    """Two photos of the names a and b, and their PNGs."""
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "car", "isthing": 1}]}
    for number, name in enumerate("ab", 1):
        write_png(root / "train" / f"{name}.png", np.full((6, 8, 3), number, np.uint8))
        ids = np.zeros((6, 8, 3), np.uint8)
        ids[1:4, 2:5, 0] = 1
        write_png(root / "annotations" / "panoptic_train" / f"{name}.png", ids)
        content["images"].append({"id": number, "file_name": f"{name}.png", "height": 6, "width": 8})
        segment = {"id": 1, "category_id": 1, "iscrowd": 0, "area": 9, "bbox": [2, 1, 3, 3]}
        content["annotations"].append({"image_id": number, "file_name": f"{name}.png", "segments_info": [segment]})
    (root / "annotations" / "panoptic_train.json").write_text(json.dumps(content))
    return root


STATED = ["C:\\me\\x\\a.png", "..\\x\\a.png", "../x/a.png", "/home/me/a.png", "A.PNG", "file:///x/a.png"]


@pytest.mark.parametrize("stated", STATED)
@pytest.mark.parametrize("key", ["images", "annotations"])
def test_paths_are_read_by_the_rule_of_all_readers(tmp_path, key, stated):
    """check and split find what train and convert find; what is written then names the files themselves."""
    source = panoptic(tmp_path / "in")
    file = source / "annotations" / "panoptic_train.json"
    content = json.loads(file.read_text())
    content[key][0]["file_name"] = stated
    file.write_text(json.dumps(content))
    assert len(open_dataset(source)) == 2
    found = pansight.check(source).findings
    assert [(d.code, d.severity, d.image_id) for d in found.defects] == [("path-tail", "warning", 1)]
    assert main(["check", str(source)]) == 0
    assert pansight.split(source, tmp_path / "out", val=0.5).images == (1, 1)
    assert pansight.check(tmp_path / "out").findings.defects == []
    assert main(["check", str(source), "--fix", str(tmp_path / "fixed")]) == 0
    assert pansight.check(tmp_path / "fixed").findings.defects == []


@pytest.mark.parametrize("stated", ["../secret.png", "/etc/passwd", "C:\\x.png"])
def test_a_path_that_leads_outside_finds_nothing(tmp_path, stated):
    source = panoptic(tmp_path / "in")
    write_png(tmp_path / "secret.png", np.zeros((6, 8, 3), np.uint8))
    file = source / "annotations" / "panoptic_train.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = stated
    file.write_text(json.dumps(content))
    assert pansight.check(source).findings.counts["path"] == 1


@pytest.mark.parametrize("command", [["check"], ["split"], ["convert", "--to", "out"]])
def test_generated_shapes_are_no_folder(command, capsys):
    assert main([command[0], "shapes", *command[1:]]) == 2
    line = capsys.readouterr().err
    assert "generated" in line
    assert "pansight train --data shapes" in line
    assert line.count("\n") == 1
