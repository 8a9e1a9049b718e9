"""Objects of a semantic network: asked for by an option of its decode, they go the whole way to the figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pansight
from pansight.apps.cli import main
from pansight.config import read_config
from pansight.data.formats.shapes import LABELS, Shapes
from pansight.data.images import write_png
from pansight.engine.infer import Inference, class_scores, infer, prepare
from pansight.models import MODELS, build
from pansight.types import IGNORE

SEMANTIC = [name for name, entry in MODELS.items() if entry.produces == ("semantic",) and entry.tiny]
CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", SEMANTIC)
@pytest.mark.parametrize("views", [{}, {"flip": True}, {"scales": (0.5, 1.0)}])
def test_components_of_one_view_and_of_the_mean_of_several(name: str, views: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = build(name, LABELS, **MODELS[name].tiny)
    photo = Shapes(1, 48, 64, seed=3)[0].image
    found: list[pansight.Prediction] = []
    for options in ({}, {"components": True}, {"components": True, "min_area": 10**6}):
        settings = Inference(CPU, decode_options=options, **views)  # type: ignore[arg-type]
        found += infer(prepare(model, settings), [photo], settings)
    plain, objects, large = found
    assert plain.panoptic is plain.instances is None
    assert plain.semantic is not None
    for each in (objects, large):
        assert each.semantic is not None
        assert each.panoptic is not None
        assert each.instances is not None
        assert torch.equal(each.semantic, plain.semantic)
        assert len(each.instances) == sum(LABELS[s.category].is_thing for s in each.panoptic.segments)
        assert all(0 < s.score <= 1 for s in each.panoptic.segments)
    assert len(large.instances) == 0  # type: ignore[arg-type]
    for segment in objects.panoptic.segments:  # type: ignore[union-attr]
        assert (plain.semantic[objects.panoptic.ids == segment.id] == segment.category).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("components", [False, True])
@pytest.mark.parametrize("views", [{}, {"flip": True}])
def test_unsure_pixels_have_no_class(components: bool, views: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = build("unet_original", LABELS, **MODELS["unet_original"].tiny)
    photo = Shapes(1, 48, 64, seed=3)[0].image
    settings = Inference(CPU, **views)  # type: ignore[arg-type]
    best = class_scores(prepare(model, settings), [photo], settings)[0].max(0)
    certainty = float(best.values.median())
    options = {"components": components, "certainty": certainty}
    (found,) = infer(model, [photo], replace(settings, decode_options=options))
    expected = best.indices.masked_fill(best.values < certainty, IGNORE)
    assert found.semantic is not None
    assert torch.equal(found.semantic, expected)
    assert (found.panoptic is not None) == components
    if found.panoptic is not None:
        assert torch.equal(found.panoptic.ids == 0, expected == IGNORE)


def test_from_training_to_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = "--model unet_original --data shapes --train.steps 4 --train.batch-size 2 --data.workers 0 --train.lr 0.01"
    words += " --model.options.width 4 --model.options.depth 1 --train.precision fp32 --train.evaluate-every 0"
    words += " --data.options.count 6 --data.options.height 32 --data.options.width 48 --model.options.border-weight 10"
    words += " --data.validation-options.count 2 --evaluate.decode.components true --evaluate.decode.min-area 4"
    assert main(["train", "--out", str(run), "--train.trackers", "", *words.split()]) == 0
    record = json.loads((run / "evaluation.json").read_text())
    assert {"All", "semantic", "instances"} <= set(record)
    assert read_config(run / "config.toml").evaluate.decode == {"components": True, "min_area": 4}
    photo = tmp_path / "photo.png"
    write_png(photo, Shapes(1, 32, 48, seed=9)[0].image.permute(1, 2, 0).numpy())  # (3, H, W) → (H, W, 3)
    written: dict[str, set[str]] = {}
    for task in ("semantic", "panoptic", "instance"):
        out = tmp_path / task
        assert main(["predict", str(run), str(photo), "--out", str(out), "--task", task]) == 0
        written[task] = {path.name for path in out.iterdir()}
    assert "semantic.json" in written["semantic"]
    assert "predictions.json" in written["panoptic"]
    assert written["instance"] != written["semantic"]
    assert main(["predict", str(run), str(photo), "--out", str(tmp_path / "x"), "--task", "panoptc"]) == 2
    assert "did you mean 'panoptic'" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--out", str(tmp_path / "again"), "--evaluate.decode.min-area", "-1"]) == 2
    assert "min_area" in capsys.readouterr().err
