"""Conversion between transformers' DetrForSegmentation and DetrForObjectDetection (Apache-2.0) and our DETR.

Versions 4 and 5 of transformers write one layout, that of version 4; version 5 has other names in memory, which are
read too. The backbone is timm's under timm's names or transformers' own ResNet; files are written with timm's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.models import builder_options
from pansight.nn.backbones.pyramid import FrozenBatchNorm
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.huggingface.backbones import backbone_name, from_hf
from pansight.weights.huggingface.processor import settings_of
from pansight.weights.keys import BACKBONE, Rule, join_rows, rename, split_rows

MODEL_TYPES = ("detr",)

WB = r"(weight|bias)"
NORMS = {
    "encoder": {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2"},
    "decoder": {"self_attn_layer_norm": "norm1", "encoder_attn_layer_norm": "norm2", "final_layer_norm": "norm3"},
}
ATTENTIONS = {"self_attn": "self_attn", "encoder_attn": "multihead_attn"}
STAGES = {"fpn_adapter": "adapter{}", "refine.conv": "lay{}", "refine.norm": "gn{}"}
BACKBONE_PREFIX = re.compile(r"model\.backbone\.(?:conv_encoder\.)?model\.(?:_backbone\.)?")


def _stage(match: re.Match[str]) -> str:
    """``fpn_stages.0.refine.conv`` → lay3; ``.fpn_adapter`` → adapter1"""
    number = int(match[1]) + (1 if match[2] == "fpn_adapter" else 3)
    return f"mask_head.{STAGES[match[2]].format(number)}.{match[3]}"


RULES: list[Rule] = [
    (rf"model\.input_projection\.{WB}", r"input_proj.\1"),
    (r"model\.query_position_embeddings\.weight", "query_embed.weight"),
    (
        rf"model\.(encoder|decoder)\.layers\.(\d+)\.(self_attn|encoder_attn)\.([qkv])_proj\.{WB}",
        lambda m: f"transformer.{m[1]}.layers.{m[2]}.{ATTENTIONS[m[3]]}.{m[4]}_proj.{m[5]}",
    ),
    (
        rf"model\.(encoder|decoder)\.layers\.(\d+)\.(self_attn|encoder_attn)\.(?:out|o)_proj\.{WB}",
        lambda m: f"transformer.{m[1]}.layers.{m[2]}.{ATTENTIONS[m[3]]}.out_proj.{m[4]}",
    ),
    (rf"model\.(encoder|decoder)\.layers\.(\d+)\.(?:mlp\.)?fc(\d)\.{WB}", r"transformer.\1.layers.\2.linear\3.\4"),
    (
        rf"model\.(encoder|decoder)\.layers\.(\d+)\.(\w+_layer_norm)\.{WB}",
        lambda m: f"transformer.{m[1]}.layers.{m[2]}.{NORMS[m[1]].get(m[3], m[3])}.{m[4]}",
    ),
    (rf"model\.decoder\.layernorm\.{WB}", r"transformer.decoder.norm.\1"),
    (rf"class_labels_classifier\.{WB}", r"class_embed.\1"),
    (rf"bbox_predictor\.layers\.(\d)\.{WB}", r"bbox_embed.layers.\1.\2"),
    (rf"bbox_attention\.([qk])_(?:linear|proj)\.{WB}", r"bbox_attention.\1_linear.\2"),
    (rf"(mask_head\.(?:lay|gn|adapter)\d)\.{WB}", r"\1.\2"),
    (rf"mask_head\.conv(\d)\.conv\.{WB}", r"mask_head.lay\1.\2"),
    (rf"mask_head\.conv(\d)\.norm\.{WB}", r"mask_head.gn\1.\2"),
    (rf"mask_head\.fpn_stages\.(\d)\.(fpn_adapter|refine\.conv|refine\.norm)\.{WB}", _stage),
    (rf"mask_head\.(?:out_lay|output_conv)\.{WB}", r"mask_head.out_lay.\1"),
]

SETTINGS = {
    "d_model": "channels",
    "encoder_attention_heads": "heads",
    "encoder_ffn_dim": "hidden",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "dropout": "dropout",
    "num_queries": "queries",
    "dilation": "dilate",
    "bbox_loss_coefficient": "box_weight",
    "giou_loss_coefficient": "giou_weight",
    "mask_loss_coefficient": "mask_weight",
    "dice_loss_coefficient": "dice_weight",
    "eos_coefficient": "no_object",
}
"""config.json → options of our builders; their defaults are the same."""

EXPECTED = {"position_embedding_type": "sine", "activation_function": "relu", "num_channels": 3}


def renamed(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """transformers' keys, old or new, to ours. Raises PansightError naming a key of another layout."""
    plain = {key.removeprefix("detr."): tensor for key, tensor in state.items() if "num_batches_tracked" not in key}
    prefix = next((match[0] for key in plain if (match := BACKBONE_PREFIX.match(key))), "model.backbone.")
    if any(key.startswith(prefix + "embedder.") for key in plain):
        backbone, rest = from_hf(plain, prefix, source)
    else:
        backbone = {BACKBONE + k.removeprefix(prefix): t for k, t in plain.items() if k.startswith(prefix)}
        rest = {key: tensor for key, tensor in plain.items() if not key.startswith(prefix)}
    ours = rename(rest, RULES, "", source)
    return backbone | join_rows(ours, rf"(.+attn\.)(?P<part>[qkv])_proj\.{WB}", "qkv", r"\1in_proj_\3", source)


