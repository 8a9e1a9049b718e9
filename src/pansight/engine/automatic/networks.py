"""Choose the options of the networks that a model is put together of, each as if it were trained alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pansight.config import Config, ModelConfig, override
from pansight.engine.automatic.backbone import choose_backbone
from pansight.engine.automatic.counting import Counted, choose_class_weights
from pansight.engine.automatic.network import choose_network, choose_stuff
from pansight.engine.automatic.sizes import choose_counts, choose_rule, rule_of
from pansight.engine.automatic.statistics import Choice, Statistics
from pansight.models import builder_options, check_options, entry
from pansight.types import LabelSpace

OPTION = "model.options."


def choose_networks(
    config: Config, labels: LabelSpace, stats: Statistics, device: torch.device, counted: Counted
) -> list[Choice]:
    """What is open of the options of each network. Raises PansightError for networks that do not go together."""
    name, choices = config.model.name, list[Choice]()
    if config.model.weights:  # they bring everything
        return choices
    check_options(name, config.model.options)
    settings: dict[str, Any] = {**builder_options(name), **config.model.options}
    for network in entry(name).networks:
        options = dict(settings[f"{network}_options"] or {})
        first = {key: options.pop(key) for key in ("backbone", "pretrained") if key in options}
        alone = replace(config, model=ModelConfig(settings[network], options=options, **first))
        found = _of_one(alone, labels, stats, device, counted)
        choices += [choice._replace(key=_key_in_whole(choice.key, network)) for choice in found]
    return choices


def _of_one(
    config: Config, labels: LabelSpace, stats: Statistics, device: torch.device, counted: Counted
) -> list[Choice]:
    choices: list[Choice] = []
    for choose in (
        lambda c: choose_backbone(c, device),
        lambda c: choose_network(c, stats, device),
        lambda c: choose_stuff(c, labels),
        lambda c: choose_class_weights(c, labels, counted),
        lambda c: choose_rule(c, stats, device),
        lambda c: choose_counts(c, stats, rule_of(c, labels, None)),
    ):
        for choice in choose(config):
            config = override(config, {choice.key: choice.value})
            choices.append(choice)
    return choices


def _key_in_whole(key: str, network: str) -> str:
    """The setting of the whole that a setting of one network is: its backbone is an option there as well."""
    if not key.startswith("model."):
        return key
    return f"{OPTION}{network}_options.{key.removeprefix(OPTION).removeprefix('model.')}"
