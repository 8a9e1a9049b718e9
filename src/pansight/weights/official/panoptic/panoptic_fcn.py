"""Loading Panoptic FCN's published weights (github.com/dvlab-research/PanopticFCN, Apache-2.0, on detectron2).

A ``.pth`` file holds the state dict under ``model`` (and the state of the optimiser beside it); the layout is ``RULES``
below. An MSRA ResNet: stride in the first 1×1 convolution. Which image size, thresholds and number k of kernels a file
was trained with stands in its configuration, not in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pansight.data.categories import label_space
from pansight.data.categories.coco import coco_panoptic
from pansight.errors import PansightError
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import Rule, rename, resnet_depth, rows
from pansight.weights.official.detectron2 import resnet_rules

IGNORED = r"pixel_(mean|std)|.*num_batches_tracked"
POSITION = r"position_head\.position_head\.position_head_head_(\d+)\."
KERNEL = r"kernel_head\.kernel_head\.kernel_head_head_(\d+)\."
ENCODER = r"feature_encoder\.encode_head\.encode_head_head_(\d+)\."
OFFSET, DEFORMED, PLAIN = r"offset_mask_conv\.(weight|bias)", r"dcnv2\.(weight|bias)", r"(weight|bias)"


def _layer(prefix: str, head: str, pattern: str, part: str) -> Rule:
    """A tensor of the convolutions of a head, which are numbered from 1 there and from 0 here."""
    return prefix + pattern, lambda m: f"{head}.convs.{int(m[1]) - 1}.{part}.{m[2]}"


RULES: list[Rule] = [
    *resnet_rules("backbone.bottom_up."),
    (r"backbone\.fpn_lateral([2-5])\.(weight|bias)", lambda m: f"fpn.lateral.{int(m[1]) - 2}.{m[2]}"),
    (r"backbone\.fpn_output([2-5])\.(weight|bias)", lambda m: f"fpn.output.{int(m[1]) - 2}.{m[2]}"),
    (r"backbone\.top_block\.(p[67])\.(weight|bias)", r"top.\1.\2"),
    (
        r"semantic_fpn\.p([2-5])\.([024])\.weight",  # odd places are upsampling, without parameters
        lambda m: f"semantic_head.levels.{int(m[1]) - 2}.{int(m[2]) // 2}.conv.weight",
    ),
    (
        r"semantic_fpn\.p([2-5])\.([024])\.norm\.(weight|bias)",
        lambda m: f"semantic_head.levels.{int(m[1]) - 2}.{int(m[2]) // 2}.norm.{m[3]}",
    ),
    _layer(POSITION, "position_head", OFFSET, "conv.offset"),
    _layer(POSITION, "position_head", DEFORMED, "conv"),
    _layer(POSITION, "position_head", r"dcnv2\.norm\.(weight|bias)", "norm"),
    (r"position_head\.out_inst\.(weight|bias)", r"position_head.things.\1"),
    (r"position_head\.out_sem\.(weight|bias)", r"position_head.stuff.\1"),
    _layer(KERNEL, "kernel_head", PLAIN, "conv"),
    _layer(KERNEL, "kernel_head", r"norm\.(weight|bias)", "norm"),
    (r"kernel_head\.out_conv\.(weight|bias)", r"kernel_head.predictor.\1"),
    _layer(ENCODER, "feature_encoder", PLAIN, "conv"),
    _layer(ENCODER, "feature_encoder", OFFSET, "conv.offset"),
    _layer(ENCODER, "feature_encoder", DEFORMED, "conv"),
    (r"(thing|stuff)_generator\.embed_extractor\.(weight|bias)", r"\1_generator.\2"),
]


def recognises(state: Mapping[str, Tensor]) -> bool:
    return "position_head.out_inst.weight" in state and "thing_generator.embed_extractor.weight" in state


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). COCO's and Cityscapes' class counts get their names.

    Raises PansightError for another backbone, a key too many or too few, or a shape that does not fit.
    """
    resnet_depth(state, "backbone.bottom_up.", ("res2", "res3", "res4", "res5"), source, known=(50,))
    things = rows(state, "position_head.out_inst.weight", source)
    stuff = rows(state, "position_head.out_sem.weight", source)
    is_star = any(key.startswith("feature_encoder.") and ".dcnv2." in key for key in state)
    name = "panoptic_fcn_r50_star" if is_star else "panoptic_fcn_r50"
    if (things, stuff) == (8, 19) and not is_star:
        name, labels = "panoptic_fcn_r50_cityscapes", label_space("cityscapes_panoptic")
    elif (things, stuff) == (80, 54):
        labels = coco_panoptic()
    elif things < 1 or stuff < 1:
        found = f"{things} things and {stuff} stuff classes"
        raise PansightError(where=source, expected="at least one class for each head", found=found)
    else:
        names = [f"class_{i}" for i in range(1, things + 1)]
        labels = LabelSpace.from_names(names, [f"stuff_{i}" for i in range(1, stuff)])
    return build_to_fit(name, labels, {}, rename(state, RULES, IGNORED, source), source), name, {}