def load(
    config: dict[str, Any], state: Mapping[str, Tensor], labels: LabelSpace, source: str
) -> tuple[Any, str, dict[str, Any]]:
    """→ (model, "detr" or "detr_panoptic", options). Raises PansightError where config and tensors do not agree."""
    for key, expected in EXPECTED.items():
        if (found := config.get(key, expected)) != expected:
            raise PansightError(where=f"{source}: config.json", expected=f"{key} {expected}", found=f"{found!r:.80}")
    for size in ("attention_heads", "ffn_dim"):
        one, other = (config.get(f"{part}_{size}") for part in ("encoder", "decoder"))
        if one != other:
            raise PansightError(
                where=f"{source}: config.json", expected=f"one {size} of both parts", found=f"{one} and {other}"
            )
    name = "detr_panoptic" if any(key.startswith("mask_head.") for key in state) else "detr"
    known = builder_options(name)
    options = {ours: config[theirs] for theirs, ours in SETTINGS.items() if theirs in config and ours in known}
    options = {"backbone": _backbone(config, source)} | options
    return build_to_fit(name, labels, options, renamed(state, source), source, f"{source}: config.json"), name, options


def _backbone(config: dict[str, Any], source: str) -> str:
    """The timm name; at the top of config.json in files of transformers 4, in backbone_config in those of 5."""
    inner = config.get("backbone_config")
    if inner is None:
        return config.get("backbone") or "resnet50"
    if inner.get("model_type") == "timm_backbone":
        return inner["backbone"]
    return backbone_name(inner, source)


