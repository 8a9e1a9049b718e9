"""Official DETR layouts, with random values, load without a tensor too many or too few."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pansight.errors import PansightError
from pansight.weights.keys import BACKBONE
from pansight.weights.official import detr

pytestmark = pytest.mark.slow  # networks of full size

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def official(depth: int, classes: int, is_panoptic: bool, queries: int = 100) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, norm: str, *shape: int) -> None:
        shapes[f"backbone.0.body.{name}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"backbone.0.body.{norm}.{part}"] = shape[:1]

    def linear(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    conv("conv1", "bn1", 64, 3, 7, 7)
    into = 64
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        width = 32 * 2**stage
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            conv(f"{name}.conv1", f"{name}.bn1", width, into, 1, 1)
            conv(f"{name}.conv2", f"{name}.bn2", width, width, 3, 3)
            conv(f"{name}.conv3", f"{name}.bn3", 4 * width, width, 1, 1)
            if block == 0:
                conv(f"{name}.downsample.0", f"{name}.downsample.1", 4 * width, into, 1, 1)
            into = 4 * width
    for part, attentions in {"encoder": ["self_attn"], "decoder": ["self_attn", "multihead_attn"]}.items():
        for layer in range(6):
            name = f"transformer.{part}.layers.{layer}"
            for attention in attentions:
                shapes[f"{name}.{attention}.in_proj_weight"] = (768, 256)
                shapes[f"{name}.{attention}.in_proj_bias"] = (768,)
                linear(f"{name}.{attention}.out_proj", 256, 256)
            linear(f"{name}.linear1", 2048, 256)
            linear(f"{name}.linear2", 256, 2048)
            for norm in range(1, len(attentions) + 2):
                linear(f"{name}.norm{norm}", 256)
    linear("transformer.decoder.norm", 256)
    linear("input_proj", 256, 2048, 1, 1)
    linear("class_embed", classes + 1, 256)
    for layer, out in enumerate((256, 256, 4)):
        linear(f"bbox_embed.layers.{layer}", out, 256)
    shapes["query_embed.weight"] = (queries, 256)
    if is_panoptic:
        shapes = {f"detr.{key}": shape for key, shape in shapes.items()}
        linear("bbox_attention.q_linear", 256, 256)
        linear("bbox_attention.k_linear", 256, 256)
        for index, (out, inner) in enumerate([(264, 264), (128, 264), (64, 128), (32, 64), (16, 32)], 1):
            linear(f"mask_head.lay{index}", out, inner, 3, 3)
            linear(f"mask_head.gn{index}", out)
        linear("mask_head.out_lay", 1, 16, 3, 3)
        for index, (out, inner) in enumerate([(128, 1024), (64, 512), (32, 256)], 1):
            linear(f"mask_head.adapter{index}", out, inner, 1, 1)
    return {key: torch.full((1,), 0.5).expand(shape) for key, shape in shapes.items()}


CASES = [
    ("detr-r50-panoptic-00ce5173.pth", 50, 250, True, "detr_panoptic_r50"),
    ("detr-r50-dc5-panoptic-da08f1b1.pth", 50, 250, True, "detr_panoptic_r50_dc5"),
    ("detr-r101-panoptic-40021d53.pth", 101, 250, True, "detr_panoptic_r101"),
    ("detr-r50-e632da11.pth", 50, 91, False, "detr_r50"),
]


@pytest.mark.parametrize(("file", "depth", "classes", "is_panoptic", "name"), CASES)
def test_official_files(file: str, depth: int, classes: int, is_panoptic: bool, name: str) -> None:
    state = official(depth, classes, is_panoptic)
    assert detr.recognises(state)
    model, found, options = detr.load(state, f"/somewhere/{file}")
    assert (found, options) == (name, {})
    assert len(model.labels) == classes
    assert model.labels[18].name == "dog"  # the raw id
    assert (model.backbone.strides[-1] == 16) == ("dc5" in file)
    assert all((tensor == 0.5).all() for tensor in model.state_dict().values())
    assert len(model.state_dict()) == len(state)


def test_renaming_is_one_to_one() -> None:
    state = official(50, 250, True)
    ours = detr.renamed(state, "test")
    assert len(ours) == len(state)
    assert BACKBONE + "layer1.0.conv1.weight" in ours
    assert not any(key.startswith("detr.") for key in ours)


def test_other_counts_get_plain_names() -> None:
    model, _, options = detr.load(official(50, 7, False, queries=30), "mine.pth")
    assert options == {"queries": 30}
    assert model.labels.names == tuple(f"class_{i}" for i in range(7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detr.class_embed.weight": None}, "expected tensor class_embed.weight"),
        ({"detr.transformer.extra": torch.zeros(1)}, "unknown tensor detr.transformer.extra"),
        (
            {"mask_head.lay2.weight": torch.zeros(128, 264, 1, 1)},
            r"mask_head.lay2.weight: expected shape \[128",
        ),
        ({"mask_head.gn3.bias": None}, "expected tensor mask_head.gn3.bias"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Tensor | None], message: str) -> None:
    state = {key: tensor for key, tensor in (official(50, 250, True) | change).items() if tensor is not None}
    with pytest.raises(PansightError, match=f"mine.pth: {message}"):
        detr.load(state, "mine.pth")


def test_other_systems_are_not_recognised() -> None:
    assert not detr.recognises({"backbone.body.conv1.weight": torch.zeros(1)})
    assert not detr.recognises({"transformer.encoder.layers.0.self_attn.in_proj_weight": torch.zeros(1)})
