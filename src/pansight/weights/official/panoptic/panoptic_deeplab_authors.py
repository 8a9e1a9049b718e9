"""Loading Panoptic-DeepLab of the authors' PyTorch code (bowenc0221/panoptic-deeplab, Apache-2.0): R50 of stride 32.

What the decoders join stands the other way round there: first what comes from below, then the finer map of the
backbone. So the channels that read both change places.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, rows
from pansight.weights.official.semantic import labels_of

NAME = "panoptic_deeplab_r50_cityscapes"
IGNORED = r".*num_batches_tracked"
DECODER = r"decoder\.(semantic|instance)_decoder\."
HEADS = {
    r"decoder\.semantic_head\.classifier\.semantic": "semantic_head",
    r"decoder\.instance_head\.classifier\.center": "centre_head",
    r"decoder\.instance_head\.classifier\.offset": "offset_head",
}


def _head(theirs: str, ours: str) -> list[Rule]:
    return [
        (theirs + r"\.0\.0\.0\.([01])\.(\w+)", ours + r".layers.0.0.\1.\2"),
        (theirs + r"\.0\.0\.1\.weight", ours + ".layers.0.0.3.weight"),
        (theirs + r"\.0\.0\.2\.(\w+)", ours + r".layers.0.1.\1"),
        (theirs + r"\.1\.(weight|bias)", ours + r".predictor.\1"),
    ]


RULES: list[Rule] = [
    (r"backbone\.(.*)", BACKBONE + r"\1"),
    (DECODER + r"aspp\.convs\.4\.aspp_pooling\.1\.weight", r"\1_decoder.aspp.branches.4.layers.0.weight"),
    (DECODER + r"aspp\.convs\.([0-3])\.([01])\.(\w+)", r"\1_decoder.aspp.branches.\2.\3.\4"),
    (DECODER + r"aspp\.project\.([01])\.(\w+)", r"\1_decoder.aspp.project.0.\2.\3"),
    (DECODER + r"project\.([0-2])\.([01])\.(\w+)", r"\1_decoder.project.\2.\3.\4"),
    (DECODER + r"fuse\.([0-2])\.0\.0\.([01])\.(\w+)", r"\1_decoder.fuse.\2.0.0.\3.\4"),
    (DECODER + r"fuse\.([0-2])\.0\.1\.weight", r"\1_decoder.fuse.\2.0.0.3.weight"),
    (DECODER + r"fuse\.([0-2])\.0\.2\.(\w+)", r"\1_decoder.fuse.\2.0.1.\3"),
    *(rule for theirs, ours in HEADS.items() for rule in _head(theirs, ours)),
]


def recognises(state: Mapping[str, Tensor]) -> bool:
    return "decoder.instance_head.classifier.center.1.weight" in state


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). 19 classes are those of Cityscapes.

    Raises PansightError for a key too many or too few, or a shape that does not fit, as of another backbone.
    """
    labels = labels_of(rows(state, "decoder.semantic_head.classifier.semantic.1.weight", source))
    # a backbone may keep the classifier of ImageNet
    network = {key: tensor for key, tensor in state.items() if not key.startswith("backbone.fc.")}
    renamed = rename(turned(network, source), RULES, IGNORED, source)
    return build_to_fit(NAME, labels, {}, renamed, source), NAME, {}


def turned(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The same tensors; what reads the joined channels of a decoder reads the finer map first."""
    result = dict(state)
    for key, tensor in state.items():
        match = re.fullmatch(DECODER + r"fuse\.([0-2])\.0\.(0\.[01]\.\w+|1\.weight)", key)
        if match is None or tensor.ndim == 0:
            continue
        low = rows(state, f"decoder.{match[1]}_decoder.project.{match[2]}.0.weight", source)
        axis = 1 if match[3] == "1.weight" else 0
        below = tensor.shape[axis] - low
        if below > 0:
            result[key] = torch.cat([tensor.narrow(axis, below, low), tensor.narrow(axis, 0, below)], axis)
    return result
