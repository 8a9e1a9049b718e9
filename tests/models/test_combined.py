"""Two networks made one: what they predict together is what each predicts alone, merged; and it is a model as any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import LABELS, SMALL, shapes_batch, small

import pansight
from pansight.apps.cli import main
from pansight.apps.scoring.combining import Inputs, Merge, combine_files
from pansight.config import Config, ModelConfig, override
from pansight.data import Shapes
from pansight.data.images import read_index_png, read_rgb_ids, write_png
from pansight.engine.assemble import make_model
from pansight.engine.automatic import choose
from pansight.engine.infer import Inference, infer, prepare
from pansight.errors import PansightError
from pansight.models import build, check_options
from pansight.types import LabelSpace, PanopticSegmentation, Prediction
from pansight.weights import load_model, save_model
from pansight.weights.combined import combine_loaded

NO_THRESHOLDS = {"score_threshold": 0.0, "max_overlap": 0.5, "min_stuff_area": 0}
SIZES: dict[str, dict[str, Any]] = {
    "mask_rcnn": SMALL["mask_rcnn"] | {"short": 64, "long": 200},
    "pspnet": SMALL["pspnet"] | {"short": 48, "long": 100},
}
"""Two networks that want photos in different sizes."""


def one(name: str, labels: LabelSpace = LABELS, **options: Any) -> tuple[Any, str, dict[str, Any]]:
    torch.manual_seed(3)
    model: Any = build(name, labels, **SIZES[name] | options)
    return model.eval(), name, SIZES[name] | options


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of different sizes; both networks must scale them."""
    data = Shapes(3, 90, 130, seed=4)
    for index, size in enumerate([(90, 130), (70, 100), (61, 64)]):
        image = data[index].image[:, : size[0], : size[1]]
        write_png(tmp_path / "photos" / f"photo{index}.png", image.permute(1, 2, 0).numpy())  # (H, W, 3)
    return tmp_path / "photos"


def run(*words: str | Path | float, code: int = 0) -> None:
    assert main([str(word) for word in words]) == code


def segments_of(found: PanopticSegmentation) -> list[tuple[int, float, bytes]]:
    """(category, score, pixels) of each segment, whatever its id, in an order of their own."""
    return sorted((s.category, s.score, (found.ids == s.id).numpy().tobytes()) for s in found.segments)


@pytest.mark.slow
def test_a_whole_is_its_parts_run_alone_and_combined_on_files(tmp_path: Path, photos: Path) -> None:
    """Pixel for pixel, by the command on files that predict writes of each network."""
    parts = {"mask_rcnn": one("mask_rcnn"), "pspnet": one("pspnet")}
    for name, (model, _, options) in parts.items():
        save_model(tmp_path / name, model, name, options)
    run("predict", tmp_path / "mask_rcnn", photos, "--task", "instance", "--threshold", 0, "--out", tmp_path / "a")
    run("predict", tmp_path / "pspnet", photos, "--out", tmp_path / "b")
    merge = Merge("detectron2", 0.0, 0.5, 50)
    combine_files(Inputs(tmp_path / "a", tmp_path / "b"), tmp_path / "c", merge)
    thresholds = {"score_threshold": 0.0, "min_stuff_area": 50}
    whole = pansight.combine_models(tmp_path / "mask_rcnn", tmp_path / "pspnet", device="cpu", **thresholds)
    whole.save(tmp_path / "whole")
    content = json.loads((tmp_path / "c" / "predictions.json").read_text())
    for row, image in zip(content["annotations"], content["images"], strict=True):
        found = pansight.load(tmp_path / "whole", device="cpu").predict(photos / image["file_name"])
        ids = read_rgb_ids(tmp_path / "c" / "predictions" / row["file_name"])
        assert found.panoptic is not None
        assert np.array_equal(found.panoptic.ids.numpy(), ids)
        source = [(s.id, LABELS[s.category].source_id, s.score) for s in found.panoptic.segments]
        assert source == [(s["id"], s["category_id"], s.get("score", 1.0)) for s in row["segments_info"]]
        assert found.semantic is not None
        table = torch.tensor([c.source_id for c in LABELS])
        alone = read_index_png(tmp_path / "b" / "semantic" / row["file_name"])
        assert torch.equal(table[found.semantic], torch.from_numpy(alone).long())
        assert len(found.panoptic.segments) > 1


