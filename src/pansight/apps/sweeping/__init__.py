"""``pansight sweep``: train every combination of some settings, or search them, and compare what comes out.

A sweep is a folder: sweep.toml (the plan, written first), recipe.toml (a copy), runs/NAME (the run folders),
logs/NAME.log, runs.json (which folder is which variant), comparison.html and comparison.json. A sweep may be a study:
``pansight study`` repeats a published comparison, and shows the published table beside its own.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pansight.apps.commands.preparing import AUTO
from pansight.apps.pages.comparison.sweeps import compare_sweep
from pansight.apps.sweeping.checks import check_plan
from pansight.apps.sweeping.grid import SEED, Run, parse_varied
from pansight.apps.sweeping.measures import discard, measures_of, put_together
from pansight.apps.sweeping.plan import (
    RECIPE,
    SWEEP,
    Plan,
    check_numbers,
    check_same,
    known_settings,
    read_plan,
    studies,
    with_counts,
    with_varied,
    write_plan,
)
from pansight.apps.sweeping.runner import Listed, Outcome, run_all
from pansight.apps.sweeping.runs import (
    combine_command,
    command,
    folder_of,
    is_finished,
    log_of,
    measure_command,
    read_listing,
    write_listing,
)
from pansight.apps.sweeping.study import study_table, study_text
from pansight.config import flatten
from pansight.engine.checkpoint.lock import LOCK, holding
from pansight.engine.evaluate import EVALUATION
from pansight.errors import PansightError, choice_error
from pansight.files import read_json

__all__ = ["Plan", "compare_folder", "is_sweep", "list_studies", "plan_of", "study", "sweep"]


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
    measured = measures_of(plan.study, runs)
    stands = _check_folder(folder, plan)
    if dry_run:
        for run in runs:
            print(shlex.join(command(folder, run, plan.recipe or None, plan.settings)))
        for run in measured:
            for words in (combine_command(folder, run), measure_command(folder, run)):
                print(shlex.join(words), end="\n" if words else "")
        return 0
    check_plan(plan)
    again = f", {len(measured)} measured again" if measured else ""
    print(f"sweep      {_told(plan, runs)}{again}, in {folder}")
    with holding(folder):
        write_plan(plan, folder, _heading(folder, stands))
        plan = replace(plan, recipe=str(folder / RECIPE) if plan.recipe else "")
        outcome, queued = _run(plan, folder, runs, measured, jobs or max(1, torch.cuda.device_count()))
        _tell(folder, queued, outcome, retried=not plan.search)
        if any(is_finished(folder_of(folder, run)) for run in _rows(queued)):
            compare_folder(folder)
    return 1 if outcome.failed or outcome.left_out else 0


def list_studies() -> str:
    """The shipped studies, as text: how many trainings and measurements of their networks each is, and its question."""
    plans = {name.removeprefix("studies/"): read_plan(name)[0] for name in studies()}
    width = max(map(len, plans))
    lines = [f"{'study':{width}}  trainings  measured again"]
    for name, plan in plans.items():
        runs = plan.runs()
        lines.append(f"{name:{width}}  {len(runs):>9}  {len(measures_of(plan.study, runs)):>14}  {plan.study.title}")
    last = "pansight study NAME trains and measures one; --minutes or --steps are those of each training"
    return "\n".join([*lines, last])


def study(
    target: str,
    minutes: float | None = None,
    steps: int | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> int:
    """Repeat a published comparison: `sweep` for a shipped study by its name, a file with a plan, or a sweep's folder.

    minutes, steps: of each training, in place of what the study says; one of the two.
    """
    name = target if target.startswith("studies/") else f"studies/{target}"
    known = studies()
    if name not in known and not Path(target).exists():
        raise choice_error("study", target, [each.removeprefix("studies/") for each in known])
    if not read_plan(name if name in known else target)[0].study.columns:
        hint = f"pansight sweep {target}"
        raise PansightError(where=target, expected="a study, with figures to tell", found="none", hint=hint)
    if minutes is not None and steps is not None:
        raise PansightError(where="study", expected="--minutes or --steps", found="both")
    for flag, value in (("--minutes", minutes), ("--steps", steps)):
        if value is not None and not value > 0:
            raise PansightError(where=flag, expected="more than 0", found=value)
    given = dict(flatten(settings or {}))
    if minutes is not None:
        given |= {"train.max_minutes": minutes}
    if steps is not None:
        given |= {"train.steps": steps, "train.epochs": 0, "train.max_minutes": 0}
    if name in known:
        target, out = name, out or Path("runs") / f"study-{name.removeprefix('studies/')}"
    return sweep(target, (), seeds, jobs, out, settings=given, dry_run=dry_run)


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
    runs = [run for run in _rows(read_listing(folder)) if is_finished(folder_of(folder, run))]
    if not runs:
        raise PansightError(where=folder, expected="a sweep with a finished run", found="none")
    variants: dict[str, list[tuple[str, int, Path]]] = {}
    for run in runs:
        variants.setdefault(run.variant or "base", []).append((run.name, run.seed, folder_of(folder, run)))
    page = Path(out) if out else folder / "comparison.html"
    file = Path(json) if json else folder / "comparison.json"
    asked = read_plan(folder)[0].study
    table = None
    if asked.columns:
        records = {v: [read_json(place / EVALUATION) for *_, place in runs] for v, runs in variants.items()}
        table = study_table(asked, records)
    result = compare_sweep(variants, page, file, resamples, seed, table)
    if table is not None:
        print(study_text(table))
    return result


def _rows(runs: Sequence[Run]) -> list[Run]:
    """Those that are compared: without the trainings whose networks are measured again."""
    inner = {name for run in runs for name in run.of}
    return [run for run in runs if run.name not in inner]


def _run(plan: Plan, folder: Path, runs: list[Run], measured: list[Run], jobs: int) -> tuple[Outcome, list[Run]]:
    """(how the runs ended, all runs of the sweep)."""

    def words(run: Run) -> list[str]:
        return command(folder, run, plan.recipe or None, plan.settings)

    if plan.search:
        from pansight.apps.sweeping.search import Trials

        queue = Trials(plan, folder)
        return run_all(queue, folder, jobs, words), queue.runs
    write_listing(folder, [*runs, *measured])
    outcome = run_all(Listed(runs), folder, jobs, words)
    return _measure(folder, measured, outcome, jobs), [*runs, *measured]


def _measure(folder: Path, measured: Sequence[Run], trained: Outcome, jobs: int) -> Outcome:
    """Measure again what has been trained; gives how everything ended."""
    ready: list[Run] = []
    outcome = trained
    for run in measured:
        if any(name in trained.failed for name in run.of):
            print(f"left out   {run.name}: its training failed")
            continue
        if any(name in trained.finished for name in run.of):
            discard(folder, run)
        try:
            if not is_finished(folder_of(folder, run)):
                put_together(folder, run)
            ready.append(run)
        except PansightError as error:
            outcome = outcome.joined(Outcome(failed={run.name: f"{error}"}))
    return outcome.joined(run_all(Listed(ready), folder, jobs, partial(measure_command, folder)))


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
