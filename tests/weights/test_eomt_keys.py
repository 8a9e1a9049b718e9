"""Official EoMT files, with random values: every key is read, and none is missing. Takes about 4 s."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pansight.errors import PansightError
from pansight.weights.official import eomt as origin

pytestmark = pytest.mark.slow  # networks of full size

Shapes = dict[str, tuple[int, ...]]


def heads(width: int, classes: int = 133, queries: int = 200, blocks: int = 3) -> Shapes:
    shapes: Shapes = {
        "network.q.weight": (queries, width),
        "network.class_head.weight": (classes + 1, width),
        "network.class_head.bias": (classes + 1,),
        "network.attn_mask_probs": (blocks,),
        "criterion.empty_weight": (classes + 1,),
        "network.encoder.pixel_mean": (1, 3, 1, 1),
        "network.encoder.pixel_std": (1, 3, 1, 1),
    }
    for place in (0, 2, 4):
        shapes[f"network.mask_head.{place}.weight"] = (width, width)
        shapes[f"network.mask_head.{place}.bias"] = (width,)
    for block in (0, 1):
        name = f"network.upscale.{block}."
        shapes |= {name + "conv1.weight": (width, width, 2, 2), name + "conv1.bias": (width,)}
        shapes |= {name + "conv2.weight": (width, 1, 3, 3)}
        shapes |= {name + "norm.weight": (width,), name + "norm.bias": (width,)}
    return shapes


def dinov2(width: int, depth: int, size: int = 640, gated: bool = False, **more: int) -> Shapes:
    root = "network.encoder.backbone."
    hidden, inner = (8192, 4096) if gated else (4 * width, 4 * width)
    shapes = heads(width, **more) | {
        root + "cls_token": (1, 1, width),
        root + "reg_token": (1, 4, width),
        root + "pos_embed": (1, (size // 16) ** 2, width),
        root + "patch_embed.proj.weight": (width, 3, 16, 16),
        root + "patch_embed.proj.bias": (width,),
        root + "norm.weight": (width,),
        root + "norm.bias": (width,),
    }
    layers: Shapes = {
        "norm1": (width,),
        "norm2": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, inner),
    }
    for block in range(depth):
        name = f"{root}blocks.{block}."
        for layer, shape in layers.items():
            shapes |= {f"{name}{layer}.weight": shape, f"{name}{layer}.bias": shape[:1]}
        shapes |= {name + "ls1.gamma": (width,), name + "ls2.gamma": (width,)}
    return shapes


def dinov3(width: int, depth: int, **more: int) -> Shapes:
    root = "network.encoder.backbone."
    shapes = heads(width, **more) | {
        root + "patch_embed.cls_token": (1, 1, width),
        root + "patch_embed.mask_token": (1, 1, width),
        root + "patch_embed.register_tokens": (1, 4, width),
        root + "patch_embed.patch_embeddings.weight": (width, 3, 16, 16),
        root + "patch_embed.patch_embeddings.bias": (width,),
        root + "norm.weight": (width,),
        root + "norm.bias": (width,),
    }
    layers: Shapes = {
        "norm1": (width,),
        "norm2": (width,),
        "attention.q_proj": (width, width),
        "attention.v_proj": (width, width),
        "attention.o_proj": (width, width),
        "mlp.up_proj": (4 * width, width),
        "mlp.down_proj": (width, 4 * width),
    }
    for block in range(depth):
        name = f"{root}blocks.{block}."
        for layer, shape in layers.items():
            shapes |= {f"{name}{layer}.weight": shape, f"{name}{layer}.bias": shape[:1]}
        shapes[name + "attention.k_proj.weight"] = (width, width)  # keys have no bias
        shapes |= {f"{name}layer_scale{i}.lambda1": (width,) for i in (1, 2)}
    return shapes


def filled(shapes: Shapes) -> dict[str, Tensor]:
    """Every tensor constant, no two with the same value: where one lands is then seen by its value alone."""
    return {key: torch.full(shape, 1 + index / 1024) for index, (key, shape) in enumerate(shapes.items())}


def empty(shapes: Shapes) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "name", "options"),
    [
        (dinov2(768, 12), "eomt_base_640", {}),
        (dinov2(1024, 24, blocks=4), "eomt_large_640", {}),
        (dinov2(1024, 24, 1280, blocks=4), "eomt_large_1280", {}),
        (dinov2(1536, 40, gated=True, blocks=5), "eomt_giant_640", {}),
        (dinov2(1536, 40, 1280, gated=True, blocks=5), "eomt_giant_1280", {}),
        (
            dinov2(1024, 24, 512, classes=150, queries=100, blocks=4),
            "eomt",
            {"queries": 100, "backbone": "vit_large_patch14_reg4_dinov2", "size": 512, "blocks": 4},
        ),
    ],
)
def test_full_sizes(shapes: Shapes, name: str, options: dict[str, Any]) -> None:
    """No key unused, none missing, every shape equal: on torch's device without memory."""
    with torch.device("meta"):
        model, found, given = origin.load(empty(shapes), "pytorch_model.bin")
    assert (found, given) == (name, options)
    assert len(model.state_dict()) == len(shapes) - 3  # empty_weight, mean and deviation have no place


