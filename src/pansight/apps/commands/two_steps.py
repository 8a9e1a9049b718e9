"""A training in two steps: the run of another recipe, and one that starts from its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pansight.apps.commands.preparing import prepare
from pansight.apps.commands.running import FIRST, Run, heading_of_run, train_one
from pansight.apps.pages.report import REPORT
from pansight.config import Config, override, read_config, read_recipe
from pansight.engine import distributed
from pansight.engine.assemble import check_model, same_architecture, with_absolute_paths
from pansight.engine.automatic.checks import check_together
from pansight.engine.automatic.recipes import for_other_data
from pansight.engine.checkpoint import CONFIG, check_folder, empty_folder, start_folder
from pansight.engine.evaluate import EVALUATION
from pansight.engine.session import merit
from pansight.errors import PansightError
from pansight.files import read_json
from pansight.models import builder_options, entry


def train_in_two_steps(
    config: Config,
    given: Mapping[str, Any],
    folder: Path,
    resume: bool,
    overwrite: bool,
    notes: Sequence[str] = (),
) -> Run:
    """The run of ``model.first_recipe`` in FOLDER/first, then `config` from its best weights; what is done is kept.

    given: the settings over the recipe, which hold for both steps.
    """
    inner = folder / FIRST
    accelerator = distributed.make_accelerator(config.train.precision, folder)
    say = distributed.speaker(accelerator)
    for note in notes:
        say(f"recipe     {note}")
    if not resume:
        check_folder(folder, False, overwrite)
        distributed.wait_for_everyone(
            accelerator
        )  # all have looked at the folder before the first process writes into it
        before = _first_step(config, given)
        check_model(before.model, before.evaluate.decode)
        _check_second_step(config, folder, accelerator)
        if accelerator.is_main_process:
            start_folder(folder, with_absolute_paths(config), heading_of_run(), False)
        distributed.wait_for_everyone(accelerator)
    else:
        before = override(read_config(inner / CONFIG), _for_first(given, read_config(inner / CONFIG).model.name))
    if not (inner / REPORT).is_file():  # the last file that a run writes
        say(f"step 1     {config.model.first_recipe}, in {inner}")
        begun = resume and (inner / "checkpoints" / "last").is_dir()  # it may have been killed before that
        try:
            train_one(before, inner, begun, resume)
        except (PansightError, KeyboardInterrupt):
            if accelerator.is_main_process and not any(folder.rglob("*.safetensors")):
                empty_folder(folder)
            raise
    figure, value = merit(read_json(inner / EVALUATION))
    say(f"step 2     {config.model.name}, from {figure} {100 * value:.1f}")
    first = {"recipe": config.model.first_recipe, "figure": figure, "value": value, "report": f"{FIRST}/{REPORT}"}
    return train_one(config, folder, resume and (folder / "checkpoints" / "last").is_dir(), False, first)


def _first_step(config: Config, given: Mapping[str, Any]) -> Config:
    """The settings of the first of two steps: its recipe on the data of the second. Raises PansightError."""
    recipe = config.model.first_recipe
    of_second = {"data.source": config.data.source, "data.format": config.data.format}
    first, _ = for_other_data(read_recipe(recipe), of_second, recipe)
    if first.model.first_recipe:
        raise PansightError(where="model.first_recipe", expected="a recipe of one step", found=f"{recipe} with two")
    if not same_architecture(config.model.name, first.model.name):
        raise PansightError(
            where="model.first_recipe",
            expected=f"a recipe for weights of {config.model.name}",
            found=f"{recipe} of {first.model.name}",
        )
    option = entry(first.model.name).stuff
    if option and option not in first.model.options:  # the second step needs what the first knows of stuff
        first = override(first, {f"model.options.{option}": True})
    first = override(replace(first, data=config.data), _for_first(given, first.model.name))
    check_together(first)
    return first


def _for_first(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What holds for the first step, too, of the settings that were given for both."""
    known = {f"model.options.{option}" for option in builder_options(name)}
    not_its_own = ("model.name", "model.weights", "model.first_recipe", "train.freeze", "evaluate.decode")
    return {
        key: value
        for key, value in given.items()
        if not key.startswith(not_its_own) and (key in known or not key.startswith("model.options."))
    }


def _check_second_step(config: Config, folder: Path, accelerator: Accelerator) -> None:
    """Find mistakes in the second step's settings before the first step spends its time."""
    if "pretrained" in builder_options(config.model.name):
        config = override(config, {"model.pretrained": "none"})  # nothing is downloaded for this check
    prepare(config, folder, accelerator, False, distributed.silent)
