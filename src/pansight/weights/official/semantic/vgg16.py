"""VGG16 classifiers of torchvision and timm (ImageNet) into the encoders of the networks that are built on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.nn.backbones.vgg import load_fully_connected, load_vgg16
from pansight.weights.unpickle import read_tensors


def load_encoder(path: str | Path, model: Any) -> None:
    """A classifier into the encoder of an ``fcn_vgg16`` or a ``segnet``, in place.

    SegNet takes one with BatchNorm or without it; FCN one without it, and its fc6 and fc7 too.
    Raises PansightError where the file holds something else, or a network of another width.
    """
    state = read_tensors(path)
    load_vgg16(model.backbone, state, str(path))
    layers = dict(model.named_children())
    if "fc6" in layers:
        load_fully_connected(layers["fc6"], layers["fc7"], state, str(path))
