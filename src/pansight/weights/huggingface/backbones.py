"""ResNet and Swin between transformers' names and ours, for every layout that its versions have.

There are three layouts of Swin: SwinBackbone's as versions 4 and 5 write it (Mask2Former), the same as version 5 holds
it in memory, and MaskFormer's own copy, with ``model.`` before the network and norms by number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pansight.errors import PansightError
from pansight.nn.backbones.swin import SWINS, SwinSize, relative_places, swin_name, swin_size
from pansight.weights.keys import BACKBONE, Rule, join_rows, rename, split_rows

RESNETS: dict[str, tuple[str, tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
"""timm's name → transformers' layer_type and depths; widths are 64, 128, 256, 512, times 4 for bottlenecks."""

STAGES = ["stage1", "stage2", "stage3", "stage4"]
NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
WB = r"(weight|bias)"
NET = r"(?:swin\.|model\.)?"
BLOCK = rf"{NET}encoder\.layers\.(\d+)\.blocks\.(\d+)\."
OURS = re.escape(BACKBONE)
OUR_BLOCK = OURS + r"layers\.(\d+)\.blocks\.(\d+)\."

RESNET: list[Rule] = [
    (r"embedder\.embedder\.convolution\.weight", BACKBONE + "conv1.weight"),
    (rf"embedder\.embedder\.normalization\.{NORM}", BACKBONE + r"bn1.\1"),
    (
        r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.convolution\.weight",
        lambda m: f"{BACKBONE}layer{int(m[1]) + 1}.{m[2]}.downsample.0.weight",
    ),
    (
        rf"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.normalization\.{NORM}",
        lambda m: f"{BACKBONE}layer{int(m[1]) + 1}.{m[2]}.downsample.1.{m[3]}",
    ),
    (
        r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.convolution\.weight",
        lambda m: f"{BACKBONE}layer{int(m[1]) + 1}.{m[2]}.conv{int(m[3]) + 1}.weight",
    ),
    (
        rf"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.normalization\.{NORM}",
        lambda m: f"{BACKBONE}layer{int(m[1]) + 1}.{m[2]}.bn{int(m[3]) + 1}.{m[4]}",
    ),
]

SWIN: list[Rule] = [
    (rf"{NET}embeddings\.patch_embeddings\.projection\.{WB}", BACKBONE + r"patch_embed.proj.\1"),
    (rf"{NET}embeddings\.norm\.{WB}", BACKBONE + r"patch_embed.norm.\1"),
    (BLOCK + rf"layernorm_before\.{WB}", BACKBONE + r"layers.\1.blocks.\2.norm1.\3"),
    (BLOCK + rf"layernorm_after\.{WB}", BACKBONE + r"layers.\1.blocks.\2.norm2.\3"),
    (BLOCK + rf"attention\.qkv\.{WB}", BACKBONE + r"layers.\1.blocks.\2.attn.qkv.\3"),  # joined before
    (BLOCK + rf"attention\.(?:output\.dense|o_proj)\.{WB}", BACKBONE + r"layers.\1.blocks.\2.attn.proj.\3"),
    (
        BLOCK + r"attention\.(?:self|relative_position_bias)\.relative_position_bias_table",
        BACKBONE + r"layers.\1.blocks.\2.attn.relative_position_bias_table",
    ),
    (BLOCK + rf"(?:intermediate\.dense|mlp\.fc1)\.{WB}", BACKBONE + r"layers.\1.blocks.\2.mlp.fc1.\3"),
    (BLOCK + rf"(?:output\.dense|mlp\.fc2)\.{WB}", BACKBONE + r"layers.\1.blocks.\2.mlp.fc2.\3"),
    (rf"{NET}encoder\.layers\.(\d+)\.(downsample\..+)", BACKBONE + r"layers.\1.\2"),
    (rf"hidden_states_norms\.(\d)\.{WB}", BACKBONE + r"norm\1.\2"),
    (rf"hidden_states_norms\.stage(\d)\.{WB}", lambda m: f"{BACKBONE}norm{int(m[1]) - 1}.{m[2]}"),
]
SWIN_IGNORED = rf"{NET}layernorm\.{WB}|.*\.relative_position_index"
"""The norm after the last stage, which no mask transformer uses, and a table that follows from the window size."""


def from_hf(state: Mapping[str, Tensor], prefix: str, source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the backbone's tensors under our names, with ``backbone.features.``; all others as they are).

    prefix: what the backbone's keys begin with, such as ``model.pixel_level_module.encoder.``.
    Raises PansightError naming a tensor that neither a ResNet nor a Swin has.
    """
    theirs = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    rest = {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}
    if any(key.startswith("embedder.") for key in theirs):
        return rename(theirs, RESNET, "", source), rest
    for parts, pattern in (("query", "key", "value"), r"attention\.self\.{}"), (("q", "k", "v"), r"attention\.{}_proj"):
        one = pattern.format(rf"(?P<part>{'|'.join(parts)})")
        theirs = join_rows(theirs, rf"({BLOCK}){one}\.{WB}", parts, r"\g<1>attention.qkv.\g<5>", source)
    return rename(theirs, SWIN, SWIN_IGNORED, source), rest


