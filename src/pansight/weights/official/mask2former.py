"""Loading official Mask2Former files (``.pkl``; ResNet and Swin).

Source: facebookresearch/Mask2Former, weights CC BY-NC 4.0. The backbone is that of MaskFormer's files.
Old files lack ``pixel_decoder.`` and call the content of the queries ``static_query``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pansight.models import builder_options
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import Rule, rename, rows
from pansight.weights.official.maskformer import BACKBONE_IGNORED, BACKBONE_RULES, backbone_of, labels_of_count

WB = r"(?:weight|bias)"
ATTENTION = rf"(?:in_proj_{WB}|out_proj\.{WB})"
PIXEL = r"sem_seg_head\.(?:pixel_decoder\.)?"

RULES: list[Rule] = [
    *BACKBONE_RULES,
    (
        PIXEL + r"transformer\.encoder\.layers\.(\d+\.(?:self_attn\."
        rf"(?:sampling_offsets|attention_weights|value_proj|output_proj)|linear[12]|norm[12])\.{WB})",
        r"pixel_decoder.transformer.encoder.layers.\1",
    ),
    (PIXEL + r"transformer\.level_embed", "pixel_decoder.transformer.level_embed"),
    (PIXEL + rf"(input_proj\.\d\.[01]\.{WB})", r"pixel_decoder.\1"),
    (PIXEL + rf"((?:adapter|layer)_1\.(?:weight|norm\.{WB}))", r"pixel_decoder.\1"),
    (PIXEL + rf"(mask_features\.{WB})", r"pixel_decoder.\1"),
    (
        r"sem_seg_head\.predictor\.(transformer_(?:self_attention_layers\.\d+\.self_attn"
        rf"|cross_attention_layers\.\d+\.multihead_attn)\.{ATTENTION})",
        r"predictor.\1",
    ),
    (
        r"sem_seg_head\.predictor\.(transformer_(?:self_attention|cross_attention|ffn)_layers\.\d+\."
        rf"(?:norm|linear[12])\.{WB})",
        r"predictor.\1",
    ),
    (rf"sem_seg_head\.predictor\.((?:decoder_norm|class_embed|mask_embed\.layers\.\d)\.{WB})", r"predictor.\1"),
    (r"sem_seg_head\.predictor\.(?:query_feat|static_query)\.weight", "predictor.query_feat.weight"),
    (r"sem_seg_head\.predictor\.((?:query_embed|level_embed)\.weight)", r"predictor.\1"),
]

PUBLISHED = {
    "resnet50": "mask2former_r50",
    "resnet101": "mask2former_r101",
    "swin_tiny_patch4_window7_224": "mask2former_swin_tiny",
    "swin_small_patch4_window7_224": "mask2former_swin_small",
    "swin_base_patch4_window12_384": "mask2former_swin_base",
    "swin_large_patch4_window12_384": "mask2former_swin_large",
}
"""Backbone → the builder of the COCO panoptic model."""

RESIZE = {150: (640, 2560), 19: (1024, 2048)}
"""(short, long) that the models of ADE20K and Cityscapes are tested at, by the number of classes."""

HEADS = 8
"""No tensor tells it; all published models have 8."""


def recognises(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("sem_seg_head.predictor.transformer_cross_attention_layers.") for key in state)


def renamed(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Mask2Former's keys, old and new, to ours, one to one. Raises PansightError naming a key of another layout."""
    return rename(state, RULES, BACKBONE_IGNORED, source)


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). Class counts of COCO, ADE20K, Cityscapes and Vistas get their names.

    A model of published sizes has its builder's name; all others are ``mask2former`` with their sizes as options.
    Raises PansightError for another backbone, a key too many or too few, or a shape that does not fit.
    """
    ours = renamed(state, source)
    backbone = backbone_of(ours, source)
    labels = labels_of_count(rows(ours, "predictor.class_embed.weight", source) - 1)
    options, defaults = sizes_of(ours, source), builder_options("mask2former")
    if len(labels) in RESIZE:
        options["short"], options["long"] = RESIZE[len(labels)]
    special = {option: value for option, value in options.items() if value != defaults[option]}
    if backbone in PUBLISHED and set(special) <= {"queries"}:
        name = PUBLISHED[backbone]
        is_default = options["queries"] == builder_options(name)["queries"]
        options = {} if is_default else {"queries": options["queries"]}
    else:
        name, options = "mask2former", {"backbone": backbone} | special
    return build_to_fit(name, labels, options, ours, source), name, options


def sizes_of(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The options of ``mask2former`` that the shapes of our tensors tell, but for the backbone.

    Raises PansightError where a tensor that tells one is missing.
    """
    encoder = "pixel_decoder.transformer.encoder.layers."
    levels = rows(state, "pixel_decoder.transformer.level_embed", source)
    return {
        "queries": rows(state, "predictor.query_feat.weight", source),
        "channels": rows(state, "predictor.decoder_norm.weight", source),
        "layers": _count(state, "predictor.transformer_ffn_layers."),
        "hidden": rows(state, "predictor.transformer_ffn_layers.0.linear1.weight", source),
        "encoder_layers": _count(state, encoder),
        "encoder_hidden": rows(state, encoder + "0.linear1.weight", source),
        "sampling_points": rows(state, encoder + "0.self_attn.attention_weights.weight", source) // (HEADS * levels),
    }


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"(\d+)\..*")
    return 1 + max((int(match[1]) for match in map(pattern.fullmatch, state) if match), default=-1)
