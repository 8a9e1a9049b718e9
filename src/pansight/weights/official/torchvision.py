"""Loading torchvision's Faster and Mask R-CNN (R50-FPN, V1 and V2).

Source: torchvision.models.detection, BSD-3-Clause; its COCO weights. The downloaded V1
files use the names of torchvision 0.3 (``mask_fcn1``), and ``state_dict()`` of today's models uses newer ones. Both
load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pansight.data.categories.coco import coco_91
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, resnet_depth, rows

PARTS = r"(weight|bias|running_mean|running_var|num_batches_tracked)"

SHARED: list[Rule] = [
    (r"backbone\.body\.(.+)", BACKBONE + r"\1"),
    (r"rpn\.head\.conv\.(\d)\.0\.(weight|bias)", r"rcnn.rpn.conv.\1.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rcnn.rpn.conv.0.\1"),
    (r"rpn\.head\.cls_logits\.(weight|bias)", r"rcnn.rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(weight|bias)", r"rcnn.rpn.deltas.\1"),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(weight|bias)", r"rcnn.box_predictor.\1.\2"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(weight|bias)", r"rcnn.mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(weight|bias)", r"rcnn.mask_head.predictor.\1"),
]

V1: list[Rule] = [
    *SHARED,
    (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"fpn.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"fpn.output.\1.\2"),
    (r"roi_heads\.box_head\.(fc6|fc7)\.(weight|bias)", r"rcnn.box_head.\1.\2"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(weight|bias)", r"rcnn.mask_head.conv.\1.\2"),
    (
        r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)",
        lambda m: f"rcnn.mask_head.conv.{int(m[1]) - 1}.{m[2]}",
    ),
]

V2: list[Rule] = [
    *SHARED,
    (rf"backbone\.fpn\.inner_blocks\.(\d)\.([01])\.{PARTS}", r"fpn.lateral.\1.\2.\3"),
    (rf"backbone\.fpn\.layer_blocks\.(\d)\.([01])\.{PARTS}", r"fpn.output.\1.\2.\3"),
    (rf"roi_heads\.box_head\.(\d)\.([01])\.{PARTS}", r"rcnn.box_head.conv.\1.\2.\3"),
    (r"roi_heads\.box_head\.\d\.(weight|bias)", r"rcnn.box_head.fc.\1"),
    (rf"roi_heads\.mask_head\.(\d)\.([01])\.{PARTS}", r"rcnn.mask_head.conv.\1.\2.\3"),
]


def recognises(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("backbone.body.") for key in state)


def is_v2(state: Mapping[str, Tensor]) -> bool:
    """V2 has BatchNorm in the pyramid."""
    return "backbone.fpn.inner_blocks.0.1.running_mean" in state


def renamed(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """torchvision's keys to ours, one to one. Raises PansightError naming a key of another layout."""
    return rename(state, V2 if is_v2(state) else V1, ignored="", source=source)


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). 91 outputs are COCO's ids; other counts get names ``class_1`` …

    Raises PansightError for another backbone, a key too many or too few, or a shape that does not fit.
    """
    resnet_depth(state, "backbone.body.", ("layer1", "layer2", "layer3", "layer4"), source, known=(50,))
    classes = rows(state, "roi_heads.box_predictor.cls_score.weight", source)  # with the background
    labels = coco_91() if classes == 91 else LabelSpace.from_names(f"class_{i}" for i in range(1, classes))
    kind = "mask" if "roi_heads.mask_predictor.mask_fcn_logits.weight" in state else "faster"
    name, options = f"{kind}_rcnn_r50_tv", dict[str, Any]()
    ours = renamed(state, source)
    if is_v2(state):
        name += "_v2"
    else:
        # V1's COCO weights, and what is fine-tuned from them, were trained with epsilon 0 (torchvision sets it by
        # ``overwrite_eps``). A count of batches says that this one has live BatchNorm, which torchvision uses only
        # where it loads no COCO weights.
        counters = {key for key in ours if key.endswith("num_batches_tracked")}
        options["bn_eps"] = 1e-5 if counters else 0.0
        ours = {key: tensor for key, tensor in ours.items() if key not in counters}
    return build_to_fit(name, labels, options, ours, source), name, options