def test_each_network_sees_a_photo_by_its_own_rule() -> None:
    """In batches of different photos, through the one function of inference."""
    parts = one("mask_rcnn"), one("pspnet")
    whole = combine_loaded(*parts, NO_THRESHOLDS).model
    assert [rule.resize.short for rule in (whole.input, *whole.further_inputs())] == [64, 48]
    photos = [Shapes(1, 90, 130, seed=1)[0].image, Shapes(1, 61, 64, seed=2)[0].image]
    settings = Inference(torch.device("cpu"), batch_size=2)
    found = [list(infer(prepare(model, settings), photos, settings)) for model in (whole, parts[0][0], parts[1][0])]
    for joined, objects, classes in zip(*found, strict=True):
        assert torch.equal(joined.semantic, classes.semantic)
        assert torch.equal(joined.instances.masks, objects.instances.masks)
        assert torch.equal(joined.instances.scores, objects.instances.scores)
    same = combine_loaded(one("mask_rcnn"), one("pspnet", short=64, long=200), NO_THRESHOLDS).model
    assert same.further_inputs() == (same.semantic.input,)  # another filter or divisor is another input
    assert small("combined").further_inputs() != ()


def test_views_cannot_be_averaged() -> None:
    whole = combine_loaded(one("mask_rcnn"), one("pspnet"), NO_THRESHOLDS).model
    with pytest.raises(PansightError, match=r"flip, scales, window: expected a model of semantic maps"):
        prepare(whole, Inference(torch.device("cpu"), flip=True))


# --- classes ---------------------------------------------------------------------------------------------------------

FEW = LabelSpace.from_names(["triangle", "circle"], ["ground"])
OTHER = LabelSpace.from_names(["lamp", "circle"], ["water", "background", "meadow"])


def test_classes_are_matched_by_name(caplog: pytest.LogCaptureFixture) -> None:
    """Networks of other classes, in another order, keep their own; the whole has things of one and stuff of another."""
    objects, maps = one("mask_rcnn", FEW), one("pspnet", OTHER)
    whole = combine_loaded(objects, maps, NO_THRESHOLDS)
    assert whole.model.labels.names == ("triangle", "circle", "water", "background", "meadow")
    assert [c.source_id for c in whole.model.labels] == [1, 2, 3, 4, 5]
    assert len(whole.notes) == 2
    assert "things that only the semantic side knows, whose pixels stay void: lamp" in whole.notes[0]
    assert "stuff that only the instance side knows, which is never found: ground" in whole.notes[1]
    photo, settings = Shapes(1, 90, 130, seed=1)[0].image, Inference(torch.device("cpu"))
    found: list[Prediction] = []
    for model in (whole.model, objects[0], maps[0]):
        found += infer(prepare(model, settings), [photo], settings)
    joined, alone, classes = found
    assert joined.instances is not None
    assert alone.instances is not None
    names = [whole.model.labels.names[label] for label in joined.instances.labels.tolist()]
    assert names == [FEW.names[label] for label in alone.instances.labels.tolist()]
    assert joined.semantic is not None
    assert classes.semantic is not None
    expected = {"lamp": -1} | {c.name: c.id for c in whole.model.labels}
    table = torch.tensor([expected[name] for name in OTHER.names])
    assert torch.equal(joined.semantic, table[classes.semantic])
    predictors = [pansight.Predictor(*part, device="cpu") for part in (objects, maps)]
    assert pansight.combine_models(predictors[0], predictors[1]).labels == whole.model.labels
    assert "lamp" in caplog.text


def test_equal_classes_stay_as_they_are() -> None:
    whole = combine_loaded(one("mask_rcnn"), one("pspnet"), NO_THRESHOLDS)
    assert whole.model.labels == LABELS
    assert not any(key.endswith("_classes") for key in whole.options)
    assert whole.notes == ()


