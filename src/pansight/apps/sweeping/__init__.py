"""``pansight sweep``: train every combination of some settings, or search them, and compare what comes out.

A sweep is a folder: sweep.toml (the plan, written first), recipe.toml (a copy), runs/NAME (the run folders),
logs/NAME.log, runs.json (which folder is which variant), comparison.html and comparison.json.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pansight.apps.commands.preparing import AUTO
from pansight.apps.pages.comparison.sweeps import compare_sweep
from pansight.apps.sweeping.checks import check_plan
from pansight.apps.sweeping.grid import SEED, Run, parse_varied
from pansight.apps.sweeping.plan import (
    RECIPE,
    SWEEP,
    Plan,
    check_numbers,
    check_same,
    known_settings,
    read_plan,
    with_counts,
    with_varied,
    write_plan,
)
from pansight.apps.sweeping.runner import Listed, Outcome, run_all
from pansight.apps.sweeping.runs import command, folder_of, is_finished, log_of, read_listing, write_listing
from pansight.config import flatten
from pansight.engine.checkpoint.lock import LOCK, holding
from pansight.errors import PansightError

__all__ = ["Plan", "compare_folder", "is_sweep", "plan_of", "sweep"]


def sweep(
    target: str | Path | None = None,
    vary: Sequence[str] = (),
    seeds: int | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    search: str | None = None,
    trials: int | None = None,
    one_at_a_time: bool | None = None,
    settings: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> int:
    """Train the runs of a sweep that are not finished yet and compare all; returns 1 where a run failed or left out
    a part of its data, else 0.

    target: a recipe, a study, a file with a plan, or the folder of a sweep that goes on. vary: as of `parse_varied`.
    seeds: runs of each variant. jobs: runs at a time; None: one for each accelerator, or one. out: the folder.
    settings: nested or dotted, over the recipe. dry_run: only print the commands.
    Raises PansightError before anything starts for whatever is wrong with any run, and Interrupted after Ctrl-C.
    """
    if jobs is not None and jobs < 1:
        raise PansightError(where="--jobs", expected="1 or more", found=jobs)
    plan, folder = plan_of(target, vary, seeds, search, trials, one_at_a_time, settings)
    folder = Path(out) if out else folder or Path("runs") / f"sweep-{Path(str(target or 'base')).stem}"
    check_numbers(plan)
    runs = [] if plan.search else plan.runs()
    stands = _check_folder(folder, plan)
    if dry_run:
        for run in runs:
            print(shlex.join(command(folder, run, plan.recipe or None, plan.settings)))
        return 0
    check_plan(plan)
    print(f"sweep      {_told(plan, runs)}, in {folder}")
    with holding(folder):
        write_plan(plan, folder, _heading(folder, stands))
        plan = replace(plan, recipe=str(folder / RECIPE) if plan.recipe else "")
        outcome, queued = _run(plan, folder, runs, jobs or max(1, torch.cuda.device_count()))
        _tell(folder, queued, outcome, retried=not plan.search)
        if any(is_finished(folder_of(folder, run)) for run in queued):
            compare_folder(folder)
    return 1 if outcome.failed or outcome.left_out else 0


def plan_of(
    target: str | Path | None,
    vary: Sequence[str] = (),
    seeds: int | None = None,
    search: str | None = None,
    trials: int | None = None,
    one_at_a_time: bool | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Plan, Path | None]:
    """(what `target` stands for with everything given over it, its folder where it is one of a sweep)."""
    plan, folder = read_plan(target)
    given = known_settings(flatten(settings or {}), "")
    if given.get("model.weights") and not plan.recipe and "model.name" not in given:
        given["model.name"] = AUTO
    plan = replace(plan, settings=plan.settings | given)
    plan = with_varied(plan, [parse_varied(text) for text in vary])
    if seeds is None and SEED in given:
        seeds = len(plan.seeds)
    plan = with_counts(plan, seeds, search, trials, one_at_a_time)
    for each in plan.varied:
        if each.name in plan.settings:
            raise PansightError(where=f"--vary {each.name}", expected="a setting that is not given", found="both")
    return plan, folder


def is_sweep(folder: str | Path) -> bool:
    return (Path(folder) / SWEEP).is_file()


def compare_folder(
    folder: str | Path,
    out: str | Path | None = None,
    json: str | Path | None = None,
    resamples: int = 2000,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Compare the finished runs of a sweep: a table, comparison.html and comparison.json; gives what the latter holds.

    Files in other places than the sweep's own are replaced with `overwrite` only.
    Raises PansightError where no run is finished.
    """
    folder = Path(folder)
    for target in (out, json):
        if target is not None and Path(target).exists() and not overwrite:
            raise PansightError(where=target, expected="no file yet", found="one", hint="add --overwrite")
    runs = [run for run in read_listing(folder) if is_finished(folder_of(folder, run))]
    if not runs:
        raise PansightError(where=folder, expected="a sweep with a finished run", found="none")
    variants: dict[str, list[tuple[str, int, Path]]] = {}
    for run in runs:
        variants.setdefault(run.variant or "base", []).append((run.name, run.seed, folder_of(folder, run)))
    page = Path(out) if out else folder / "comparison.html"
    return compare_sweep(variants, page, Path(json) if json else folder / "comparison.json", resamples, seed)


