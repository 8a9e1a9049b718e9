"""Loading the Caffe weights of FCN and SegNet, as dicts of arrays by the names of Caffe's layers.

Sources: shelhamer/fcn.berkeleyvision.org (FCN-32s, -16s, -8s) and alexgkendall/SegNet-Tutorial (SegNet, CC BY-NC).
A ``.caffemodel`` holds a list of arrays (blobs) for each layer. Tools that convert it call the first one ``weight``,
``w`` or ``0`` and the second ``bias``, ``b`` or ``1``, behind a dot, an underscore or a slash. All of these load.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pansight.errors import PansightError
from pansight.nn.backbones.vgg import CONVOLUTIONS
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import Rule, rename, rows
from pansight.weights.official.semantic import labels_of

BLOB = re.compile(r"(\w+?)[._/](?:(weights?|w|0|scale|gamma)|(bias(?:es)?|b|1|shift|beta))")
"""The name of a blob: its layer, and whether it is the first or the second."""
CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
"""In the order of SegNet's data set of CamVid."""
BATCH_NORM_EPSILON = 1e-5

FCN: list[Rule] = [
    (r"conv(\d)_(\d)\.(weight|bias)", lambda m: f"backbone.{int(m[1]) - 1}.{int(m[2]) - 1}.0.{m[3]}"),
    (r"(fc6|fc7|score_fr|score_pool4|score_pool3)\.(weight|bias)", r"\1.\2"),
    (r"(upscore2|upscore_pool4|scale_pool[34])\.weight", r"\1.weight"),
    (r"(?:upscore|upscore16|upscore8)\.weight", "upscore.weight"),
]
SEGNET: list[Rule] = [
    (r"conv1_1_D\.(weight|bias)", r"classifier.\1"),
    (
        r"conv(\d)_(\d)(_bn)?\.(weight|bias)",
        lambda m: f"backbone.{int(m[1]) - 1}.{int(m[2]) - 1}.{1 if m[3] else 0}.{m[4]}",
    ),
    (r"conv(\d)_(\d)_D(_bn)?\.(weight|bias)", lambda m: f"decoder.{_mirrored(m)}.{1 if m[3] else 0}.{m[4]}"),
]


def recognises(state: Mapping[str, Tensor]) -> bool:
    layers = {match[1] for match in map(BLOB.fullmatch, state) if match}
    return "conv1_1" in layers and bool(layers & {"score_fr", "conv1_1_D"})


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). FCN's 21 classes are Pascal VOC's, SegNet's 11 those of
    CamVid; other counts get ``class_0`` …

    Raises PansightError for a layer too many or too few, or a shape that does not fit.
    """
    blobs = _with_plain_names(state, source)
    return (_load_segnet if "conv1_1_D.weight" in blobs else _load_fcn)(blobs, source)


def _load_fcn(blobs: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    classes = rows(blobs, "score_fr.weight", source)
    ours = rename(blobs, FCN, ignored="", source=source)
    name = "fcn8s" if "score_pool3.weight" in ours else "fcn16s" if "score_pool4.weight" in ours else "fcn32s"
    kernels = [key for key in ours if key.startswith("upscore")]
    learned = not all(_is_bilinear(ours[key]) for key in kernels)
    if not learned:
        ours = {key: tensor for key, tensor in ours.items() if key not in kernels}
    options = {"learn_upsampling": True} if learned else {}
    scales = [key for key in ours if key.startswith("scale_pool")]
    if scales:  # constants of the network that was trained at once
        options["at_once"] = True
        ours = {key: tensor for key, tensor in ours.items() if key not in scales}
    return build_to_fit(name, labels_of(classes), options, ours, source), name, options


def _load_segnet(blobs: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    classes = rows(blobs, "conv1_1_D.weight", source)
    ours = rename({key: _vector(key, tensor) for key, tensor in blobs.items()}, SEGNET, ignored="", source=source)
    for key in [key for key in ours if key.endswith(".1.weight")]:
        # The statistics are folded into scale and shift. Mean 0 and a variance of 1, less what BatchNorm adds to it,
        # leave nothing but these two.
        layer = key.removesuffix("weight")
        ours[f"{layer}running_mean"] = torch.zeros_like(ours[key])
        ours[f"{layer}running_var"] = torch.full_like(ours[key], 1 - BATCH_NORM_EPSILON)
    labels = LabelSpace.from_names([], CAMVID) if classes == len(CAMVID) else labels_of(classes)
    return build_to_fit("segnet_camvid", labels, {}, ours, source), "segnet_camvid", {}


def _with_plain_names(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Every blob as ``LAYER.weight`` or ``LAYER.bias``. Raises PansightError where two would have one name."""
    blobs: dict[str, Tensor] = {}
    for key, tensor in state.items():
        match = BLOB.fullmatch(key)
        name = key if match is None else f"{match[1]}.{'weight' if match[2] else 'bias'}"
        if name in blobs:
            raise PansightError(where=source, expected=f"one array for {name}", found=f"a second in {key}")
        blobs[name] = tensor
    return blobs


def _vector(key: str, tensor: Tensor) -> Tensor:
    """Caffe keeps the scale and shift of a channel as maps of one place: (1, C, 1, 1) → (C,). Others as they are."""
    return tensor.flatten() if "_bn." in key and tensor.ndim == 4 else tensor


def _is_bilinear(kernels: Tensor) -> bool:
    """Whether kernels (C, C, k, k) upsample each class by itself, bilinearly, as they start."""
    if kernels.ndim != 4 or kernels.shape[0] != kernels.shape[1] or kernels.shape[2] != kernels.shape[3]:
        return False
    side = kernels.shape[2]
    line = 1 - (torch.arange(side) - (side - 1) / 2).abs() / (side / 2)  # (k,)
    expected = torch.outer(line, line)  # (k, k)
    of_classes = torch.stack([kernels[index, index] for index in range(len(kernels))]).float()
    between = kernels.abs().sum((2, 3)).fill_diagonal_(0)
    return bool((of_classes - expected).abs().max() < 1e-5) and not between.any()


def _mirrored(match: re.Match[str]) -> str:
    """Where a convolution of the decoder stands: Caffe numbers its blocks and convolutions from the last one."""
    block, place = int(match[1]), int(match[2])
    count = CONVOLUTIONS[block - 1] if 1 <= block <= len(CONVOLUTIONS) else 0
    return f"{len(CONVOLUTIONS) - block}.{count - place}"
