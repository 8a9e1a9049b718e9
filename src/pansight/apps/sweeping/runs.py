"""One run of a sweep: its folder and log, how it stands, and the command that trains or resumes it."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pansight.apps.commands.running import FIRST
from pansight.apps.pages.report import REPORT
from pansight.apps.sweeping.grid import Run
from pansight.config import read_config
from pansight.engine.checkpoint import CONFIG, LOG, last_checkpoint
from pansight.engine.clock import progress_of
from pansight.engine.evaluate import EVALUATION
from pansight.errors import PansightError
from pansight.files import read_json, write_json

PROGRAM = (sys.executable, "-m", "pansight.apps.cli")
RUNS, LOGS, LISTING = "runs", "logs", "runs.json"
COMBINED = "combined"
"""The folder of networks that are put together from those of two runs each."""


def folder_of(sweep: Path, run: Run) -> Path:
    return sweep / RUNS / run.name


def log_of(sweep: Path, run: Run) -> Path:
    return sweep / LOGS / f"{run.name}.log"


def is_finished(folder: Path) -> bool:
    """Whether the run has its evaluation and its report, the last file that a training writes."""
    return (folder / EVALUATION).is_file() and (folder / REPORT).is_file()


def command(sweep: Path, run: Run, recipe: str | None, settings: Mapping[str, Any]) -> list[str]:
    """The words that train a run, or resume it where it was broken off; they hold in any folder.

    recipe: a file or shipped name. settings: of the whole sweep, under those of the run.
    """
    folder = folder_of(sweep, run).resolve()
    words = [*PROGRAM, "train", "--out", str(folder)]
    if _has_begun(folder):
        return [*words, "--resume"]  # its settings stand in its folder
    words += ["--recipe", str(recipe)] if recipe else []
    words += ["--overwrite"] if (folder / CONFIG).is_file() else []  # killed before anything was saved
    return words + [word for key, value in {**settings, **run.settings}.items() for word in flags(key, value)]


def combine_command(sweep: Path, run: Run) -> list[str]:
    """The words that put two networks together as the sweep does by itself; none where `run` measures one."""
    if len(run.of) == 1:
        return []
    instances, semantic = (str((sweep / RUNS / name).resolve()) for name in run.of)
    out = str((sweep / COMBINED / run.name).resolve())
    return [*PROGRAM, "combine", "--instances", instances, "--semantic", semantic, "--out", out]


def measure_command(sweep: Path, run: Run) -> list[str]:
    """The words that measure the network of another run, or that of two put together; they hold in any folder."""
    network = sweep / RUNS / run.of[0] if len(run.of) == 1 else sweep / COMBINED / run.name
    words = [*PROGRAM, "evaluate", str(network.resolve()), "--out", str(folder_of(sweep, run).resolve()), "--overwrite"]
    return words + [word for key, value in run.settings.items() for word in flags(key, value)]


def _has_begun(folder: Path) -> bool:
    if (folder / FIRST / CONFIG).is_file():
        return True
    try:
        last_checkpoint(folder)
    except PansightError:
        return False
    return True


def flags(key: str, value: Any) -> Iterable[str]:
    """A setting as words of the command line."""
    name = f"--{key}"
    if key.count(".") > 1:  # an option of free name, whose text is read as TOML
        yield f"{name}={_as_toml(value)}"
    elif isinstance(value, list | tuple):
        section, _, last = key.partition(".")
        yield from (f"{name}={one}" for one in value) if value else [f"--{section}.empty-{last}"]
    else:
        yield f"{name}={str(value).lower() if isinstance(value, bool) else value}"


def _as_toml(value: Any) -> str:
    """Texts stay bare where they are no TOML, so that the command reads as a person would write it."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    try:
        tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return value
    return json.dumps(value, ensure_ascii=False)


def progress(folder: Path) -> tuple[float, int]:
    """(the share of the training that is done, its step), as far as the folder tells; (0, 0) before the first line."""
    try:
        config = read_config(folder / CONFIG)
        row = _last_row(folder / LOG)
    except (PansightError, OSError):
        return 0.0, 0
    step, seconds = int(row.get("step", 0)), float(row.get("time", 0.0))
    if not (config.train.steps or config.train.max_minutes):
        return 0.0, step
    return min(1.0, progress_of(config.train, step, seconds)), step


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole line of a log that may be being written."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        lines = file.read().decode("utf-8", "replace").splitlines()
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and row.get("kind") == "train":
            return row
    return {}


def last_line(path: Path) -> str:
    """The last line with something in it of a log; what the program said of its end."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("pansight: ") if lines else "it wrote nothing"


def write_listing(sweep: Path, runs: Iterable[Run]) -> None:
    """runs.json: which variant and seed the folder of each run is; of those that measure again, what they measure."""
    rows = [
        {"name": run.name, "variant": run.variant, "seed": run.seed, "settings": run.settings}
        | ({"of": list(run.of)} if run.of else {})
        for run in runs
    ]
    write_json(sweep / LISTING, rows)


def read_listing(sweep: Path) -> list[Run]:
    """Raises PansightError for a file that is missing or damaged."""
    path = sweep / LISTING
    rows = read_json(path)
    try:
        found = [_run_of(row) for row in rows]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise PansightError(where=path, expected="the runs of a sweep", found=f"{error!r:.80}") from error
    for run in found:
        if Path(run.name).name != run.name or run.name in ("", ".", ".."):
            raise PansightError(where=path, expected="the name of a folder", found=f"{run.name!r}")
    return found


def _run_of(row: Mapping[str, Any]) -> Run:
    of = tuple(map(str, row.get("of", ())))
    return Run(str(row["name"]), str(row["variant"]), int(row["seed"]), dict(row["settings"]), of)
