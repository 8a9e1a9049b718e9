"""Loading DeepLabV3 and V3+ of detectron2's projects/DeepLab (R103). Source: detectron2, Apache-2.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pansight.errors import PansightError
from pansight.nn.input import IMAGENET_MEAN, IMAGENET_STD
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, resnet_depth, rows
from pansight.weights.official.detectron2 import IGNORED, resnet_rules
from pansight.weights.official.semantic import labels_of

STEM = {"conv1": ("conv1.0", "conv1.1"), "conv2": ("conv1.3", "conv1.4"), "conv3": ("conv1.6", "bn1")}
"""Convolution and norm of each of the three of the stem."""


def _conv_norm(theirs: str, ours: str) -> list[Rule]:
    """A convolution that holds its norm, as a sequence of both; groups of `theirs` stand in `ours`."""
    return [(rf"{theirs}\.weight", rf"{ours}.0.weight"), (rf"{theirs}\.norm\.(?P<part>\w+)", rf"{ours}.1.\g<part>")]


def _aspp(prefix: str) -> list[Rule]:
    return [
        (rf"{prefix}convs\.4\.1\.(weight|bias)", r"aspp.branches.4.layers.0.\1"),
        *_conv_norm(rf"{prefix}convs\.([0-3])", r"aspp.branches.\1"),
        *_conv_norm(rf"{prefix}project", "aspp.project.0"),
    ]


RULES: list[Rule] = [
    *resnet_rules("backbone.")[2:],  # without the stem of a single convolution
    (r"backbone\.stem\.(conv[123])\.weight", lambda m: f"{BACKBONE}{STEM[m[1]][0]}.weight"),
    (r"backbone\.stem\.(conv[123])\.norm\.(\w+)", lambda m: f"{BACKBONE}{STEM[m[1]][1]}.{m[2]}"),
    *_aspp(r"sem_seg_head\.aspp\."),
    *_aspp(r"sem_seg_head\.decoder\.res5\.project_conv\."),
    *_conv_norm(r"sem_seg_head\.decoder\.res2\.project_conv", "decoder.low"),
    *_conv_norm(r"sem_seg_head\.decoder\.res2\.fuse_conv\.([01])", r"decoder.after.\1"),
    (r"sem_seg_head\.predictor\.(weight|bias)", r"classifier.\1"),
]

ASPP = "sem_seg_head.aspp.convs.0.weight"
PLUS = "sem_seg_head.decoder.res5.project_conv.convs.0.weight"


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Panoptic-DeepLab has all of these as well, and a second head."""
    is_semantic = "sem_seg_head.predictor.weight" in state and "ins_embed_head.center_predictor.weight" not in state
    return is_semantic and (ASPP in state or PLUS in state) and "backbone.stem.conv3.weight" in state


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). 19 classes are those of Cityscapes.

    Raises PansightError for another backbone or other pixel statistics, a key too many or too few, or a shape that does
    not fit.
    """
    resnet_depth(state, "backbone.", ("res2", "res3", "res4", "res5"), source, known=(101,))
    check_pixels(state, source)
    name = "deeplabv3plus_r103_d2" if PLUS in state else "deeplabv3_r103_d2"
    labels = labels_of(rows(state, "sem_seg_head.predictor.weight", source))
    return build_to_fit(name, labels, {}, rename(state, RULES, IGNORED, source), source), name, {}


def check_pixels(state: Mapping[str, Tensor], source: str) -> None:
    """Where the file says what it expects of pixels, it must be what the builders give."""
    for key, expected in (("pixel_mean", IMAGENET_MEAN), ("pixel_std", IMAGENET_STD)):
        found = None if key not in state else [round(value, 3) for value in state[key].flatten().tolist()]
        if found is not None and found != list(expected):
            raise PansightError(where=source, expected=f"{key} {list(expected)} (RGB)", found=found)
