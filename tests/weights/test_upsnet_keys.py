"""UPSNet's files, generated in their published layout: every tensor is loaded, and into the right place."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pansight.errors import PansightError
from pansight.models import build
from pansight.types import LabelSpace
from pansight.weights import _recognised, load_model
from pansight.weights.keys import rename
from pansight.weights.official.panoptic.upsnet import IGNORED, RULES, load

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
Shapes = dict[str, tuple[int, ...]]


def backbone(depth: int, is_deformable: bool) -> Shapes:
    shapes: Shapes = {}

    def conv(name: str, norm: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (out, into, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (out,)

    conv("resnet_backbone.conv1.conv1", "resnet_backbone.conv1.bn1", 64, 3, 7)
    into = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        width, out = 64 * 2**stage, 256 * 2**stage
        for block in range(blocks):
            name = f"resnet_backbone.res{stage + 2}.layers.{block}"
            if block == 0:
                conv(f"{name}.downsample.0", f"{name}.downsample.1", out, into, 1)
            conv(f"{name}.conv1", f"{name}.bn1", width, into, 1)
            if is_deformable and stage:
                shapes |= {f"{name}.conv2_offset.weight": (18, width, 3, 3), f"{name}.conv2_offset.bias": (18,)}
            conv(f"{name}.conv2", f"{name}.bn2", width, width, 3)
            conv(f"{name}.conv3", f"{name}.bn3", out, width, 1)
            into = out
    return shapes


def layout(depth: int = 50, things: int = 80, stuff: int = 53, gap: bool = True, deformable: bool = False) -> Shapes:
    """gap: of the COCO models, which also have three convolutions in their semantic branch, not two."""
    layers: Shapes = {f"fpn.fpn_p{k}_1x1": (256, 64 * 2**k, 1, 1) for k in (5, 4, 3, 2)}
    layers |= {f"fpn.fpn_p{k}": (256, 256, 3, 3) for k in (5, 4, 3, 2)}
    layers |= {"fpn.fpn_gap": (256, 2048)} if gap else {}
    layers |= {"rpn.conv_proposal.0": (256, 256, 3, 3), "rpn.cls_score": (3, 256, 1, 1)}
    layers |= {"rpn.bbox_pred": (12, 256, 1, 1), "rcnn.fc6.0": (1024, 12544), "rcnn.fc7.0": (1024, 1024)}
    layers |= {"rcnn.cls_score": (things + 1, 1024), "rcnn.bbox_pred": (4 * things + 4, 1024)}
    layers |= {f"mask_branch.mask_conv{k}.0": (256, 256, 3, 3) for k in range(1, 5)}
    layers |= {"mask_branch.mask_deconv1.0": (256, 256, 2, 2), "mask_branch.mask_score": (things + 1, 256, 1, 1)}
    widths = [256, 256, 128, 128] if gap else [256, 128, 128]
    for k, (into, out) in enumerate(itertools.pairwise(widths)):
        layers[f"fcn_head.fcn_subnet.conv.{k}.0.conv_offset"] = (18, into, 3, 3)
        layers[f"fcn_head.fcn_subnet.conv.{k}.0.conv"] = (out, into, 3, 3)
    layers["fcn_head.score"] = (things + stuff, 512, 1, 1)
    shapes = backbone(depth, deformable)
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}
    return shapes


def filled(shapes: Shapes) -> dict[str, Tensor]:
    """A number of its own in every tensor, at little memory."""
    return {name: torch.full((1,), float(k)).expand(shape) for k, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ({}, 46_129_904),
        ({"things": 8, "stuff": 11, "gap": False}, 44_527_804),
        ({"depth": 101, "deformable": True}, 66_408_204),
    ],
)
def test_the_generated_layouts_have_the_published_numbers_of_parameters(shape: dict[str, Any], count: int) -> None:
    learned = [s for name, s in layout(**shape).items() if "running" not in name]
    assert sum(torch.Size(s).numel() for s in learned) == count


@pytest.mark.slow  # networks of full size
@pytest.mark.parametrize(
    ("shape", "name", "options"),
    [
        ({}, "upsnet_r50_coco", {}),
        ({"depth": 101, "deformable": True}, "upsnet_r101_dcn_coco", {}),
        ({"depth": 101}, "upsnet_r50_coco", {"backbone": "resnet101"}),
        ({"things": 8, "stuff": 11, "gap": False}, "upsnet_r50_cityscapes", {}),
        ({"depth": 101, "things": 8, "stuff": 11, "gap": False}, "upsnet_r101_cityscapes", {}),
        ({"things": 3, "stuff": 0, "gap": False, "deformable": True}, "upsnet_r50_cityscapes", {"deformable": True}),
    ],
)
def test_every_tensor_has_its_place(shape: dict[str, Any], name: str, options: dict[str, Any]) -> None:
    state = filled(layout(**shape))
    model, found, given = load(state, "upsnet.pth")
    assert (found, given) == (name, options)
    assert not model.training
    assert len(model.labels.things) == shape.get("things", 80)
    assert len(model.labels.stuff) == shape.get("stuff", 53)
    ours = rename(state, RULES, IGNORED, "upsnet.pth")
    assert len(ours) == len(state)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, ours[key]), key
    where = {
        "rpn.bbox_pred.bias": "rcnn.rpn.deltas.bias",
        "rcnn.fc6.0.bias": "rcnn.box_head.fc6.bias",
        "rcnn.cls_score.bias": "rcnn.box_predictor.cls_score.bias",
        "mask_branch.mask_conv4.0.bias": "rcnn.mask_head.conv.3.bias",
        "fpn.fpn_p5_1x1.bias": "fpn.lateral.3.bias",
        "fpn.fpn_p2.bias": "fpn.output.0.bias",
        "fcn_head.fcn_subnet.conv.1.0.conv_offset.bias": "semantic_head.convs.1.offset.bias",
        "fcn_head.score.bias": "semantic_head.predictor.bias",
        "resnet_backbone.res4.layers.0.downsample.1.bias": "backbone.features.layer3.0.downsample.1.bias",
        "resnet_backbone.res5.layers.2.bn3.weight": "backbone.features.layer4.2.bn3.weight",
    }
    for theirs, mine in where.items():
        assert torch.equal(model.state_dict()[mine], state[theirs]), theirs


@pytest.mark.slow
def test_a_file_of_a_network_on_several_cards(tmp_path: Path) -> None:
    path = tmp_path / "upsnet_resnet_50_cityscapes_12000.pth"
    state = {f"module.{key}": value.clone() for key, value in filled(layout(50, 8, 11, gap=False)).items()}
    state["module.resnet_backbone.conv1.bn1.num_batches_tracked"] = torch.tensor(1)
    torch.save(state, path)
    model, name, _ = load_model(path)
    path.unlink()
    assert name == "upsnet_r50_cityscapes"
    assert model.labels.names[0] == "person"
    assert torch.equal(model.fpn.lateral[0].bias, state["module.fpn.fpn_p2_1x1.bias"])


def test_the_layout_is_recognised_and_others_are_refused() -> None:
    state = filled(layout())
    assert _recognised(state, "x") == ("UPSNet", state)
    with pytest.raises(PansightError, match=r"fcn_head\.extra\.weight"):
        load({**state, "fcn_head.extra.weight": torch.zeros(1)}, "x")
    missing = {key: value for key, value in state.items() if key != "rpn.cls_score.bias"}
    with pytest.raises(PansightError, match=r"rcnn\.rpn\.objectness\.bias"):
        load(missing, "x")
    with pytest.raises(PansightError, match="heads of one set of classes"):
        load({**state, "fcn_head.score.weight": torch.zeros(40, 512, 1, 1)}, "x")


def test_classes_are_numbered_stuff_first() -> None:
    """The row of a class by its name, in each head with such rows."""
    from pansight.models import entry

    labels = LabelSpace.from_names(["cat", "dog"], ["sky"])
    rows = {module: list(names(labels)) for module, names in entry("upsnet_r50_coco").class_rows.items()}
    assert rows["semantic_head.predictor"] == ["sky", "cat", "dog"]
    assert rows["rcnn.mask_head.predictor"] == ["(background)", "cat", "dog"]
    assert rows["rcnn.box_predictor.bbox_pred"] == ["(background)"] * 4 + ["cat"] * 4 + ["dog"] * 4
    model: Any = build("upsnet", labels, backbone="resnet10t", fpn_channels=8, box_features=8, mask_channels=8)
    assert model.class_of_category == [1, 2, 0]
    for module, names in rows.items():
        assert model.get_submodule(module).weight.shape[0] == len(names), module
