"""What may be changed when a run is resumed: the difference between its settings and those that are given now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pansight.config import Config, flatten, read_recipe, read_toml, recipe_path
from pansight.errors import PansightError
from pansight.ops.semantic.class_weights import WORDS

FIXED = {
    "model": "the weights are those of this model",
    "data.format": "the classes come from it",
    "train.optimizer": "its state is that of this optimiser",
    "train.decay": "the optimiser's groups were made by it",
    "train.layer_decay": "the optimiser's groups were made by it",
    "train.freeze": "the optimiser knows only what it has trained",
    "train.ema_decay": "the average began with the run",
    "train.sync_bn": "the layers were made by it",
    "train.seed": "the order of the images follows from it",
}
"""Settings, and sections, that a run keeps to its end, and why. All others take effect from the next step on."""

OPEN = {"train.steps": 0, "train.batch_size": 0, "train.lr": 0, "train.precision": "auto", "data.workers": -1}
OPEN |= {f"train.{name}": -1 for name in ("warmup_steps", "weight_decay", "clip_norm", "backbone_lr_factor")}
"""Values by which a choice is asked for, which is made at the start of a run only."""


CLASS_WEIGHTS = "model.options.class_weights"


class Change(NamedTuple):
    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key} = {self.after} instead of {self.before}"


def changes(old: Config, new: Config) -> list[Change]:
    """What differs in `new`, the settings with which the run of `old` is resumed, in the order of the settings.

    Raises PansightError for a setting that a run keeps, and for one that would have to be chosen anew.
    """
    before, after = flatten(old.to_dict()), flatten(new.to_dict())
    found: list[Change] = []
    for key in [*before, *(key for key in after if key not in before)]:
        was, is_now = before.get(key), after.get(key)
        if was == is_now:
            continue
        reason = next((FIXED[fixed] for fixed in FIXED if key == fixed or key.startswith(f"{fixed}.")), None)
        if reason is not None:
            raise PansightError(
                where=key,
                expected=f"{was}, as the run began",
                found=f"{is_now}",
                hint=f"--resume cannot change it: {reason}; start another run with --weights",
            )
        is_open = (key in OPEN and is_now == OPEN[key]) or (key, is_now) == ("train.batch_size", -1)
        if is_open and not _by_the_clock(key, new):
            raise PansightError(
                where=key,
                expected="a value",
                found=f"{is_now}",
                hint="what is open is chosen at the start of a run only",
            )
        found.append(Change(key, was, is_now))
    return found


def _by_the_clock(key: str, config: Config) -> bool:
    """Whether an open number of steps means: as many as the time allows."""
    return key in ("train.steps", "train.warmup_steps") and config.train.max_minutes > 0


def heading_with(old: str, heading: str, step: int, found: list[Change]) -> str:
    """The heading of config.toml of a resumed run: what was changed at which step, earlier changes first.

    old: the text of the file as it is.
    """
    return "\n".join([heading, *noted_changes(old), *(f"from step {step} on: {change}" for change in found)])


def noted_changes(text: str) -> list[str]:
    """The changes that the heading of a config.toml tells of, one line for each, the earliest first."""
    return [line[2:] for line in text.splitlines() if line.startswith("# from step ")]


def asked_for(given: Mapping[str, Any], recipe: str | Path | None) -> dict[str, Any]:
    """The settings that a resumption asks for: those in the file of its recipe, where one is named again, and over them
    the given ones. What the recipe leaves open was chosen when the run began, and stays, as do the class weights that
    were counted then.
    """
    if recipe is None:
        return dict(given)
    values = flatten(read_recipe(recipe).to_dict())
    if values.get(CLASS_WEIGHTS) in WORDS:
        del values[CLASS_WEIGHTS]
    return {key: values[key] for key in flatten(read_toml(recipe_path(recipe))) if key in values} | dict(given)
