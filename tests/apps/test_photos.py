"""``pansight predict``: which photos are taken, under which names, and what happens to those that cannot be read."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pansight
from pansight import models
from pansight.apps.cli import main
from pansight.apps.photos.finding import find_photos, left_out_line
from pansight.data.images import read_image
from pansight.errors import PansightError
from pansight.models import build
from pansight.types import LabelSpace
from pansight.weights import save_model

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import toy

LABELS = LabelSpace.from_names(["circle", "square"], ["background"])
SMALL = {"backbone": "resnet10t", "short": 0, "long": 0, "fpn_channels": 16, "anchor_sizes": (8, 16, 32, 64, 128)}
SMALL |= {"proposals": 20, "detections": 10, "box_features": 16}
MASKS = {"mask_convs": 1, "mask_channels": 8}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Untrained models: a toy of panoptic maps, Mask R-CNN and Faster R-CNN."""
    folder = tmp_path_factory.mktemp("models")
    for name, options in {"mask_rcnn": SMALL | MASKS, "faster_rcnn": SMALL}.items():
        save_model(folder / name, build(name, LABELS, **options), name, options)
    return folder


@pytest.fixture
def predictor(monkeypatch, tmp_path) -> Path:
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])
    save_model(tmp_path / "toy", build("toy", LABELS), "toy", {})
    return tmp_path / "toy"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Photos in sub-folders, beside what cameras, systems and annotation tools leave there."""
    folder = tmp_path / "photos"
    for name in ("a.jpg", "b.png", "city/a.jpg", "city/deep/c.webp", ".hidden/x.jpg", "._a.jpg", "city/.DS_Store.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)).save(
            path, format="JPEG" if name.endswith("jpg") else None
        )
    for name in ("moving.gif", "city/phone.HEIC", "notes", "city/labels.json", "Thumbs.db"):
        (folder / name).write_bytes(b"x")
    return folder


def names(found) -> list[str]:
    return [photo.name for photo in found.photos]


def test_sub_folders_are_walked_and_what_is_left_out_is_counted(photos):
    found = find_photos([photos])
    assert names(found) == ["a.jpg", "b.png", "city/a.jpg", "city/deep/c.webp"]
    expected = {"hidden": 2, ".gif": 1, ".heic": 1, ".json": 1, "without a suffix": 1, "of the system": 1}
    assert found.left_out == Counter(expected)
    assert left_out_line(found.left_out).startswith("left out   1 .gif, 1 .heic, 1 .json, 2 hidden")
    assert left_out_line(Counter()) == ""


def test_sub_folders_are_left_out_on_request(photos):
    found = find_photos([photos], recursive=False)
    assert names(found) == ["a.jpg", "b.png"]
    assert found.left_out["sub-folders (--no-recursive)"] == 1


def test_one_photo_has_one_name_and_is_taken_once(photos, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(photos / "city", other)
    found = find_photos([photos / "a.jpg", photos, photos / "city", other / "a.jpg", str(photos / "*.png")])
    assert names(found) == ["a.jpg", "b.png", "city/a.jpg", "city/deep/c.webp", "other/a.jpg"]
    assert len({photo.file.resolve() for photo in found.photos}) == 5


def test_links_to_folders_end(photos):
    (photos / "city" / "loop").symlink_to(photos, target_is_directory=True)
    assert sorted(names(find_photos([photos]))) == ["a.jpg", "b.png", "city/a.jpg", "city/deep/c.webp"] or len(
        {photo.file.resolve() for photo in find_photos([photos]).photos}
    ) == len(find_photos([photos]).photos)


def test_the_folder_of_results_is_not_looked_into(photos):
    (photos / "predictions" / "overlays").mkdir(parents=True)
    shutil.copy(photos / "a.jpg", photos / "predictions" / "overlays" / "a.jpg")
    assert "predictions/overlays/a.jpg" not in names(find_photos([photos], without=photos / "predictions"))


def test_a_wrong_path_gets_a_suggestion(photos):
    with pytest.raises(PansightError, match=r"a\.jpeg: expected an image or a folder of images, found no such file"):
        find_photos([photos / "a.jpeg"])
    with pytest.raises(PansightError, match=r"did you mean .*b\.png"):
        find_photos([photos / "b.pmg"])
    (photos / "lonely").mkdir()
    (photos / "lonely" / "notes").write_text("x")
    with pytest.raises(PansightError, match=r"at least one image .*, found none \(1 without a suffix\)"):
        find_photos([photos / "lonely"])


def test_a_bad_photo_is_told_and_the_others_are_predicted(predictor, photos, tmp_path, capsys):
    whole = (photos / "a.jpg").read_bytes()
    (photos / "city" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "city" / "z.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert main(["predict", str(predictor), str(photos), "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "4 images" in said.out
    assert "left out   1 .gif" in said.out
    assert said.out.count("not read") == 2
    assert "cut.jpg: expected a whole JPEG, found no end marker (truncated)" in said.out
    content = json.loads((out / "predictions.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b.png", "city/a.jpg", "city/deep/c.webp"]
    pngs = sorted(path.name for path in (out / "predictions").iterdir())
    assert pngs == sorted(path.name for path in (out / "overlays").iterdir())
    assert pngs == sorted(annotation["file_name"] for annotation in content["annotations"])


def test_nothing_is_written_where_no_photo_can_be_read(predictor, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    out = tmp_path / "out"
    assert main(["predict", str(predictor), str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "none of 2 photos can be read: " in said
    assert not list(out.iterdir())


@pytest.mark.parametrize("words", [["--threshold", "2"], ["--score", "-1"], ["--opacity", "nan"]])
def test_shares_are_checked_before_the_model_is_loaded(words, photos, tmp_path, capsys):
    assert main(["predict", str(tmp_path / "no model"), str(photos), *words]) == 2
    assert f"{words[0]}: expected 0 … 1, found {float(words[1]):g}" in capsys.readouterr().err


def test_mask_rcnn_gives_objects_by_task(saved, photos, tmp_path):
    words = ["predict", str(saved / "mask_rcnn"), str(photos / "a.jpg"), "--task", "instance", "--out"]
    assert main([*words, str(tmp_path / "all"), "--threshold", "0"]) == 0
    listing = json.loads((tmp_path / "all" / "instances.json").read_text())
    assert listing["categories"] == LABELS.to_json()
    assert listing["images"] == [{"id": 1, "file_name": "a.jpg", "height": 24, "width": 32}]
    scores = sorted(row["score"] for row in listing["annotations"])
    assert len(scores) > 1
    assert all("segmentation" in row for row in listing["annotations"])
    assert not (tmp_path / "all" / "predictions.json").exists()
    middle = (scores[0] + scores[-1]) / 2
    assert main([*words, str(tmp_path / "sure"), "--threshold", f"{middle}"]) == 0
    kept = json.loads((tmp_path / "sure" / "instances.json").read_text())["annotations"]
    assert sorted(row["score"] for row in kept) == [score for score in scores if score >= middle]


def test_faster_rcnn_takes_a_threshold(saved, photos, tmp_path, capsys):
    words = ["predict", str(saved / "faster_rcnn"), str(photos / "a.jpg"), "--out"]
    assert main([*words, str(tmp_path / "none"), "--threshold", "1"]) == 0
    assert json.loads((tmp_path / "none" / "instances.json").read_text())["annotations"] == []
    assert main([*words, str(tmp_path / "some")]) == 0
    assert json.loads((tmp_path / "some" / "instances.json").read_text())["annotations"]
    assert main([*words, str(tmp_path / "other"), "--task", "panoptic"]) == 2
    assert "unknown task of faster_rcnn 'panoptic'; known: instance" in capsys.readouterr().err


def test_a_prediction_draws_itself(saved, photos, tmp_path):
    prediction = pansight.load(saved / "mask_rcnn").predict(photos / "a.jpg")
    picture = prediction.overlay(tmp_path / "overlay.png", background=True)
    assert picture.size == (32, 24)
    assert np.array_equal(read_image(tmp_path / "overlay.png"), np.asarray(picture))
    prediction.overlay(tmp_path / "overlay.jpg")
    assert (tmp_path / "overlay.jpg").read_bytes().startswith(b"\xff\xd8")
    with pytest.raises(PansightError, match=r"overlay\.gif: expected a name of a PNG, JPEG"):
        prediction.overlay(tmp_path / "overlay.gif")
    assert prediction.photo.shape == (24, 32, 3)
    assert prediction.labels == LABELS


def test_batches_and_a_trial_of_speed_change_no_file(predictor, photos, tmp_path, monkeypatch, capsys):
    """On a processor without bf16 all trials compute in float32, and maps are the same in any memory format."""
    monkeypatch.setattr("pansight.engine.distributed._cpu_has_bf16", lambda: False)
    written = {}
    for name, words in {"alone": [], "batches": ["--batch-size", "3"], "fast": ["--speed", "fast"]}.items():
        assert main(["predict", str(predictor), str(photos), "--out", str(tmp_path / name), *words]) == 0
        files = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        written[name] = {path.relative_to(tmp_path / name): path.read_bytes() for path in files}
        said = capsys.readouterr().out
        assert "images/s" in said
        assert ("speed      " in said) == (name == "fast")
    assert written["alone"] == written["batches"] == written["fast"]
    assert len(written["alone"]) == 9


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--batch-size", "0"], "--batch-size: expected 1 or more, found 0"),
        (["--tile", "64", "--speed", "fast"], "--speed: expected photos that are predicted whole, found --tile"),
        (["--speed", "faster"], "faster"),
    ],
)
def test_a_pace_that_cannot_be_is_a_line(predictor, photos, tmp_path, capsys, words, told):
    assert main(["predict", str(predictor), str(photos), "--out", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
