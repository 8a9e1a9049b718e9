"""Loading Unet of segmentation_models_pytorch (MIT), on its ResNets and on timm's encoders (``tu-convnext_atto``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pansight.errors import PansightError
from pansight.files import read_json
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, rename, rows
from pansight.weights.official.semantic import labels_of
from pansight.weights.official.semantic.smp import resnet_name

RULES: list[Rule] = [
    (r"encoder\.(?:model\.)?(.+)", BACKBONE + r"\1"),
    (r"(decoder\.blocks\.\d\.conv[12]\.[01]\.\w+)", r"\1"),
    (r"segmentation_head\.0\.(weight|bias)", r"head.\1"),
]
FIRST_BLOCK = "decoder.blocks.0.conv1.0.weight"
TIMM = "encoder.model."
BLOCKS = 5
"""Of a decoder for an encoder of full depth; others end above stride 32."""


def recognises(state: Mapping[str, Tensor]) -> bool:
    return FIRST_BLOCK in state and "segmentation_head.0.weight" in state


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, "unet", options). A single output, which a sigmoid follows, becomes two classes.

    Raises PansightError for another encoder, one whose name cannot be known, another depth, a key too many or too few,
    or a shape that does not fit.
    """
    blocks = sum(f"decoder.blocks.{n}.conv1.0.weight" in state for n in range(BLOCKS + 1))
    if blocks != BLOCKS:
        raise PansightError(where=source, expected=f"a decoder of {BLOCKS} blocks", found=blocks)
    options: dict[str, Any] = {
        "backbone": _backbone(state, source),
        "decoder_channels": [rows(state, f"decoder.blocks.{n}.conv1.0.weight", source) for n in range(BLOCKS)],
        "decoder_norm": "batch" if "decoder.blocks.0.conv1.1.weight" in state else "none",
    }
    ours = rename(state, RULES, "", source)
    labels = labels_of(rows(state, "segmentation_head.0.weight", source))
    if len(labels) == 1:
        labels = LabelSpace.from_names(["object"], ["background"])
        for name in ("head.weight", "head.bias"):
            if name in ours:  # a sigmoid of z is the softmax of z and 0
                ours[name] = torch.cat([ours[name], torch.zeros_like(ours[name])])
    return build_to_fit("unet", labels, options, ours, source), "unet", options


def _backbone(state: Mapping[str, Tensor], source: str) -> str:
    """timm's name of the encoder: that of the config.json beside the file, else of the ResNet that it is.

    Raises PansightError where neither tells.
    """
    path = Path(source).parent / "config.json"
    config = read_json(path) if path.is_file() else None
    name = config.get("encoder_name") if isinstance(config, dict) else None
    is_timm = any(key.startswith(TIMM) for key in state)
    if isinstance(name, str) and is_timm and name.startswith("tu-"):
        return name.removeprefix("tu-")
    if any(key.removeprefix(TIMM).removeprefix("encoder.").startswith("layer1.0.") for key in state):
        return resnet_name(state, r"encoder\.(?:model\.)?", source)
    expected = "a ResNet, or the config.json of segmentation_models_pytorch beside the file with a timm encoder (tu-…)"
    raise PansightError(where=source, expected=expected, found="another encoder" if name is None else f"{name!r:.80}")
