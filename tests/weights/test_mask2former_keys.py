"""Mask2Former's official files, with random values: every tensor is loaded, and into the right place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layouts import detectron2_resnet
from torch import Tensor

from pansight.data.categories.coco import coco_panoptic
from pansight.errors import PansightError
from pansight.models import build
from pansight.weights.official.mask2former import load, recognises, renamed

pytestmark = pytest.mark.slow  # networks of full size

Shapes = dict[str, tuple[int, ...]]
SWINS = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}
PIXEL = "sem_seg_head.pixel_decoder."
QUERY = "sem_seg_head.predictor."


def linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def swin(channels: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int) -> Shapes:
    """``backbone.*`` of the official Swin: merging at the end of a stage, one norm a stage, stored positions."""
    shapes: Shapes = {"backbone.patch_embed.proj.weight": (channels, 3, 4, 4)}
    shapes["backbone.patch_embed.proj.bias"] = (channels,)
    shapes |= norm("backbone.patch_embed.norm", channels)
    for stage, depth in enumerate(depths):
        c = channels << stage
        for index in range(depth):
            block = f"backbone.layers.{stage}.blocks.{index}."
            shapes |= norm(block + "norm1", c) | norm(block + "norm2", c)
            shapes |= linear(block + "attn.qkv", 3 * c, c) | linear(block + "attn.proj", c, c)
            shapes |= linear(block + "mlp.fc1", 4 * c, c) | linear(block + "mlp.fc2", c, 4 * c)
            shapes[block + "attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads[stage])
            shapes[block + "attn.relative_position_index"] = (window**2, window**2)
        if stage < 3:
            shapes |= norm(f"backbone.layers.{stage}.downsample.norm", 4 * c)
            shapes[f"backbone.layers.{stage}.downsample.reduction.weight"] = (2 * c, 4 * c)
        shapes |= norm(f"backbone.norm{stage}", c)
    return shapes


def resnet(depth: int) -> Shapes:
    return {key.replace("backbone.bottom_up.", "backbone."): shape for key, shape in detectron2_resnet(depth).items()}


def heads(widths: list[int], classes: int = 133, queries: int = 100, layers: int = 9) -> Shapes:
    """What follows the backbone; widths: its channels, fine to coarse."""
    shapes: Shapes = {PIXEL + "transformer.level_embed": (3, 256), "criterion.empty_weight": (classes + 1,)}
    for index, width in enumerate(reversed(widths[1:])):
        name = f"{PIXEL}input_proj.{index}."
        shapes |= {name + "0.weight": (256, width, 1, 1), name + "0.bias": (256,)} | norm(name + "1", 256)
    for index in range(6):
        layer = f"{PIXEL}transformer.encoder.layers.{index}."
        shapes |= linear(layer + "self_attn.sampling_offsets", 192, 256)
        shapes |= linear(layer + "self_attn.attention_weights", 96, 256)
        shapes |= linear(layer + "self_attn.value_proj", 256, 256) | linear(layer + "self_attn.output_proj", 256, 256)
        shapes |= linear(layer + "linear1", 1024, 256) | linear(layer + "linear2", 256, 1024)
        shapes |= norm(layer + "norm1", 256) | norm(layer + "norm2", 256)
    shapes |= {PIXEL + "adapter_1.weight": (256, widths[0], 1, 1), PIXEL + "layer_1.weight": (256, 256, 3, 3)}
    shapes |= norm(PIXEL + "adapter_1.norm", 256) | norm(PIXEL + "layer_1.norm", 256)
    shapes |= {PIXEL + "mask_features.weight": (256, 256, 1, 1), PIXEL + "mask_features.bias": (256,)}
    for index in range(layers):
        for kind, attention in (("self", "self_attn"), ("cross", "multihead_attn")):
            layer = f"{QUERY}transformer_{kind}_attention_layers.{index}."
            shapes |= {layer + attention + ".in_proj_weight": (768, 256), layer + attention + ".in_proj_bias": (768,)}
            shapes |= linear(f"{layer}{attention}.out_proj", 256, 256) | norm(layer + "norm", 256)
        layer = f"{QUERY}transformer_ffn_layers.{index}."
        shapes |= linear(layer + "linear1", 2048, 256) | linear(layer + "linear2", 256, 2048)
        shapes |= norm(layer + "norm", 256)
    shapes |= norm(QUERY + "decoder_norm", 256) | linear(QUERY + "class_embed", classes + 1, 256)
    shapes |= {QUERY + name + ".weight": (queries, 256) for name in ("query_feat", "query_embed")}
    shapes[QUERY + "level_embed.weight"] = (3, 256)
    for index in range(3):
        shapes |= linear(f"{QUERY}mask_embed.layers.{index}", 256, 256)
    return shapes


def official(backbone: str, **sizes: Any) -> dict[str, Tensor]:
    """Each tensor filled with a number of its own, without memory of its own."""
    if backbone in SWINS:
        shapes = swin(*SWINS[backbone]) | heads([SWINS[backbone][0] << i for i in range(4)], **sizes)
    else:
        shapes = resnet(int(backbone[1:])) | heads([256, 512, 1024, 2048], **sizes)
    return {key: torch.tensor(float(i)).expand(shape) for i, (key, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize(
    ("backbone", "queries", "count"),
    [
        ("r50", 100, 43_983_878),
        ("r101", 100, 62_923_782),
        ("swin_tiny", 100, 47_435_264),
        ("swin_small", 100, 68_753_168),
        ("swin_base", 100, 106_917_822),
        ("swin_large", 200, 215_535_610),
    ],
)
def test_every_published_model(backbone: str, queries: int, count: int) -> None:
    """The parameters of the spec, and the names and shapes of its layout, one to one."""
    name = f"mask2former_{backbone}"
    with torch.device("meta" if "swin" in backbone else "cpu"):
        model = build(name, coco_panoptic())
    assert sum(p.numel() for p in model.parameters()) == count  # what the official model has
    state = official(backbone.removeprefix("swin_"), queries=queries)
    assert recognises(state)
    ours = renamed(state, "model_final.pkl")
    left_out = [key for key in state if key.endswith("_index") or key.startswith("criterion.")]
    assert len(ours) == len(state) - len(left_out)
    assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in model.state_dict().items()}
    assert len({float(t.flatten()[0]) for t in ours.values()}) == len(ours)


def test_r50_split() -> None:
    model = build("mask2former_r50", coco_panoptic())
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    assert counts == {"input": 0, "backbone": 23_454_912, "pixel_decoder": 6_035_904, "predictor": 14_493_062}


def test_a_published_file() -> None:
    state = official("r50")
    model, name, options = load(state, "model_final_94dc52.pkl")
    assert (name, options) == ("mask2former_r50", {})
    assert not model.training
    assert model.labels == coco_panoptic()
    places = {
        "backbone.res2.0.shortcut.weight": "backbone.features.layer1.0.downsample.0.weight",
        PIXEL + "input_proj.0.0.weight": "pixel_decoder.input_proj.0.0.weight",
        PIXEL + "transformer.level_embed": "pixel_decoder.transformer.level_embed",
        PIXEL + "adapter_1.norm.bias": "pixel_decoder.adapter_1.norm.bias",
        QUERY + "level_embed.weight": "predictor.level_embed.weight",
        QUERY + "query_feat.weight": "predictor.query_feat.weight",
        QUERY + "transformer_cross_attention_layers.8.multihead_attn.in_proj_weight": (
            "predictor.transformer_cross_attention_layers.8.multihead_attn.in_proj_weight"
        ),
    }
    ours = model.state_dict()
    for theirs, mine in places.items():
        assert torch.equal(ours[mine], state[theirs]), mine


def test_old_names() -> None:
    """Without ``pixel_decoder.``, and with ``static_query``."""
    state = official("tiny")
    old = {
        key.replace("pixel_decoder.", "").replace("query_feat", "static_query"): tensor for key, tensor in state.items()
    }
    assert sorted(old) != sorted(state)
    ours, expected = renamed(old, "old.pkl"), renamed(state, "new.pkl")
    assert sorted(ours) == sorted(expected)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in ours.items())


def test_sizes_of_other_sets() -> None:
    state = official("tiny", classes=150, queries=50, layers=6)
    model, name, options = load(state, "ade.pkl")
    assert name == "mask2former"
    backbone = "swin_tiny_patch4_window7_224"
    assert options == {"backbone": backbone, "queries": 50, "layers": 6, "short": 640, "long": 2560}
    assert model.input.resize[:2] == (640, 2560)
    assert model.labels[0].name == "wall"
    assert not model.labels[0].is_thing


def test_other_layouts_are_named() -> None:
    state = official("tiny")
    assert not recognises({"sem_seg_head.predictor.transformer.decoder.norm.weight": torch.zeros(1)})
    with pytest.raises(PansightError, match=r"file.pkl: unknown tensor sem_seg_head.predictor.extra.weight \[1\]"):
        load(state | {"sem_seg_head.predictor.extra.weight": torch.zeros(1)}, "file.pkl")
    del state[PIXEL + "mask_features.bias"]
    with pytest.raises(PansightError, match=r"file.pkl: expected tensor pixel_decoder.mask_features.bias \[256\]"):
        load(state, "file.pkl")
