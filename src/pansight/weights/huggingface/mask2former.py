"""Conversion between transformers' Mask2FormerForUniversalSegmentation and our Mask2Former.

Its code is under Apache-2.0, Meta's weights are under CC BY-NC 4.0.

transformers keeps the weights of cross-attention in one tensor, as we do, and splits those of self-attention into q, k
and v. The names that its versions 4 and 5 use differ in the backbone alone (`backbones`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pansight.errors import PansightError
from pansight.models import builder_options
from pansight.nn.backbones.swin import DROP_PATH
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.huggingface.backbones import backbone_config, backbone_name, from_hf, to_hf
from pansight.weights.huggingface.processor import settings_of, size_divisor
from pansight.weights.keys import BACKBONE, Rule, join_rows, rename, split_rows
from pansight.weights.official.mask2former import PUBLISHED
from pansight.weights.official.maskformer import backbone_of

MODEL_TYPES = ("mask2former",)

BACKBONE_PREFIX = "model.pixel_level_module.encoder."
PIXEL = "model.pixel_level_module.decoder."
QUERY = "model.transformer_module."
ENCODER = "pixel_decoder.transformer.encoder.layers."
WB = r"(weight|bias)"

EMBEDDINGS = {"queries_features": "query_feat", "queries_embedder": "query_embed", "level_embed": "level_embed"}
UNITS = {
    "cross_attn_layer_norm": "cross_attention_layers.{}.norm",
    "self_attn_layer_norm": "self_attention_layers.{}.norm",
    "final_layer_norm": "ffn_layers.{}.norm",
    "fc1": "ffn_layers.{}.linear1",
    "fc2": "ffn_layers.{}.linear2",
}
"""What follows ``decoder.layers.N.`` → what follows ``predictor.transformer_``."""

RULES: list[Rule] = [
    (PIXEL + "level_embed", "pixel_decoder.transformer.level_embed"),
    (PIXEL + rf"input_projections\.(\d)\.([01])\.{WB}", r"pixel_decoder.input_proj.\1.\2.\3"),
    (PIXEL + r"(adapter|layer)_1\.0\.weight", r"pixel_decoder.\1_1.weight"),
    (PIXEL + rf"(adapter|layer)_1\.1\.{WB}", r"pixel_decoder.\1_1.norm.\2"),
    (PIXEL + rf"mask_projection\.{WB}", r"pixel_decoder.mask_features.\1"),
    (PIXEL + rf"encoder\.layers\.(\d+)\.self_attn_layer_norm\.{WB}", ENCODER + r"\1.norm1.\2"),
    (PIXEL + rf"encoder\.layers\.(\d+)\.final_layer_norm\.{WB}", ENCODER + r"\1.norm2.\2"),
    (PIXEL + rf"encoder\.layers\.(\d+)\.fc([12])\.{WB}", ENCODER + r"\1.linear\2.\3"),
    (PIXEL + rf"encoder\.layers\.(\d+)\.(self_attn\.\w+)\.{WB}", ENCODER + r"\1.\2.\3"),
    (
        QUERY + r"(queries_features|queries_embedder|level_embed)\.weight",
        lambda m: f"predictor.{EMBEDDINGS[m[1]]}.weight",
    ),
    (QUERY + rf"decoder\.layernorm\.{WB}", r"predictor.decoder_norm.\1"),
    (QUERY + rf"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.{WB}", r"predictor.mask_embed.layers.\1.\2"),
    (
        QUERY + r"decoder\.layers\.(\d+)\.cross_attn\.(.+)",
        r"predictor.transformer_cross_attention_layers.\1.multihead_attn.\2",
    ),
    (
        QUERY + r"decoder\.layers\.(\d+)\.self_attn\.(.+)",
        r"predictor.transformer_self_attention_layers.\1.self_attn.\2",
    ),
    (
        QUERY + rf"decoder\.layers\.(\d+)\.({'|'.join(UNITS)})\.{WB}",
        lambda m: f"predictor.transformer_{UNITS[m[2]].format(m[1])}.{m[3]}",
    ),
    (rf"class_predictor\.{WB}", r"predictor.class_embed.\1"),
]
IGNORED = r"criterion\.empty_weight"

SETTINGS = {
    "num_queries": "queries",
    "feature_size": "channels",
    "num_attention_heads": "heads",
    "dim_feedforward": "hidden",
    "encoder_layers": "encoder_layers",
    "encoder_feedforward_dim": "encoder_hidden",
    "train_num_points": "loss_points",
    "class_weight": "class_weight",
    "mask_weight": "mask_weight",
    "dice_weight": "dice_weight",
    "no_object_weight": "no_object",
}
"""config.json → options of our builder; their defaults are the same."""

EXPECTED = {
    "activation_function": "relu",
    "pre_norm": False,
    "enforce_input_projection": False,
    "common_stride": 4,
    "dropout": 0.0,
    "oversample_ratio": 3.0,
    "importance_sample_ratio": 0.75,
}


def renamed(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """transformers' keys, of any version, to ours, one to one; BatchNorm's counters are left out.

    Raises PansightError naming a key of another layout.
    """
    counted = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    backbone, rest = from_hf(counted, BACKBONE_PREFIX, source)
    ours = rename(rest, RULES, IGNORED, source)
    return backbone | join_rows(ours, rf"(.+\.self_attn\.)(?P<part>[qkv])_proj\.{WB}", "qkv", r"\1in_proj_\3", source)


def load(
    config: dict[str, Any], state: Mapping[str, Tensor], labels: LabelSpace, source: str
) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, "mask2former", options). Raises PansightError where config and tensors do not agree."""
    sizes = {"hidden_dim": config.get("feature_size", 256), "mask_feature_size": config.get("feature_size", 256)}
    for key, expected in (EXPECTED | sizes).items():
        if (found := config.get(key, 256 if key in sizes else expected)) != expected:
            raise PansightError(where=f"{source}: config.json", expected=f"{key} {expected}", found=f"{found!r:.80}")
    ours = renamed(state, source)
    inner = config.get("backbone_config") or {}
    backbone = backbone_name(inner, source) if inner else backbone_of(ours, source)
    options = {option: config[key] for key, option in SETTINGS.items() if key in config}
    options |= {"layers": config.get("decoder_layers", 10) - 1}  # transformers counts the predictions
    if inner.get("model_type") == "swin" and inner.get("drop_path_rate", 0.1) != DROP_PATH:
        options["drop_path"] = inner.get("drop_path_rate", 0.1)
    defaults = builder_options("mask2former")
    special = {option: value for option, value in options.items() if value != defaults[option]}
    if backbone in PUBLISHED and set(special) <= {"queries"}:
        name = PUBLISHED[backbone]
        queries = options.get("queries", defaults["queries"])
        options = {} if queries == builder_options(name)["queries"] else {"queries": queries}
    else:
        name, options = "mask2former", {"backbone": backbone} | special
    return build_to_fit(name, labels, options, ours, source, f"{source}: config.json"), name, options


