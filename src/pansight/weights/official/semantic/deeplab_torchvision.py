"""Loading torchvision's DeepLabV3 (R50, R101). Source: torchvision.models.segmentation, BSD-3-Clause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, resnet_depth, rows
from pansight.weights.official.semantic import labels_of

RULES: list[Rule] = [
    (r"backbone\.(.+)", BACKBONE + r"\1"),
    (r"classifier\.0\.convs\.([0-3])\.([01])\.(\w+)", r"aspp.branches.\1.\2.\3"),
    (r"classifier\.0\.convs\.4\.1\.(\w+)", r"aspp.branches.4.layers.0.\1"),  # place 0 is the mean itself
    (r"classifier\.0\.convs\.4\.2\.(\w+)", r"aspp.branches.4.layers.1.\1"),
    (r"classifier\.0\.project\.([01])\.(\w+)", r"aspp.project.0.\1.\2"),
    (r"classifier\.1\.(\w+)", r"decoder.after.0.\1"),
    (r"classifier\.2\.(\w+)", r"decoder.after.1.\1"),
    (r"classifier\.4\.(\w+)", r"classifier.\1"),
    (r"aux_classifier\.([01])\.(\w+)", r"aux_head.0.\1.\2"),
    (r"aux_classifier\.4\.(\w+)", r"aux_head.2.\1"),
]


def recognises(state: Mapping[str, Tensor]) -> bool:
    return "classifier.0.convs.0.0.weight" in state and any(key.startswith("backbone.") for key in state)


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). 21 classes are Pascal VOC's; the auxiliary head may be missing.

    Raises PansightError for another backbone, a key too many or too few, or a shape that does not fit.
    """
    depth = resnet_depth(state, "backbone.", ("layer1", "layer2", "layer3", "layer4"), source)
    labels = labels_of(rows(state, "classifier.4.weight", source))
    name, options = f"deeplabv3_r{depth}_tv", dict[str, Any]()
    if not any(key.startswith("aux_classifier.") for key in state):
        options["aux_weight"] = 0.0
    return build_to_fit(name, labels, options, rename(state, RULES, "", source), source), name, options
