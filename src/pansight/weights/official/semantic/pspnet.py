"""Loading PSPNet of github.com/hszhao/semseg (R50, R101), whose files hold its state dict under ``module.``; MIT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, resnet_depth, rows
from pansight.weights.official.semantic import labels_of

RULES: list[Rule] = [
    (r"layer0\.([0-6])\.(\w+)", BACKBONE + r"conv1.\1.\2"),
    (r"layer0\.7\.(\w+)", BACKBONE + r"bn1.\1"),
    (r"(layer[1-4]\..+)", BACKBONE + r"\1"),
    (r"ppm\.features\.(\d)\.1\.weight", r"ppm.branches.\1.0.weight"),  # place 0 is the mean itself
    (r"ppm\.features\.(\d)\.2\.(\w+)", r"ppm.branches.\1.1.\2"),
    (r"cls\.([01])\.(\w+)", r"head.0.\1.\2"),
    (r"cls\.4\.(\w+)", r"head.2.\1"),
    (r"aux\.([01])\.(\w+)", r"aux_head.0.\1.\2"),
    (r"aux\.4\.(\w+)", r"aux_head.2.\1"),
]

LONG_OF_CITYSCAPES = 2048


def recognises(state: Mapping[str, Tensor]) -> bool:
    return "layer0.0.weight" in state and "ppm.features.0.1.weight" in state


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). 150 classes are ADE20K's, 21 Pascal VOC's, 19 those of Cityscapes.

    Raises PansightError for another backbone, a key too many or too few, or a shape that does not fit.
    """
    depth = resnet_depth(state, "", ("layer1", "layer2", "layer3", "layer4"), source)
    classes = rows(state, "cls.4.weight", source)
    name, options = f"pspnet_r{depth}_semseg", dict[str, Any]()
    if classes == 19:
        options["long"] = LONG_OF_CITYSCAPES
    if not any(key.startswith("aux.") for key in state):
        options["aux_weight"] = 0.0
    return build_to_fit(name, labels_of(classes), options, rename(state, RULES, "", source), source), name, options