def _run(plan: Plan, folder: Path, runs: list[Run], jobs: int) -> tuple[Outcome, list[Run]]:
    """(how the runs ended, all runs of the sweep)."""

    def words(run: Run) -> list[str]:
        return command(folder, run, plan.recipe or None, plan.settings)

    if plan.search:
        from pansight.apps.sweeping.search import Trials

        queue = Trials(plan, folder)
        return run_all(queue, folder, jobs, words), queue.runs
    write_listing(folder, runs)
    return run_all(Listed(runs), folder, jobs, words), runs


def _check_folder(folder: Path, plan: Plan) -> bool:
    """Whether a sweep stands in the folder. Raises PansightError for another sweep, and for files of anything else."""
    if is_sweep(folder):
        check_same(read_plan(folder)[0], plan, folder)
        return True
    if folder.exists() and not folder.is_dir():
        raise PansightError(where=folder, expected="a folder for the sweep", found="a file")
    if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise PansightError(where=folder, expected="an empty folder, or a sweep", found="other files")
    if plan.search:
        from pansight.apps.sweeping.search import check_installed

        check_installed()
    return False


def _told(plan: Plan, runs: Sequence[Run]) -> str:
    seeds = f"{len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''}"
    if plan.search:
        return f"{plan.trials} trials of {', '.join(each.name for each in plan.varied)}, {seeds} each"
    return f"{len(runs)} runs: {len(runs) // len(plan.seeds)} variants, {seeds} each"


def _heading(folder: Path, stands: bool) -> str:
    went_on = "; it has been gone on with" if stands else ""
    return f"written by pansight {version('pansight')}{went_on}\nrun it again, or go on: pansight sweep {folder}"


def _tell(folder: Path, runs: Sequence[Run], outcome: Outcome, retried: bool) -> None:
    """What came of the runs; those that failed by name, each with the last line of its log."""
    done = len(outcome.finished) + len(outcome.skipped)
    print(f"finished   {done} of {done + len(outcome.failed)} runs")
    logs = {run.name: log_of(folder, run) for run in runs}
    if outcome.left_out:
        count = len(outcome.left_out)
        where = logs[outcome.left_out[0]]
        print(f"left out   parts of the data, in {count} run{'s' if count > 1 else ''} (log: {where})")
    for name, line in outcome.failed.items():
        print(f"FAILED     {name}: {line} (log: {logs[name]})")
    if outcome.failed and retried:
        print(f"the same command, or pansight sweep {folder}, tries these again")
