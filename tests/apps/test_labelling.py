"""``pansight label``: what it writes is sound and can be trained on, and annotated pixels stay, in every format."""

from __future__ import annotations

import inspect
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parents[1] / "data" / "convert"))
import contract
import toy
import trees

import pansight
from pansight import models
from pansight.apps.cli import main
from pansight.apps.photos import labelling
from pansight.data import open_dataset
from pansight.data.dataset import image_array
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.data.formats.shapes import Shapes
from pansight.data.images import read_image, write_png
from pansight.errors import PansightError
from pansight.models import MODELS, build
from pansight.types import Category, LabelSpace
from pansight.weights import save_model

MASKS = [name for name in contract.SMALL if {"panoptic", "semantic"} & set(MODELS[name].produces)]
BOXES = [name for name in contract.SMALL if name not in MASKS]


def saved(folder: Path, name: str, labels: LabelSpace = contract.LABELS) -> Path:
    torch.manual_seed(0)
    save_model(folder / name, build(name, labels, **contract.SMALL[name]), name, contract.SMALL[name])
    return folder / name


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two photos of shapes, one of them in a sub-folder."""
    shapes = Shapes(2, 48, 64, seed=1)
    for n, name in enumerate(("a.png", "deep/a.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(tmp_path / "photos" / name, image_array(shapes[n].image))
    return tmp_path / "photos"


@pytest.fixture
def toy_model(monkeypatch, tmp_path) -> Path:
    """A network that is 0.9 sure of everything it says."""
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])
    torch.manual_seed(0)
    save_model(tmp_path / "toy", build("toy", contract.LABELS), "toy", {})
    return tmp_path / "toy"


def errors(folder: Path) -> list[str]:
    return [defect.line() for defect in pansight.check(folder).findings.defects if defect.severity == "error"]


# --- every system ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", contract.core_first(MASKS))
def test_labels_of_every_system_are_sound(name, tmp_path, photos):
    """What is written is what the model says by itself, as a panoptic map."""
    weights = saved(tmp_path, name)
    predictor = pansight.load(weights)
    threshold = 0.0 if "score_threshold" in inspect.signature(predictor.model.decode).parameters else None
    result = pansight.label(weights, [photos], tmp_path / "out", confidence=0.0, threshold=threshold, min_area=0)
    assert (result.images, result.failed) == (2, ())
    assert errors(tmp_path / "out") == []
    dataset = open_dataset(tmp_path / "out", split="train")
    assert dataset.labels == contract.LABELS
    assert [dataset.file_name(n) for n in range(2)] == ["a.png", "deep/a.png"]
    decode = labelling._decode_options(predictor, weights, 0.0, threshold)
    for n in range(2):
        sample = dataset[n]
        assert np.array_equal(image_array(sample.image), read_image(photos / dataset.file_name(n)))
        alone = predictor.predict(photos / dataset.file_name(n), **decode).panoptic
        assert alone is not None
        classes = {segment.id: segment.category for segment in alone.segments} | {0: -1}
        written = {segment.id: segment.category for segment in sample.truth.segments} | {0: -1}
        said, read = (
            np.vectorize(table.__getitem__)(ids.numpy())
            for table, ids in ((classes, alone.ids), (written, sample.truth.ids))
        )
        assert np.array_equal(said, read)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOXES)
def test_a_model_of_boxes_alone_is_refused(name, tmp_path, photos):
    with pytest.raises(PansightError, match=f"expected a model of masks or maps, found {name}, which gives boxes"):
        pansight.label(saved(tmp_path, name), [photos], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unsure_pixels_of_a_semantic_map_are_void(tmp_path, photos):
    weights = saved(tmp_path, "unet_original")
    predictor = pansight.load(weights)
    likeliest = predictor.class_scores([photos / "a.png"])[0].max(0)
    confidence = float(likeliest.values.median())
    pansight.label(weights, [photos / "a.png"], tmp_path / "out", confidence=confidence, min_area=0)
    truth = open_dataset(tmp_path / "out")[0].truth
    assert torch.equal(truth.ids > 0, likeliest.values >= confidence)
    assert 0.4 < float((truth.ids > 0).float().mean()) < 0.6
    (row,) = json.loads((tmp_path / "out" / "label.json").read_text())["void_reasons"].items()
    assert row[0] == "unsure"


# --- the void of annotations, in every format ------------------------------------------------------------------------


def coco_panoptic(root: Path) -> Path:
    export_coco_panoptic(Shapes(2, 48, 64, seed=2, background="void"), root)
    return root


def coco_instances(root: Path) -> Path:
    write_png(root / "photos" / "a.png", image_array(Shapes(1, 48, 64)[0].image))
    rows = [
        {"id": n, "image_id": 5, "category_id": 3, "iscrowd": crowd, "area": 100, "bbox": [x, 4, 10, 10]}
        | {"segmentation": [[x, 4, x + 10, 4, x + 10, 14, x, 14]] if not crowd else rle(x)}
        for n, (x, crowd) in enumerate([(2, 0), (8, 0), (40, 1)], 1)
    ]
    images = [{"id": 5, "file_name": "a.png", "height": 48, "width": 64}]
    content = {"images": images, "annotations": rows, "categories": [{"id": 3, "name": "cell"}]}
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    (root / "photos").rename(root / "train")
    return root


def rle(x: int) -> dict[str, object]:
    """Ten whole columns from x on."""
    return {"size": [48, 64], "counts": [48 * x, 480, 48 * (64 - x - 10)]}


def instance_png(root: Path) -> Path:
    mask = np.zeros((48, 64), np.uint16)
    mask[3:20, 5:30], mask[25:40, 30:60] = 1, 2
    write_png(root / "images" / "a.png", image_array(Shapes(1, 48, 64)[0].image))
    write_png(root / "instances" / "a.png", mask)
    return root


def ground(folder: Path, *known: str, stuff: tuple[str, ...] = ()) -> Path:
    """A network that says ground, which no data here has, wherever it looks. known, stuff: its further classes."""
    labels = LabelSpace.from_names(known, [*stuff, "ground"])
    torch.manual_seed(0)
    model: Any = build("unet_original", labels, **contract.SMALL["unet_original"])
    with torch.no_grad():
        list(model.parameters())[-1][-1] += 100  # the bias of the last class
    save_model(folder / "ground", model, "unet_original", contract.SMALL["unet_original"])
    return folder / "ground"


FORMATS = {
    "coco_panoptic": coco_panoptic,
    "coco_instances": coco_instances,
    "instance_png": instance_png,
    "cityscapes": lambda root: trees.cityscapes_tree(root, panoptic=True),
    "ade20k": lambda root: trees.ade20k_tree(root, panoptic=True),
    "vistas": lambda root: trees.vistas_tree(root, panoptic=True),
}


def void_of(root: Path, format: str):
    return open_dataset(root, options={"background": "void"} if format == "instance_png" else {})


def test_every_format_of_files_is_filled():
    """Shards are refused, with the remedy."""
    assert set(FORMATS) == set(pansight.data.DATASETS) - {"shapes", "webdataset"}


@pytest.mark.parametrize("format", FORMATS)
def test_every_annotated_pixel_is_kept(format, tmp_path):
    root = FORMATS[format](tmp_path / "data")
    before = void_of(root, format)
    things, stuff = ([c.name for c in of_kind][:1] for of_kind in (before.labels.things, before.labels.stuff))
    weights = ground(tmp_path, *things, stuff=tuple(stuff))
    code = main(["label", str(weights), "--fill-void", str(root), "--out", str(tmp_path / "out"), "--confidence", "0"])
    assert code == 0
    assert errors(tmp_path / "out") == []
    after = open_dataset(tmp_path / "out", split="train")
    names = [category.name for category in before.labels]
    assert after.labels.by_name().keys() >= set(names)
    assert len(after) == len(before)
    filled = 0
    for n in range(len(before)):
        old, new = before[n].truth, after[n].truth
        annotated = old.ids > 0
        assert torch.equal(old.ids[annotated], new.ids[annotated])
        found = {segment.id: segment for segment in new.segments}
        for segment in old.segments:
            kept = found[segment.id]
            assert after.labels[kept.category]._replace(id=0) == before.labels[segment.category]._replace(id=0)
            assert kept.is_crowd == segment.is_crowd
        filled += int(((new.ids > 0) & ~annotated).sum())
        assert after.image_id(n) == before.image_id(n)
        assert torch.equal(after[n].image, before[n].image)
    assert filled > 0


def test_crowds_and_photos_in_another_folder(tmp_path, capsys):
    root = coco_instances(tmp_path / "data")
    shutil.move(root / "train", tmp_path / "elsewhere")
    weights = ground(tmp_path, "cell")
    given = [str(weights), str(tmp_path / "elsewhere"), "--fill-void", str(root), "--confidence", "0"]
    assert main(["label", *given, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "classes that only the model knows are new: ground" in told
    assert f"pansight train --data {tmp_path / 'out'}" in told
    truth = open_dataset(tmp_path / "out")[0].truth
    assert sorted(segment.is_crowd for segment in truth.segments) == [False, False, False, True]


def test_what_cannot_be_joined_is_one_line_and_nothing_is_written(tmp_path):
    root, out = coco_instances(tmp_path / "data"), tmp_path / "out"
    stuff = LabelSpace([Category(0, "cell", False, (1, 2, 3), 1), Category(1, "ground", False, (1, 2, 3), 2)])
    for labels, message in (
        (stuff, "class 'cell': expected a thing in both or stuff in both, found a thing of the annotations and stuff"),
        (contract.LABELS, "expected a class of the annotations, found none of cell among square, circle"),
    ):
        with pytest.raises(PansightError, match=message):
            pansight.label(saved(tmp_path, "unet_original", labels), fill_void=root, out=out)
    weights = ground(tmp_path, "cell")
    with pytest.raises(PansightError, match="expected one folder, of the photos that are annotated, found 2 files"):
        pansight.label(weights, [root, root], fill_void=root, out=out)
    with pytest.raises(PansightError, match="expected annotations in files, found generated images"):
        pansight.label(weights, fill_void="shapes", out=out)
    pansight.convert(root, tmp_path / "shards", target="webdataset")
    with pytest.raises(PansightError, match="annotations in files, found shards: pansight convert unpacks them"):
        pansight.label(weights, fill_void=tmp_path / "shards", out=out)
    with pytest.raises(PansightError, match="a folder apart from the data"):
        pansight.label(weights, fill_void=root, out=root / "train" / "out", confidence=0)
    write_png(root / "train" / "a.png", np.zeros((30, 30, 3), np.uint8))
    with pytest.raises(PansightError, match=r"a\.png: expected .*48.64.*, found .*30.30"):
        pansight.label(weights, fill_void=root, out=out)
    (root / "train" / "a.png").unlink()
    with pytest.raises(PansightError, match=r"a\.png"):
        pansight.label(weights, [root / "train"], fill_void=root, out=out)
    assert not out.exists()


def test_a_missing_photo_of_several_is_left_out_and_told(tmp_path, capsys):
    root = coco_panoptic(tmp_path / "data")
    first = sorted((root / "train").iterdir())[0]
    first.unlink()
    weights = ground(tmp_path, "circle")
    given = [str(weights), "--fill-void", str(root), "--confidence", "0", "--out", str(tmp_path / "out")]
    assert main(["label", *given, "--strict"]) == 2
    assert first.name in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["label", *given]) == 1
    assert f"not used   {first}" in capsys.readouterr().out
    assert len(open_dataset(tmp_path / "out")) == 1


def test_annotations_without_void_are_refused(tmp_path):
    root = tmp_path / "data"
    export_coco_panoptic(Shapes(1, 48, 64, seed=2), root)
    with pytest.raises(PansightError, match="--fill-void: expected void to fill, found none: every pixel is annotated"):
        pansight.label(ground(tmp_path, "circle"), fill_void=root, out=tmp_path / "out", confidence=0)


# --- photos ----------------------------------------------------------------------------------------------------------


def test_what_is_written_can_be_trained_on(tmp_path, photos, toy_model):
    assert (
        main(["label", str(toy_model), str(photos), "--out", str(tmp_path / "out"), "--classes", "circle,background"])
        == 0
    )
    words = ["--model", "toy", "--data", str(tmp_path / "out"), "--out", str(tmp_path / "run"), "--train.steps", "1"]
    assert main(["train", *words, "--train.batch-size", "1", "--data.workers", "0", "--train.trackers", ""]) == 0
    assert pansight.load(tmp_path / "run").labels.names == ("circle", "background")


def test_a_bad_photo_is_told_and_the_others_are_labelled(tmp_path, photos, toy_model, capsys):
    (photos / "b.png").write_bytes(b"no picture")
    (photos / "notes.txt").write_text("x")
    given = [str(toy_model), str(photos), "--out", str(tmp_path / "out")]
    assert main(["label", *given]) == 1
    told = capsys.readouterr().out
    assert "b.png: expected an image" in told
    assert "left out   1 .txt" in told
    assert len(open_dataset(tmp_path / "out")) == 2
    assert main(["label", *given]) == 2
    assert "expected no such folder yet" in capsys.readouterr().err
    assert main(["label", *given, "--overwrite"]) == 1
    assert main(["label", *given, "--overwrite", "--strict"]) == 2
    assert len(open_dataset(tmp_path / "out")) == 2


def test_nothing_is_written_where_nothing_is_sure(tmp_path, photos, toy_model):
    for options, message in (
        ({"confidence": 0.95}, r"confidence of 0\.95 or more, found none; the highest score is 0\.900"),
        ({"confidence": 1.5}, r"--confidence: expected 0 … 1, found 1\.5"),
        ({"min_area": -1}, "--min-area: expected 0 or more pixels, found -1"),
        ({"split": "val"}, "expected annotations to fill"),
    ):
        with pytest.raises(PansightError, match=message):
            pansight.label(toy_model, [photos], tmp_path / "out", **options)
    with pytest.raises(PansightError, match="expected photos: files or a folder, found none"):
        pansight.label(toy_model, out=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PansightError, match="expected at least one image"):
        pansight.label(toy_model, [tmp_path / "empty"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interruption_leaves_nothing(tmp_path, photos, toy_model, capsys, monkeypatch):
    decode, calls = toy.Toy.decode, []

    def stopped(self, outputs, sizes, **options):
        calls.append(signal.raise_signal(signal.SIGINT))
        return decode(self, outputs, sizes, **options)

    monkeypatch.setattr(toy.Toy, "decode", stopped)
    assert main(["label", str(toy_model), str(photos), "--out", str(tmp_path / "out")]) == 130
    assert "interrupted after image 1 of 2; nothing is written" in capsys.readouterr().err
    assert len(calls) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "toy"]


def test_the_page_and_the_receipt_say_what_was_done(tmp_path, photos, toy_model):
    result = pansight.label(toy_model, [photos], tmp_path / "out")
    page = (tmp_path / "out" / "label.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4  # photo and labels of two images
    assert 'src="http' not in page
    receipt = json.loads((tmp_path / "out" / "label.json").read_text())
    assert receipt["images"] == result.images == 2
    assert receipt["confidence"] == 0.7
    shares = sum(row["share"] for row in receipt["classes"]) + receipt["void"]
    assert shares == pytest.approx(1)
    assert {row["confidence"] for row in receipt["classes"]} <= {0.9, None}


def test_the_page_of_filled_annotations_shows_what_was_there(tmp_path):
    root = coco_panoptic(tmp_path / "data")
    pansight.label(ground(tmp_path, "circle"), fill_void=root, out=tmp_path / "out", confidence=0)
    page = (tmp_path / "out" / "label.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6
    for caption in ("photo", "annotated before", "filled"):
        assert page.count(f"<figcaption>{caption}</figcaption>") == 2
