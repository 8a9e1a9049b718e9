"""Official MaskFormer files, with random values: every key is read, and none is missing. Takes about 4 s."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import Shapes, detectron2_resnet, filled
from torch import Tensor

from pansight.errors import PansightError
from pansight.types import LabelSpace
from pansight.weights import load_model
from pansight.weights.official import maskformer as origin

pytestmark = pytest.mark.slow  # networks of full size

SWINS = {
    "swin_tiny": (96, (2, 2, 6, 2), 3, 7),
    "swin_small": (96, (2, 2, 18, 2), 3, 7),
    "swin_base": (128, (2, 2, 18, 2), 4, 12),
    "swin_large": (192, (2, 2, 18, 2), 6, 12),
}
"""channels, depths, heads of the first stage, window."""


def swin(channels: int, depths: tuple[int, ...], heads: int, window: int) -> Shapes:
    shapes: Shapes = {"backbone.patch_embed.proj.weight": (channels, 3, 4, 4)}
    linear: Shapes = {}
    norms = {"backbone.patch_embed.norm": channels}
    for stage, depth in enumerate(depths):
        width = channels << stage
        norms[f"backbone.norm{stage}"] = width
        for index in range(depth):
            name = f"backbone.layers.{stage}.blocks.{index}"
            norms |= {f"{name}.norm1": width, f"{name}.norm2": width}
            linear |= {f"{name}.attn.qkv": (3 * width, width), f"{name}.attn.proj": (width, width)}
            linear |= {f"{name}.mlp.fc1": (4 * width, width), f"{name}.mlp.fc2": (width, 4 * width)}
            shapes[f"{name}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads << stage)
            shapes[f"{name}.attn.relative_position_index"] = (window**2, window**2)
        if stage < 3:
            norms[f"backbone.layers.{stage}.downsample.norm"] = 4 * width
            shapes[f"backbone.layers.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
    shapes["backbone.patch_embed.proj.bias"] = (channels,)
    return shapes | with_bias(linear) | with_bias({name: (width,) for name, width in norms.items()})


def with_bias(layers: Shapes) -> Shapes:
    return {f"{n}.weight": s for n, s in layers.items()} | {f"{n}.bias": s[:1] for n, s in layers.items()}


def attention(name: str, width: int) -> Shapes:
    shapes = with_bias({f"{name}.out_proj": (width, width)})
    return shapes | {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)}


def head(
    widths: tuple[int, ...], classes: int, encoder: bool, queries: int = 100, width: int = 256, hidden: int = 2048
) -> Shapes:
    pixel, predictor = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
    top = width if encoder else widths[3]
    shapes: Shapes = {f"{pixel}.layer_4.weight": (width, top, 3, 3), "criterion.empty_weight": (classes + 1,)}
    shapes |= {f"{pixel}.adapter_{i}.weight": (width, widths[i - 1], 1, 1) for i in (1, 2, 3)}
    shapes |= {f"{pixel}.layer_{i}.weight": (width, width, 3, 3) for i in (1, 2, 3)}
    parts = ["adapter_1", "adapter_2", "adapter_3", "layer_1", "layer_2", "layer_3", "layer_4"]
    layers: Shapes = {f"{pixel}.{part}.norm": (width,) for part in parts}
    layers[f"{pixel}.mask_features"] = (width, width, 3, 3)
    layers[f"{pixel if encoder else predictor}.input_proj"] = (width, widths[3], 1, 1)
    stacks = [(f"{predictor}.transformer.decoder", ("self_attn", "multihead_attn"), 3)]
    stacks += [(f"{pixel}.transformer.encoder", ("self_attn",), 2)] if encoder else []
    for stack, attentions, norms in stacks:
        for index in range(6):
            name = f"{stack}.layers.{index}"
            for part in attentions:
                shapes |= attention(f"{name}.{part}", width)
            layers |= {f"{name}.linear1": (hidden, width), f"{name}.linear2": (width, hidden)}
            layers |= {f"{name}.norm{i + 1}": (width,) for i in range(norms)}
    layers[f"{predictor}.transformer.decoder.norm"] = (width,)
    layers[f"{predictor}.class_embed"] = (classes + 1, width)
    layers |= {f"{predictor}.mask_embed.layers.{i}": (width, width) for i in range(3)}
    return shapes | with_bias(layers) | {f"{predictor}.query_embed.weight": (queries, width)}


def official(kind: str, classes: int = 133, encoder: bool | None = None, **more: int) -> Shapes:
    """kind: 50 or 101 of ResNet, or a name of SWINS."""
    if kind in SWINS:
        channels = SWINS[kind][0]
        return swin(*SWINS[kind]) | head(tuple(channels << i for i in range(4)), classes, bool(encoder), **more)
    resnet = {k.replace(".bottom_up", ""): shape for k, shape in detectron2_resnet(int(kind)).items()}
    return resnet | head((256, 512, 1024, 2048), classes, encoder is not False, **more)


def meta(shapes: Shapes) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("kind", "name", "count"),
    [
        ("50", "maskformer_r50", 45_012_038),
        ("101", "maskformer_r101", 63_951_942),
        ("swin_tiny", "maskformer_swin_tiny", 41_752_640),
        ("swin_small", "maskformer_swin_small", 63_070_544),
        ("swin_base", "maskformer_swin_base", 101_825_022),
        ("swin_large", "maskformer_swin_large", 211_571_258),
    ],
)
def test_official_layouts(kind: str, name: str, count: int) -> None:
    """Shapes alone, on the meta device: no tensor unknown, none missing, none of another shape."""
    with torch.device("meta"):
        model, found, options = origin.load(meta(official(kind)), "model_final.pkl")
    assert (found, options) == (name, {})
    assert sum(p.numel() for p in model.parameters()) == count  # what the official model has
    assert len(model.labels.things) == 80
    assert model.input.resize.divisor == 1
    assert not model.training


def test_a_file_on_disk_lands_in_the_right_places(tmp_path: Path) -> None:
    state = filled(swin(16, (1, 2, 1, 1), 1, 4) | head((16, 32, 64, 128), 133, False, width=64, hidden=96))
    state["pixel_mean"] = np.zeros((3, 1, 1), np.float32)
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "somebody"}))
    model, name, options = load_model(path)
    assert (name, options["backbone"]) == ("maskformer", "swin_c16_d1-2-1-1_h1-2-4-8_w4")
    ours = model.state_dict()
    ignored = [key for key in state if key.endswith(("_index", "empty_weight", "pixel_mean"))]
    assert len(ours) == len(state) - len(ignored)
    assert len({tuple(t.flatten()[:1].tolist()) for t in ours.values()}) == len(ours)
    places = {
        "backbone.layers.1.blocks.1.attn.qkv.weight": "backbone.features.layers.1.blocks.1.attn.qkv.weight",
        "backbone.layers.1.downsample.norm.bias": "backbone.features.layers.1.downsample.norm.bias",
        "backbone.norm3.weight": "backbone.features.norm3.weight",
        "sem_seg_head.pixel_decoder.adapter_3.norm.bias": "pixel_decoder.adapter_3.norm.bias",
        "sem_seg_head.pixel_decoder.layer_4.weight": "pixel_decoder.layer_4.weight",
        "sem_seg_head.predictor.transformer.decoder.layers.4.multihead_attn.in_proj_bias": (
            "predictor.decoder.layers.4.multihead_attn.in_proj_bias"
        ),
        "sem_seg_head.predictor.transformer.decoder.norm.weight": "predictor.decoder.norm.weight",
        "sem_seg_head.predictor.input_proj.bias": "predictor.input_proj.bias",
        "sem_seg_head.predictor.mask_embed.layers.2.weight": "predictor.mask_embed.layers.2.weight",
    }
    for theirs, mine in places.items():
        assert np.array_equal(ours[mine].numpy(), state[theirs]), theirs


@pytest.mark.parametrize("kind", ["50", "swin_tiny"])
def test_files_of_the_first_version(kind: str) -> None:
    new = meta(official(kind))
    old = {key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): tensor for key, tensor in new.items()}
    assert old.keys() != new.keys()
    assert origin.recognises(old)
    assert origin.renamed(old, "old.pkl").keys() == origin.renamed(new, "new.pkl").keys()
    assert "pixel_decoder.layer_2.norm.weight" in origin.renamed(old, "old.pkl")


def test_renaming_is_one_to_one() -> None:
    theirs = meta(official("50"))
    ours = origin.renamed(theirs, "x")
    assert len(ours) == len(theirs) - 1  # criterion.empty_weight
    places = {
        "backbone.res2.0.shortcut.norm.bias": "backbone.features.layer1.0.downsample.1.bias",
        "backbone.res5.2.conv3.weight": "backbone.features.layer4.2.conv3.weight",
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.5.linear1.weight": (
            "pixel_decoder.encoder.layers.5.linear1.weight"
        ),
        "sem_seg_head.pixel_decoder.input_proj.weight": "pixel_decoder.input_proj.weight",
    }
    for key, mine in places.items():
        assert ours[mine] is theirs[key]


def test_semantic_models_and_other_sizes() -> None:
    """A ResNet with the pyramid alone, and anything that no builder is named for, by the general builder."""
    with torch.device("meta"):
        model, name, options = origin.load(meta(official("50", 150, encoder=False)), "ade.pkl")
        assert name == "maskformer"
        assert options["pixel_decoder"] == "fpn"
        assert (options["queries"], options["score_threshold"]) == (100, 0.7)
        assert model.labels.names[:3] == ("wall", "building", "sky")
        model, name, options = origin.load(meta(official("swin_tiny", 7, queries=30, width=64, hidden=96)), "x.pkl")
        assert (name, options["channels"], options["hidden"], options["queries"]) == ("maskformer", 64, 96, 30)
        assert model.labels.names == tuple(f"class_{i}" for i in range(1, 8))
        _, name, options = origin.load(meta(official("swin_tiny", queries=30)), "x.pkl")
        assert (name, options) == ("maskformer_swin_tiny", {"queries": 30})


@pytest.mark.parametrize(("classes", "first"), [(80, "person"), (19, "road"), (65, "Bird"), (3, "class_1")])
def test_classes_by_their_number(classes: int, first: str) -> None:
    labels = origin.labels_of_count(classes)
    assert isinstance(labels, LabelSpace)
    assert (len(labels), labels[0].name) == (classes, first)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda s: s.pop("sem_seg_head.pixel_decoder.layer_1.norm.bias"),
            r"expected tensor pixel_decoder\.layer_1\.norm\.bias \[256\], found none",
        ),
        (
            lambda s: s.update({"sem_seg_head.predictor.extra": torch.ones(2)}),
            r"unknown tensor .*predictor\.extra \[2\]",
        ),
        (
            lambda s: s.update({"sem_seg_head.predictor.class_embed.bias": torch.ones(7)}),
            r"class_embed\.bias: expected shape \[134\], found \[7\]",
        ),
        (
            lambda s: [s.pop(k) for k in list(s) if "res4.5." in k],
            r"expected a ResNet-50 or ResNet-101, found stages of \[3, 4, 5, 3\] blocks",
        ),
        (lambda s: s.pop("sem_seg_head.predictor.query_embed.weight"), r"expected tensor predictor\.query_embed"),
    ],
)
def test_faults_are_named(damage: Any, message: str) -> None:
    state = meta(official("50"))
    damage(state)
    with pytest.raises(PansightError, match=message) as error, torch.device("meta"):
        origin.load(state, "bad.pkl")
    assert "\n" not in str(error.value)
    assert "bad.pkl" in str(error.value)


def test_deeplab_stem_is_refused() -> None:
    """The Cityscapes models of the zoo have a stem of three convolutions ("R101c")."""
    state = meta(official("101", 19, encoder=False))
    state["backbone.stem.conv1_1.weight"] = state.pop("backbone.stem.conv1.weight")
    with pytest.raises(PansightError, match=r"unknown tensor backbone\.stem\.conv1_1\.weight"):
        origin.load(state, "r101c.pkl")