def test_semantic_models_look_through_windows() -> None:
    """By their name, as they are published: nothing in the tensors tells."""
    shapes = dinov2(1024, 24, 512, classes=150, queries=100, blocks=4)
    with torch.device("meta"):
        model, name, options = origin.load(empty(shapes), "ade20k_semantic_eomt_large_512/pytorch_model.bin")
    assert (name, options["windows"], model.window) == ("eomt", True, 512)
    assert model.input.resize.target(600, 900) == (512, 768)
    with torch.device("meta"):
        large = dinov2(1024, 24, blocks=4)
        name = "coco_semantic_eomt_large_640/pytorch_model.bin"
        assert origin.load(empty(large), name)[2]["windows"]  # also of a published size
        elsewhere = origin.load(empty(large), "semantic/coco_panoptic_eomt_large_640/pytorch_model.bin")
    assert (elsewhere[0].window, elsewhere[2]) == (0, {})  # a folder of the user's may be called so


def test_each_tensor_lands_where_it_belongs() -> None:
    state = filled(dinov2(384, 12))
    model, name, options = origin.load(state, "pytorch_model.bin")
    assert (name, options) == ("eomt_small_640", {})
    assert not model.training
    ours = model.state_dict()
    assert {key.removeprefix("backbone.features.") for key in ours if key.startswith("backbone.")} == {
        key.removeprefix("network.encoder.backbone.") for key in state if key.startswith("network.encoder.backbone.")
    }
    pairs = {
        "network.q.weight": "q.weight",
        "network.class_head.bias": "class_head.bias",
        "network.mask_head.4.weight": "mask_head.4.weight",
        "network.upscale.1.conv2.weight": "upscale.1.conv2.weight",
        "network.upscale.0.norm.bias": "upscale.0.norm.bias",
        "network.encoder.backbone.pos_embed": "backbone.features.pos_embed",
        "network.encoder.backbone.blocks.7.ls2.gamma": "backbone.features.blocks.7.ls2.gamma",
    }
    for theirs, name in pairs.items():
        assert torch.equal(ours[name], state[theirs])
    assert model.annealing.shares() == [0, 0, 0]  # whatever the file records: published figures are without masks
    assert [c.name for c in model.labels][:2] == ["person", "bicycle"]
    assert len(model.labels.stuff) == 53


def test_renaming_is_one_to_one() -> None:
    state = filled(dinov2(384, 12) | {"network.attn_mask_probs": (3,)})
    ours = origin.renamed(state, "x")
    values = [t.flatten()[0].item() for t in ours.values()]
    assert len(set(values)) == len(values) == len(state) - 3


def test_compiled_networks_keep_no_mark() -> None:
    state = filled(dinov2(384, 12))
    marked = {key.replace("network.", "network._orig_mod.", 1): tensor for key, tensor in state.items()}
    assert origin.recognises(marked)
    assert origin.renamed(marked, "x").keys() == origin.renamed(state, "x").keys()


@pytest.mark.parametrize(
    ("classes", "first", "last", "things"),
    [
        (80, "person", "toothbrush", 80),
        (150, "wall", "flag", 100),  # ADE20K's own order, in which things and stuff are mixed
        (19, "road", "bicycle", 8),  # Cityscapes' trainIds
        (5, "class_1", "class_5", 5),
    ],
)
def test_classes_by_their_number(classes: int, first: str, last: str, things: int) -> None:
    with torch.device("meta"):
        model, _, _ = origin.load(empty(dinov2(384, 12, classes=classes)), "x")
    assert (model.labels[0].name, model.labels[len(model.labels) - 1].name) == (first, last)
    assert len(model.labels.things) == things


