"""Panoptic FCN's files, generated in their published layout: every tensor is loaded, and into the right place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import Shapes, detectron2_resnet
from torch import Tensor

from pansight.errors import PansightError
from pansight.weights import _recognised, load_model
from pansight.weights.keys import rename
from pansight.weights.official.panoptic.panoptic_fcn import IGNORED, RULES, load


def layout(things: int = 80, stuff: int = 54, star: bool = False) -> Shapes:
    """stuff: outputs of the head, that of all things together included."""
    biased: Shapes = {f"backbone.fpn_lateral{k}": (256, 64 * 2**k, 1, 1) for k in range(2, 6)}
    biased |= {f"backbone.fpn_output{k}": (256, 256, 3, 3) for k in range(2, 6)}
    biased |= {f"backbone.top_block.{p}": (256, 256, 3, 3) for p in ("p6", "p7")}
    biased |= {"position_head.out_inst": (things, 256, 3, 3), "position_head.out_sem": (stuff, 256, 3, 3)}
    biased["kernel_head.out_conv"] = (256, 256, 3, 3)
    stages = ("p2.0", "p3.0", "p4.0", "p4.2", "p5.0", "p5.2", "p5.4")
    normed: Shapes = {f"semantic_fpn.{part}": (256, 256, 3, 3) for part in stages}
    width = 256 if star else 64
    for k in (1, 2, 3):
        position = f"position_head.position_head.position_head_head_{k}"
        biased[f"{position}.offset_mask_conv"] = (27, 256, 3, 3)
        normed[f"{position}.dcnv2"] = (256, 256, 3, 3)
        normed[f"kernel_head.kernel_head.kernel_head_head_{k}"] = (256, 258 if k == 1 else 256, 3, 3)
        encoder, into = f"feature_encoder.encode_head.encode_head_head_{k}", 258 if k == 1 else width
        if star:
            biased |= {f"{encoder}.offset_mask_conv": (27, into, 3, 3), f"{encoder}.dcnv2": (256, into, 3, 3)}
        else:
            biased[encoder] = (64, into, 3, 3)
    biased |= {f"{kind}_generator.embed_extractor": (width, 256, 1, 1) for kind in ("thing", "stuff")}
    shapes = detectron2_resnet(50)
    for name, shape in biased.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}
    for name, shape in normed.items():
        norms = {f"{name}.norm.{part}": (shape[0],) for part in ("weight", "bias")}
        shapes |= {f"{name}.weight": shape, **norms}
    return shapes


def filled(shapes: Shapes) -> dict[str, Tensor]:
    """A number of its own in every tensor, at little memory."""
    return {name: torch.full((1,), float(k)).expand(shape) for k, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize(
    ("shape", "count"),
    [({}, 36_999_511), ({"star": True}, 38_837_710), ({"things": 8, "stuff": 19}, 36_752_876)],
)
def test_the_generated_layouts_have_the_published_numbers_of_parameters(shape: dict[str, Any], count: int) -> None:
    of_backbone = [name for name in detectron2_resnet(50) if ".norm." in name]
    learned = [s for name, s in layout(**shape).items() if name not in of_backbone]
    assert sum(torch.Size(s).numel() for s in learned) == count


@pytest.mark.slow  # networks of full size
@pytest.mark.parametrize(
    ("shape", "name", "classes"),
    [
        ({}, "panoptic_fcn_r50", (80, 53)),
        ({"star": True}, "panoptic_fcn_r50_star", (80, 53)),
        ({"things": 8, "stuff": 19}, "panoptic_fcn_r50_cityscapes", (8, 11)),
        ({"things": 37, "stuff": 29}, "panoptic_fcn_r50", (37, 28)),  # Mapillary Vistas
        ({"things": 3, "stuff": 1, "star": True}, "panoptic_fcn_r50_star", (3, 0)),
    ],
)
def test_every_tensor_has_its_place(shape: dict[str, Any], name: str, classes: tuple[int, int]) -> None:
    state = filled(layout(**shape))
    model, found, options = load(state, "panoptic_fcn.pth")
    assert (found, options) == (name, {})
    assert not model.training
    assert (len(model.labels.things), len(model.labels.stuff)) == classes
    ours = rename(state, RULES, IGNORED, "panoptic_fcn.pth")
    assert len(ours) == len(state)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, ours[key]), key
    where = {
        "backbone.bottom_up.res4.0.shortcut.norm.bias": "backbone.features.layer3.0.downsample.1.bias",
        "backbone.fpn_lateral5.bias": "fpn.lateral.3.bias",
        "backbone.top_block.p7.bias": "top.p7.bias",
        "semantic_fpn.p5.4.norm.bias": "semantic_head.levels.3.2.norm.bias",
        "position_head.out_sem.bias": "position_head.stuff.bias",
        "kernel_head.kernel_head.kernel_head_head_1.norm.bias": "kernel_head.convs.0.norm.bias",
        "kernel_head.out_conv.bias": "kernel_head.predictor.bias",
        "stuff_generator.embed_extractor.bias": "stuff_generator.bias",
    }
    head = "position_head.position_head.position_head_head_"
    where[f"{head}2.offset_mask_conv.bias"] = "position_head.convs.1.conv.offset.bias"
    where[f"{head}3.dcnv2.norm.weight"] = "position_head.convs.2.norm.weight"
    dcn = ".dcnv2" if shape.get("star") else ""
    where[f"feature_encoder.encode_head.encode_head_head_3{dcn}.bias"] = "feature_encoder.convs.2.conv.bias"
    for theirs, mine in where.items():
        assert torch.equal(model.state_dict()[mine], state[theirs]), theirs


@pytest.mark.slow
def test_a_file_with_the_state_of_its_optimiser(tmp_path: Path) -> None:
    path = tmp_path / "panoptic_fcn_r50_1x.pth"
    state = {key: value.clone() for key, value in filled(layout()).items()}
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "iteration": 89_999}, path)
    model, name, _ = load_model(path)
    path.unlink()
    assert name == "panoptic_fcn_r50"
    assert model.labels.names[0] == "person"
    assert torch.equal(model.top.p6.bias, state["backbone.top_block.p6.bias"])
    pixels = model.input.statistics()
    assert pixels.bgr
    assert pixels.mean == pytest.approx((123.675, 116.28, 103.53))  # in the order R, G, B, for channels B, G, R
    assert pixels.std == (1.0, 1.0, 1.0)


def test_the_layout_is_recognised_and_others_are_refused() -> None:
    state = filled(layout())
    assert _recognised(state, "x") == ("Panoptic FCN", state)
    with pytest.raises(PansightError, match=r"position_head\.extra\.weight"):
        load({**state, "position_head.extra.weight": torch.zeros(1)}, "x")
    missing = {key: value for key, value in state.items() if key != "kernel_head.out_conv.bias"}
    with pytest.raises(PansightError, match=r"kernel_head\.predictor\.bias"):
        load(missing, "x")
    with pytest.raises(PansightError, match="at least one class for each head"):
        load({**state, "position_head.out_inst.weight": torch.zeros(0, 256, 3, 3)}, "x")
    with pytest.raises(PansightError, match="ResNet-50"):
        load({key: value for key, value in state.items() if ".res4.5." not in key}, "x")
