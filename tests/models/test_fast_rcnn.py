"""Fast R-CNN: regions that are given, regions that a frozen detector proposes, and none at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from contract import LABELS, SMALL, shapes_batch, small
from steps import fixed_draws, step, uneven_batch
from test_overfit import train

from pansight.config import ModelConfig
from pansight.data.formats.shapes import Shapes
from pansight.engine.assemble import make_model
from pansight.engine.infer import GivenProposals, Inference, infer, prepare
from pansight.errors import PansightError
from pansight.metrics import AveragePrecision
from pansight.models import build
from pansight.ops.targets import boxes_of_ids
from pansight.types import Batch, LabelSpace, Sample
from pansight.weights import load_model, save_model

TINY = {key: value for key, value in SMALL["fast_rcnn"].items() if not key.startswith("proposer")}


def given(**options: Any) -> Any:
    torch.manual_seed(0)
    return build("fast_rcnn", LABELS, **{**TINY, **options})


def with_regions(batch: Batch, count: int = 12) -> Batch:
    """Random regions for each image."""
    drawn = torch.Generator().manual_seed(3)
    corners = [torch.rand(count, 2, 2, generator=drawn).sort(1).values.flatten(1) for _ in batch.sizes]
    return replace(batch, proposals=tuple(corners))


def test_given_regions_train_and_predict() -> None:
    model, batch = given().train(), with_regions(shapes_batch())
    assert isinstance(model, GivenProposals)
    assert model.needs_proposals
    losses = model.loss(batch)
    assert set(losses) == {"box_class", "box_regression"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.inference_mode():
        found = model.eval().decode(model(batch.images, batch.valid, batch.proposals), batch.sizes)
    assert all(each.instances is not None and len(each.instances) for each in found)


def test_shares_are_of_the_image_without_its_padding() -> None:
    """A region of the left half of a photo 60 pixels wide ends at 30, whatever it is padded to; the best are kept."""
    model = given(proposals=2).eval()
    images = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    extents = torch.tensor([[40, 60], [64, 96]])
    regions = torch.tensor([[0.0, 0, 0.5, 1], [0.5, 0.5, 1, 1], [0, 0, 1, 1]])
    found = model._regions(images, None, extents, [regions, torch.tensor([[0.2, 0.2, 0.2, 0.9]])])
    assert found.boxes_xyxy.tolist() == [[0, 0, 30, 40], [30, 20, 60, 40]]  # the last one of all has no area
    assert found.image_index.tolist() == [0, 0]


def test_without_regions_a_line_says_what_to_do() -> None:
    model, batch = given(), shapes_batch()
    for call in (lambda: model(batch.images), lambda: model.loss(batch)):
        with pytest.raises(PansightError, match="fast_rcnn: expected regions for each of 2 images, found none for 2"):
            call()
    batch = replace(batch, proposals=(torch.rand(0, 4), None))
    with pytest.raises(PansightError, match="found none for 1"):
        model.loss(batch)


def test_images_without_any_region_train_and_predict() -> None:
    """Nothing is proposed: training has the true boxes, a prediction nothing."""
    model, batch = given().train(), replace(shapes_batch(), proposals=(torch.zeros(0, 4),) * 2)
    sum(model.loss(batch).values()).backward()
    with torch.inference_mode():
        found = model.eval().decode(model(batch.images, batch.valid, batch.proposals), batch.sizes)
    assert [len(each.instances) for each in found] == [0, 0]


def test_a_step_with_given_regions_in_parts_is_the_whole_step() -> None:
    model, batch, machine = given().train(), with_regions(uneven_batch()), Accelerator(cpu=True)
    whole, terms = step(model, batch, 1, machine)
    parts, terms_of_parts = step(model, batch, 4, machine)
    assert terms_of_parts == pytest.approx(terms, rel=1e-5)
    for key, gradient in whole.items():
        torch.testing.assert_close(parts[key], gradient, rtol=1e-4, atol=1e-6)


def test_a_proposer_stays_as_it_is() -> None:
    model, batch = small("fast_rcnn").train(), shapes_batch()
    assert not model.needs_proposals
    assert not any(module.training for module in model.proposer.modules())
    assert not any(p.requires_grad for p in model.proposer.parameters())
    before = {key: value.clone() for key, value in model.proposer.state_dict().items()}
    assert {"input.mean", "input.scale"} <= before.keys()
    sum(model.loss(batch).values()).backward()
    assert all(p.grad is None for p in model.proposer.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.proposer.state_dict().items())


def test_given_regions_go_before_the_proposer() -> None:
    model, batch = small("fast_rcnn").eval(), shapes_batch()
    regions = torch.tensor([[0.1, 0.1, 0.6, 0.6]])
    extents = torch.tensor([[96, 96]] * 2)
    found = model._regions(batch.images, batch.valid, extents, [regions, None])
    assert found.boxes_xyxy[found.image_index == 0].flatten().tolist() == pytest.approx([9.6, 9.6, 57.6, 57.6])
    alone = model._regions(batch.images, batch.valid, extents, [])
    torch.testing.assert_close(found.boxes_xyxy[found.image_index == 1], alone.boxes_xyxy[alone.image_index == 1])


def test_the_first_stage_of_a_trained_detector(tmp_path: Path) -> None:
    """Its regions are those of the detector itself, before and after saving, for other classes and other statistics."""
    torch.manual_seed(1)
    options = SMALL["mask_rcnn"]
    detector: Any = build("mask_rcnn", LabelSpace.from_names(["x", "y"]), **options).eval()
    detector.input.mean += 10
    save_model(
        tmp_path / "rpn", detector, "mask_rcnn", {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    )
    config = ModelConfig("fast_rcnn", options=TINY | {"proposer_weights": str(tmp_path / "rpn"), "proposals": 40})
    model, name, settled, lines = make_model(config, LABELS)
    assert "proposer_weights" not in settled
    assert settled["proposer"] == "mask_rcnn"
    assert any("the first stage of mask_rcnn" in line for line in lines)
    batch, extents = shapes_batch(), torch.tensor([[96, 96]] * 2)
    with torch.inference_mode():
        features, _ = detector._features(batch.images, None)
        expected = detector.rcnn.rpn.propose(detector.rcnn.rpn(features), extents, training=False)
        torch.testing.assert_close(model._regions(batch.images, None, extents, []).boxes_xyxy, expected.boxes_xyxy)
        save_model(tmp_path / "fast", model, name, settled)
        (tmp_path / "rpn").rename(tmp_path / "gone")  # the saved model needs it no more
        loaded, _, _ = load_model(tmp_path / "fast")
        torch.testing.assert_close(loaded._regions(batch.images, None, extents, []).boxes_xyxy, expected.boxes_xyxy)
        torch.testing.assert_close(loaded(batch.images).detections, model.eval()(batch.images).detections)


def test_weights_bring_their_proposer_and_another_one_goes_before_it(tmp_path: Path) -> None:
    first = small("fast_rcnn")
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in SMALL["fast_rcnn"].items()}
    save_model(tmp_path / "fast", first, "fast_rcnn", options)
    detector = small("faster_rcnn", seed=5)
    of_detector = {k: list(v) if isinstance(v, tuple) else v for k, v in SMALL["faster_rcnn"].items()}
    save_model(tmp_path / "rpn", detector, "faster_rcnn", of_detector)
    again = make_model(ModelConfig("fast_rcnn", weights=str(tmp_path / "fast")), LABELS)[0]
    key = "objectness.weight"
    assert torch.equal(again.proposer.rpn.state_dict()[key], first.proposer.rpn.state_dict()[key])
    asked = ModelConfig(
        "fast_rcnn", weights=str(tmp_path / "fast"), options={"proposer_weights": str(tmp_path / "rpn")}
    )
    other = make_model(asked, LABELS)[0]
    assert torch.equal(other.proposer.rpn.state_dict()[key], detector.rcnn.rpn.state_dict()[key])
    head = "box_predictor.cls_score.weight"
    assert torch.equal(other.rcnn.state_dict()[head], first.rcnn.state_dict()[head])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proposer": "eomt"}, "unknown proposer of model fast_rcnn: 'eomt'; known: .*faster_rcnn"),
        ({"proposer": "fcis"}, "proposer of model fast_rcnn: expected a detector with region proposals.*found fcis"),
        ({"proposer": "faster_rcnn", "proposer_options": {"backbone": "resnot"}}, "proposer_options.*unknown backbone"),
        ({"proposer_options": {"backbone": "resnet18"}}, "proposer_options of model fast_rcnn: expected a proposer"),
        ({"proposer_weights": "no/where"}, "proposer_weights of model fast_rcnn.*nothing at no/where"),
    ],
)
def test_what_cannot_propose_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PansightError, match=message):
        given(**options)


def test_counts_are_those_of_the_loss() -> None:
    model, batch = given().train(), with_regions(shapes_batch())
    with fixed_draws(), torch.no_grad():
        assert model.loss(batch).keys() == model.loss(batch, model.counts(batch)).keys()
        assert set(model.counts(batch)) == {"regions", "objects"}


class Near:
    """Generated images, each with regions near its objects and anywhere."""

    def __init__(self, dataset: Shapes):
        self.dataset, self.labels = dataset, dataset.labels

    def __len__(self) -> int:
        return len(self.dataset)

    def image_id(self, index: int) -> str | int:
        return self.dataset.image_id(index)

    def file_name(self, index: int) -> str:
        return self.dataset.file_name(index)

    def __getitem__(self, index: int) -> Sample:
        sample, drawn = self.dataset[index], torch.Generator().manual_seed(index)
        things = [s.id for s in sample.truth.segments if self.labels[s.category].is_thing]
        boxes = boxes_of_ids(sample.truth.ids, torch.tensor(things)).repeat(8, 1)
        boxes = boxes + 4 * torch.randn(boxes.shape, generator=drawn)
        anywhere = (96 * torch.rand(40, 2, 2, generator=drawn)).sort(1).values.flatten(1)
        shares = (torch.cat((boxes, anywhere)) / 96).clamp(0, 1)
        return replace(sample, proposals=shares[(shares[:, 2:] > shares[:, :2] + 0.02).all(1)])


@pytest.mark.slow
@pytest.mark.long
def test_eight_images_are_memorised_from_given_regions() -> None:
    torch.manual_seed(0)
    dataset = Near(Shapes(8, 96, 96, seed=0))
    options = {"backbone": "tf_efficientnet_lite0", "pretrained": "packaged", "short": 0, "long": 0, "fpn_channels": 64}
    options |= {"region_size": 84.0, "roi_samples": 32, "detections": 20, "box_features": 128}
    model: Any = build("fast_rcnn", dataset.labels, **options)
    train(model, dataset, 200, 1.5e-3, 4)
    metric, settings = AveragePrecision(dataset.labels), Inference(torch.device("cpu"), batch_size=4)
    samples = [dataset[index] for index in range(8)]
    regions = [sample.proposals for sample in samples]
    for found, sample in zip(infer(prepare(model, settings), [s.image for s in samples], settings, regions), samples):
        metric.update(found, sample)
    assert metric.compute()["box"]["ap"] >= 0.8
