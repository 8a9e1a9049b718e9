"""A system of transformers that does not exist: one linear layer, so that folders are tested without a real model."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pansight.models import MODELS
from pansight.models.contract import Entry
from pansight.nn.input import Input
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace
from pansight.weights import huggingface
from pansight.weights.huggingface.processor import settings_of
from pansight.weights.keys import load_strictly, rename


class Fake(nn.Module):
    def __init__(self, labels: LabelSpace, channels: int = 4):
        super().__init__()
        self.backbone = nn.Module()
        self.class_embed = nn.Linear(channels, len(labels) + 1)
        self.query_embed = nn.Embedding(3, channels)
        self.labels = labels
        self.input = Input(ResizeRule(800, 1333))


def load(config: dict[str, Any], state: Mapping[str, Tensor], labels: LabelSpace, source: str) -> Any:
    model = Fake(labels, config["hidden"])
    rules = [(r"classifier\.(weight|bias)", r"class_embed.\1"), (r"queries\.weight", "query_embed.weight")]
    load_strictly(model, rename(state, rules, "", source), source)
    return model, "fake_r50", {"channels": config["hidden"]}


def export(model: Fake, name: str, options: Mapping[str, Any]) -> Any:
    config = {"model_type": "fake", "architectures": ["FakeForSegmentation"], "hidden": options["channels"]}
    state = {
        "classifier.weight": model.class_embed.weight,
        "classifier.bias": model.class_embed.bias,
        "queries.weight": model.query_embed.weight,
    }
    return config, state, settings_of(model.input)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make "fake" a known model_type, and its model one of ours."""
    monkeypatch.setitem(MODELS, "fake_r50", Entry(Fake, architecture="fake", produces=("instances",)))
    monkeypatch.setitem(huggingface.SYSTEMS, "fake", "fake")
    module = SimpleNamespace(MODEL_TYPES=("fake",), load=load, export=export)
    for place in ("pansight.weights.huggingface.system", "pansight.weights.huggingface.export.system"):
        monkeypatch.setattr(place, lambda _: module)


def state(classes: int = 2, channels: int = 4) -> dict[str, Tensor]:
    return {
        "classifier.weight": torch.randn(classes + 1, channels),
        "classifier.bias": torch.randn(classes + 1),
        "queries.weight": torch.randn(3, channels),
    }


CONFIG: dict[str, Any] = {"model_type": "fake", "hidden": 4, "id2label": {"0": "bolt", "1": "nut"}}
