"""Fine-tuning on other classes: what is general is kept, class heads follow the names of the classes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from small_models import CASES
from torch import nn

from pansight.errors import PansightError
from pansight.models import MODELS, build
from pansight.models.contract import every_class_and_no_object
from pansight.nn.rcnn.two_stage import detectron2_rcnn, torchvision_rcnn
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
FPN, MASK, TORCHVISION = (MODELS[name] for name in ("panoptic_fpn", "mask_rcnn", "mask_rcnn_r50_tv"))
HEADS = {"predictor.class_embed": every_class_and_no_object, "class_head": every_class_and_no_object}
QUERY = replace(MODELS["mask2former"], class_rows=HEADS)
"""The entry of `QueryModel`."""


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
    report = transfer(target, source.state_dict(), SOURCE, TARGET, FPN)
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
    assert str(report).splitlines() == [
        f"{len(new)} tensors kept, 0 dropped, 0 new",
        "  3 classes kept: dog, person, road",
        "  2 classes dropped: car, sky",
        "  3 classes new: tree, grass, water",
    ]


def test_equal_shapes_with_other_classes_are_not_taken_over() -> None:
    """Same number of classes, none in common: the heads must stay new but for the background."""
    other = LabelSpace.from_names(["x", "y", "z"], ["u", "v"])
    source = randomised(build("panoptic_fpn", SOURCE, **PANOPTIC))
    target = randomised(build("panoptic_fpn", other, **PANOPTIC))
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    report = transfer(target, source.state_dict(), SOURCE, other, FPN)
    for key in ("rcnn.box_predictor.bbox_pred.weight", "rcnn.mask_head.predictor.bias"):
        assert torch.equal(target.state_dict()[key], before[key])
        assert key in report.new
        assert key in report.dropped


class Heads(nn.Module):
    def __init__(self, rcnn: nn.Module):
        super().__init__()
        self.rcnn = rcnn


def test_background_first() -> None:
    """torchvision's rows begin with the background, in all three heads."""
    source, target = (randomised(Heads(torchvision_rcnn(len(labels.things)))) for labels in (SOURCE, TARGET))
    transfer(target, source.state_dict(), SOURCE, TARGET, TORCHVISION)
    cls, mask = "rcnn.box_predictor.cls_score.bias", "rcnn.mask_head.predictor.bias"
    for key in (cls, mask):
        old, new = source.state_dict()[key], target.state_dict()[key]
        assert [new[0], new[1], new[3]] == [old[0], old[3], old[1]], key
    box = "rcnn.box_predictor.bbox_pred.bias"
    assert torch.equal(target.state_dict()[box][4:8], source.state_dict()[box][12:16])


def test_from_background_first_to_background_last() -> None:
    """torchvision's weights start the general model: a class stays with its name, not with its row."""
    source, target = Heads(torchvision_rcnn(len(SOURCE.things))), Heads(detectron2_rcnn(len(TARGET.things)))
    before = randomised(target).state_dict()
    before = {key: tensor.clone() for key, tensor in before.items()}
    transfer(target, randomised(source).state_dict(), SOURCE, TARGET, MASK, TORCHVISION)
    old, new = source.state_dict(), target.state_dict()
    cls, mask = "rcnn.box_predictor.cls_score.bias", "rcnn.mask_head.predictor.bias"
    # source: background person car dog; target: dog tree person (background)
    assert torch.equal(new[cls], torch.stack([old[cls][3], before[cls][1], old[cls][1], old[cls][0]]))
    assert torch.equal(new[mask], torch.stack([old[mask][3], before[mask][1], old[mask][1]]))