def export(model: Any, name: str, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """→ (config.json without its classes, tensors, preprocessor_config.json).

    Raises PansightError for what transformers has no equal of: see `check_backbone` and `_check_heads`.
    """
    _check_heads(model, name, options)
    check_backbone(model, name)
    is_panoptic = model.mask_head is not None
    state = {key: tensor.clone() for key, tensor in model.state_dict().items() if "num_batches_tracked" not in key}
    tensors = rename(split_rows(state, *SPLIT), INVERSE, "", name)
    if is_panoptic:
        heads = ("mask_head.", "bbox_attention.")
        tensors = {k if k.startswith(heads) else f"detr.{k}": tensor for k, tensor in tensors.items()}
    return _config(model, is_panoptic), tensors, _processor(model, is_panoptic)


def _check_heads(model: Any, name: str, options: dict[str, Any]) -> None:
    """transformers has a class head of one layer, at least one layer on each side, and a mask head that norms its maps
    in 8 groups, or as many as a narrower map has channels.
    """
    if (builder_options(name) | options).get("class_hidden"):
        raise PansightError(where=name, expected="a class head of one layer, which transformers has", found="more")
    if not len(model.transformer.encoder.layers) or not len(model.transformer.decoder.layers):
        raise PansightError(where=name, expected="an encoder and a decoder of at least one layer", found="none")
    if model.mask_head is None:
        return
    norms = [module for module in model.mask_head.modules() if isinstance(module, nn.GroupNorm)]
    odd = next((norm for norm in norms if norm.num_groups != min(8, norm.num_channels)), None)
    if odd is not None:
        found = f"{odd.num_channels} in {odd.num_groups} groups: channels {model.mask_head.channels}"
        raise PansightError(
            where=name, expected="maps of the mask head in 8 groups, as transformers norms", found=found
        )


def check_backbone(model: Any, name: str) -> None:
    """Raises PansightError for a backbone that transformers' DETR would build otherwise.

    It takes maps 1 to 4 of timm's network of that name, makes every BatchNorm a plain frozen one with epsilon 1e-5
    (activations that timm keeps inside go), and leaves what is no weight as it happens to be.
    """
    features = model.backbone.features
    info = vars(features).get("feature_info")
    if info is None or len(info.info) != 5 or tuple(info.out_indices) != (1, 2, 3, 4):
        raise PansightError(where=name, expected="a timm backbone of a stem and four stages", found="another kind")
    for module in features.modules():
        is_frozen = isinstance(module, FrozenBatchNorm)
        if is_frozen or isinstance(module, nn.BatchNorm2d):
            is_plain = isinstance(module.act, nn.Identity) if is_frozen else type(module) is nn.BatchNorm2d
            if not is_plain or module.eps != 1e-5:
                expected = "a backbone of plain BatchNorm (epsilon 1e-5), which transformers puts in place of any other"
                found = f"epsilon {module.eps:g}" if is_plain else "BatchNorm with an activation inside"
                raise PansightError(where=name, expected=expected, found=found)
    kept = set(features.state_dict())
    lost = [key for key, _ in features.named_buffers() if key not in kept]
    if lost:
        expected = "a backbone of weights alone, which transformers loads"
        raise PansightError(where=name, expected=expected, found=f"constants besides, such as {lost[0]}")


SPLIT = rf"(transformer\..+attn\.)in_proj_{WB}", "qkv", r"\1{part}_proj.\2"

INVERSE: list[Rule] = [
    (re.escape(BACKBONE) + r"(.+)", r"model.backbone.conv_encoder.model.\1"),
    (rf"input_proj\.{WB}", r"model.input_projection.\1"),
    (r"query_embed\.weight", "model.query_position_embeddings.weight"),
    (r"transformer\.(.+)\.multihead_attn\.(.+)", r"model.\1.encoder_attn.\2"),
    (r"transformer\.(.+)\.self_attn\.(.+)", r"model.\1.self_attn.\2"),
    (rf"transformer\.(.+)\.linear(\d)\.{WB}", r"model.\1.fc\2.\3"),
    (
        rf"transformer\.(encoder|decoder)\.layers\.(\d+)\.(norm\d)\.{WB}",
        lambda m: f"model.{m[1]}.layers.{m[2]}.{next(k for k, v in NORMS[m[1]].items() if v == m[3])}.{m[4]}",
    ),
    (rf"transformer\.decoder\.norm\.{WB}", r"model.decoder.layernorm.\1"),
    (rf"class_embed\.{WB}", r"class_labels_classifier.\1"),
    (r"bbox_embed\.(.+)", r"bbox_predictor.\1"),
    (r"((?:bbox_attention|mask_head)\..+)", r"\1"),
]


def _config(model: Any, is_panoptic: bool) -> dict[str, Any]:
    layer = model.transformer.decoder.layers[0]
    weights = model.weights
    config: dict[str, Any] = {
        "model_type": "detr",
        "architectures": ["DetrForSegmentation" if is_panoptic else "DetrForObjectDetection"],
        "use_timm_backbone": True,
        "backbone": model.backbone.features.default_cfg["architecture"],
        "backbone_config": None,
        "use_pretrained_backbone": False,
        "dilation": model.backbone.strides[-1] == 16,
        "d_model": model.query_embed.embedding_dim,
        "num_queries": model.query_embed.num_embeddings,
        "encoder_layers": len(model.transformer.encoder.layers),
        "decoder_layers": len(model.transformer.decoder.layers),
        "dropout": layer.dropout.p,
        "auxiliary_loss": False,  # transformers 5 normalises twice where it is on
        "eos_coefficient": float(weights.no_object),
    }
    for part in ("encoder", "decoder"):
        config[f"{part}_attention_heads"] = layer.self_attn.heads
        config[f"{part}_ffn_dim"] = layer.linear1.out_features
    terms = {"bbox": weights.box, "giou": weights.giou, "mask": weights.mask, "dice": weights.dice}
    numbers = {f"{term}_loss_coefficient": value for term, value in terms.items()}
    numbers |= {"class_cost": weights.classes, "bbox_cost": weights.box, "giou_cost": weights.giou}
    # transformers takes whole numbers alone; others, which matter in training only, stay at its defaults
    return config | {key: int(value) for key, value in numbers.items() if value == int(value)}


def _processor(model: Any, is_panoptic: bool) -> dict[str, Any]:
    return settings_of(model.input) | {
        "image_processor_type": "DetrImageProcessor",
        "format": "coco_panoptic" if is_panoptic else "coco_detection",
        "do_pad": True,
    }
