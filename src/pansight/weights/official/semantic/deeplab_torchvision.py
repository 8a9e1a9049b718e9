"""Loading torchvision's DeepLabV3 (R50, R101, MobileNetV3). Source: torchvision.models.segmentation, BSD-3-Clause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pansight.weights.keys import Rule
from pansight.weights.official.semantic.torchvision import load_dilated

HEAD: list[Rule] = [
    (r"classifier\.0\.convs\.([0-3])\.([01])\.(\w+)", r"aspp.branches.\1.\2.\3"),
    (r"classifier\.0\.convs\.4\.1\.(\w+)", r"aspp.branches.4.layers.0.\1"),  # place 0 is the mean itself
    (r"classifier\.0\.convs\.4\.2\.(\w+)", r"aspp.branches.4.layers.1.\1"),
    (r"classifier\.0\.project\.([01])\.(\w+)", r"aspp.project.0.\1.\2"),
    (r"classifier\.1\.(\w+)", r"decoder.after.0.\1"),
    (r"classifier\.2\.(\w+)", r"decoder.after.1.\1"),
    (r"classifier\.4\.(\w+)", r"classifier.\1"),
]


def recognises(state: Mapping[str, Tensor]) -> bool:
    return "classifier.0.convs.0.0.weight" in state and any(key.startswith("backbone.") for key in state)


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). 21 classes are Pascal VOC's; the auxiliary head may be missing.

    Raises PansightError for another backbone, a key too many or too few, or a shape that does not fit.
    """
    # only MobileNet squeezes and excites, and only the large one has a sixteenth layer
    is_mobilenet = "backbone.16.0.weight" in state and any(".fc1." in key for key in state)
    return load_dilated("deeplabv3", state, HEAD, source, "mobilenet_v3_large" if is_mobilenet else "")