def test_between_systems_and_sizes() -> None:
    """Mask R-CNN's weights start a Panoptic FPN: the branch that it lacks is new, what it has besides is dropped."""
    mask = build("mask_rcnn", SOURCE, **SMALL)
    panoptic = build("panoptic_fpn", SOURCE, **(PANOPTIC | {"box_features": 24}))
    report = transfer(panoptic, mask.state_dict(), SOURCE, SOURCE, FPN, MASK)
    assert "semantic_head.predictor.weight" in report.new
    assert "rcnn.box_head.fc6.weight" in report.new
    assert "rcnn.box_head.fc6.weight" in report.dropped
    assert "rcnn.mask_head.predictor.weight" in report.kept
    report = transfer(mask, panoptic.state_dict(), SOURCE, SOURCE, MASK, FPN)
    assert "semantic_head.predictor.weight" in report.dropped


class QueryModel(nn.Module):
    """The class heads and queries of DETR, MaskFormer, Mask2Former and EoMT, by their names."""

    def __init__(self, classes: int, queries: int, hidden: tuple[int, ...] = (), width: int = 4):
        super().__init__()
        self.predictor = nn.Module()
        self.predictor.query_embed = nn.Embedding(queries, width)
        self.predictor.query_feat = nn.Embedding(queries, width)
        sizes = [width, *hidden, classes + 1]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.predictor.class_embed = MLP(layers) if hidden else layers[0]
        self.class_head = nn.Linear(width, classes + 1)
        self.level_embed = nn.Embedding(3, width)


class MLP(nn.Module):
    def __init__(self, layers: list[nn.Linear]):
        super().__init__()
        self.layers = nn.ModuleList(layers)


@pytest.mark.parametrize("head", ["predictor.class_embed", "class_head"])
def test_query_models_keep_rows_of_things_and_stuff_by_name(head: str) -> None:
    source, target = randomised(QueryModel(5, 3)), randomised(QueryModel(6, 3))
    before = target.state_dict()[f"{head}.weight"].clone()
    report = transfer(target, source.state_dict(), SOURCE, TARGET, QUERY)
    old, new = source.state_dict()[f"{head}.weight"], target.state_dict()[f"{head}.weight"]
    # source: person car dog sky road; target: dog tree person road grass water; then the row for no object
    expected = [old[2], before[1], old[0], old[4], before[4], before[5], old[5]]
    assert torch.equal(new, torch.stack(expected))
    assert f"{head}.bias [dog, person, road, (no object)]" in report.kept
    assert report.classes_kept == ("dog", "person", "road")
    assert report.classes_dropped == ("car", "sky")
    assert report.classes_new == ("tree", "grass", "water")
    assert report.new == ()
    assert torch.equal(target.predictor.query_feat.weight, source.predictor.query_feat.weight)


def test_of_several_class_layers_only_the_last_one_has_classes() -> None:
    """The hidden sizes are those of a class head by chance: they must be copied as they are."""
    source, target = randomised(QueryModel(5, 3, hidden=(6, 6))), randomised(QueryModel(5, 3, hidden=(6, 6)))
    other = LabelSpace.from_names(["dog", "person", "car"], ["road", "sky"])
    transfer(target, source.state_dict(), SOURCE, other, QUERY)
    old, new = source.state_dict(), target.state_dict()
    for layer in (0, 1):
        key = f"predictor.class_embed.layers.{layer}.weight"
        assert torch.equal(new[key], old[key])
    last = "predictor.class_embed.layers.2.weight"
    assert torch.equal(new[last], old[last][[2, 0, 1, 4, 3, 5]])


def test_a_class_head_is_not_filled_with_a_hidden_layer() -> None:
    """The source's last layer is another than the target's: its rows are no classes there."""
    source, target = QueryModel(5, 3, hidden=(6, 6)), QueryModel(5, 3, hidden=(6,))
    report = transfer(target, source.state_dict(), SOURCE, SOURCE, QUERY)
    assert "predictor.class_embed.layers.1.weight" in report.new
    assert "predictor.class_embed.layers.0.weight" in report.kept