NAMES = {ours: theirs for theirs, ours in EMBEDDINGS.items()}
UNIT_NAMES = {ours.replace("{}.", ""): theirs for theirs, ours in UNITS.items()}
INVERSE: list[Rule] = [
    (r"pixel_decoder\.transformer\.level_embed", PIXEL + "level_embed"),
    (rf"pixel_decoder\.input_proj\.(\d)\.([01])\.{WB}", PIXEL + r"input_projections.\1.\2.\3"),
    (r"pixel_decoder\.(adapter|layer)_1\.weight", PIXEL + r"\1_1.0.weight"),
    (rf"pixel_decoder\.(adapter|layer)_1\.norm\.{WB}", PIXEL + r"\1_1.1.\2"),
    (rf"pixel_decoder\.mask_features\.{WB}", PIXEL + r"mask_projection.\1"),
    (re.escape(ENCODER) + rf"(\d+)\.norm1\.{WB}", PIXEL + r"encoder.layers.\1.self_attn_layer_norm.\2"),
    (re.escape(ENCODER) + rf"(\d+)\.norm2\.{WB}", PIXEL + r"encoder.layers.\1.final_layer_norm.\2"),
    (re.escape(ENCODER) + rf"(\d+)\.linear([12])\.{WB}", PIXEL + r"encoder.layers.\1.fc\2.\3"),
    (re.escape(ENCODER) + rf"(\d+)\.(self_attn\.\w+)\.{WB}", PIXEL + r"encoder.layers.\1.\2.\3"),
    (r"predictor\.(query_feat|query_embed|level_embed)\.weight", lambda m: f"{QUERY}{NAMES[m[1]]}.weight"),
    (rf"predictor\.decoder_norm\.{WB}", QUERY + r"decoder.layernorm.\1"),
    (rf"predictor\.mask_embed\.layers\.(\d)\.{WB}", QUERY + r"decoder.mask_predictor.mask_embedder.\1.0.\2"),
    (
        r"predictor\.transformer_cross_attention_layers\.(\d+)\.multihead_attn\.(.+)",
        QUERY + r"decoder.layers.\1.cross_attn.\2",
    ),
    (
        r"predictor\.transformer_self_attention_layers\.(\d+)\.self_attn\.(.+)",
        QUERY + r"decoder.layers.\1.self_attn.\2",
    ),
    (
        rf"predictor\.transformer_(\w+_layers)\.(\d+)\.(norm|linear[12])\.{WB}",
        lambda m: f"{QUERY}decoder.layers.{m[2]}.{UNIT_NAMES[f'{m[1]}.{m[3]}']}.{m[4]}",
    ),
    (rf"predictor\.class_embed\.{WB}", r"class_predictor.\1"),
]
SPLIT = rf"(.+\.self_attn\.)in_proj_{WB}", "qkv", r"\1{part}_proj.\2"


