"""Loading PSPNet and DeepLabV3+ of segmentation_models_pytorch (MIT), on its ResNets and timm's (``tu-resnet50``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pansight.errors import PansightError
from pansight.files import read_json
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, rows
from pansight.weights.official.semantic import labels_of

PSPNET: list[Rule] = [
    (r"encoder\.(?:model\.)?(.+)", BACKBONE + r"\1"),
    (r"decoder\.psp\.blocks\.(\d)\.pool\.1\.([01])\.(\w+)", r"ppm.branches.\1.\2.\3"),
    (r"decoder\.conv\.([01])\.(\w+)", r"head.0.\1.\2"),
    (r"segmentation_head\.0\.(\w+)", r"head.2.\1"),
]
PSPNET_IGNORED = r"encoder\.(?:model\.)?layer[34]\..+"
"""Its encoder keeps two stages that nothing reads."""

DEEPLABV3PLUS: list[Rule] = [
    (r"encoder\.(?:model\.)?(.+)", BACKBONE + r"\1"),
    (r"decoder\.aspp\.0\.convs\.4\.([12])\.(\w+)", lambda m: f"aspp.branches.4.layers.{int(m[1]) - 1}.{m[2]}"),
    (r"decoder\.aspp\.0\.convs\.([0-3])\.(.+)", r"aspp.branches.\1.\2"),
    (r"decoder\.aspp\.0\.project\.([01])\.(\w+)", r"aspp.project.0.\1.\2"),
    (r"decoder\.aspp\.([12])\.(.+)", lambda m: f"decoder.before.{int(m[1]) - 1}.{m[2]}"),
    (r"decoder\.block1\.([01])\.(\w+)", r"decoder.low.\1.\2"),
    (r"decoder\.block2\.([01])\.(.+)", r"decoder.after.\1.\2"),
    (r"segmentation_head\.0\.(\w+)", r"classifier.\1"),
]

RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
"""(blocks of the stages, whether they have three convolutions) → timm's name."""

PSPNET_KEY, PLUS_KEY = "decoder.psp.blocks.0.pool.1.0.weight", "decoder.aspp.0.convs.0.0.weight"


def is_folder(folder: Path) -> bool:
    """Whether ``save_pretrained`` of segmentation_models_pytorch wrote it: its tensors are then a file to load."""
    config = read_json(folder / "config.json")
    return isinstance(config, dict) and "_model_class" in config and "encoder_name" in config


def recognises(state: Mapping[str, Tensor]) -> bool:
    return PSPNET_KEY in state or PLUS_KEY in state


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options).

    Raises PansightError for another encoder than a ResNet, a key too many or too few, or a shape that does not fit.
    """
    labels = labels_of(rows(state, "segmentation_head.0.weight", source))
    options: dict[str, Any] = {"backbone": resnet_name(state, r"encoder\.(?:model\.)?", source)}
    if PSPNET_KEY in state:
        name, options["width"] = "pspnet_smp", rows(state, "decoder.conv.0.weight", source)
        ours = rename(state, PSPNET, PSPNET_IGNORED, source)
        behind = rows(state, PSPNET_KEY, source) * 4  # channels of the means, which stand first there and last here
        ours["head.0.0.weight"] = _turned(ours["head.0.0.weight"], behind, 1)
    else:
        name, options["width"] = "deeplabv3plus_smp", rows(state, PLUS_KEY, source)
        ours = rename(state, DEEPLABV3PLUS, "", source)
        for key, axis in (("decoder.after.0.0.weight", 0), ("decoder.after.0.1.weight", 1)):
            if key in ours:  # what ASPP says stands first there and last here
                ours[key] = _turned(ours[key], options["width"], axis)
    return build_to_fit(name, labels, options, ours, source), name, options


def resnet_name(state: Mapping[str, Tensor], prefix: str, source: str) -> str:
    """timm's name of the ResNet whose keys begin so (`prefix`, a pattern). Raises PansightError for another network."""
    blocks, deep = [0, 0, 0, 0], False
    for key in state:
        if match := re.match(prefix + r"layer([1-4])\.(\d+)\.(conv3)?", key):
            stage, deep = int(match[1]) - 1, deep or match[3] is not None
            blocks[stage] = max(blocks[stage], int(match[2]) + 1)
    name = RESNETS.get((tuple(blocks), deep))  # pyright: ignore[reportArgumentType, reportCallIssue] # of any length
    if name is None:
        expected = f"the encoder {', '.join(RESNETS.values())}"
        raise PansightError(where=source, expected=expected, found=f"stages of {blocks} blocks")
    return name


def _turned(weight: Tensor, first: int, axis: int) -> Tensor:
    """The `first` entries of an axis behind the others."""
    before, after = weight.split([first, weight.shape[axis] - first], dim=axis)
    return torch.cat([after, before], dim=axis)
