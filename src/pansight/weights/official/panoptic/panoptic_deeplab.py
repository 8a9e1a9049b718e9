"""Loading Panoptic-DeepLab of detectron2's projects/Panoptic-DeepLab (R52). Source: detectron2, Apache-2.0; its model
zoo is CC BY-SA 3.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pansight.data.categories.coco import coco_panoptic
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, resnet_depth, rows
from pansight.weights.official.detectron2 import IGNORED, resnet_rules
from pansight.weights.official.semantic import labels_of as labels_of_semantic
from pansight.weights.official.semantic.deeplab_detectron2 import STEM, check_pixels

BRANCHES = {"sem_seg_head": "semantic", "ins_embed_head": "instance"}
HEADS = {
    "sem_seg_head.head": "semantic_head.layers",
    "ins_embed_head.center_head": "centre_head.layers",
    "ins_embed_head.offset_head": "offset_head.layers",
}
PREDICTORS = {
    "sem_seg_head.predictor": "semantic_head.predictor",
    "ins_embed_head.center_predictor": "centre_head.predictor",
    "ins_embed_head.offset_predictor": "offset_head.predictor",
}


def _layer(theirs: str, ours: str) -> list[Rule]:
    """A plain convolution that holds its norm, or a separable one: two of them. Groups of `theirs` stand in `ours`."""
    return [
        (rf"{theirs}\.weight", rf"{ours}.0.weight"),
        (rf"{theirs}\.norm\.(?P<part>\w+)", rf"{ours}.1.\g<part>"),
        (rf"{theirs}\.depthwise\.weight", rf"{ours}.0.0.weight"),
        (rf"{theirs}\.depthwise\.norm\.(?P<part>\w+)", rf"{ours}.0.1.\g<part>"),
        (rf"{theirs}\.pointwise\.weight", rf"{ours}.0.3.weight"),
        (rf"{theirs}\.pointwise\.norm\.(?P<part>\w+)", rf"{ours}.1.\g<part>"),
    ]


def _decoder(theirs: str, ours: str) -> list[Rule]:
    prefix = rf"{theirs}\.decoder\."
    rules = [
        (prefix + r"res5\.project_conv\.convs\.4\.1\.(weight|bias)", rf"{ours}_decoder.aspp.branches.4.layers.0.\1"),
        *_layer(prefix + r"res5\.project_conv\.convs\.([0-3])", rf"{ours}_decoder.aspp.branches.\1"),
        *_layer(prefix + r"res5\.project_conv\.project", rf"{ours}_decoder.aspp.project.0"),
    ]
    for number, stage in enumerate(("res3", "res2")):
        rules += _layer(prefix + rf"{stage}\.project_conv", rf"{ours}_decoder.project.{number}")
        rules += _layer(prefix + rf"{stage}\.fuse_conv\.([01])", rf"{ours}_decoder.fuse.{number}.\1")
        rules += _layer(prefix + rf"{stage}\.fuse_conv", rf"{ours}_decoder.fuse.{number}.0")
    return rules


RULES: list[Rule] = [
    *resnet_rules("backbone.")[2:],  # without the stem of a single convolution
    (r"backbone\.stem\.(conv[123])\.weight", lambda m: f"{BACKBONE}{STEM[m[1]][0]}.weight"),
    (r"backbone\.stem\.(conv[123])\.norm\.(\w+)", lambda m: f"{BACKBONE}{STEM[m[1]][1]}.{m[2]}"),
    *(rule for theirs, ours in BRANCHES.items() for rule in _decoder(theirs, ours)),
    *(rule for theirs, ours in HEADS.items() for rule in _layer(re.escape(theirs) + r"\.([01])", ours + r".\1")),
    *(rule for theirs, ours in HEADS.items() for rule in _layer(re.escape(theirs), ours + ".0")),
    *((re.escape(theirs) + r"\.(weight|bias)", ours + r".\1") for theirs, ours in PREDICTORS.items()),
]

SEPARABLE = "sem_seg_head.decoder.res3.fuse_conv.depthwise.weight"


def recognises(state: Mapping[str, Tensor]) -> bool:
    return "ins_embed_head.center_predictor.weight" in state


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). 19 classes are those of Cityscapes, 133 those of COCO.

    Raises PansightError for another backbone or other pixel statistics, a key too many or too few, or a shape that does
    not fit.
    """
    resnet_depth(state, "backbone.", ("res2", "res3", "res4", "res5"), source, known=(50,))
    check_pixels(state, source)
    separable = SEPARABLE in state
    classes = rows(state, "sem_seg_head.predictor.weight", source)
    if separable and classes == 133:
        name, options = "panoptic_deeplab_r52_d2_coco", dict[str, Any]()
    else:
        name, options = "panoptic_deeplab_r52_d2_cityscapes", {"separable": separable}
    return build_to_fit(name, labels_of(classes), options, rename(state, RULES, IGNORED, source), source), name, options


def labels_of(classes: int) -> LabelSpace:
    """COCO's 133 classes, Cityscapes' 19, or others by their number."""
    return coco_panoptic() if classes == 133 else labels_of_semantic(classes)