def test_it_learns_in_the_classes_of_each_network(tmp_path: Path) -> None:
    """What a network does not know is void to it; saved and loaded, it is the same model."""
    whole = combine_loaded(one("mask_rcnn", FEW), one("pspnet", OTHER), NO_THRESHOLDS)
    labels = LabelSpace.from_names(["triangle", "circle"], ["water", "background", "meadow"])
    data = Shapes(2, 96, 96, seed=3)
    names = {"circle": 1, "triangle": 0, "square": 0, "background": 3}
    batch = shapes_batch()
    truths = tuple(
        PanopticSegmentation(
            t.ids, tuple(s._replace(category=names.get(data.labels[s.category].name, 3)) for s in t.segments)
        )
        for t in batch.truths
    )
    batch = type(batch)(batch.images, batch.valid, batch.sizes, truths, batch.image_ids, batch.instances)
    assert whole.model.labels.names == labels.names
    losses = whole.model.train().loss(batch)
    assert {key.partition("_")[0] for key in losses} == {"instances", "semantic"}
    assert all(value.isfinite() for value in losses.values())
    counts = whole.model.counts(batch)
    thing_pixels = sum(int((t.ids == s.id).sum()) for t in truths for s in t.segments if s.category == 0)
    of_all = sum(int((t.ids > 0).sum()) for t in truths)
    assert thing_pixels > 0
    assert int(counts["semantic_pixels"]) == of_all - thing_pixels  # triangle is none of its classes
    save_model(tmp_path / "saved", whole.model, whole.name, whole.options)
    model, name, options = load_model(tmp_path / "saved")
    assert (name, options["semantic_classes"]) == ("combined", [-1, 1, 2, 3, 4])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole.model.state_dict().values()))
    assert model.semantic.input.resize == whole.model.semantic.input.resize


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            FEW,
            LabelSpace.from_names(["ground"], ["circle"]),
            r"class 'triangle'|class 'circle': expected a thing in both",
        ),
        (
            LabelSpace.from_names(["a"], ["b"]),
            LabelSpace.from_names(["b"], ["c"]),
            r"class 'b': .*found stuff of the ins",
        ),
    ],
)
def test_contradictions_are_a_line(first: LabelSpace, second: LabelSpace, message: str) -> None:
    with pytest.raises(PansightError, match=message) as caught:
        combine_loaded(one("mask_rcnn", first), one("pspnet", second), {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"instances": "pspnet"},
            "instances of model combined: expected a model of instances and panoptic, found pspnet",
        ),
        ({"instances": "faster_rcnn"}, "expected a model of instances and panoptic, found faster_rcnn"),
        ({"semantic": "mask_rcnn"}, "semantic of model combined: expected a model of semantic, found mask_rcnn"),
        ({"semantic": "pspent"}, "unknown semantic of model combined: 'pspent'; known: .*did you mean 'pspnet'"),
        ({"instances": "combined"}, "found combined, which is none"),
        ({"semantic_options": {"widht": 8}}, "semantic_options of model combined: .*unknown option of model pspnet"),
        (
            {"instances_options": {"mask_convs": 0}},
            "instances_options of model combined: mask_convs of model mask_rcnn",
        ),
        ({"semantic_classes": [0, 0]}, "semantic_classes of model combined"),
        ({"score_threshold": 2}, "score_threshold of model combined: expected a number, 0 … 1, found 2"),
    ],
)
def test_bad_options_are_a_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PansightError, match=message):
        build("combined", LABELS, **options)


def test_models_of_several_tasks_may_be_either(tmp_path: Path) -> None:
    """A query model is told its task."""
    options = {"instances": "mask2former", "instances_options": SMALL["mask2former"]}
    options |= {"semantic": "mask2former", "semantic_options": SMALL["mask2former"]}
    assert check_options("combined", options)
    model: Any = build("combined", LABELS, **options, score_threshold=0.0, min_stuff_area=0)
    batch = shapes_batch()
    with torch.inference_mode():
        found = model.eval().decode(model(batch.images, batch.valid), batch.sizes)
    assert all(None not in (each.panoptic, each.semantic, each.instances) for each in found)


def test_weights_of_other_classes_start_it(tmp_path: Path) -> None:
    """Class rows of both networks are kept by name."""
    model = small("combined", LabelSpace.from_names(["circle"], ["sky", "background"]))
    save_model(tmp_path / "old", model, "combined", SMALL["combined"])
    tuned, _, options, lines = make_model(ModelConfig("combined", weights=str(tmp_path / "old")), LABELS)
    old, new = model.state_dict(), tuned.state_dict()
    key = (
        "semantic.head.3.bias"
        if "semantic.head.3.bias" in old
        else next(k for k in old if "semantic.head" in k and k.endswith("bias") and old[k].shape == (3,))
    )
    assert new[key][LABELS.by_name()["circle"].id] == old[key][0]
    assert new[key][LABELS.by_name()["background"].id] == old[key][2]
    head = "instances.rcnn.box_predictor.cls_score.bias"
    assert new[head][LABELS.by_name()["circle"].id] == old[head][0]
    assert any("2 classes kept: circle, background" in line for line in lines)
    assert options["instances_options"]["mask_convs"] == 1


