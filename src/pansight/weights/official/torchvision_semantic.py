"""Loading torchvision's semantic networks, and its VGG16 classifiers into the encoders that are built on it.

Source: torchvision.models.segmentation and torchvision.models.vgg, BSD-3-Clause. Of the semantic networks all have
``backbone.``, a ResNet, ``classifier.`` and, where they were trained with one, ``aux_classifier.``; what tells them
apart is the first layer of the classifier. A table in this file names each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pansight.data.categories import category_table
from pansight.nn.backbones.vgg import load_fully_connected, load_vgg16
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, resnet_depth, rows
from pansight.weights.unpickle import read_tensors

STAGES = ("layer1", "layer2", "layer3", "layer4")
VOC_CLASSES = 21

BACKBONE_AND_AUXILIARY: list[Rule] = [
    (r"backbone\.(.+)", BACKBONE + r"\1"),
    (r"aux_classifier\.([01])\.(.+)", r"aux_head.0.\1.\2"),
    (r"aux_classifier\.4\.(weight|bias)", r"aux_head.2.\1"),
]


class Head(NamedTuple):
    mark: str  # a tensor that no other network of torchvision has
    classes: str  # the tensor that has a row for each class
    name: str  # of our model, without ``_r50_tv``
    rules: list[Rule]


FCN = Head(
    "classifier.0.weight",
    "classifier.4.weight",
    "fcn",
    [(r"classifier\.([01])\.(.+)", r"head.0.\1.\2"), (r"classifier\.4\.(weight|bias)", r"head.2.\1")],
)
HEADS: tuple[Head, ...] = (FCN,)


def recognises(state: Mapping[str, Tensor]) -> bool:
    return _head(state) is not None and any(key.startswith("backbone.") for key in state)


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). 21 outputs are Pascal VOC's classes; other counts get ``class_0`` …

    Raises PansightError for another backbone, a key too many or too few, or a shape that does not fit.
    """
    head = _head(state)
    assert head is not None, "asked for before recognises() said yes"
    depth = resnet_depth(state, "backbone.", STAGES, source)
    classes = rows(state, head.classes, source)
    labels = voc() if classes == VOC_CLASSES else LabelSpace.from_names([], [f"class_{i}" for i in range(classes)])
    has_auxiliary = any(key.startswith("aux_classifier.") for key in state)
    name, options = f"{head.name}_r{depth}_tv", {} if has_auxiliary else {"aux_weight": 0.0}
    ours = rename(state, [*BACKBONE_AND_AUXILIARY, *head.rules], ignored="", source=source)
    return build_to_fit(name, labels, options, ours, source), name, options


def voc() -> LabelSpace:
    """Pascal VOC's classes as networks number them: the background is 0."""
    return LabelSpace.from_json(category_table("pascal_voc"))


def load_vgg16_encoder(path: str | Path, model: Any) -> None:
    """A VGG16 classifier of torchvision or timm into the encoder of an ``fcn_vgg16`` or ``segnet``, in place.

    With BatchNorm or without it for SegNet, without it for FCN, whose fc6 and fc7 are filled too.
    Raises PansightError where the file holds something else, or a network of another width.
    """
    state = read_tensors(path)
    load_vgg16(model.backbone, state, str(path))
    layers = dict(model.named_children())
    if "fc6" in layers:
        load_fully_connected(layers["fc6"], layers["fc7"], state, str(path))


def _head(state: Mapping[str, Tensor]) -> Head | None:
    return next((head for head in HEADS if head.mark in state and head.classes in state), None)
