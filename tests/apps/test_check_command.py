"""`pansight check` and `pansight split` as a person runs them: what is printed, exit codes, files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from pansight.apps.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import damages


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return damages.make(tmp_path / "data")


SOUND = """\
data: COCO panoptic, 6 images

train (annotations/panoptic_train.json): 4 images, 4 classes (2 things, 2 stuff)
  pixels       things 25.0 %   stuff 33.3 %   void 41.7 %
  segments     8 things (8 small, 0 medium, 0 large), 4 stuff
               small < 32² ≤ medium < 96² ≤ large, in pixels
  per image    3 segments (median), 3 (90th percentile), 3 (most)
  height×width 6×8 (4 ×)

val (annotations/panoptic_val.json): 2 images, 4 classes (2 things, 2 stuff)
  pixels       things 25.0 %   stuff 33.3 %   void 41.7 %
  segments     4 things (4 small, 0 medium, 0 large), 2 stuff
               small < 32² ≤ medium < 96² ≤ large, in pixels
  per image    3 segments (median), 3 (90th percentile), 3 (most)
  height×width 6×8 (2 ×)

                                             train                          val
class       id  kind     images  segments   pixels    images  segments   pixels
sky          7  stuff         4         4   33.3 %         2         2   33.3 %
person       1  thing         4         4   12.5 %         2         2   12.5 %
dog          3  thing         4         4   12.5 %         2         2   12.5 %
without a segment: grass

notes
  category-gap: 2 × category ids are not contiguous (legal: pansight maps them)
    annotations/panoptic_train.json: expected contiguous category ids, found 4 of 1 … 8; the first that is missing is 2
    annotations/panoptic_val.json: expected contiguous category ids, found 4 of 1 … 8; the first that is missing is 2