def test_open_options_of_both_networks_are_chosen() -> None:
    """As if each were trained alone; what is given stays."""
    given = {"model.name": "combined", "model.options.semantic_options.width": 8, "data.source": "shapes"}
    config, choices = choose(override(Config(), given), Shapes(4, 96, 128), torch.device("cpu"))
    chosen = {choice.key: choice.value for choice in choices}
    assert chosen["model.options.instances_options.short"] == chosen["model.options.semantic_options.short"] == 0
    assert "model.options.semantic_options.width" not in chosen
    assert config.model.options["semantic_options"]["width"] == 8
    assert config.model.options["instances_options"]["mask_channels"] == 96
    assert "model.options.min_stuff_area" in chosen
    assert config.model.backbone == "auto"


# --- the whole way ---------------------------------------------------------------------------------------------------

SETTINGS = {"--data.options.count": 6, "--data.options.height": 64, "--data.options.width": 64, "--data.workers": 0}
SETTINGS |= {"--data.validation-options.count": 2, "--train.batch-size": 2, "--train.lr": 0.003, "--train.trackers": ""}
SETTINGS |= {"--train.steps": 6, "--train.precision": "fp32", "--train.evaluate-every": 0}
TINY = [
    (f"--model.options.{part}-options.{key.replace('_', '-')}", json.dumps(value).strip('"'))
    for part in ("instances", "semantic")
    for key, value in SMALL["combined"][f"{part}_options"].items()
]


@pytest.mark.slow
def test_from_training_to_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained jointly, evaluated, predicted, exported and compared."""
    out = tmp_path / "run"
    settings = [*SETTINGS.items(), *TINY]
    run("train", "--model", "combined", "--data", "shapes", "--out", out, *(word for pair in settings for word in pair))
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = next(row for row in log if row["kind"] == "train")
    assert any("semantic_" in key for key in json.dumps(losses).split('"'))
    record = json.loads((out / "evaluation.json").read_text())
    assert {"All", "semantic", "instances", "machine"} <= record.keys()
    assert record["machine"]["separate"]["miou"] == record["semantic"]["miou"]
    assert record["machine"]["panoptic"]["pq"] == record["All"]["pq"]
    run("evaluate", out, "--out", tmp_path / "again")
    said = capsys.readouterr().out
    assert "machine-separate" in said
    assert "machine-panoptic" in said
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text())["All"] == record["All"]
    photo = tmp_path / "photo.png"
    write_png(photo, Shapes(1, 70, 90, seed=9)[0].image.permute(1, 2, 0).numpy())
    run("predict", out, photo, "--out", tmp_path / "found")
    assert (tmp_path / "found" / "predictions.json").is_file()
    run("export", out, "--to", "folder", "--out", tmp_path / "saved")
    a, b = (pansight.load(folder, device="cpu").predict(photo).panoptic for folder in (out, tmp_path / "saved"))
    assert a is not None
    assert b is not None
    assert segments_of(a) == segments_of(b)
    run("compare", out, tmp_path / "again", "--out", tmp_path / "compared.html")


@pytest.mark.slow
def test_two_runs_become_one_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in SIZES:
        save_model(tmp_path / name, *one(name))
    words = (
        "combine",
        "--instances",
        tmp_path / "mask_rcnn",
        "--semantic",
        tmp_path / "pspnet",
        "--out",
        tmp_path / "c",
    )
    run(*words, "--min-stuff-area", 7)
    assert "pansight.load(" in capsys.readouterr().out
    _, name, options = load_model(tmp_path / "c")
    assert (name, options["min_stuff_area"]) == ("combined", 7)
    run(*words, code=2)
    assert "expected no model yet, found one; add --overwrite" in capsys.readouterr().err
    run(*words, "--overwrite")
    run(*words, "--gt", tmp_path / "x.json", code=2)
    assert "--gt: expected predictions, found two models" in capsys.readouterr().err
    run(*words[:3], "--semantic", tmp_path / "x.json", "--out", tmp_path / "d", code=2)
    assert "expected two models, or predictions of two" in capsys.readouterr().err


def test_networks_of_more_than_a_thousand_classes(tmp_path: Path) -> None:
    """As many as LVIS has; what is saved can be loaded."""
    many = LabelSpace.from_names([f"thing {n}" for n in range(1203)], ["ground"])
    few = LabelSpace.from_names([], ["ground", "sky"])
    whole = combine_loaded(one("mask_rcnn", many, box_features=4), one("pspnet", few), NO_THRESHOLDS)
    save_model(tmp_path / "saved", whole.model, whole.name, whole.options)
    model, _, _ = load_model(tmp_path / "saved")
    assert len(model.labels) == 1205
    assert model.labels == whole.model.labels
