"""``pansight export``: write a model as a folder that other tools load."""

from __future__ import annotations

from pathlib import Path

from pansight.config import read_config
from pansight.engine.checkpoint import CONFIG
from pansight.engine.evaluate import EVALUATION
from pansight.errors import PansightError, choice_error
from pansight.files import read_json, replacing_folder
from pansight.metrics.files.summary import summary
from pansight.weights import licences, load_model, save_model
from pansight.weights.huggingface.export import is_export, prepare, write_prepared
from pansight.weights.native import find_folder, is_saved

TARGETS = {"hf": "a folder of Hugging Face transformers", "folder": "a saved folder of ours, for every model"}


def export(weights: str | Path, out: str | Path, to: str = "hf", overwrite: bool = False) -> str:
    """Write a model as a folder → the class of transformers that loads it, or "" for a folder of ours.

    weights: a run folder (its best checkpoint), a saved folder, a hub id or an official checkpoint file. to: "hf" or
    "folder", which `load` and every command take: config.json and model.safetensors. The folder for transformers
    holds config.json, model.safetensors, preprocessor_config.json and a model card (README.md) with the figures of the
    run's evaluation, and appears whole or not at all. `load` reads it back with the same classes, exactly.
    Raises PansightError where transformers has no such model, or something stands at `out`: with overwrite, an earlier
    export is replaced, but nothing else.
    """
    if to not in TARGETS:
        raise choice_error("export target", to, TARGETS)
    out = Path(out)
    replaceable = is_export if to == "hf" else is_saved
    if out.exists() and not (out.is_dir() and replaceable(out)):
        raise PansightError(where=out, expected="a new folder or an earlier export", found="something else")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise PansightError(where=out, expected="no export yet", found="one", hint="add --overwrite")
    model, name, options = load_model(weights)
    if to == "folder":
        save_model(out, model, name, options)
        return ""
    prepared = prepare(model, name, options, str(weights))  # refused, if at all, before anything is written
    licence, origin = _licence(str(weights), name)
    with replacing_folder(out) as folder:
        return write_prepared(folder, prepared, f"{origin}\n\n{_figures(weights)}", licence)


def _licence(weights: str, name: str) -> tuple[licences.Licence | None, str]:
    """(the licence of the weights where it is known, a sentence on where they come from).

    Weights that a run started from have a licence of their own, which is named, not taken over.
    """
    config = Path(weights) / CONFIG
    start = read_config(config).model.weights if config.is_file() else ""
    if start:
        known = _known(start, name)
        terms = f", whose weights are under {known}" if known else ""
        return None, f"Fine-tuned from {Path(start).name if Path(start).exists() else start}{terms}."
    if find_folder(weights) is not None:
        return _known(weights, name), ""
    where = Path(weights).name if Path(weights).exists() else f"{weights} on the Hugging Face hub"
    return _known(weights, name), f"Converted from {where}."


def _known(weights: str, name: str) -> licences.Licence | None:
    """The licence of a hub id, of a folder by its model card, or of what was published for an official file's model."""
    path = Path(weights)
    if path.is_dir():
        folder = find_folder(path)
        return None if folder is None else licences.of_folder(folder)
    return licences.of_published(name) if path.exists() else licences.of_hub(weights)


def _figures(weights: str | Path) -> str:
    """The table of evaluation.json, where the run has one."""
    path = Path(weights) / EVALUATION
    if not path.is_file():
        return ""
    how = "On the validation images of the run, by pansight with the model's own inference rules, not transformers'"
    return f"## Figures\n\n{how}:\n\n```\n{summary(read_json(path))}\n```"
