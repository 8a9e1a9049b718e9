"""The run folder: what a training writes so that it can be killed and resumed without a difference.

``checkpoints/last`` is a saved model (``weights.native``) with ``training.pt`` beside it: optimiser, step, clock, and,
where a moving average is saved as the model, the raw weights. No state of random generators is needed, since the
randomness of a step is a pure function of the seed and the step (``distributed.seed_step``, ``data.loader``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pansight.config import Config
from pansight.engine.checkpoint.lock import LOCK
from pansight.errors import PansightError
from pansight.files import standing_folder, write_text
from pansight.models.options import in_short
from pansight.weights.unpickle import read_state

CONFIG = "config.toml"
LOG = "metrics.jsonl"
TRAINING = "training.pt"

KINDS = {"step": int, "seconds": int | float, "parts": int, "optimizer": dict}
"""What a training state must hold at least, and its kinds."""


def last_checkpoint(folder: Path) -> Path:
    """``checkpoints/last`` of a run, where it has a training state. Raises PansightError where there is none."""
    path = standing_folder(folder / "checkpoints" / "last")
    if not (path / TRAINING).is_file():
        raise PansightError(where=folder, expected=f"a run to resume (checkpoints/last/{TRAINING})", found="none")
    return path


def write_training_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Raises OSError where it cannot be written (torch itself says RuntimeError)."""
    try:
        torch.save(dict(state), folder / TRAINING)
    except RuntimeError as error:
        raise OSError(f"{TRAINING}: {str(error).splitlines()[0]}") from error


def read_training_state(folder: Path) -> dict[str, Any]:
    """Raises PansightError where the file is damaged or no training state. Runs no code from the file, and takes no
    more time and memory than its size accounts for.
    """
    path = folder / TRAINING
    state = read_state(path)
    if not isinstance(state, dict):
        raise PansightError(where=path, expected="a training state", found=type(state).__name__)
    for name, kind in KINDS.items():
        if name not in state:
            raise PansightError(where=path, expected="a training state", found=f"one without {name!r}")
        if not isinstance(state[name], kind):
            raise PansightError(where=path, expected="a training state", found=f"{name!r} = {in_short(state[name])}")
    return state


class RunLog:
    """``metrics.jsonl``: one JSON object a line, appended and flushed; only the writing process has a path."""

    def __init__(self, path: Path | None):
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise PansightError(
                "cannot be written", where=self.path, reason=error.strerror or error, code="cannot_write"
            ) from error

    def trim(self, step: int) -> None:
        """Remove the lines that a killed run wrote after its last checkpoint, and a line that it did not finish."""
        if self.path is None or not self.path.exists():
            return
        kept: list[str] = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["step"] <= step:
                kept.append(line)
        write_text(self.path, "".join(line + "\n" for line in kept))


def check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Check, before anything is written, that the folder is free, or holds the run to resume or to overwrite.

    Raises PansightError otherwise; a folder that is no run is never overwritten.
    """
    if resume:
        last_checkpoint(folder)
    elif folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        if not overwrite:
            raise PansightError(where=folder, expected="no run yet", found="one", hint="add --resume or --overwrite")
        if not (folder / CONFIG).is_file():
            raise PansightError(where=folder, expected=f"a run ({CONFIG}) to overwrite", found="other files")
    elif folder.exists() and not folder.is_dir():
        raise PansightError(where=folder, expected="a folder for the run", found="a file")


def start_folder(folder: Path, config: Config, heading: str, resume: bool) -> None:
    """The folder with its config.toml; what stood there is removed unless it is resumed (see `check_folder`)."""
    try:
        if folder.is_dir() and not resume:
            empty_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PansightError("cannot be made", where=folder, reason=error.strerror or error) from error
    config.save(folder / CONFIG, heading)


def empty_folder(folder: Path) -> None:
    """Remove what is in a run folder, but for the lock that is held on it. Raises OSError where something stays."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
