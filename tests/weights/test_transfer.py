"""Fine-tuning on other classes: what is general is kept, class heads follow the names of the classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pansight.errors import PansightError
from pansight.models import build
from pansight.nn.rcnn import torchvision_rcnn
from pansight.types import LabelSpace
from pansight.weights.transfer import copy_rows, transfer

SOURCE = LabelSpace.from_names(["person", "car", "dog"], ["sky", "road"])
TARGET = LabelSpace.from_names(["dog", "tree", "person"], ["road", "grass", "water"])
SMALL: dict[str, Any] = {
    "backbone": "resnet10t",
    "fpn_channels": 16,
    "box_features": 16,
    "mask_convs": 1,
    "mask_channels": 8,
}
PANOPTIC = SMALL | {"semantic_width": 16}


def randomised(model: Any) -> Any:
    """Biases start at zero: random values show where each row went."""
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def test_copy_rows() -> None:
    source, target = torch.arange(6.0)[:, None], -torch.ones(4, 1)
    result, names = copy_rows(source, ["a", "a", "b", "b", "c", "c"], target, ["c", "c", "x", "a"])
    assert result.flatten().tolist() == [4, 5, -1, 0]
    assert names == ["c", "a"]
    assert target.flatten().tolist() == [-1, -1, -1, -1]


def test_rows_follow_class_names() -> None:
    source = randomised(build("panoptic_fpn", SOURCE, **PANOPTIC))
    target = randomised(build("panoptic_fpn", TARGET, **PANOPTIC))
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    old = {key: tensor.clone() for key, tensor in source.state_dict().items()}
    report = transfer(target, source.state_dict(), SOURCE, TARGET)
    new = target.state_dict()

    cls, box, mask = (
        "rcnn.box_predictor.cls_score.weight",
        "rcnn.box_predictor.bbox_pred.bias",
        "rcnn.mask_head.predictor",
    )
    assert torch.equal(new[cls], torch.stack([old[cls][2], before[cls][1], old[cls][0], old[cls][3]]))
    assert torch.equal(new[box], torch.cat([old[box][8:12], before[box][4:8], old[box][0:4]]))
    assert torch.equal(
        new[f"{mask}.bias"], torch.stack([old[f"{mask}.bias"][2], before[f"{mask}.bias"][1], old[f"{mask}.bias"][0]])
    )
    semantic = "semantic_head.predictor.bias"  # things, road, grass, water
    expected = [old[semantic][0], old[semantic][2], before[semantic][2], before[semantic][3]]
    assert new[semantic].tolist() == [v.item() for v in expected]
    heads = ("cls_score", "bbox_pred", "mask_head.predictor", "semantic_head.predictor")
    for key, tensor in new.items():
        if not any(head in key for head in heads):
            assert torch.equal(tensor, old[key]), key

    assert report.new == ()
    assert report.dropped == ()
    assert len(report.kept) == len(new)
    assert f"{cls} [dog, person, (background)]" in report.kept
    assert str(report).startswith(f"{len(new)} tensors kept, 0 dropped, 0 new\n  rows kept: rcnn.box_predictor")


def test_equal_shapes_with_other_classes_are_not_taken_over() -> None:
    """Same number of classes, none in common: the heads must stay new but for the background."""
    other = LabelSpace.from_names(["x", "y", "z"], ["u", "v"])
    source = randomised(build("panoptic_fpn", SOURCE, **PANOPTIC))
    target = randomised(build("panoptic_fpn", other, **PANOPTIC))
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    report = transfer(target, source.state_dict(), SOURCE, other)
    for key in ("rcnn.box_predictor.bbox_pred.weight", "rcnn.mask_head.predictor.bias"):
        assert torch.equal(target.state_dict()[key], before[key])
        assert key in report.new
        assert key in report.dropped


def test_background_first() -> None:
    """torchvision's rows begin with the background, in all three heads."""

    class Model(nn.Module):
        def __init__(self, labels: LabelSpace):
            super().__init__()
            self.rcnn = torchvision_rcnn(len(labels.things))

    source, target = randomised(Model(SOURCE)), randomised(Model(TARGET))
    transfer(target, source.state_dict(), SOURCE, TARGET)
    cls, mask = "rcnn.box_predictor.cls_score.bias", "rcnn.mask_head.predictor.bias"
    for key in (cls, mask):
        old, new = source.state_dict()[key], target.state_dict()[key]
        assert [new[0], new[1], new[3]] == [old[0], old[3], old[1]], key
    box = "rcnn.box_predictor.bbox_pred.bias"
    assert torch.equal(target.state_dict()[box][4:8], source.state_dict()[box][12:16])


def test_between_systems_and_sizes() -> None:
    """Mask R-CNN's weights start a Panoptic FPN: the branch that it lacks is new, what it has besides is dropped."""
    mask = build("mask_rcnn", SOURCE, **SMALL)
    panoptic = build("panoptic_fpn", SOURCE, **(PANOPTIC | {"box_features": 24}))
    report = transfer(panoptic, mask.state_dict(), SOURCE, SOURCE)
    assert "semantic_head.predictor.weight" in report.new
    assert "rcnn.box_head.fc6.weight" in report.new
    assert "rcnn.box_head.fc6.weight" in report.dropped
    assert "rcnn.mask_head.predictor.weight" in report.kept
    report = transfer(mask, panoptic.state_dict(), SOURCE, SOURCE)
    assert "semantic_head.predictor.weight" in report.dropped


def test_faults() -> None:
    model = build("mask_rcnn", TARGET, **SMALL)
    with pytest.raises(PansightError, match="found no tensor that fits"):
        transfer(model, {"a": torch.ones(1)}, SOURCE, TARGET)
    with pytest.raises(PansightError, match=r"cls_score\.weight: expected 3 rows .*, found 4"):
        transfer(model, model.state_dict(), LabelSpace.from_names(["a", "b"]), TARGET)
