"""Loading the released EfficientPS (``.pth``, tensors under ``state_dict``). Source: DeepSceneSeg/EfficientPS, GPL-3.0.

Its BatchNorms are in-place activated ones, which multiply by |weight| + epsilon: that is what our BatchNorms get. So
the renaming is one to one, while the sign of those weights is lost, as it has no effect. Files of the first version of
that layer have no ``num_batches_tracked``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pansight.data.categories import in_order_of_training
from pansight.errors import PansightError
from pansight.nn.backbones.efficientnet import BN_EPS
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, rows

EPS = 1e-5
"""Of all BatchNorms but those of the backbone."""

ACTIVATED = {"conv": 0, "bn": 1}
"""The places of a convolution and its BatchNorm in our sequence of both."""

SEPARABLE = {"depthwise": 0, "pointwise": 1}
"""The places of the two convolutions of a separable one."""

LEVELS = 4


def _activated(theirs: str, ours: str) -> Rule:
    """A convolution with its BatchNorm; `theirs` is a pattern, whose groups may stand in `ours`."""
    return (
        rf"{theirs}\.(?P<layer>conv|bn)\.(?P<part>\w+)",
        lambda match: f"{match.expand(ours)}.{ACTIVATED[match['layer']]}.{match['part']}",
    )


def _separable(theirs: str, ours: str) -> Rule:
    """A separable convolution: two of the above."""
    return (
        rf"{theirs}\.(?P<kind>depthwise|pointwise)_conv\.(?P<layer>conv|bn)\.(?P<part>\w+)",
        lambda match: f"{match.expand(ours)}.{SEPARABLE[match['kind']]}.{ACTIVATED[match['layer']]}.{match['part']}",
    )


def _bottom(match: re.Match[str]) -> str:
    """Their lateral convolutions from fine to coarse begin with the coarsest map, ours with the finest."""
    return f"fpn.bottom.{LEVELS - 1 - int(match[1])}.{ACTIVATED[match[2]]}.{match[3]}"


RULES: list[Rule] = [
    (r"backbone\.((?:conv_stem|bn1|conv_head|bn2)\.\w+|blocks\.\d\.\d\.\w+\.\w+)", BACKBONE + r"network.\1"),
    _activated(r"neck\.lateral_convs_top\.([0-3])", r"fpn.top.\1"),
    (r"neck\.lateral_convs_bottom\.([0-3])\.(conv|bn)\.(\w+)", _bottom),
    _activated(r"neck\.fpn_convs\.([0-3])", r"fpn.output.\1"),
    (r"rpn_head\.rpn_conv\.(weight|bias)", r"rcnn.rpn.conv.0.\1"),
    (r"rpn_head\.rpn_cls\.(weight|bias)", r"rcnn.rpn.objectness.\1"),
    (r"rpn_head\.rpn_reg\.(weight|bias)", r"rcnn.rpn.deltas.\1"),
    (r"bbox_head\.shared_fcs\.0\.(weight|bias)", r"rcnn.box_head.fc6.\1"),
    (r"bbox_head\.shared_fcs\.1\.(weight|bias)", r"rcnn.box_head.fc7.\1"),
    (r"bbox_head\.fc_cls\.(weight|bias)", r"rcnn.box_predictor.cls_score.\1"),
    (r"bbox_head\.fc_reg\.(weight|bias)", r"rcnn.box_predictor.bbox_pred.\1"),
    _separable(r"mask_head\.convs\.(\d)", r"rcnn.mask_head.conv.\1"),
    (r"mask_head\.upsample\.(weight|bias)", r"rcnn.mask_head.deconv.\1"),
    (r"mask_head\.conv_logits\.(weight|bias)", r"rcnn.mask_head.predictor.\1"),
    _separable(r"semantic_head\.lateral_convs_ss\.([01])\.convs\.([0-4])", r"semantic_head.context.\1.convs.\2"),
    _activated(r"semantic_head\.lateral_convs_ss\.([01])\.conv", r"semantic_head.context.\1.project"),
    _separable(r"semantic_head\.lateral_convs_ls\.([01])\.convs\.([01])", r"semantic_head.outlines.\1.\2"),
    _separable(r"semantic_head\.aligning_convs\.([01])\.convs\.([01])", r"semantic_head.correction.\1.\2"),
    (r"semantic_head\.conv_logits\.(weight|bias)", r"semantic_head.predictor.\1"),
]

SCALE = re.compile(r".*\.bn\d?\.weight")
"""The weights of their BatchNorms."""


def recognises(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("semantic_head.lateral_convs_ss.") for key in state)


def renamed(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Their keys to ours, one to one, with the weights that ordinary BatchNorms need.

    Raises PansightError naming a key of another layout.
    """
    plain = {
        key: tensor.abs() + (BN_EPS if key.startswith("backbone.") else EPS) if SCALE.fullmatch(key) else tensor
        for key, tensor in state.items()
    }
    return rename(plain, RULES, "", source)


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). 8 things among 19 classes are those of Cityscapes; others ``stuff_1`` …

    Raises PansightError for a key too many or too few, or a shape that does not fit.
    """
    things = rows(state, "bbox_head.fc_cls.weight", source) - 1
    classes = rows(state, "semantic_head.conv_logits.weight", source)
    if not 0 < things <= classes:
        found = f"{things} things among {classes}"
        raise PansightError(where=source, expected="things among the classes of the semantic head", found=found)
    name, options = "efficientps_cityscapes", dict[str, Any]()
    return build_to_fit(name, labels_of(things, classes), options, renamed(state, source), source), name, options


def labels_of(things: int, classes: int) -> LabelSpace:
    """The classes of a network of so many: stuff comes first, as in Cityscapes."""
    if (things, classes) == (8, 19):
        return in_order_of_training("cityscapes_panoptic")
    names = [f"stuff_{n}" for n in range(1, classes - things + 1)] + [f"class_{n}" for n in range(1, things + 1)]
    return LabelSpace.from_json(
        {"id": index + 1, "name": name, "isthing": index >= classes - things} for index, name in enumerate(names)
    )