def export(
    model: Any, name: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """→ (config.json without its classes, tensors, preprocessor_config.json).

    Raises PansightError for widths, sampling points or a backbone that transformers has no equal of.
    """
    _check_sizes(model, name)
    state: dict[str, Tensor] = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    own = {key: tensor for key, tensor in state.items() if key.startswith(BACKBONE)}
    rest = {key: tensor for key, tensor in state.items() if not key.startswith(BACKBONE)}
    network = backbone_config(options["backbone"] if "backbone" in options else backbone_of(own, name))
    tensors = to_hf(own, BACKBONE_PREFIX, network["model_type"]) | rename(split_rows(rest, *SPLIT), INVERSE, "", name)
    no_object = torch.tensor([model.settings.no_object])
    tensors["criterion.empty_weight"] = torch.cat((torch.ones(len(model.labels)), no_object))
    return _config(model, network), tensors, _processor(model)


def _check_sizes(model: Any, name: str) -> None:
    """transformers norms maps in 32 groups, reads 4 places a level and head, and has at least one layer each side."""
    encoder = model.pixel_decoder.transformer.encoder.layers
    layers = model.predictor.transformer_ffn_layers
    channels = model.predictor.query_feat.embedding_dim
    if channels % 32:
        raise PansightError(
            where=name, expected="channels a multiple of 32, as transformers norms them", found=channels
        )
    if not len(encoder) or not len(layers):
        raise PansightError(where=name, expected="an encoder and a decoder of at least one layer", found="none")
    if (points := encoder[0].self_attn.points) != SAMPLING_POINTS:
        expected = f"sampling_points {SAMPLING_POINTS}, which transformers has"
        raise PansightError(where=name, expected=expected, found=points)


SAMPLING_POINTS = 4


def _config(model: Any, network: dict[str, Any]) -> dict[str, Any]:
    decoder, pixels, settings = model.predictor, model.pixel_decoder, model.settings
    channels = decoder.query_feat.embedding_dim
    encoder = pixels.transformer.encoder.layers
    return {
        "model_type": "mask2former",
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "backbone_config": network,
        "feature_size": channels,
        "mask_feature_size": channels,
        "hidden_dim": channels,
        "encoder_layers": len(encoder),
        "encoder_feedforward_dim": encoder[0].linear1.out_features,
        "decoder_layers": len(decoder.transformer_ffn_layers) + 1,
        "dim_feedforward": decoder.transformer_ffn_layers[0].linear1.out_features,
        "num_attention_heads": decoder.transformer_self_attention_layers[0].self_attn.heads,
        "num_queries": decoder.query_feat.num_embeddings,
        "train_num_points": settings.points,
        "oversample_ratio": float(settings.oversample),
        "importance_sample_ratio": float(settings.importance),
        "class_weight": float(settings.class_weight),
        "mask_weight": float(settings.binary_weight),
        "dice_weight": float(settings.dice_weight),
        "no_object_weight": float(settings.no_object),
    } | EXPECTED


def _processor(model: Any) -> dict[str, Any]:
    return settings_of(model.input) | {
        "image_processor_type": "Mask2FormerImageProcessor",
        "size_divisor": size_divisor(model.input.resize),
        "ignore_index": 255,
        "do_reduce_labels": False,
        "num_labels": len(model.labels),
    }