def to_hf(state: Mapping[str, Tensor], prefix: str, kind: str) -> dict[str, Tensor]:
    """The inverse, from ``backbone.features.…`` alone: every tensor that transformers asks for, under names on disk.

    kind: "resnet", "swin" (Mask2Former) or "maskformer-swin". What transformers has besides, and no figure depends on
    (the last norm, counters of batches, tables of places), is added as it starts there.
    """
    theirs = _to_resnet(state) if kind == "resnet" else _to_swin(state, is_maskformer=kind == "maskformer-swin")
    return {prefix + key: tensor for key, tensor in theirs.items()}


def _to_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def block(m: re.Match[str]) -> str:
        if m[3] == "downsample":
            return f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.shortcut.{_unit(m[4] == '0')}.{m[5]}"
        return f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.layer.{int(m[4]) - 1}.{_unit(m[3] == 'conv')}.{m[5]}"

    rules: list[Rule] = [
        (OURS + r"conv1\.weight", "embedder.embedder.convolution.weight"),
        (OURS + rf"bn1\.{NORM}", r"embedder.embedder.normalization.\1"),
        (OURS + rf"layer(\d)\.(\d+)\.(downsample|conv|bn)\.?(\d)\.{NORM}", block),
    ]
    theirs = rename(state, rules, "", "backbone")
    for key in [key for key in theirs if key.endswith("running_mean")]:
        theirs.setdefault(key.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return theirs


def _unit(is_convolution: bool) -> str:
    return "convolution" if is_convolution else "normalization"


def _to_swin(state: Mapping[str, Tensor], is_maskformer: bool) -> dict[str, Tensor]:
    net = "model." if is_maskformer else ""
    block = net + r"encoder.layers.\1.blocks.\2."
    rules: list[Rule] = [
        (OURS + rf"patch_embed\.proj\.{WB}", net + r"embeddings.patch_embeddings.projection.\1"),
        (OURS + rf"patch_embed\.norm\.{WB}", net + r"embeddings.norm.\1"),
        (OUR_BLOCK + rf"norm1\.{WB}", block + r"layernorm_before.\3"),
        (OUR_BLOCK + rf"norm2\.{WB}", block + r"layernorm_after.\3"),
        (OUR_BLOCK + rf"attn\.(query|key|value)\.{WB}", block + r"attention.self.\3.\4"),
        (OUR_BLOCK + rf"attn\.proj\.{WB}", block + r"attention.output.dense.\3"),
        (OUR_BLOCK + r"attn\.(relative_position_bias_table)", block + r"attention.self.\3"),
        (OUR_BLOCK + rf"mlp\.fc1\.{WB}", block + r"intermediate.dense.\3"),
        (OUR_BLOCK + rf"mlp\.fc2\.{WB}", block + r"output.dense.\3"),
        (OURS + r"layers\.(\d+)\.(downsample\..+)", net + r"encoder.layers.\1.\2"),
        (
            OURS + rf"norm(\d)\.{WB}",
            lambda m: f"hidden_states_norms.{m[1] if is_maskformer else f'stage{int(m[1]) + 1}'}.{m[2]}",
        ),
    ]
    parts = ("query", "key", "value")
    split = split_rows(state, rf"(.*\.attn)\.qkv\.{WB}", parts, r"\1.{part}.\2")
    theirs = rename(split, rules, "", "backbone")
    last = state[BACKBONE + "norm3.weight"]
    final = net if is_maskformer else "swin."
    theirs |= {f"{final}layernorm.weight": torch.ones_like(last), f"{final}layernorm.bias": torch.zeros_like(last)}
    if is_maskformer:
        for key in [key for key in theirs if key.endswith("relative_position_bias_table")]:
            window = (round(theirs[key].shape[0] ** 0.5) + 1) // 2  # the table has (2 · window − 1)² rows
            index = relative_places(window, torch.device("cpu"))
            theirs[key.replace("bias_table", "index")] = index
    return theirs


def backbone_name(config: Mapping[str, Any], source: str) -> str:
    """Our name of the network that a ``backbone_config`` describes; what it leaves out has transformers' default.

    Raises PansightError for a network, or a setting of one, that we have no equal of.
    """
    kind = config.get("model_type")
    if kind == "resnet":
        return _resnet_name(config, source)
    if kind not in ("swin", "maskformer-swin"):
        raise PansightError(where=source, expected="a backbone_config of resnet or swin", found=f"{kind!r:.80}")
    _expect(config, {"patch_size": 4, "mlp_ratio": 4.0, "qkv_bias": True, "hidden_act": "gelu"}, source)
    _expect(config, {"use_absolute_embeddings": False, "num_channels": 3, "layer_norm_eps": 1e-5}, source)
    heads = config.get("num_heads", config.get("num_attention_heads", (3, 6, 12, 24)))
    depths = tuple(config.get("depths", (2, 2, 6, 2)))
    if len(depths) != 4:
        raise PansightError(where=source, expected="a Swin of 4 stages", found=len(depths))
    return swin_name(SwinSize(config.get("embed_dim", 96), depths, tuple(heads), config.get("window_size", 7)))


def _resnet_name(config: Mapping[str, Any], source: str) -> str:
    _expect(config, {"hidden_act": "relu", "downsample_in_first_stage": False}, source)
    _expect(config, {"downsample_in_bottleneck": False, "num_channels": 3, "embedding_size": 64}, source)
    layer, depths = config.get("layer_type", "bottleneck"), tuple(config.get("depths", (3, 4, 6, 3)))
    widths = list(config.get("hidden_sizes", (256, 512, 1024, 2048)))
    for name, published in RESNETS.items():
        if published == (layer, depths) and widths == _resnet_widths(layer):
            return name
    known = ", ".join(RESNETS)
    raise PansightError(
        where=source, expected=f"a ResNet among {known}", found=f"{layer} layers {list(depths)}, {widths}"
    )


def _resnet_widths(layer: str) -> list[int]:
    return [width * (4 if layer == "bottleneck" else 1) for width in (64, 128, 256, 512)]


def _expect(config: Mapping[str, Any], values: Mapping[str, Any], source: str) -> None:
    for key, expected in values.items():
        found = config.get(key, expected)
        if found not in (expected, [expected, expected]):
            raise PansightError(
                where=f"{source}: backbone_config", expected=f"{key} {expected}", found=f"{found!r:.80}"
            )


def backbone_config(name: str) -> dict[str, Any]:
    """The ``backbone_config`` of a backbone by our name, for any version of transformers.

    Raises PansightError for a backbone that transformers has no equal of.
    """
    stages: dict[str, Any] = {"out_features": STAGES, "out_indices": [1, 2, 3, 4]}
    if (size := swin_size(name)) and len(size.depths) == len(STAGES):
        window = {"window_size": size.window, "image_size": 384 if size.window == 12 else 224}
        sizes = {"embed_dim": size.channels, "depths": list(size.depths), "num_heads": list(size.heads)}
        return {"model_type": "swin"} | sizes | window | {"patch_size": 4, "drop_path_rate": 0.3} | stages
    plain = name.split(".")[0]
    if plain in RESNETS:
        layer, depths = RESNETS[plain]
        sizes = {"layer_type": layer, "depths": list(depths), "hidden_sizes": _resnet_widths(layer)}
        return {"model_type": "resnet", "embedding_size": 64} | sizes | stages
    known = ", ".join([*RESNETS, *SWINS])
    raise PansightError(f"expected one that transformers has ({known}), to write its files", where=f"backbone {name}")
