"""The commands from end to end, and every bad input as one line and exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pansight
from pansight import models
from pansight.apps.cli import main
from pansight.config import override, read_config, recipes
from pansight.data import Shapes
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.data.images import read_rgb_ids, write_png
from pansight.drawing.objects import draw_objects
from pansight.models import build
from pansight.ops.idmap import ids_to_rgb
from pansight.weights import save_model

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import toy

DEFAULTS = {"--model": "toy", "--train.steps": "3", "--train.batch-size": "2", "--train.lr": "0.01"}
DEFAULTS |= {"--train.trackers": "", "--train.evaluate-every": "0"}
QUICK = [word for pair in DEFAULTS.items() for word in pair]


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """Six train and three val images in COCO panoptic."""
    folder = tmp_path_factory.mktemp("coco")
    export_coco_panoptic(Shapes(6, 32, 40), folder, "train")
    export_coco_panoptic(Shapes(3, 32, 40, split="val"), folder, "val")
    return folder


@pytest.fixture
def data(clean, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(clean, tmp_path / "data"))


@pytest.fixture(scope="module")
def trained(clean, tmp_path_factory) -> Path:
    """A finished run of the toy model."""
    toy.register()
    out = tmp_path_factory.mktemp("runs") / "toy"
    assert main(["train", *QUICK, "--data", str(clean), "--out", str(out)]) == 0
    del models.MODELS["toy"]
    return out


def complaint(arguments: list[str], capsys, code: int = 2) -> str:
    """Run a command that must fail; its one line on stderr."""
    capsys.readouterr()
    assert main(arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("pansight: ")
    assert "Traceback" not in lines[0]
    return lines[0]


def train_on(data: Path, out: Path, *more: str) -> list[str]:
    words = ["train", "--data", str(data), "--out", str(out), *more]
    return words + [word for key, value in DEFAULTS.items() if key not in more for word in (key, value)]


# --- what works ------------------------------------------------------------------------------------------------------


def test_train_leaves_a_whole_run(trained, clean):
    assert {p.name for p in trained.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.toml",
        "evaluation.json",
        "metrics.jsonl",
        "predictions",
        "report.html",
        "run.json",
        "training_images.json",
    }
    config = read_config(trained / "config.toml")
    assert config.data.source == str(clean.resolve())
    assert (config.train.steps, config.train.batch_size, config.augment.crop) == (3, 2, 0)
    assert config.train.precision in ("fp32", "bf16")  # what was used, not "auto"
    record = json.loads((trained / "evaluation.json").read_text())
    assert {"All", "Things", "Stuff", "per_class", "images", "instances", "semantic", "seconds"} <= set(record)
    predictions = json.loads((trained / "predictions" / "predictions.json").read_text())
    assert len(predictions["annotations"]) == 3
    listing = json.loads((trained / "predictions" / "sheet" / "sheet.json").read_text())
    assert (listing["figure"], len(listing["categories"])) == ("PQ", 4)
    sheet = listing["images"]
    assert [row["score"] for row in sheet] == sorted((row["score"] for row in sheet), reverse=True)
    truth = read_rgb_ids(trained / "predictions" / "sheet" / sheet[0]["truth"])
    assert set(np.unique(truth).tolist()) - {0} == {row["id"] for row in sheet[0]["truth_segments"]}


def test_choices_are_printed_and_a_validation_part_is_split_off(data, tmp_path, capsys):
    shutil.rmtree(data / "val")
    (data / "annotations" / "panoptic_val.json").unlink()
    out = tmp_path / "run"
    assert main(train_on(data, out, "--data.validation-fraction", "0.34")) == 0
    said = capsys.readouterr().out
    assert "4 images of" in said
    assert "2 images split off" in said
    assert "3 things (square, circle, triangle), 1 stuff (background)" in said
    assert "chosen     augment.crop = 0 (images of about 32×40, all alike: used whole)" in said
    assert "chosen     train.warmup_steps = 0" in said
    assert "All       |" in said


def test_evaluate_a_run_again_and_on_other_data(trained, data, tmp_path, capsys):
    assert main(["evaluate", str(trained), "--out", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    first, again = (json.loads((f / "evaluation.json").read_text()) for f in (trained, tmp_path / "again"))
    assert again["per_class"] == first["per_class"]
    assert [line[:10].strip() for line in said.splitlines()[2:5]] == ["All", "Things", "Stuff"]
    assert main(["evaluate", str(trained), "--data", str(data), "--split", "train", "--out", str(tmp_path / "b")]) == 0
    assert len(json.loads((tmp_path / "b" / "evaluation.json").read_text())["images"]) == 6
    again = complaint(["evaluate", str(trained), "--out", str(tmp_path / "b")], capsys)
    assert "expected no evaluation yet, found one; add --overwrite" in again
    assert main(["evaluate", str(trained), "--out", str(tmp_path / "c"), "--evaluate.limit", "1"]) == 0
    assert len(json.loads((tmp_path / "c" / "evaluation.json").read_text())["images"]) == 1


def test_a_run_is_measured_on_data_of_other_classes(trained, data, tmp_path, capsys):
    """Two things of the model are one in the data, and one has no counterpart."""
    path = data / "annotations" / "panoptic_val.json"
    content = json.loads(path.read_text())
    names = {row["name"]: row for row in content["categories"]}
    names["square"]["name"], names["triangle"]["name"] = "shape", "tree"
    path.write_text(json.dumps(content))
    words = ["evaluate", str(trained), "--data", str(data), "--out", str(tmp_path / "x")]
    line = complaint(words, capsys)
    assert "'shape'" in line  # a class that the model does not know
    assert "--map names" in line
    (tmp_path / "map.toml").write_text('square = "shape"\ncircle = "shape"\n')
    assert main([*words, "--map", str(tmp_path / "map.toml")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "void       predicted classes without a counterpart: triangle" in said
    assert "void       classes of the truth without a counterpart: circle, tree" in said
    record = json.loads((tmp_path / "x" / "evaluation.json").read_text())
    classes = {row["name"]: row for row in record["per_class"].values()}
    assert sum(classes["tree"][k] + classes["circle"][k] for k in ("tp", "fp", "fn")) == 0  # void
    assert classes["shape"]["tp"] + classes["shape"]["fn"] > 0
    assert "found both" in complaint([*words, "--gt", str(path)], capsys)


def test_evaluation_knows_classes_by_name(trained, data, tmp_path):
    path = data / "annotations" / "panoptic_val.json"
    content = json.loads(path.read_text())
    content["categories"].reverse()  # another order and other ids, the same names
    for row in content["categories"]:
        row["id"] += 100
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            segment["category_id"] += 100
    path.write_text(json.dumps(content))
    assert main(["evaluate", str(trained), "--data", str(data), "--out", str(tmp_path / "x")]) == 0
    first, again = (json.loads((f / "evaluation.json").read_text()) for f in (trained, tmp_path / "x"))
    assert again["All"] == first["All"]


def test_a_model_without_panoptic_maps_gets_ap(trained, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["evaluate", str(trained), "--out", str(out), "--evaluate.decode.panoptic", "false"]
    assert main(command) == 0
    record = json.loads((out / "evaluation.json").read_text())
    assert "All" not in record
    assert set(record["instances"]) >= {"box", "mask"}
    assert "mask      | AP" in capsys.readouterr().out
    assert (out / "predictions" / "instances.json").exists()


def test_the_convention_of_miou_on_a_model(trained, tmp_path, capsys):
    for name in ("detectron2", "semseg"):
        assert main(["evaluate", str(trained), "--out", str(tmp_path / name), "--miou", name]) == 0
        assert f"({name})" in capsys.readouterr().out
        assert json.loads((tmp_path / name / "evaluation.json").read_text())["semantic"]["convention"] == name


def test_the_best_weights_are_measured_once(clean, tmp_path, monkeypatch):
    """Three evaluations in training, and none after it; record, log and report show the figures of the best one."""
    from pansight.engine import evaluate as engine

    measured = []
    plain = engine.predict_views

    def counting(model, views, sizes, *rest):
        measured.append(len(sizes))
        return plain(model, views, sizes, *rest)

    monkeypatch.setattr(engine, "predict_views", counting)
    out = tmp_path / "run"
    assert main(train_on(clean, out, "--train.steps", "6", "--train.evaluate-every", "2", "--train.lr", "0.05")) == 0
    assert sum(measured) == 3 * 3  # images of the validation part
    record = json.loads((out / "evaluation.json").read_text())
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = {row["step"]: row["metrics"] for row in log if row["kind"] == "evaluation"}
    assert list(rows) == [2, 4, 6]
    best = max(rows, key=lambda step: (rows[step]["All"]["pq"], -step))
    assert record["step"] == best
    assert record["All"] == rows[best]["All"]
    assert f"{100 * record['All']['pq']:.1f}<small>PQ" in (out / "report.html").read_text()
    assert not {"counts", "image_ids", "images"} & (set(rows[best]) | set(rows[best]["semantic"]))
    assert not (out / "candidate").exists()
    again = pansight.evaluate(out, out=tmp_path / "again")  # what was saved as the best is what was measured
    assert again["per_class"] == record["per_class"]
    (out / "evaluation.json").write_text(json.dumps({"All": {"pq": 0.0}}))  # somebody measured something else since
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert json.loads((out / "evaluation.json").read_text())["per_class"] == record["per_class"]


def test_weights_are_loaded_once(clean, trained, tmp_path, monkeypatch):
    from pansight.apps.commands import preparing
    from pansight.engine import assemble

    loaded = []

    def counting(path):
        loaded.append(str(path))
        return load_model(path)

    load_model = preparing.load_model
    monkeypatch.setattr(preparing, "load_model", counting)
    monkeypatch.setattr(assemble, "load_model", counting)
    settings = {"train": {"steps": 1, "batch_size": 2, "trackers": [], "evaluate_every": 0}}
    run = pansight.train(weights=trained, data=clean, out=tmp_path / "run", settings=settings)
    assert len(loaded) == 1
    assert read_config(run.folder / "config.toml").model.name == "toy"
    with pytest.raises(
        pansight.PansightError, match=r"model\.name: expected a model, found auto without model\.weights"
    ):
        pansight.train(model="auto", data=clean, out=tmp_path / "other", settings=settings)


def test_predict_writes_overlays_and_coco_panoptic(trained, data, tmp_path, capsys):
    out = tmp_path / "out"
    image = next((data / "val").iterdir())
    assert main(["predict", str(trained), str(image), str(data / "train"), "--out", str(out)]) == 0
    content = json.loads((out / "predictions.json").read_text())
    assert len(content["annotations"]) == 7
    for annotation in content["annotations"]:
        ids = read_rgb_ids(out / "predictions" / annotation["file_name"])
        assert ids.shape == (32, 40)
        assert set(np.unique(ids).tolist()) - {0} == {s["id"] for s in annotation["segments_info"]}
    assert len(list((out / "overlays").glob("*.png"))) == 7
    assert "7 images" in capsys.readouterr().out
    line = complaint(["predict", str(trained), str(image), "--out", str(out)], capsys)
    assert "predictions.json: expected no predictions yet" in line
    assert main(["predict", str(trained), str(image), "--out", str(out), "--overwrite"]) == 0
    assert len(json.loads((out / "predictions.json").read_text())["annotations"]) == 1


def test_predict_of_a_model_that_only_gives_objects(trained, data, tmp_path):
    rows = pansight.predict(trained, [data / "val"], tmp_path / "out", decode_options={"panoptic": False}).rows
    content = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    assert len(content["annotations"]) == sum(row.segments for row in rows)
    assert {a["category_id"] for a in content["annotations"]} <= {1, 2, 3}
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 3
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_predict_by_task_and_threshold(data, tmp_path, capsys):
    vit = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    options = {"size": 32, "queries": 4, "blocks": 1, "vit_options": vit}
    labels = pansight.LabelSpace(
        c._replace(source_id=10 * c.source_id) for c in pansight.LabelSpace.from_names(["circle"], ["sky", "sea"])
    )
    save_model(tmp_path / "model", build("eomt", labels, **options), "eomt", options)
    words = ["predict", str(tmp_path / "model"), str(data / "val"), "--out"]
    assert main([*words, str(tmp_path / "a"), "--threshold", "0"]) == 0
    annotations = json.loads((tmp_path / "a" / "predictions.json").read_text())["annotations"]
    assert main([*words, str(tmp_path / "b"), "--threshold", "1"]) == 0
    assert not any(a["segments_info"] for a in json.loads((tmp_path / "b/predictions.json").read_text())["annotations"])
    assert any(a["segments_info"] for a in annotations)
    capsys.readouterr()
    assert main([*words, str(tmp_path / "c"), "--task", "semantic"]) == 0
    assert "3 images" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["overlays", "semantic", "semantic.json"]
    maps = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "c" / "semantic").iterdir())]
    assert [m.shape for m in maps] == [(32, 40)] * 3
    assert set(np.unique(maps)) <= {c.source_id for c in labels}
    assert "expected no predictions yet" in complaint([*words, str(tmp_path / "c")], capsys)
    line = complaint([*words, str(tmp_path / "d"), "--task", "depth"], capsys)
    assert "unknown task of eomt: 'depth'; known: all, instance, panoptic, semantic" in line
    line = complaint([*words, str(tmp_path / "d"), "--threshold", "60"], capsys)
    assert "--threshold: expected 0 … 1, found 60" in line


def test_predict_of_a_model_without_tasks(trained, data, tmp_path, capsys):
    line = complaint(["predict", str(trained), str(data / "val"), "--task", "semantic"], capsys)
    assert "unknown task of toy 'semantic'; known: " in line


def test_boxes_are_drawn_where_they_are():
    labels = pansight.LabelSpace.from_names(["square"])
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0], [50.0, 50.0, 60.0, 60.0]])
    found = pansight.Instances(boxes, torch.zeros(2, dtype=torch.int64), torch.tensor([0.9, 0.1]))
    picture = draw_objects(torch.zeros((3, 100, 100), dtype=torch.uint8), found, labels, 0.5)
    color = torch.tensor(labels[0].color, dtype=torch.uint8)
    assert torch.equal(picture[:, 30, 10], color)
    assert torch.equal(picture[:, 39, 29], color)
    assert picture[:, 30, 20].sum() == 0
    assert picture[:, 45:].sum() == 0  # the second object is under the score


def test_python_face(trained, data):
    photo = next((data / "val").iterdir())
    predictor = pansight.load(trained)
    from_file = predictor.predict(photo).panoptic
    array = pansight.load(trained).predict(np.asarray(_pil(photo))).panoptic
    tensor = predictor.predict(torch.from_numpy(np.asarray(_pil(photo)).copy()).permute(2, 0, 1)).panoptic
    pil, twice = predictor.predict_batch([_pil(photo), photo])
    assert from_file.size == (32, 40)
    for other in (array, tensor, pil.panoptic, twice.panoptic):
        assert torch.equal(from_file.ids, other.ids)
        assert from_file.segments == other.segments
    assert predictor.labels.names == ("square", "circle", "triangle", "background")
    with pytest.raises(pansight.PansightError, match=r"image: expected uint8 \(H, W, 3\), found float32"):
        predictor.predict(np.zeros((4, 4, 3), np.float32))


def _pil(path: Path):
    return Image.open(path).convert("RGB")


def test_saved_predictor_loads(trained, tmp_path):
    predictor = pansight.load(trained)
    predictor.save(tmp_path / "mine")
    again = pansight.load(tmp_path / "mine")
    assert (again.name, again.options) == (predictor.name, predictor.options)
    for a, b in zip(predictor.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_python_train_takes_the_same_keywords(clean, tmp_path):
    settings = {"train": {"steps": 1, "batch_size": 2, "trackers": []}, "train.lr": 0.1}
    run = pansight.train(model="toy", data=clean, out=tmp_path / "run", settings=settings)
    assert run.folder == tmp_path / "run"
    assert pansight.evaluate(run.folder)["All"] == run.evaluation["All"]


def test_recipe_below_the_command_line(clean, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[model]\nname = "toy"\n[train]\nsteps = 9\nbatch_size = 2\nlr = 0.5\ntrackers = []\n')
    out = tmp_path / "run"
    command = ["train", "--recipe", str(recipe), "--data", str(clean), "--train.steps", "1", "--out", str(out)]
    assert main(command) == 0
    config = read_config(out / "config.toml")
    assert (config.train.steps, config.train.lr, config.model.name) == (1, 0.5, "toy")
    # the run's own settings are a recipe that repeats it
    again = tmp_path / "again"
    assert main(["train", "--recipe", str(out / "config.toml"), "--out", str(again)]) == 0
    a, b = (pansight.load(f).model.state_dict() for f in (out, again))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_an_image_without_segments_is_legal(data, tmp_path):
    for part in ("train", "val"):
        path = data / "annotations" / f"panoptic_{part}.json"
        content = json.loads(path.read_text())
        content["annotations"][0]["segments_info"] = []
        png = data / "annotations" / f"panoptic_{part}" / content["annotations"][0]["file_name"]
        write_png(png, ids_to_rgb(np.zeros((32, 40), np.int32)))
        path.write_text(json.dumps(content))
    assert main(train_on(data, tmp_path / "run", "--train.batch-size", "6")) == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 10_000)])
def test_extreme_sizes_are_predicted(trained, tmp_path, height, width):
    photo = tmp_path / "photo.png"
    write_png(photo, np.full((height, width, 3), 90, np.uint8))
    assert main(["predict", str(trained), str(photo), "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (content["images"][0]["height"], content["images"][0]["width"]) == (height, width)


def test_help_shows_defaults_and_an_example(capsys):
    for command in ("demo", "train", "evaluate", "predict", "models", "datasets"):
        assert main([command, "--help"]) == 0
        said = capsys.readouterr().out
        assert "Example" in said, command
        assert command in ("models", "datasets") or "default: " in said, command
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pansight 0.")


def test_lists(capsys):
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name} " in said for name in models.MODELS)
    assert main(["models", "toy"]) == 0
    said = capsys.readouterr().out
    assert "panoptic, instances" in said
    assert "--model.options.memory_limit" in said
    assert main(["models", "eomt_dinov3_small_640"]) == 0
    said = capsys.readouterr().out
    assert "tasks       panoptic, instance, semantic, all" in said
    assert "weights     published under DINOv3 License (gated" in said
    assert main(["datasets"]) == 0
    assert "coco_panoptic" in capsys.readouterr().out
    assert main(["datasets", "shapes"]) == 0
    assert "--data.options.height      default 128" in capsys.readouterr().out


def test_importing_pansight_is_quick():
    code = "import sys, pansight; pansight.__dir__(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# --- what does not ---------------------------------------------------------------------------------------------------


def test_unknown_names_list_what_exists(clean, trained, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    expectations = {
        ("train", "--train.stepz", "5"): "--train.stepz",
        ("train", "--train.steps", "many"): "--train.steps",
        ("train", "--data", str(clean), "--model", "yolo"): "unknown model 'yolo'; known: ",
        ("train", "--recipe", "shapes/yolo"): "unknown recipe 'shapes/yolo'; known: ",
        ("train", "--recipe", "mine.toml"): "mine.toml: no such file",
        (
            "train",
            "--model",
            "toy",
        ): "data.source: expected a folder or file (--data DIR) or 'shapes', found none; known",
        ("train", "--data", str(tmp_path / "nowhere"), "--model", "toy"): "nowhere: expected a data folder",
        ("train", "--data", str(tmp_path), "--model", "toy"): "expected one of annotations/panoptic_*.json",
        ("train", "--data", str(clean), "--data.format", "voc"): "unknown data format 'voc'; known: ade20k",
        ("train", "--data", "shapes", "--data.options.colour", "1"): "unknown option of shapes 'colour'; known: ",
        ("train", "--data", str(clean), *QUICK, "--model.options.depth", "5"): "'depth'; known: ",
        ("train", "--data", str(clean), *QUICK, "--train.freeze", "neck"): "no parameter's name starts with 'neck'",
        ("train", "--resume"): "expected a run to resume (checkpoints/last/training.pt), found none",
    }
    for command, text in expectations.items():
        assert text in complaint([*command, *out], capsys), command
        assert not (tmp_path / "run").exists(), command
    for command, text in {
        ("models", "yolo"): "unknown model 'yolo'; known: ",
        ("datasets", "voc"): "unknown data set 'voc'; known: ",
        ("trian",): 'Unknown command "trian"',
        ("evaluate", str(tmp_path / "gone.pth"), "--data", str(clean)): "gone.pth",
        ("evaluate", str(trained), "--data", str(tmp_path / "gone")): "gone: expected a data folder",
        ("evaluate", str(trained / "checkpoints" / "last")): "add --data DIR",
        ("predict", str(tmp_path / "gone"), str(clean / "val")): "gone",
        ("predict", str(trained), str(tmp_path / "gone.jpg")): "gone.jpg: expected an image or a folder of images",
        ("predict", str(trained)): "expected at least one image",
    }.items():
        assert text in complaint(list(command), capsys), command


def test_a_run_is_not_overwritten_unasked(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(train_on(data, out)) == 0
    before = (out / "config.toml").read_bytes()
    assert "add --resume or --overwrite" in complaint(train_on(data, out, "--train.seed", "4"), capsys)
    assert (out / "config.toml").read_bytes() == before
    assert main(train_on(data, out, "--train.seed", "4", "--overwrite")) == 0
    assert read_config(out / "config.toml").train.seed == 4
    line = complaint(train_on(data, data, "--overwrite"), capsys)
    assert "expected a run (config.toml) to overwrite, found other files" in line
    assert (data / "annotations").is_dir()


def damage(data: Path, what: str) -> None:
    """Break the train part in one of the ways that the issue lists."""
    json_file = data / "annotations" / "panoptic_train.json"
    image = sorted((data / "train").iterdir())[3]
    content = json.loads(json_file.read_text())
    if what == "missing image":
        image.unlink()
    elif what == "truncated image":
        image.write_bytes(image.read_bytes()[:200])
    elif what == "no JSON":
        json_file.write_text('{"images": [')
    elif what == "id that the JSON lacks":
        content["annotations"][3]["segments_info"].pop()
        json_file.write_text(json.dumps(content))
    elif what == "unknown category":
        content["annotations"][3]["segments_info"][0]["category_id"] = 77
        json_file.write_text(json.dumps(content))
    elif what == "empty data set":
        content["images"], content["annotations"] = [], []
        json_file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("what", "file", "text"),
    [
        ("missing image", "000003.png", "no such file"),
        ("truncated image", "000003.png", "expected"),
        ("no JSON", "panoptic_train.json", "expected JSON, found"),
        ("id that the JSON lacks", "000003.png", "expected only ids that panoptic_train.json lists, found"),
        ("unknown category", "panoptic_train.json", "77"),
        ("empty data set", "panoptic_train.json", "expected images, found an empty data set"),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_bad_data_is_one_line_and_leaves_nothing(data, trained, tmp_path, capsys, command, what, file, text):
    damage(data, what)
    out = tmp_path / "run"
    arguments = train_on(data, out, "--train.batch-size", "6", "--train.steps", "2")
    if command == "evaluate":
        arguments = ["evaluate", str(trained), "--data", str(data), "--split", "train", "--out", str(out)]
    if what.endswith("image"):  # which is left out and told otherwise
        arguments.append("--strict")
    line = complaint(arguments, capsys)
    assert file in line
    assert text in line
    left = [str(p.relative_to(out)) for p in out.rglob("*")] if out.exists() else []
    assert [p for p in left if not (out / p).is_dir()] == []


def test_bad_photo_is_one_line_and_leaves_nothing(trained, data, tmp_path, capsys):
    damage(data, "truncated image")
    out = tmp_path / "out"
    line = complaint(["predict", str(trained), str(data / "train" / "000003.png"), "--out", str(out)], capsys)
    assert "000003.png" in line
    assert [p for p in out.rglob("*") if p.is_file()] == []


def test_class_counts_that_do_not_match(trained, data, tmp_path, capsys):
    path = data / "annotations" / "panoptic_val.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 9, "name": "star", "isthing": 1, "color": [1, 2, 3]})
    path.write_text(json.dumps(content))
    line = complaint(["evaluate", str(trained), "--data", str(data)], capsys)
    assert "expected classes among the 4 of the model (square, circle, triangle, background), found 'star'" in line
    # weights that were changed by hand
    config = trained.parent / "broken" / "config.json"
    shutil.copytree(trained / "checkpoints" / "last", config.parent)
    saved = json.loads(config.read_text())
    saved["labels"] += [{"id": 9, "name": "star", "isthing": 1, "color": [1, 2, 3]}]
    config.write_text(json.dumps(saved))
    line = complaint(["predict", str(config.parent), str(data / "val"), "--out", str(tmp_path / "o")], capsys)
    assert "head" in line
    assert "expected shape [5, 4, 1, 1], found [4, 4, 1, 1]" in line


def test_thing_and_stuff_must_agree(trained, data, capsys):
    path = data / "annotations" / "panoptic_val.json"
    path.write_text(path.read_text().replace('"background", "isthing": 0', '"background", "isthing": 1'))
    line = complaint(["evaluate", str(trained), "--data", str(data)], capsys)
    assert "expected class 'background' to be stuff, found a thing" in line


def test_nan_is_one_line_and_keeps_the_state(data, tmp_path, capsys):
    out = tmp_path / "run"
    line = complaint(train_on(data, out, "--model.options.poison", "4", "--train.batch-size", "6"), capsys)
    assert "step 1: expected finite losses, found classes nan" in line
    assert (out / "checkpoints" / "stopped" / "model.safetensors").is_file()


def test_interruption_is_exit_code_130_and_resumes(data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setenv("TOY_INTERRUPT_AT", "2")
    capsys.readouterr()
    assert main(train_on(data, out)) == 130
    assert capsys.readouterr().err.splitlines() == [
        "stopping after the step at hand; again to stop at once",
        "pansight: interrupted after step 2, which is saved; go on with --resume",
    ]
    monkeypatch.delenv("TOY_INTERRUPT_AT")
    assert main(["train", "--resume", "--out", str(out)]) == 0
    whole = tmp_path / "whole"
    assert main(train_on(data, whole)) == 0
    a, b = (pansight.load(f).model.state_dict() for f in (out, whole))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(data, tmp_path):
    """A real limit on the size of files, in a process of its own: the settings fit, the weights do not.

    Compiled loops do not fit either, which is nobody's business. Python stores no bytecode: it would cut it off.
    """
    out = tmp_path / "run"
    kernels = {"NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    code = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import toy; from pansight.apps.cli import main\n"
        "toy.register(); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.exit(main(sys.argv[1:]))"
    )
    command = train_on(data, out, "--model.options.width", "2048")
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(Path(toy.__file__).parent), *command],
        capture_output=True,
        text=True,
        env=os.environ | kernels,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"pansight: {out}/checkpoints/last: cannot be written: ")
    assert "File too large" in lines[0]
    assert not out.exists()


@pytest.mark.slow
def test_shipped_recipes_build_their_models():
    found = recipes()
    assert {"shapes/panoptic_fpn", "custom/detr_step2", "nuclei/mask_rcnn", "camvid/fcn"} <= set(found)
    for name, path in found.items():
        head = path.read_text().split("\n[")[0]
        assert all(f"# {word}" in head for word in ("command", "hardware", "time", "measured")), name
        config = read_config(path)
        assert f"pansight train --recipe {name}" in head
        from pansight.engine import optim
        from pansight.engine.assemble import make_model, same_architecture
        from pansight.types import LabelSpace

        if config.model.pretrained != "auto":
            config = override(config, {"model.pretrained": "none"})
        if isinstance(config.model.options.get("class_weights"), str):  # counted in training
            config = override(config, {"model.options.class_weights": []})
        with torch.device("meta"):  # some have hundreds of millions of parameters
            model = make_model(config.model, LabelSpace.from_names(["thing"], ["stuff"]))[0]
        assert sum(p.numel() for p in model.parameters()) > 1_000_000, name
        optim.freeze(model, config.train.freeze)
        assert optim.parameter_groups(model, config.train, models.entry(config.model.name).rates), name
        if first := config.model.first_recipe:
            assert same_architecture(config.model.name, read_config(found[first]).model.name), name