def test_another_file_is_not_taken_for_ours() -> None:
    assert origin.recognises(empty(dinov2(384, 12)))
    assert origin.recognises(empty(dinov3(384, 12)))
    assert not origin.recognises({"network.encoder.backbone.norm.weight": torch.empty(1)})
    assert not origin.recognises({"backbone.bottom_up.stem.conv1.weight": torch.empty(1)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network.decoder.weight": (1,)}, r"x: unknown tensor network\.decoder\.weight \[1\]"),
        ({"network.q.weight": (200, 500)}, "x: expected a ViT S, B, L or g of DINOv2 or DINOv3, found 500 channels"),
        ({"network.encoder.backbone.pos_embed": (1, 1500, 384)}, "x: expected positions on a square grid, found 1500"),
        ({"network.encoder.backbone.norm.bias": (7,)}, r"norm\.bias: expected shape \[384\], found \[7\]"),
        ({"network.encoder.backbone.blocks.3.attn.bias": (7,)}, r"expected no tensor .*blocks\.3\.attn\.bias"),
    ],
)
def test_what_does_not_fit_is_named(change: Shapes, message: str) -> None:
    with torch.device("meta"), pytest.raises(PansightError, match=message):
        origin.load(empty(dinov2(384, 12) | change), "x")


def test_differences_without_their_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded as they are, they would give noise."""
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    message = (
        "x_small_640: holds differences to DINOv3's weights (dinov3-license, gated), which are not in the local "
        "Hugging Face cache: accept the licence, then `hf download timm/vit_small_patch16_dinov3_qkvb.lvd1689m`"
    )
    with torch.device("meta"), pytest.raises(PansightError, match=re.escape(message)):
        origin.load(empty(dinov3(384, 12)), "x_small_640")


def base_of(state: dict[str, Tensor], leave_out: str = "") -> dict[str, Tensor]:
    """What timm's file of DINOv3 holds: its own names, every value 10."""
    prefix = "backbone.features."
    ours = origin.renamed(state, "x")
    backbone = {key.removeprefix(prefix): tensor for key, tensor in ours.items() if key.startswith(prefix)}
    return {key: torch.full_like(t, 10.0) for key, t in backbone.items() if not leave_out or leave_out not in key}


def test_differences_are_added_to_their_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = filled(dinov3(384, 1))
    save_file(base_of(state, leave_out="_bias"), tmp_path / "model.safetensors")
    asked: list[tuple[str, str]] = []

    def cached(repository: str, name: str) -> str | None:
        asked.append((repository, name))
        return str(tmp_path / name) if (repository, name) == (PLAIN, "model.safetensors") else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    ours = origin._add_base(origin.renamed(state, "x"), "vit_small_patch16_dinov3_qkvb", "x")
    assert asked[0] == ("timm/vit_small_patch16_dinov3_qkvb.lvd1689m", "model.safetensors")
    block = "network.encoder.backbone.blocks.0."
    qkv = [state[f"{block}attention.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(ours["backbone.features.blocks.0.attn.qkv.weight"], 10 + torch.cat(qkv))
    assert torch.equal(ours["backbone.features.blocks.0.gamma_2"], 10 + state[f"{block}layer_scale2.lambda1"])
    # the base leaves out biases that are zero
    assert torch.equal(ours["backbone.features.blocks.0.attn.v_bias"], state[f"{block}attention.v_proj.bias"])
    assert torch.equal(ours["q.weight"], state["network.q.weight"])  # heads are no differences


def test_dinov3_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences fit where they are added: every key of the ViT is among the file's, with its shape."""
    given: list[set[str]] = []
    monkeypatch.setattr(origin, "_add_base", lambda state, backbone, source: given.append(set(state)) or state)
    with torch.device("meta"):
        model, name, options = origin.load(empty(dinov3(768, 12)), "coco_panoptic_eomt_base_640_dinov3")
    assert (name, options) == ("eomt_dinov3_base_640", {})
    assert given == [set(model.state_dict())]


PLAIN = "timm/vit_small_patch16_dinov3.lvd1689m"


def test_a_base_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = filled(dinov3(384, 1))
    save_file(base_of(state, leave_out="norm1.weight"), tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, name: str(tmp_path / name))
    with pytest.raises(PansightError, match=r"blocks\.0\.norm1\.weight: expected shape \[384\], found no such tensor"):
        origin._add_base(origin.renamed(state, "x"), "vit_small_patch16_dinov3_qkvb", "x")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hub/coco_panoptic_eomt_large_1280_dinov3/pytorch_model.bin", "eomt_dinov3_large_1280"),
        ("hub/coco_panoptic_eomt_large_640_dinov3/pytorch_model.bin", "eomt_dinov3_large_640"),
        ("pytorch_model.bin", "eomt_dinov3_large_640"),
    ],
)
def test_rotary_models_have_their_size_from_the_name(source: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor depends on it; it is the size that photos are scaled to."""
    monkeypatch.setattr(origin, "_add_base", lambda state, backbone, source: state)
    with torch.device("meta"):
        model, found, _ = origin.load(empty(dinov3(1024, 24, blocks=4)), source)
    assert found == name
    assert model.input.resize.long == (1280 if "1280" in name else 640)
