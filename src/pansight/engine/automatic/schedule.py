"""Choose the steps, the learning rate and what else belongs to the loop."""

from __future__ import annotations

import math
from dataclasses import replace

from pansight.config import Config
from pansight.engine.automatic.statistics import FEW_IMAGES, Choice, Statistics
from pansight.engine.clock import EVALUATE_SHARE, EVALUATIONS, by_the_clock, steps_of_epochs
from pansight.engine.optim import CHOSEN_BY_MODEL
from pansight.models import builder_options, entry
from pansight.models.contract import TrainingDefaults


def training_defaults(config: Config, stats: Statistics) -> list[Choice]:
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


def _schedule(config: Config, stats: Statistics, shown: int) -> list[Choice]:
    """The steps and what follows from them. shown: images of an epoch, more than there are where some are repeated."""
    train, choices = config.train, list[Choice]()
    steps = train.steps
    if train.epochs:
        steps = steps_of_epochs(train, shown)
        reason = f"{train.epochs:g} times {shown} images, {train.batch_size} a step"
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
