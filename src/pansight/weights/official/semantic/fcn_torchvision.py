"""Loading torchvision's FCN (R50, R101). Source: torchvision.models.segmentation, BSD-3-Clause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pansight.weights.keys import Rule
from pansight.weights.official.semantic.torchvision import load_dilated

HEAD: list[Rule] = [
    (r"classifier\.([01])\.(\w+)", r"head.0.\1.\2"),
    (r"classifier\.4\.(\w+)", r"head.2.\1"),
]


def recognises(state: Mapping[str, Tensor]) -> bool:
    of_head = {"classifier.0.weight", "classifier.1.running_mean", "classifier.4.weight"}
    return of_head <= set(state) and any(key.startswith("backbone.") for key in state)


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). 21 classes are Pascal VOC's; the auxiliary head may be missing.

    Raises PansightError for another backbone, a key too many or too few, or a shape that does not fit.
    """
    return load_dilated("fcn", state, HEAD, source)
