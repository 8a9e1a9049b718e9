"""Loading official DETR files, detection and panoptic (R50, R50-DC5, R101).

Source: facebookresearch/detr, Apache-2.0. A panoptic file has ``detr.`` before the detector's names,
a detection file has not. A DC5 file has the same tensors as the one without, so its name must say "dc5".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pansight.data.categories.coco import coco_ids
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, resnet_depth, rows

WB = r"(?:weight|bias)"
ATTENTION = rf"(?:in_proj_{WB}|out_proj\.{WB})"

RULES: list[Rule] = [
    (r"(?:detr\.)?backbone\.0\.body\.(.+)", BACKBONE + r"\1"),
    (rf"(?:detr\.)?(input_proj\.{WB}|query_embed\.weight|class_embed\.{WB}|bbox_embed\.layers\.\d\.{WB})", r"\1"),
    (
        rf"(?:detr\.)?(transformer\.(?:encoder|decoder)\.layers\.\d+\.(?:self_attn|multihead_attn)\.{ATTENTION})",
        r"\1",
    ),
    (rf"(?:detr\.)?(transformer\.(?:encoder|decoder)\.layers\.\d+\.(?:linear|norm)\d\.{WB})", r"\1"),
    (rf"(?:detr\.)?(transformer\.decoder\.norm\.{WB})", r"\1"),
    (rf"(bbox_attention\.[qk]_linear\.{WB}|mask_head\.(?:lay|gn|adapter)\d\.{WB}|mask_head\.out_lay\.{WB})", r"\1"),
]
IGNORED = r".*num_batches_tracked"


def recognises(state: Mapping[str, Tensor]) -> bool:
    return any("transformer.encoder.layers.0.self_attn.in_proj_weight" in key for key in state) and any(
        key.removeprefix("detr.").startswith("backbone.0.body.") for key in state
    )


def renamed(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """DETR's keys to ours, one to one. Raises PansightError naming a key of another layout."""
    return rename(state, RULES, IGNORED, source)


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). 91 and 250 classes are COCO's ids, other counts ``class_0`` …

    Raises PansightError for another backbone, a key too many or too few, or a shape that does not fit.
    """
    ours = renamed(state, source)
    depth = resnet_depth(ours, BACKBONE, ("layer1", "layer2", "layer3", "layer4"), source)
    classes = rows(ours, "class_embed.weight", source) - 1
    labels = coco_ids(classes) if classes in (91, 250) else LabelSpace.from_names(f"class_{i}" for i in range(classes))
    is_panoptic = any(key.startswith("mask_head.") for key in ours)
    dc5 = "_dc5" if depth == 50 and "dc5" in Path(source).name.lower() else ""
    name, options = f"detr_{'panoptic_' if is_panoptic else ''}r{depth}{dc5}", dict[str, Any]()
    if (queries := rows(ours, "query_embed.weight", source)) != 100:
        options["queries"] = queries
    return build_to_fit(name, labels, options, ours, source), name, options
