"""Choose the settings that a user leaves open from the data and the machine, and say the reason for each choice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial

import torch

from pansight.config import Config, override
from pansight.data import Dataset
from pansight.engine.automatic.backbone import choose_backbone
from pansight.engine.automatic.counting import Counted, choose_class_weights, count_pixels, epoch_length
from pansight.engine.automatic.memory import choose_batch_by_memory, memory_probe
from pansight.engine.automatic.network import choose_network, choose_stuff
from pansight.engine.automatic.networks import choose_networks
from pansight.engine.automatic.schedule import _schedule, training_defaults
from pansight.engine.automatic.sizes import choose_batch, choose_counts, choose_crop, choose_rule, rule_of
from pansight.engine.automatic.statistics import Choice, Statistics, statistics
from pansight.engine.distributed import resolve_precision
from pansight.engine.optim import settled
from pansight.models import entry
from pansight.ops.resize import ResizeRule
from pansight.parallel import cores

__all__ = ["Choice", "Statistics", "choose", "statistics"]


def choose(
    config: Config,
    dataset: Dataset,
    device: torch.device,
    world: int = 1,
    of_weights: ResizeRule | None = None,
    stats: Statistics | None = None,
    counted: Counted | None = None,
) -> tuple[Config, list[Choice]]:
    """`config` with every open value filled in, and what was chosen, in the order of the settings.

    dataset: the training images. of_weights: the resizing rule of ``config.model.weights``, where these are given.
    stats: of the training images, where they are known already.
    counted: gives the pixels of its classes (`counting.count_pixels`), and is asked only if a setting needs them.
    Explicit values are never changed. Raises PansightError for a model or an option that does not exist.
    """
    stats = stats or statistics(dataset)
    choices: list[Choice] = []

    def take(found: Iterable[Choice]) -> None:
        nonlocal config
        for choice in found:
            config = override(config, {choice.key: choice.value})
            choices.append(choice)

    if entry(config.model.name).networks:  # raises where there is no such model
        take(choose_networks(config, dataset.labels, stats, device, counted or cache(partial(count_pixels, dataset))))
    if not config.model.weights:  # those bring their backbone
        take(choose_backbone(config, device))
    take(choose_network(config, stats, device))
    take(choose_stuff(config, dataset.labels))
    counted = counted or cache(partial(count_pixels, dataset))
    take(choose_class_weights(config, dataset.labels, counted))
    take(choose_rule(config, stats, device))
    rule = rule_of(config, dataset.labels, of_weights)
    take(choose_crop(config, stats, rule, device))
    take(choose_counts(config, stats, rule))
    if config.train.batch_size == -1 and device.type != "cpu":
        take(choose_batch_by_memory(memory_probe(config, dataset, device), len(dataset), device, world))
    else:
        take(choose_batch(config, stats, rule, device, world))
    shown = epoch_length(config.train.repeat_threshold, stats.images, counted)
    take([*training_defaults(config, stats), *_schedule(config, stats, shown)])
    config = replace(config, train=settled(config.train))
    if config.train.precision == "auto":
        precision = resolve_precision("auto", device)
        computes = "computes" if precision == "bf16" else "does not"
        take([Choice("train.precision", precision, f"{device.type} {computes} in bf16")])
    if config.evaluate.precision == "auto":
        config = replace(config, evaluate=replace(config.evaluate, precision=config.train.precision))
    if config.data.workers < 0:
        # on the CPU training itself fills the cores
        count = 0 if device.type == "cpu" else max(1, min(12, cores() // world - 1))
        take([Choice("data.workers", count, f"{cores()} cores, {world} processes, training on {device.type}")])
    return config, choices
