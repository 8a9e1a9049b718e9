"""The released EfficientPS, generated in its published layout: every tensor is loaded, and into the right place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import Shapes
from torch import Tensor

from pansight.errors import PansightError
from pansight.models import build
from pansight.weights import load_model
from pansight.weights.official.panoptic import efficientps as origin

STAGES = ((24, 3, 3), (40, 5, 3), (64, 5, 5), (128, 7, 3), (176, 7, 5), (304, 9, 5), (512, 3, 3))
"""Channels, blocks and kernel of each stage."""


def convolution(name: str, norm: str, *shape: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.weight": shape} | {f"{norm}.{part}": (shape[0],) for part in parts}


def activated(name: str, *shape: int) -> Shapes:
    return convolution(f"{name}.conv", f"{name}.bn", *shape)


def separable(name: str, into: int, out: int) -> Shapes:
    return activated(f"{name}.depthwise_conv", into, 1, 3, 3) | activated(f"{name}.pointwise_conv", out, into, 1, 1)


def backbone() -> Shapes:
    shapes = convolution("backbone.conv_stem", "backbone.bn1", 48, 3, 3, 3)
    into = 48
    for stage, (out, blocks, kernel) in enumerate(STAGES):
        for block in range(blocks):
            name = f"backbone.blocks.{stage}.{block}"
            inside = into if stage == 0 else 6 * into
            if stage == 0:
                layers = [("conv_dw", "bn1", (into, 1, kernel, kernel)), ("conv_pw", "bn2", (out, into, 1, 1))]
            else:
                layers = [("conv_pw", "bn1", (inside, into, 1, 1)), ("conv_dw", "bn2", (inside, 1, kernel, kernel))]
                layers += [("conv_pwl", "bn3", (out, inside, 1, 1))]
            for conv, norm, shape in layers:
                shapes |= convolution(f"{name}.{conv}", f"{name}.{norm}", *shape)
            into = out
    return shapes | convolution("backbone.conv_head", "backbone.bn2", 2048, 512, 1, 1)


def official(things: int = 8, classes: int = 19) -> Shapes:
    shapes, taps = backbone(), (40, 64, 176, 2048)
    for index in range(4):
        shapes |= activated(f"neck.lateral_convs_top.{index}", 256, taps[index], 1, 1)
        shapes |= activated(f"neck.lateral_convs_bottom.{index}", 256, taps[3 - index], 1, 1)
        shapes |= activated(f"neck.fpn_convs.{index}", 256, 256, 3, 3)
        shapes |= separable(f"mask_head.convs.{index}", 256, 256)
    for index in range(2):
        for conv in range(5):
            shapes |= separable(f"semantic_head.lateral_convs_ss.{index}.convs.{conv}", 256, 256)
        shapes |= activated(f"semantic_head.lateral_convs_ss.{index}.conv", 128, 1280, 1, 1)
        for conv in range(2):
            shapes |= separable(f"semantic_head.lateral_convs_ls.{index}.convs.{conv}", 128 if conv else 256, 128)
            shapes |= separable(f"semantic_head.aligning_convs.{index}.convs.{conv}", 128, 128)
    with_bias: Shapes = {
        "rpn_head.rpn_conv": (256, 256, 3, 3),
        "rpn_head.rpn_cls": (3, 256, 1, 1),
        "rpn_head.rpn_reg": (12, 256, 1, 1),
        "bbox_head.shared_fcs.0": (1024, 12544),
        "bbox_head.shared_fcs.1": (1024, 1024),
        "bbox_head.fc_cls": (things + 1, 1024),
        "bbox_head.fc_reg": (4 * (things + 1), 1024),
        "mask_head.upsample": (256, 256, 2, 2),
        "mask_head.conv_logits": (things + 1, 256, 1, 1),
        "semantic_head.conv_logits": (classes, 512, 1, 1),
    }
    for name, shape in with_bias.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}
    return shapes


def meta(shapes: Shapes) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def marked(shapes: Shapes) -> dict[str, Tensor]:
    """A single number for each tensor, which tells them apart; that of BatchNorm weights is negative."""
    numbers = {key: 1 + index / 4096 for index, key in enumerate(shapes)}
    return {key: torch.tensor([-n if origin.SCALE.fullmatch(key) else n]) for key, n in numbers.items()}


def test_every_tensor_has_its_place() -> None:
    with torch.device("meta"):
        model, name, options = origin.load(meta(official()), "model.pth")
    assert (name, options) == ("efficientps_cityscapes", {})
    assert sum(p.numel() for p in model.parameters()) == 42_988_744
    assert (model.labels.names[0], model.labels.names[11], model.labels.names[18]) == ("road", "person", "bicycle")
    assert [c.name for c in model.labels.things][:3] == ["person", "rider", "car"]
    assert not model.training
    ours = origin.renamed(meta(official()), "model.pth")
    expected = {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    assert set(ours) == expected
    assert len(ours) == len(official())


def test_counters_may_be_there() -> None:
    state = meta(official())
    norms = [key.removesuffix("running_mean") for key in state if key.endswith("running_mean")]
    counters = {f"{norm}num_batches_tracked": torch.zeros((), dtype=torch.int64, device="meta") for norm in norms}
    with torch.device("meta"):
        model, _, _ = origin.load(state | counters, "model.pth")
    assert len(counters) == sum(key.endswith("num_batches_tracked") for key in model.state_dict())


PLACES = {
    "backbone.conv_stem.weight": "backbone.features.network.conv_stem.weight",
    "backbone.blocks.0.2.conv_dw.weight": "backbone.features.network.blocks.0.2.conv_dw.weight",
    "backbone.blocks.6.2.bn3.running_var": "backbone.features.network.blocks.6.2.bn3.running_var",
    "neck.lateral_convs_top.0.conv.weight": "fpn.top.0.0.weight",
    "neck.lateral_convs_bottom.0.conv.weight": "fpn.bottom.3.0.weight",
    "neck.lateral_convs_bottom.3.bn.bias": "fpn.bottom.0.1.bias",
    "neck.fpn_convs.2.bn.running_mean": "fpn.output.2.1.running_mean",
    "rpn_head.rpn_reg.bias": "rcnn.rpn.deltas.bias",
    "bbox_head.shared_fcs.1.weight": "rcnn.box_head.fc7.weight",
    "bbox_head.fc_reg.weight": "rcnn.box_predictor.bbox_pred.weight",
    "mask_head.convs.3.depthwise_conv.conv.weight": "rcnn.mask_head.conv.3.0.0.weight",
    "mask_head.convs.1.pointwise_conv.bn.bias": "rcnn.mask_head.conv.1.1.1.bias",
    "mask_head.upsample.weight": "rcnn.mask_head.deconv.weight",
    "semantic_head.lateral_convs_ss.0.convs.4.pointwise_conv.conv.weight": "semantic_head.context.0.convs.4.1.0.weight",
    "semantic_head.lateral_convs_ss.1.conv.bn.running_mean": "semantic_head.context.1.project.1.running_mean",
    "semantic_head.lateral_convs_ls.1.convs.0.depthwise_conv.conv.weight": "semantic_head.outlines.1.0.0.0.weight",
    "semantic_head.aligning_convs.0.convs.1.pointwise_conv.conv.weight": "semantic_head.correction.0.1.1.0.weight",
    "semantic_head.conv_logits.bias": "semantic_head.predictor.bias",
}


def test_into_the_right_place() -> None:
    theirs = marked(official())
    ours = origin.renamed(theirs, "model.pth")
    for key, mine in PLACES.items():
        assert ours[mine] is theirs[key], key
    assert len({float(tensor) for tensor in ours.values()}) == len(theirs)  # one to one


def test_batch_norms_get_what_the_activated_ones_multiply_by() -> None:
    theirs = marked(official())
    ours = origin.renamed(theirs, "model.pth")
    pairs = {
        "backbone.bn1.weight": ("backbone.features.network.bn1.weight", 1e-3),
        "backbone.blocks.3.0.bn3.weight": ("backbone.features.network.blocks.3.0.bn3.weight", 1e-3),
        "neck.fpn_convs.0.bn.weight": ("fpn.output.0.1.weight", 1e-5),
        "mask_head.convs.0.depthwise_conv.bn.weight": ("rcnn.mask_head.conv.0.0.1.weight", 1e-5),
        "semantic_head.lateral_convs_ss.0.conv.bn.weight": ("semantic_head.context.0.project.1.weight", 1e-5),
    }
    for key, (mine, eps) in pairs.items():
        assert float(theirs[key]) < 0
        torch.testing.assert_close(ours[mine], -theirs[key] + eps)
    with torch.device("meta"):
        model: Any = build("efficientps_cityscapes", origin.labels_of(8, 19))
    norms = {key for key, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert sum(key.endswith(".weight") and bool(origin.SCALE.fullmatch(key)) for key in theirs) == len(norms)


def test_other_classes_have_stuff_first() -> None:
    labels = origin.labels_of(2, 5)
    assert labels.names == ("stuff_1", "stuff_2", "stuff_3", "class_1", "class_2")
    assert [c.is_thing for c in labels] == [False, False, False, True, True]
    with torch.device("meta"):
        model, _, _ = origin.load(meta(official(2, 5)), "model.pth")
    assert model.labels == labels


@pytest.mark.slow
def test_a_whole_file(tmp_path: Path) -> None:
    state = {key: torch.full(shape, 0.01) for key, shape in official().items()}
    torch.save({"meta": {"epoch": 160}, "state_dict": state}, tmp_path / "model.pth")
    model, name, _ = load_model(tmp_path / "model.pth")
    assert name == "efficientps_cityscapes"
    torch.testing.assert_close(model.fpn.top[0][1].weight, torch.full((256,), 0.01 + 1e-5))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("neck.fpn_convs.3.bn.bias"), r"expected tensor fpn\.output\.3\.1\.bias \[256\], found none"),
        (
            lambda s: s.update({"neck.fpn_convs.4.bn.bias": torch.ones(2)}),
            r"unknown tensor neck\.fpn_convs\.4\.bn\.bias",
        ),
        (lambda s: s.pop("bbox_head.fc_cls.weight"), r"expected tensor bbox_head\.fc_cls\.weight, found none"),
        (lambda s: s.update({"bbox_head.fc_cls.weight": torch.ones(40, 1024)}), r"things among the classes.*39 .* 19"),
        (lambda s: s.update({"mask_head.conv_logits.bias": torch.ones(4)}), r"expected shape \[9\], found \[4\]"),
    ],
)
def test_faults_are_named(damage: Any, message: str) -> None:
    state = meta(official())
    damage(state)
    with pytest.raises(PansightError, match=message) as error, torch.device("meta"):
        origin.load(state, "bad.pth")
    assert "\n" not in str(error.value)
    assert "bad.pth" in str(error.value)
