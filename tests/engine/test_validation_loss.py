"""The loss on measured images: that of training, without learning, chance or statistics; in record, log and report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from pansight import models
from pansight.apps.cli import main
from pansight.apps.pages.report import curves
from pansight.config import AugmentConfig, EvaluateConfig, TrainConfig
from pansight.data import Shapes
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.data.loader import collate
from pansight.engine import distributed
from pansight.engine.assemble import make_transform, square_of
from pansight.engine.evaluate import evaluate
from pansight.engine.evaluate.loss import SEED, loss_batch, validation_loss
from pansight.engine.session import evaluation_row, scalars_of
from pansight.errors import PansightError

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import toy
import toy_semantic

KINDS = ["mask_rcnn", "panoptic_fpn", "detr_panoptic", "eomt", "pspnet", "toy_semantic", "toy"]
"""An instance model, panoptic ones of three families, semantic ones with and without an auxiliary head."""


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])
    monkeypatch.setitem(models.MODELS, "toy_semantic", toy_semantic.ENTRIES["toy"])


def build(name: str, labels, **options) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, labels, **{**models.entry(name).tiny, **options})


def by_hand(model, dataset, chunks) -> float:
    """The mean over the images of what `loss` says of each chunk, in training mode but for the layers."""
    rule = model.input.resize
    transform, divisor = make_transform(AugmentConfig(crop=square_of(rule), hflip=0.0), rule)
    total = 0.0
    for chunk in chunks:
        batch = collate([transform(dataset[k], np.random.default_rng((SEED, k))) for k in chunk], divisor)
        model.train()
        for module in model.modules():
            if module is not model:
                module.train(False)
        distributed.seed_step(SEED, chunk[0], 0)
        with torch.no_grad():
            total += sum(float(value) for value in model.loss(batch).values()) * len(chunk)
    return total / sum(map(len, chunks))


@pytest.mark.parametrize("name", KINDS)
def test_it_is_the_loss_of_training_and_changes_nothing(name):
    dataset = Shapes(3, 64, 64)
    model = build(name, dataset.labels)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    machine = Accelerator(cpu=True)
    found = validation_loss(model, dataset, range(3), 2, machine)
    assert found["total"] == pytest.approx(sum(found["terms"].values()))
    assert found["total"] > 0
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert validation_loss(model, dataset, range(3), 2, machine) == found  # nothing by chance
    assert by_hand(model, dataset, [[0, 1], [2]]) == pytest.approx(found["total"], rel=1e-5)


def test_auxiliary_terms_are_counted_and_dropout_is_not_applied():
    dataset = Shapes(2, 64, 64)
    model = build("pspnet", dataset.labels)
    found = validation_loss(model, dataset, range(2), 2, Accelerator(cpu=True))
    assert set(found["terms"]) == {"semantic", "auxiliary"}
    dropouts = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    for module in dropouts:
        module.p = 0.0
    assert validation_loss(model, dataset, range(2), 2, Accelerator(cpu=True)) == found


def test_a_loss_that_is_not_finite_is_none():
    dataset = Shapes(2, 24, 24)
    model = build("toy", dataset.labels, poison="1")
    found = validation_loss(model, dataset, range(2), 1, Accelerator(cpu=True))
    assert found["total"] is None
    assert found["terms"]["classes"] is None
    assert found["terms"]["size"] > 0
    assert "evaluation/loss" not in scalars_of({"loss": found})
    assert scalars_of({"loss": found})["evaluation/loss/size"] == found["terms"]["size"]


def test_it_stands_in_the_record_where_it_is_asked_for(tmp_path):
    dataset = Shapes(2, 24, 24)
    model, machine = build("toy", dataset.labels), Accelerator(cpu=True)
    without = evaluate(model, dataset, EvaluateConfig(), machine, loss_batch=2)
    with_loss = evaluate(model, dataset, EvaluateConfig(loss=True), machine, tmp_path / "out", loss_batch=2)
    assert "loss" not in without
    assert with_loss["loss"] == validation_loss(model, dataset, range(2), 2, machine)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["loss"] == with_loss["loss"]
    assert with_loss["All"] == without["All"]
    assert evaluation_row(3, with_loss)["metrics"]["loss"] == with_loss["loss"]
    with pytest.raises(PansightError, match=r"evaluate\.loss: expected the classes of the model"):
        evaluate(model, dataset, EvaluateConfig(loss=True), machine, class_map=object(), loss_batch=2)  # type: ignore[arg-type]


def test_images_at_once_are_those_of_a_process_in_training():
    assert loss_batch(TrainConfig(batch_size=16, accumulate=2), 4) == 2
    assert loss_batch(TrainConfig(batch_size=1, accumulate=1), 2) == 1


def test_a_training_logs_it_and_the_report_draws_it(tmp_path, capfd):
    export_coco_panoptic(Shapes(4, 32, 40), tmp_path / "data", "train")
    export_coco_panoptic(Shapes(2, 32, 40, split="val"), tmp_path / "data", "val")
    out = tmp_path / "run"
    settings = {"steps": 4, "batch-size": 2, "lr": 0.01, "evaluate-every": 2, "trackers": "", "log-every": 1}
    given = [word for name, value in settings.items() for word in (f"--train.{name}", str(value))]
    words = ["train", "--model", "toy", "--data", str(tmp_path / "data"), "--out", str(out), *given]
    assert main([*words, "--evaluate.loss"]) == 0
    assert ", loss " in next(line for line in capfd.readouterr().err.splitlines() if line.startswith("step 2: PQ"))
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["metrics"]["loss"]["total"] for row in log if row["kind"] == "evaluation"]
    assert len(losses) == 2
    chart = curves(log)[0]
    assert [series["name"] for series in chart["series"]][:2] == ["total", "total, validation"]
    assert [value for _, value in chart["series"][1]["points"]] == [round(value, 6) for value in losses]
    assert "total, validation" in (out / "report.html").read_text()
    facts = json.loads((out / "run.json").read_text())
    model = build("toy", Shapes(1).labels)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["stopped_by"] == "steps"
    assert facts["memory_bytes"] > 2**20
    # measuring it again with the loss is no other evaluation
    assert main(["evaluate", str(out), "--evaluate.loss"]) == 0
