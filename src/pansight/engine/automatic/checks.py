"""Refuse settings that cannot work together, in one line, before anything is read or written."""

from __future__ import annotations

from pansight.config import Config
from pansight.errors import PansightError
from pansight.models import builder_options, entry


def check_together(config: Config) -> None:
    """Raises PansightError, headed by the first key, for two settings of which one makes the other impossible.

    Open settings, which are chosen later, fit everything.
    """
    _check_data(config)
    _check_augmentation(config)
    _check_loop(config)
    _check_network(config)


def _check_data(config: Config) -> None:
    data = config.data
    generated = data.format == "shapes" and data.source not in ("", "shapes")
    _refuse(generated, "data.format", "the format of files", f"shapes, which are generated, and {data.source}")
    split = data.split or "train"
    for part in ("validation", "test"):
        source, name = getattr(data, f"{part}_source"), getattr(data, f"{part}_split")
        same = name == split and source in ("", data.source)
        _refuse(same, f"data.{part}_split", "another part than that of training", repr(name))
    both = data.test_split and (data.test_source or data.source) == (data.validation_source or data.source)
    same = bool(both) and data.test_split == (data.validation_split or "val")
    _refuse(same, "data.test_split", "another part than that of validation", repr(data.test_split))


def _check_augmentation(config: Config) -> None:
    augment = config.augment
    _refuse(augment.fit and augment.crop == 0, "augment.fit", "augment.crop with it", "whole images (augment.crop 0)")
    both = augment.fit and bool(augment.short_sides)
    _refuse(both, "augment.fit", "images fitted into the crop or augment.short_sides", "both")
    _refuse(any(side < 1 for side in augment.short_sides), "augment.short_sides", "sides of at least 1 pixel", "less")


def _check_loop(config: Config) -> None:
    train = config.train
    parts = 0 < train.batch_size < train.accumulate
    waits = train.patience > 0 and train.evaluate_every == 0
    _refuse(waits, "train.patience", "evaluations to wait for", "one at the end only (train.evaluate_every 0)")
    _refuse(parts, "train.accumulate", f"at most train.batch_size ({train.batch_size})", train.accumulate)


def _check_network(config: Config) -> None:
    model = config.model
    if model.name == "auto":  # that of the weights, which are not read yet
        return
    decayed = 0 < config.train.layer_decay < 1 and not entry(model.name).rates.block
    _refuse(decayed, "train.layer_decay", "a plain ViT of several blocks", f"the backbone of {model.name}")
    for name in ("backbone", "pretrained"):
        given = getattr(model, name)
        fixed = given not in ("auto", "none") and name not in builder_options(model.name)
        _refuse(fixed, f"model.{name}", f"a model that leaves it open, as {model.name} does not", given)


def _refuse(wrong: bool, where: str, expected: str, found: object) -> None:
    if wrong:
        raise PansightError(where=where, expected=expected, found=found)
