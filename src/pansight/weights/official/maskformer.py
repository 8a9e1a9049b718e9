"""Loading official MaskFormer files (``.pkl``; ResNet and Swin), and what Mask2Former's files share with them.

Source: facebookresearch/MaskFormer, weights CC BY-NC 4.0. Both repositories are built on detectron2,
but with torchvision's ResNet: RGB, stride in the 3×3 convolution. Files of version 1 lack ``pixel_decoder.``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pansight.data.categories import category_table
from pansight.data.categories.coco import coco_panoptic, coco_things
from pansight.nn.backbones.swin import SwinSize, swin_name
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, resnet_depth, rows
from pansight.weights.official.detectron2 import resnet_rules

WB = r"(weight|bias)"
LAYER = rf"(layers\.\d+\.(?:(?:self_attn|multihead_attn)\.(?:in_proj_|out_proj\.)|(?:linear|norm)\d\.){WB})"

BACKBONE_RULES: list[Rule] = [
    *resnet_rules("backbone."),
    (rf"backbone\.((?:patch_embed\.(?:proj|norm)|norm\d)\.{WB})", BACKBONE + r"\1"),
    (r"backbone\.(layers\.\d+\.(?:blocks\.\d+|downsample)\..+)", BACKBONE + r"\1"),
]
"""ResNet and Swin as MaskFormer and Mask2Former name them, to ours, one to one."""

BACKBONE_IGNORED = (
    r"pixel_(mean|std)|criterion\.empty_weight|backbone\..*\.(relative_position_index|num_batches_tracked|attn_mask)"
)

RULES: list[Rule] = [
    *BACKBONE_RULES,
    (r"sem_seg_head\.pixel_decoder\.((?:adapter|layer)_\d\.(?:weight|norm\.(?:weight|bias)))", r"pixel_decoder.\1"),
    (rf"sem_seg_head\.pixel_decoder\.((?:mask_features|input_proj)\.{WB})", r"pixel_decoder.\1"),
    (r"sem_seg_head\.pixel_decoder\.transformer\.encoder\." + LAYER, r"pixel_decoder.encoder.\1"),
    (r"sem_seg_head\.predictor\.transformer\.decoder\." + LAYER, r"predictor.decoder.\1"),
    (rf"sem_seg_head\.predictor\.transformer\.decoder\.norm\.{WB}", r"predictor.decoder.norm.\1"),
    (rf"sem_seg_head\.predictor\.((?:input_proj|class_embed|mask_embed\.layers\.\d)\.{WB})", r"predictor.\1"),
    (r"sem_seg_head\.predictor\.(query_embed\.weight)", r"predictor.\1"),
]

PUBLISHED = {
    "resnet50": "maskformer_r50",
    "resnet101": "maskformer_r101",
    "swin_tiny_patch4_window7_224": "maskformer_swin_tiny",
    "swin_small_patch4_window7_224": "maskformer_swin_small",
    "swin_base_patch4_window12_384": "maskformer_swin_base",
    "swin_large_patch4_window12_384": "maskformer_swin_large",
}
"""Backbone → the builder of the COCO panoptic model: ResNets with the encoder, Swin with the pyramid alone."""


def recognises(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("sem_seg_head.predictor.transformer.decoder.") for key in state)


def renamed(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """MaskFormer's keys (both versions) to ours, one to one. Raises PansightError naming a key of another layout."""
    old = re.compile(r"sem_seg_head\.(?!predictor\.|pixel_decoder\.)(.+)")
    state = {old.sub(r"sem_seg_head.pixel_decoder.\1", key): tensor for key, tensor in state.items()}
    return rename(state, RULES, BACKBONE_IGNORED, source)


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). Class counts of COCO, ADE20K, Cityscapes and Vistas get their names.

    Files of COCO's panoptic models have a builder of their own; all others are ``maskformer`` with their sizes as
    options. Raises PansightError for another backbone, a key too many or too few, or a shape that does not fit.
    """
    ours = renamed(state, source)
    backbone = backbone_of(ours, source)
    labels = labels_of_count(rows(ours, "predictor.class_embed.weight", source) - 1)
    options = sizes_of(ours, source)
    is_encoded = options["pixel_decoder"] == "encoder"
    published = {"channels": 256, "hidden": 2048, "layers": 6, "pixel_decoder": options["pixel_decoder"]}
    published |= {"encoder_layers": 6} if is_encoded else {}
    if (
        len(labels) == 133
        and backbone in PUBLISHED
        and is_encoded == backbone.startswith("resnet")
        and options == published | {"queries": options["queries"]}
    ):
        name = PUBLISHED[backbone]
        options = {} if options["queries"] == 100 else {"queries": options["queries"]}
    else:
        name, options = "maskformer", {"backbone": backbone} | options
        if len(labels) == 150:
            options["score_threshold"] = 0.7
    return build_to_fit(name, labels, options, ours, source), name, options


def sizes_of(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The options of ``maskformer`` that the shapes of our tensors tell, but for the backbone.

    Raises PansightError where a tensor that tells one is missing.
    """
    options: dict[str, Any] = {
        "pixel_decoder": "encoder" if any(key.startswith("pixel_decoder.encoder.") for key in state) else "fpn",
        "queries": rows(state, "predictor.query_embed.weight", source),
        "channels": rows(state, "predictor.decoder.norm.weight", source),
        "hidden": rows(state, "predictor.decoder.layers.0.linear1.weight", source),
        "layers": _count(state, r"predictor\.decoder\.layers\.(\d+)\..*"),
    }
    if options["pixel_decoder"] == "encoder":
        options["encoder_layers"] = _count(state, r"pixel_decoder\.encoder\.layers\.(\d+)\..*")
    return options


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(m[1]) for m in (re.fullmatch(pattern, key) for key in state) if m), default=-1)


def backbone_of(state: Mapping[str, Tensor], source: str) -> str:
    """The name (without timm's tag) of the ResNet or Swin whose tensors stand under our names; Mask2Former's too.

    Raises PansightError for a ResNet of another depth, or where a tensor that tells a size is missing.
    """
    if BACKBONE + "patch_embed.proj.weight" not in state:
        return f"resnet{resnet_depth(state, BACKBONE, ('layer1', 'layer2', 'layer3', 'layer4'), source)}"
    blocks = [_count(state, re.escape(BACKBONE) + rf"layers\.{i}\.blocks\.(\d+)\..*") for i in range(4)]
    tables = [f"{BACKBONE}layers.{i}.blocks.0.attn.relative_position_bias_table" for i in range(4)]
    window = (round(rows(state, tables[0], source) ** 0.5) + 1) // 2  # the table has (2 · window − 1)² rows
    rows(state, tables[3], source)
    channels = rows(state, BACKBONE + "patch_embed.proj.weight", source)
    size = SwinSize(channels, tuple(blocks), tuple(state[table].shape[1] for table in tables), window)
    return swin_name(size)


def labels_of_count(classes: int) -> LabelSpace:
    """The classes of a detectron2 model of so many: COCO's 133 or 80, ADE20K's 150, Cityscapes' 19, Vistas' 65.

    Others are things called ``class_1`` …
    """
    if classes in (133, 80):
        return coco_panoptic() if classes == 133 else coco_things()
    tables = {150: "ade20k_panoptic", 19: "cityscapes_panoptic", 65: "vistas_v1_2_panoptic"}
    if classes in tables:
        return LabelSpace.from_json(category_table(tables[classes]))
    return LabelSpace.from_names(f"class_{i}" for i in range(1, classes + 1))
