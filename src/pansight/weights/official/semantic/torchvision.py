"""What torchvision's FCN and DeepLabV3 have in common: a dilated backbone, mostly a ResNet, and an auxiliary head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, resnet_depth, rows
from pansight.weights.official.semantic import labels_of

SHARED: list[Rule] = [
    (r"backbone\.(.+)", BACKBONE + r"\1"),
    (r"aux_classifier\.([01])\.(\w+)", r"aux_head.0.\1.\2"),
    (r"aux_classifier\.4\.(\w+)", r"aux_head.2.\1"),
]


def load_dilated(
    system: str, state: Mapping[str, Tensor], head: Sequence[Rule], source: str, network: str = ""
) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options) of a `system` (``fcn``), whose own keys the rules of `head` rename.

    network: how the backbone is called in our name where it is no ResNet. 21 classes are Pascal VOC's; the auxiliary
    head may be missing. Raises PansightError for another backbone, a key too many or too few, or a shape that does not
    fit.
    """
    if not network:
        depth = resnet_depth(state, "backbone.", ("layer1", "layer2", "layer3", "layer4"), source)
        network = f"r{depth}"
    labels = labels_of(rows(state, "classifier.4.weight", source))
    name, options = f"{system}_{network}_tv", dict[str, Any]()
    if not any(key.startswith("aux_classifier.") for key in state):
        options["aux_weight"] = 0.0
    ours = rename(state, [*SHARED, *head], "", source)
    return build_to_fit(name, labels, options, ours, source), name, options