2 notes found in 6 images: ready to use
"""


def test_a_sound_set(data, capsys):
    assert main(["check", "data"]) == 0
    assert capsys.readouterr().out == SOUND


def test_defects_are_printed_by_code_and_the_exit_code_is_1(data, capsys):
    for n in (1, 2, 3):
        damages.stale_area(data, n)
    damages.image_missing(data, 4)
    assert main(["check", "data", "--limit", "2"]) == 1
    text = capsys.readouterr().out
    assert text[text.index("errors") : text.index("notes")] == (
        "errors\n"
        "  missing-image: 1 × a missing image file  → --fix: image dropped\n"
        "    train/scene_4.png: image 4: expected an image file, found no such file\n"
        "  area: 3 × an area that is not the number of pixels (panopticapi's PQ trusts it)  → --fix: counted again\n"
        "    annotations/panoptic_train.json: image 1: segment 301: expected area 6, found 7\n"
        "    annotations/panoptic_train.json: image 2: segment 302: expected area 6, found 7\n"
        "    … and 1 more (--limit 0 lists all)\n"
        "\n"
    )
    assert text.endswith("4 errors, 2 notes found in 6 images\na repaired copy: pansight check data --fix OUT\n")
    assert main(["check", "data", "--limit", "0"]) == 1
    assert "segment 303: expected area 6, found 7" in capsys.readouterr().out


def test_fix_prints_what_was_done(data, capsys):
    damages.stale_area(data, 1)
    damages.image_missing(data, 2)
    assert main(["check", "data", "--fix", "out"]) == 0
    text = capsys.readouterr().out
    assert text[text.index("repaired copy: out") :] == (
        "repaired copy: out, 5 images\n"
        "  missing-image: 1 × image dropped\n"
        "  area: 1 × counted again\n"
        "images left out: 1\n"
        "  train: scene_2.png (image 2)\n"
        f"everything that was done, one by one: {Path('out', 'repairs.json')}\n"
    )
    assert main(["check", "out"]) == 0


def test_repairs_are_advised_only_where_they_can_be_made(tmp_path, capsys):
    """--fix writes COCO panoptic alone, so that nothing of COCO instances is promised to be repaired."""
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": "0"}
    row["segmentation"] = [[0, 0, 2, 0, 2, 2, 0, 2]]
    image = {"id": 1, "file_name": "a.png", "height": 6, "width": 8}
    content = {"images": [image], "annotations": [row], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    assert main(["check", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "crowd-flag: 1 × iscrowd that is neither 0 nor 1\n" in text
    assert "--fix" not in text
    assert f"pansight convert {tmp_path} --to OUT" in text


def test_json_has_every_defect(data, capsys):
    for n in (1, 2, 3):
        damages.stale_area(data, n)
    assert main(["check", "data", "--json", "found.json", "--limit", "1"]) == 1
    found = json.loads(Path("found.json").read_text())
    assert found["errors"] == 3
    assert found["counts"] == {"category-gap": 2, "area": 3}
    assert [d for d in found["defects"] if d["code"] == "area"][2] == {
        "code": "area",
        "severity": "error",
        "file": "annotations/panoptic_train.json",
        "image_id": 3,
        "segment": 303,
        "expected": "area 6",
        "found": "7",
        "fixable": True,
    }
    assert found["parts"]["train"]["file"] == "annotations/panoptic_train.json"
    assert found["parts"]["train"]["images"] == 4


def test_things_are_named_on_the_command_line(data, capsys):
    damages.edit(data, lambda c: [row.pop("isthing") for row in c["categories"]])
    assert main(["check", "data"]) == 1
    assert capsys.readouterr().out.endswith("a repaired copy: pansight check data --fix OUT --things A,B,C\n")
    assert main(["check", "data", "--fix", "out"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'isthing' 0 or 1, found nothing; cannot be repaired without you (name the things: --things A,B,C)" in error
    assert main(["check", "data", "--fix", "out", "--things", "person, dog"]) == 0
    assert main(["check", "out"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "nowhere"], "nowhere: expected a folder or file, found none"),
        (["check", "data/train"], "expected one of annotations/panoptic_*.json"),
        (["check", "data", "--fix", "data"], "expected no such folder yet"),
        (["check", "data", "--things", "dog"], "--things: expected --fix OUT beside it, found none"),
        (["split", "data"], "expected one part to split, found train, val; name one (--part NAME)"),
        (["split", "data", "--part", "train", "--val", "2"], "share for validation between 0 and 1, found 2.0"),
    ],
)
def test_bad_input_is_one_line_and_2(data, capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_zip_is_checked_like_its_folder(data, capsys):
    shutil.make_archive("packed", "zip", data)
    shutil.rmtree(data)
    assert main(["check", "packed.zip"]) == 0
    assert capsys.readouterr().out == SOUND.replace("data: COCO", "packed.zip: COCO")


@pytest.mark.slow
def test_instances_are_sent_to_convert(data_root, capsys):
    assert main(["check", str(data_root / "coco_tiny"), "--limit", "1"]) == 0
    assert capsys.readouterr().out.endswith(
        f"for panoptic training and figures convert it first: pansight convert {data_root / 'coco_tiny'} --to OUT\n"
    )


def test_split_prints_the_classes_of_both_sides(data, capsys, monkeypatch):
    assert main(["split", "data", "--part", "train", "--val", "0.25"]) == 0
    assert capsys.readouterr().out == (
        "data_split: 4 images: 3 train, 1 val (25.0 %)\n"
        "\n"
        "                 images               segments\n"
        "class     train     val   in val     train     val\n"
        "person        3       1   25.0 %         3       1\n"
        "dog           3       1   25.0 %         3       1\n"
        "sky           3       1   25.0 %         3       1\n"
    )
    assert main(["check", "data_split"]) == 0
    monkeypatch.chdir(data)
    assert main(["split", ".", "--part", "train", "--val", "0.25", "--overwrite"]) == 0
    assert f"{data.resolve()}_split: 4 images" in capsys.readouterr().out
    monkeypatch.chdir(data.parent)
    assert main(["split", "data", "--part", "train", "--overwrite", "--group", "_"]) == 2  # all are scene_*
    assert "expected at least 2 images or groups, found 1" in capsys.readouterr().err


def labelme(folder: Path, name: str) -> None:
    """A photo of labelme with one polygon; no two of them are equal, since equal ones stay on one side."""
    Image.new("RGB", (8, 6), (0, ord(name), 0)).save(folder / f"{name}.png")
    shape = {"label": "leaf", "points": [[1, 1], [6, 1], [6, 4]], "shape_type": "polygon"}
    about = {"version": "5.0", "flags": {}, "imagePath": f"{name}.png", "imageHeight": 6, "imageWidth": 8}
    (folder / f"{name}.json").write_text(json.dumps({**about, "shapes": [shape], "imageData": None}))


def test_split_of_data_that_cannot_be_used_in_full_says_so_and_ends_with_1(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    for name in ("a", "b", "c", "d", "e"):
        labelme(Path("own"), name)
    assert main(["split", "own", "--things", "all", "--out", "whole"]) == 0
    Path("own", "c.json").write_text("{")
    assert main(["split", "own", "--things", "all", "--out", "rest"]) == 1
    said = capsys.readouterr().out
    assert "rest: 4 images" in said
    assert "left out: " in said
    assert "c.json" in said


@pytest.mark.parametrize("words", [["check", "shapes"], ["split", "shapes"], ["convert", "shapes", "--to", "out"]])
def test_generated_shapes_are_no_folder(tmp_path, capsys, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert capsys.readouterr().err.endswith("while a model trains on them: pansight train --data shapes\n")
