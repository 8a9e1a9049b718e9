"""Folders of weights: ours, and those of Hugging Face transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.config import read_config
from pansight.engine.checkpoint import CONFIG
from pansight.engine.evaluate import EVALUATION
from pansight.files import read_json, replacing_folder
from pansight.metrics.files.summary import summary
from pansight.weights import licences, save_model
from pansight.weights.huggingface.export import prepare, write_prepared
from pansight.weights.native import find_folder, licence_of


def write_ours(model: Any, name: str, options: dict[str, Any], out: Path) -> None:
    """config.json and model.safetensors, which `load` and every command take."""
    save_model(out, model, name, options)


def write_transformers(model: Any, name: str, options: dict[str, Any], weights: str | Path, out: Path) -> str:
    """The folder of Hugging Face transformers, whole or not at all → the class that loads it.

    config.json, model.safetensors, preprocessor_config.json and a model card (README.md) with the figures of the run's
    evaluation. `load` reads it back with the same classes, exactly. Raises PansightError where transformers has no such
    model.
    """
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
        known = licence_of(start, name)
        terms = f", whose weights are under {known}" if known else ""
        return None, f"Fine-tuned from {Path(start).name if Path(start).exists() else start}{terms}."
    if find_folder(weights) is not None:
        return licence_of(weights, name), ""
    where = Path(weights).name if Path(weights).exists() else f"{weights} on the Hugging Face hub"
    return licence_of(weights, name), f"Converted from {where}."


def _figures(weights: str | Path) -> str:
    """The table of evaluation.json, where the run has one."""
    path = Path(weights) / EVALUATION
    if not path.is_file():
        return ""
    how = "On the validation images of the run, by pansight with the model's own inference rules, not transformers'"
    return f"## Figures\n\n{how}:\n\n```\n{summary(read_json(path))}\n```"
