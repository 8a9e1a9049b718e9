"""Find what is wrong with any run of a sweep before the first one starts, with the checks of a training itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from accelerate import Accelerator

from pansight.apps.commands.preparing import AUTO, prepare, training_settings
from pansight.apps.sweeping.grid import Axis, Point, Range, Variant, short_names, variant_of, variants
from pansight.apps.sweeping.plan import Plan
from pansight.apps.sweeping.study import Study
from pansight.config import Config, override
from pansight.engine.assemble import check_model
from pansight.engine.distributed import silent
from pansight.errors import PansightError
from pansight.models import NEEDED, builder_options, check_decode, entry


def check_plan(plan: Plan) -> None:
    """Raises PansightError, headed by the variant, for the first one that could not be trained.

    The settings of every variant are checked; data is opened and a network built once for each combination of the
    settings that these depend on.
    """
    seen: list[tuple[Any, ...]] = []
    chosen = _searched(plan) if plan.search else variants(plan.axes(), plan.one_at_a_time)
    for variant in chosen:
        try:
            config = training_settings(plan.recipe or None, plan.settings | variant.settings)[0]
            train, decode, pasted = config.train, config.evaluate.decode, config.augment.copy_paste > 0
            what = (config.model, decode, config.data, train.freeze, train.layer_decay, train.optimizer, pasted)
            if what not in seen:
                seen.append(what)
                check_model(config.model, decode)
                _build(config)
                _check_rows(plan.study, config)
        except PansightError as error:
            raise error.at(variant.label) if len(chosen) > 1 else error from error
    _check_pairs(plan, chosen)


def _check_rows(study: Study, config: Config) -> None:
    """Raises PansightError for decode options of a row that the model does not have."""
    for label, decode in study.evaluate.items():
        try:
            if config.model.name != AUTO:
                check_decode(config.model.name, {**config.evaluate.decode, **decode})
        except PansightError as error:
            raise error.at(f"evaluate: {label}") from error


def _check_pairs(plan: Plan, chosen: Sequence[Variant]) -> None:
    """Raises PansightError where two networks cannot be put together: one must find objects, one label pixels."""
    settings = {variant.label: plan.settings | variant.settings for variant in chosen}
    for label, pair in plan.study.combine.items():
        for part, variant in (("instances", pair.instances), ("semantic", pair.semantic)):
            name = training_settings(plan.recipe or None, settings[variant])[0].model.name
            if name != AUTO and not NEEDED[part] <= set(entry(name).produces):
                expected = f"a model of {' and '.join(sorted(NEEDED[part]))}"
                raise PansightError(where=f"combine: {label}: {part}", expected=expected, found=f"{name}: none")
        try:
            check_decode("combined", pair.decode)
        except PansightError as error:
            raise error.at(f"combine: {label}") from error


def _searched(plan: Plan) -> list[Variant]:
    """Variants that a search may come to: every value, and both ends of every range, one at a time."""
    axes = [_ends(each) if isinstance(each, Range) else each for each in plan.varied]
    names = short_names([axis.name for axis in axes])
    firsts = [axis.points[0] for axis in axes]
    others = ([*firsts[:n], point, *firsts[n + 1 :]] for n, axis in enumerate(axes) for point in axis.points[1:])
    return [variant_of(names, points) for points in chain([firsts], others)]


def _ends(each: Range) -> Axis:
    return Axis(each.name, tuple(Point(f"{end:g}", {each.name: end}) for end in (each.low, each.high)))


def _build(config: Config) -> None:
    """Open the data and build the network as a training does; nothing is downloaded, counted or written for it."""
    changes: dict[str, Any] = {"train.repeat_threshold": 0.0, "train.batch_size": max(config.train.batch_size, 0)}
    if config.model.name != AUTO:
        if "pretrained" in builder_options(config.model.name):
            changes["model.pretrained"] = "none"
        changes |= {f"model.options.{key}": [] for key in _words(config.model.name, config.model.options)}
    machine = SimpleNamespace(device=torch.device("cpu"), num_processes=1, is_main_process=False)
    prepare(override(config, changes), Path(), cast(Accelerator, machine), False, silent)


def _words(name: str, options: Mapping[str, Any]) -> Sequence[str]:
    """The options that are given as a word, whose numbers are counted in the training images when a training starts."""
    known = entry(name).options
    return [key for key, value in options.items() if key in known and known[key].words and isinstance(value, str)]
