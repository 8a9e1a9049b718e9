"""Conversion between transformers' MaskFormerForInstanceSegmentation and our MaskFormer.

Its code is under Apache-2.0, Meta's weights are under CC BY-NC 4.0.

Versions 4 and 5 of transformers write one layout, that of version 4; the names that version 5 has in memory are read
too. transformers has the pixel decoder without an encoder only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pansight.errors import PansightError
from pansight.models import builder_options
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.huggingface.backbones import backbone_config, backbone_name, from_hf, to_hf
from pansight.weights.huggingface.processor import settings_of, size_divisor
from pansight.weights.keys import BACKBONE, Rule, join_rows, rename, split_rows
from pansight.weights.official.maskformer import PUBLISHED, backbone_of

MODEL_TYPES = ("maskformer",)

ENCODER = "model.pixel_level_module.encoder."
FPN = r"model\.pixel_level_module\.decoder\.fpn\."
DECODER = r"model\.transformer_module\.decoder\."
WB = r"(weight|bias)"
NORMS = {"self_attn_layer_norm": "norm1", "encoder_attn_layer_norm": "norm2", "final_layer_norm": "norm3"}
ATTENTIONS = {"self_attn": "self_attn", "encoder_attn": "multihead_attn"}
PARTS = {"proj": "adapter", "block": "layer"}

RULES: list[Rule] = [
    (FPN + r"stem\.0\.weight", "pixel_decoder.layer_4.weight"),
    (FPN + rf"stem\.1\.{WB}", r"pixel_decoder.layer_4.norm.\1"),
    (
        FPN + rf"layers\.([012])\.(proj|block)\.0\.{WB}",
        lambda m: f"pixel_decoder.{PARTS[m[2]]}_{3 - int(m[1])}.{m[3]}",
    ),
    (
        FPN + rf"layers\.([012])\.(proj|block)\.1\.{WB}",
        lambda m: f"pixel_decoder.{PARTS[m[2]]}_{3 - int(m[1])}.norm.{m[3]}",
    ),
    (rf"model\.pixel_level_module\.decoder\.mask_projection\.{WB}", r"pixel_decoder.mask_features.\1"),
    (
        DECODER + rf"layers\.(\d+)\.(self_attn|encoder_attn)\.([qkv])_proj\.{WB}",
        lambda m: f"predictor.decoder.layers.{m[1]}.{ATTENTIONS[m[2]]}.{m[3]}_proj.{m[4]}",
    ),
    (
        DECODER + rf"layers\.(\d+)\.(self_attn|encoder_attn)\.(?:out|o)_proj\.{WB}",
        lambda m: f"predictor.decoder.layers.{m[1]}.{ATTENTIONS[m[2]]}.out_proj.{m[3]}",
    ),
    (DECODER + rf"layers\.(\d+)\.(?:mlp\.)?fc([12])\.{WB}", r"predictor.decoder.layers.\1.linear\2.\3"),
    (
        DECODER + rf"layers\.(\d+)\.({'|'.join(NORMS)})\.{WB}",
        lambda m: f"predictor.decoder.layers.{m[1]}.{NORMS[m[2]]}.{m[3]}",
    ),
    (DECODER + rf"layernorm\.{WB}", r"predictor.decoder.norm.\1"),
    (r"model\.transformer_module\.queries_embedder\.weight", "predictor.query_embed.weight"),
    (rf"model\.transformer_module\.input_projection\.{WB}", r"predictor.input_proj.\1"),
    (rf"class_predictor\.{WB}", r"predictor.class_embed.\1"),
    (rf"mask_embedder\.(\d)\.0\.{WB}", r"predictor.mask_embed.layers.\1.\2"),
]
IGNORED = r"criterion\.empty_weight"

INVERSE: list[Rule] = [
    (r"pixel_decoder\.layer_4\.weight", "model.pixel_level_module.decoder.fpn.stem.0.weight"),
    (rf"pixel_decoder\.layer_4\.norm\.{WB}", r"model.pixel_level_module.decoder.fpn.stem.1.\1"),
    (
        rf"pixel_decoder\.(adapter|layer)_([123])\.(norm\.)?{WB}",
        lambda m: (
            f"model.pixel_level_module.decoder.fpn.layers.{3 - int(m[2])}."
            f"{'proj' if m[1] == 'adapter' else 'block'}.{1 if m[3] else 0}.{m[4]}"
        ),
    ),
    (rf"pixel_decoder\.mask_features\.{WB}", r"model.pixel_level_module.decoder.mask_projection.\1"),
    (r"predictor\.decoder\.norm\.(.+)", r"model.transformer_module.decoder.layernorm.\1"),
    (r"predictor\.decoder\.(.+)\.multihead_attn\.(.+)", r"model.transformer_module.decoder.\1.encoder_attn.\2"),
    (r"predictor\.decoder\.(.+)\.self_attn\.(.+)", r"model.transformer_module.decoder.\1.self_attn.\2"),
    (rf"predictor\.decoder\.(.+)\.linear(\d)\.{WB}", r"model.transformer_module.decoder.\1.fc\2.\3"),
    (
        rf"predictor\.decoder\.(.+)\.(norm\d)\.{WB}",
        lambda m: f"model.transformer_module.decoder.{m[1]}.{list(NORMS)[int(m[2][-1]) - 1]}.{m[3]}",
    ),
    (r"predictor\.query_embed\.weight", "model.transformer_module.queries_embedder.weight"),
    (rf"predictor\.input_proj\.{WB}", r"model.transformer_module.input_projection.\1"),
    (rf"predictor\.class_embed\.{WB}", r"class_predictor.\1"),
    (rf"predictor\.mask_embed\.layers\.(\d)\.{WB}", r"mask_embedder.\1.0.\2"),
]

DECODER_SETTINGS = {
    "num_queries": "queries",
    "d_model": "channels",
    "decoder_attention_heads": "heads",
    "decoder_layers": "layers",
    "decoder_ffn_dim": "hidden",
    "dropout": "dropout",
}
LOSS_SETTINGS = {
    "cross_entropy_weight": "class_weight",
    "mask_weight": "mask_weight",
    "dice_weight": "dice_weight",
    "no_object_weight": "no_object",
}
"""config.json (its decoder_config, itself) → options of ``maskformer``; their defaults are the same."""


def renamed(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """transformers' keys, old or new, to ours. Raises PansightError naming a key of another layout."""
    backbone, rest = from_hf(state, ENCODER, source)
    counters = [key for key in backbone if key.endswith("num_batches_tracked")]  # frozen BatchNorm has none
    backbone = {key: tensor for key, tensor in backbone.items() if key not in counters}
    ours = rename(rest, RULES, IGNORED, source)
    return backbone | join_rows(ours, rf"(.+attn\.)(?P<part>[qkv])_proj\.{WB}", "qkv", r"\1in_proj_\3", source)


