"""Choose how large a network is, by the machine and the data."""

from __future__ import annotations

import math

import torch

from pansight.config import Config
from pansight.engine.automatic.statistics import FEW_IMAGES, Choice, Statistics
from pansight.models import builder_options, entry
from pansight.types import LabelSpace

SMALL_SIDE = 256
"""Images with a long side of at most so many pixels are small."""

PER_OBJECT = {"proposals": 10, "roi_samples": 4}
"""So many of each for every object of the fullest image: a quarter of the sampled regions are to be objects."""


def choose_network(config: Config, stats: Statistics, device: torch.device) -> list[Choice]:
    """The options of a small network, as far as they are open, on a CPU or for few small images.

    Weights to start from fix the network: nothing of it is chosen then. So do weights of a backbone that is no option
    of its own, since they have its width.
    """
    few = stats.images < FEW_IMAGES and stats.long <= SMALL_SIDE
    brings_width = config.model.pretrained not in ("auto", "none") and not entry(config.model.name).backbone
    if config.model.weights or brings_width or not (few or device.type == "cpu"):
        return []
    reason = "small and quick on cpu" if device.type == "cpu" else f"enough for {stats.images} small images"
    known, choices = builder_options(config.model.name), list[Choice]()
    for option, small in entry(config.model.name).small.items():
        if option in config.model.options:
            continue
        needed = 16 * math.ceil(PER_OBJECT.get(option, 0) * stats.most_objects / 16)
        if option in PER_OBJECT and needed > small:
            most = min(needed, known[option])
            choices.append(Choice(f"model.options.{option}", most, f"up to {stats.most_objects} objects in an image"))
        else:
            choices.append(Choice(f"model.options.{option}", small, reason))
    return choices


def choose_stuff(config: Config, labels: LabelSpace) -> list[Choice]:
    """Say that a detector which could learn the boxes of stuff does not, where the data has stuff."""
    option = entry(config.model.name).stuff
    if config.model.weights or not option or option in config.model.options or not labels.stuff:
        return []
    key = f"model.options.{option}"
    return [Choice(key, False, f"things alone; for the first of two steps to panoptic segmentation: --{key} true")]