@pytest.mark.parametrize(("before", "after"), [(5, 3), (3, 5)])
def test_another_number_of_queries(before: int, after: int) -> None:
    source, target = randomised(QueryModel(5, before)), randomised(QueryModel(5, after))
    own = target.predictor.query_embed.weight.detach().clone()
    report = transfer(target, source.state_dict(), SOURCE, SOURCE, QUERY)
    found = target.predictor.query_embed.weight
    assert torch.equal(found[:3], source.predictor.query_embed.weight[:3])
    assert torch.equal(found[3:], own[3:])
    title = f"predictor.query_embed.weight [first 3 of {before}, {max(0, after - 3)} new]"
    assert title in report.kept
    assert f"  queries kept: {title}" in str(report).splitlines()
    assert torch.equal(target.level_embed.weight, source.level_embed.weight)


@pytest.mark.parametrize("name", CASES)
def test_systems_keep_everything_but_rows_of_other_classes(name: str) -> None:
    """Nothing but the class head depends on the classes, and every system's class head is known."""
    options = CASES[name][1]
    source = randomised(build(name, SOURCE, **options))
    target = randomised(build(name, TARGET, **(options | {"queries": 7})))
    report = transfer(target, source.state_dict(), SOURCE, TARGET, MODELS[name])
    assert (report.new, report.dropped) == ((), ())
    assert report.classes_kept == ("dog", "person", "road")
    partly = {key.split(" ")[0] for key in report.kept if key.endswith("]")}
    head = "class_head" if name == "eomt" else "class_embed"
    assert {key.split(".")[-2] for key in partly} <= {head, "query_embed", "query_feat", "q"}
    weight = next(key for key in partly if key.endswith(f"{head}.weight"))
    new, old = target.state_dict()[weight], source.state_dict()[weight]
    assert torch.equal(new[[0, 2, 3, 6]], old[[2, 0, 4, 5]])  # dog, person, road, no object
    for key, tensor in source.state_dict().items():
        if key not in partly:
            assert torch.equal(target.state_dict()[key], tensor), key


def test_positions_of_a_vit_at_another_size() -> None:
    class Vit(nn.Module):
        def __init__(self, tokens: int):
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, tokens, 2))

    ramp = torch.arange(4.0).repeat(4, 1)  # by column: the same in every row
    source, target = Vit(16), Vit(64)
    source.pos_embed.data = torch.stack([ramp, ramp.T], -1).reshape(1, 16, 2)
    entry = replace(MODELS["eomt"], positions=("pos_embed",))
    report = transfer(target, source.state_dict(), SOURCE, TARGET, entry)
    assert report.kept == ("pos_embed",)
    columns, rows = target.pos_embed[0].detach().unflatten(0, (8, 8)).unbind(-1)
    assert torch.allclose(columns, rows.T, atol=1e-6)
    assert torch.allclose(columns[0, 2:6], torch.tensor([0.75, 1.25, 1.75, 2.25]), atol=0.05)
    assert torch.allclose(columns, columns[:1].expand(8, 8), atol=1e-6)
    with pytest.raises(PansightError, match="no tensor that fits"):
        transfer(Vit(17), source.state_dict(), SOURCE, TARGET, entry)  # no square: with prefix tokens


def test_long_reports_are_cut() -> None:
    labels = LabelSpace.from_names([f"class {i}" for i in range(40)])
    report = transfer(QueryModel(40, 3), QueryModel(40, 3).state_dict(), labels, labels, QUERY)
    assert "  40 classes kept: class 0, class 1" in str(report)
    assert "class 11 … and 28 more" in str(report)


def test_query_head_with_other_rows_than_its_label_space() -> None:
    three = LabelSpace.from_names(["a", "b", "c"])
    with pytest.raises(PansightError, match=r"class_embed\.weight: expected 4 rows .*, found 6"):
        transfer(QueryModel(5, 3), QueryModel(5, 3).state_dict(), three, SOURCE, QUERY)


def test_faults() -> None:
    model = build("mask_rcnn", TARGET, **SMALL)
    with pytest.raises(PansightError, match="found no tensor that fits"):
        transfer(model, {"a": torch.ones(1)}, SOURCE, TARGET, MASK)
    with pytest.raises(PansightError, match=r"cls_score\.weight: expected 3 rows .*, found 4"):
        transfer(model, model.state_dict(), LabelSpace.from_names(["a", "b"]), TARGET, MASK)