def load(
    config: Mapping[str, Any], state: Mapping[str, Tensor], labels: LabelSpace, source: str
) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options): a published builder for a Swin of the published sizes, else "maskformer".

    Raises PansightError for a network that we have no equal of, or where config and tensors do not agree.
    """
    decoder: dict[str, Any] = config.get("decoder_config") or {}
    _check(config, decoder, source)
    # what config.json leaves out of the backbone has another default here than in a Swin's own file
    backbone = backbone_name(config["backbone_config"], source) if config.get("backbone_config") else None
    ours = renamed(state, source)
    backbone = backbone or backbone_of(ours, source)
    options = {option: decoder[key] for key, option in DECODER_SETTINGS.items() if key in decoder}
    options |= {option: config[key] for key, option in LOSS_SETTINGS.items() if key in config}
    defaults = builder_options("maskformer")
    options = {option: value for option, value in options.items() if value != defaults[option]}
    if backbone in PUBLISHED and backbone.startswith("swin") and set(options) <= {"queries"}:
        name = PUBLISHED[backbone]
    else:
        name, options = "maskformer", {"backbone": backbone} | options
    return build_to_fit(name, labels, options, ours, source, f"{source}: config.json"), name, options


def _check(config: Mapping[str, Any], decoder: Mapping[str, Any], source: str) -> None:
    channels = decoder.get("d_model", 256)
    for key in ("fpn_feature_size", "mask_feature_size"):
        if config.get(key, 256) != channels:
            raise PansightError(
                where=f"{source}: config.json", expected=f"{key} {channels} as d_model", found=config.get(key)
            )
    if channels % 32:
        raise PansightError(where=f"{source}: config.json", expected="d_model a multiple of 32", found=channels)
    for key, expected in {"activation_function": "relu", "position_embedding_type": "sine"}.items():
        if (found := decoder.get(key, expected)) not in (expected, None):
            raise PansightError(where=f"{source}: config.json", expected=f"{key} {expected}", found=f"{found!r:.80}")


def export(
    model: Any, name: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """→ (config.json without its classes, tensors, preprocessor_config.json).

    Raises PansightError for the pixel decoder with an encoder, widths, or a backbone that transformers has no equal of.
    """
    _check_sizes(model, name)
    state: dict[str, Tensor] = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    if any(key.startswith("pixel_decoder.encoder.") for key in state):
        raise PansightError(where=name, expected="the pixel decoder 'fpn', which transformers has", found="'encoder'")
    own = {key: tensor for key, tensor in state.items() if key.startswith(BACKBONE)}
    rest = {key: tensor for key, tensor in state.items() if not key.startswith(BACKBONE)}
    network = backbone_config(options["backbone"] if "backbone" in options else backbone_of(own, name))
    rest = split_rows(rest, rf"(.+attn\.)in_proj_{WB}", "qkv", r"\1{part}_proj.\2")
    kind = "resnet" if network["model_type"] == "resnet" else "maskformer-swin"
    tensors = to_hf(own, ENCODER, kind) | rename(rest, INVERSE, "", name)
    no_object = model.settings.no_object
    tensors["criterion.empty_weight"] = torch.tensor([1.0] * len(model.labels) + [no_object])
    return _config(model, network), tensors, _processor(model)


def _check_sizes(model: Any, name: str) -> None:
    """transformers norms maps in 32 groups, has a layer at least, and projects the last map to another width only."""
    channels, coarsest = model.predictor.query_embed.embedding_dim, model.backbone.channels[-1]
    if channels % 32:
        raise PansightError(
            where=name, expected="channels a multiple of 32, as transformers norms them", found=channels
        )
    if channels == coarsest:
        expected = f"other channels than the {coarsest} of the backbone's last map, which transformers does not project"
        raise PansightError(where=name, expected=expected, found=channels)
    if not len(model.predictor.decoder.layers):
        raise PansightError(where=name, expected="a decoder of at least one layer", found="none")


def _config(model: Any, network: dict[str, Any]) -> dict[str, Any]:
    layer = model.predictor.decoder.layers[0]
    queries = model.predictor.query_embed
    settings = model.settings
    return {
        "model_type": "maskformer",
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "backbone_config": network,
        "decoder_config": {
            "model_type": "detr",
            "d_model": queries.embedding_dim,
            "num_queries": queries.num_embeddings,
            "decoder_layers": len(model.predictor.decoder.layers),
            "decoder_attention_heads": layer.self_attn.heads,
            "decoder_ffn_dim": layer.linear1.out_features,
            "dropout": layer.dropout.p,
        },
        "fpn_feature_size": queries.embedding_dim,
        "mask_feature_size": queries.embedding_dim,
        "cross_entropy_weight": float(settings.class_weight),
        "mask_weight": float(settings.focal_weight),
        "dice_weight": float(settings.dice_weight),
        "no_object_weight": float(settings.no_object),
        "use_auxiliary_loss": False,  # transformers 5 cannot predict where it is on
    }


def _processor(model: Any) -> dict[str, Any]:
    return settings_of(model.input) | {
        "image_processor_type": "MaskFormerImageProcessor",
        "size_divisor": size_divisor(model.input.resize),
        "ignore_index": 255,
        "do_reduce_labels": False,
        "num_labels": len(model.labels),
    }
