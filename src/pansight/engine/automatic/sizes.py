"""Choose what follows from the sizes of images and objects: the resizing rule, the crop, anchors, queries, the batch.

The rule is chosen first, from the data and the machine alone, since both training and measuring follow it. Crop and
anchors then go by the size that the rule gives.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from pansight.config import AugmentConfig, Config
from pansight.engine.assemble import model_options, square_of
from pansight.engine.automatic.statistics import Choice, Statistics
from pansight.errors import PansightError
from pansight.models import build, builder_options, entry
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace
from pansight.weights.fitting import without_pretrained

JITTER = (0.7, 1.4)
"""The factors that images are scaled by where they differ in size."""

MULTIPLE = 32
"""Crops and squares are multiples of it, as the strides of all networks divide it."""

LARGEST_CROP = 4096
"""Pixels of the side of a crop for images of any size."""


def longest_side(device: torch.device) -> int:
    """The most pixels that a side has where the size is chosen."""
    return 512 if device.type == "cpu" else 1024


def choose_rule(config: Config, stats: Statistics, device: torch.device) -> list[Choice]:
    """The options of the model's resizing rule: a function of the data and the machine, and of no other setting."""
    adapts, given, cap = entry(config.model.name).adapts, config.model.options, longest_side(device)
    if config.model.weights:  # they bring the rule that they were trained by
        return []
    shape = f"images of about {stats.short:.0f}×{stats.long:.0f}"
    shrunk = stats.long > 1.5 * cap
    if "short" in adapts and "short" not in given and "long" not in given:
        if not shrunk:
            return [Choice("model.options.short", 0, f"{shape}: kept")]
        short, reason = round(cap / stats.long * stats.short), f"{shape}: the long side to {cap}"
        return [Choice("model.options.short", short, reason), Choice("model.options.long", cap, reason)]
    if "size" in adapts and "size" not in given:  # a fixed square for training and prediction alike
        size = cap if shrunk else min(cap, _next_multiple(stats.long))
        return [Choice("model.options.size", size, f"{shape}, fitted into a square")]
    return []


def rule_of(config: Config, labels: LabelSpace, of_weights: ResizeRule | None) -> ResizeRule:
    """The resizing rule that the model of these settings will have.

    of_weights: of the weights to start from, which holds unless a size is given; None: the size of the files is taken
    for theirs. Raises PansightError where there is no such model.
    """
    options = model_options(config.model)
    if config.model.weights and not {"short", "long", "size"} & options.keys():
        return ResizeRule(0, 0) if of_weights is None else of_weights
    if "pretrained" in builder_options(config.model.name):
        options["pretrained"] = "none"
    options = without_pretrained(options)
    with torch.device("meta"):  # without memory for its weights, in a fraction of a second
        return build(config.model.name, labels, **options).input.resize


def choose_crop(config: Config, stats: Statistics, rule: ResizeRule, device: torch.device) -> list[Choice]:
    """The crop and the random scale of training, as far as they are open.

    Raises PansightError for a crop that is far larger than the images.
    """
    augment, choices = config.augment, list[Choice]()
    size, cap = (round(stats.short), round(stats.long)), longest_side(device)
    target = rule.target(*size)
    shape = f"images of about {target[0]}×{target[1]}" + (" by the model's rule" if target != size else "")
    whole = stats.equal_sizes and max(target) <= cap and stats.long <= 1.5 * cap
    if augment.crop == -1 and augment.short_sides:
        choices.append(Choice("augment.crop", 0, "whole images, whose short side is drawn from augment.short_sides"))
    elif augment.crop == -1 and whole:
        choices.append(Choice("augment.crop", 0, f"{shape}, all alike: used whole"))
    elif augment.crop == -1:
        # a network for a fixed square takes nothing smaller
        crop = max(min(cap, _next_multiple(max(target))), rule.divisor)
        choices.append(Choice("augment.crop", crop, f"{shape}, at most {max(cap, rule.divisor)} on {device.type}"))
        if tuple(augment.scale) == (1.0, 1.0) and not augment.fit:
            choices.append(Choice("augment.scale", list(JITTER), "objects come in many sizes"))
    square, most = square_of(rule), max(LARGEST_CROP, 2 * max(target))
    if not square and augment.crop > most:  # every image would be padded to it
        found = f"{augment.crop} for {shape}"
        raise PansightError(where="augment.crop", expected=f"at most {most} pixels", found=found)
    if 0 < square < augment.crop:
        taken = f"as given, but the network takes squares of {square}: no more is cut"
        choices.append(Choice("augment.crop", augment.crop, taken))
    return choices + _other_scale(augment, max(target), square)


def _other_scale(augment: AugmentConfig, long: int, square: int) -> list[Choice]:
    """A word of warning where a given scale shows objects at a size at which they are never measured.

    long: the long side of the image that is measured, in pixels. square: of `square_of`.
    """
    crop = min(augment.crop, square or augment.crop)
    fitted = crop / long if augment.fit and crop > 0 else 1.0
    low, high = (fitted * factor for factor in augment.scale)
    if low <= 1.25 and high >= 0.8:
        return []
    seen = f"as given, but objects are then learnt at {low:.2g} to {high:.2g} times the size that they are measured at"
    key, value = ("augment.fit", True) if fitted != 1 else ("augment.scale", list(augment.scale))
    return [Choice(key, value, seen)]


def choose_counts(config: Config, stats: Statistics, rule: ResizeRule) -> list[Choice]:
    """Anchors, detections, queries and the least area of stuff, as far as they are open."""
    choices: list[Choice] = []
    # weights to start from bring their own
    adapts = () if config.model.weights else entry(config.model.name).adapts
    given = config.model.options
    scale = max(rule.target(round(stats.short), round(stats.long))) / stats.long  # of the network's image to the file
    if "anchor_sizes" in adapts and "anchor_sizes" not in given and stats.object_small > 0:
        levels = entry(config.model.name).options["anchor_sizes"].length or 5
        base = 2 ** round(math.log2(stats.object_small * scale))
        sizes = [min(max(base, 4), 32) * 2**level for level in range(levels)]
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
        shape = f"images of about {stats.short:.0f}×{stats.long:.0f}"
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


def choose_batch(config: Config, stats: Statistics, rule: ResizeRule, device: torch.device, world: int) -> list[Choice]:
    """Images a step, by the pixels that the network sees of each."""
    if config.train.batch_size > 0:
        return []
    side = square_of(rule) or config.augment.crop
    height, width = (side, side) if side > 0 else rule.target(round(stats.short), round(stats.long))
    pixels = height * width
    budget, least, most = (8 * 192 * 192, 2, 8) if device.type == "cpu" else (16 * 800 * 1088, 4, 16)
    size = int(min(max(budget // max(pixels, 1), least), most, max(stats.images, 1)))
    size = max(1, size // world) * world
    reason = f"about {math.sqrt(pixels):.0f}² pixels an image on {device.type}"
    if config.train.batch_size == -1:
        reason += ", where it goes by the image size, not by free memory"
    return [Choice("train.batch_size", size, reason)]


def _next_multiple(side: float) -> int:
    return MULTIPLE * math.ceil(side / MULTIPLE)
