"""Loading UPSNet's published weights (github.com/uber-research/UPSNet: R50, R101, with or without deformable backbone).

A ``.pth`` file holds the plain state dict; the layout is ``RULES`` below. The weights are under
a licence for non-commercial use. Caffe's ResNets: stride in the first 1×1 convolution, BGR input less the mean; the
background is class 0 of all region heads, and the semantic branch has stuff first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pansight.data.categories import label_space
from pansight.data.categories.coco import coco_panoptic
from pansight.errors import PansightError
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, resnet_depth, rows

IGNORED = r".*num_batches_tracked"
BLOCK = r"resnet_backbone\.res([2-5])\.layers\.(\d+)\."


def _block(match: re.Match[str]) -> str:
    return f"{BACKBONE}layer{int(match[1]) - 1}.{match[2]}.{match[3]}"


RULES: list[Rule] = [
    (r"resnet_backbone\.conv1\.(conv1|bn1)\.(\w+)", BACKBONE + r"\1.\2"),
    (BLOCK + r"conv2_offset\.(weight|bias)", lambda m: f"{BACKBONE}layer{int(m[1]) - 1}.{m[2]}.conv2.offset.{m[3]}"),
    (BLOCK + r"((?:conv[123]|bn[123]|downsample\.[01])\.\w+)", _block),
    (r"fpn\.fpn_p([2-5])_1x1\.(weight|bias)", lambda m: f"fpn.lateral.{int(m[1]) - 2}.{m[2]}"),
    (r"fpn\.fpn_p([2-5])\.(weight|bias)", lambda m: f"fpn.output.{int(m[1]) - 2}.{m[2]}"),
    (r"fpn\.fpn_gap\.(weight|bias)", r"fpn.gap.\1"),
    (r"rpn\.conv_proposal\.0\.(weight|bias)", r"rcnn.rpn.conv.0.\1"),
    (r"rpn\.cls_score\.(weight|bias)", r"rcnn.rpn.objectness.\1"),
    (r"rpn\.bbox_pred\.(weight|bias)", r"rcnn.rpn.deltas.\1"),
    (r"rcnn\.fc([67])\.0\.(weight|bias)", r"rcnn.box_head.fc\1.\2"),
    (r"rcnn\.(cls_score|bbox_pred)\.(weight|bias)", r"rcnn.box_predictor.\1.\2"),
    (r"mask_branch\.mask_conv([1-4])\.0\.(weight|bias)", lambda m: f"rcnn.mask_head.conv.{int(m[1]) - 1}.{m[2]}"),
    (r"mask_branch\.mask_deconv1\.0\.(weight|bias)", r"rcnn.mask_head.deconv.\1"),
    (r"mask_branch\.mask_score\.(weight|bias)", r"rcnn.mask_head.predictor.\1"),
    (r"fcn_head\.fcn_subnet\.conv\.(\d+)\.0\.conv_offset\.(weight|bias)", r"semantic_head.convs.\1.offset.\2"),
    (r"fcn_head\.fcn_subnet\.conv\.(\d+)\.0\.conv\.(weight|bias)", r"semantic_head.convs.\1.\2"),
    (r"fcn_head\.score\.(weight|bias)", r"semantic_head.predictor.\1"),
]


def recognises(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("resnet_backbone.") for key in state) and "fcn_head.score.weight" in state


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). COCO's and Cityscapes' class counts get their names.

    Raises PansightError for another backbone, a key too many or too few, or a shape that does not fit.
    """
    stages = ("res2.layers", "res3.layers", "res4.layers", "res5.layers")
    depth = resnet_depth(state, "resnet_backbone.", stages, source)
    things = rows(state, "rcnn.cls_score.weight", source) - 1
    stuff = rows(state, "fcn_head.score.weight", source) - things
    if things < 1 or stuff < 0:
        found = f"{things} things and {stuff} stuff classes"
        raise PansightError(where=source, expected="heads of one set of classes", found=found)
    is_deformable = any(".conv2_offset." in key for key in state)
    name, options = _builder(depth, is_deformable, has_gap="fpn.fpn_gap.weight" in state)
    return (
        build_to_fit(name, _labels(things, stuff), options, rename(state, RULES, IGNORED, source), source),
        name,
        options,
    )


def _builder(depth: int, is_deformable: bool, has_gap: bool) -> tuple[str, dict[str, Any]]:
    """The builder of such a network: its name in MODELS, and options where it is a variant of a published one."""
    if not has_gap:
        return f"upsnet_r{depth}_cityscapes", {"deformable": True} if is_deformable else {}
    if depth == 101:
        return ("upsnet_r101_dcn_coco", {}) if is_deformable else ("upsnet_r50_coco", {"backbone": "resnet101"})
    return "upsnet_r50_coco", {"deformable": True} if is_deformable else {}


def _labels(things: int, stuff: int) -> LabelSpace:
    if (things, stuff) == (80, 53):
        return coco_panoptic()
    if (things, stuff) == (8, 11):
        return label_space("cityscapes_panoptic")
    names = [f"class_{i}" for i in range(1, things + 1)]
    return LabelSpace.from_names(names, [f"stuff_{i}" for i in range(1, stuff + 1)])
