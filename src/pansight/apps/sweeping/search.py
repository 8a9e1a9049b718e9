"""A search by Optuna over the runner of the grids: which settings to try next follows from the figures so far.

Trials live in a journal file in the folder of the sweep, so that a search that was broken off goes on: finished trials
count, those that were running are trained to their end.
"""

# optuna is an extra, and may be missing where the types are checked
# pyright: reportMissingImports=false
from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pansight.apps.sweeping.grid import Axis, Point, Range, Run, runs_of, short_names, variant_of
from pansight.apps.sweeping.plan import Plan
from pansight.apps.sweeping.runs import folder_of, write_listing
from pansight.engine.evaluate import EVALUATION
from pansight.engine.session import merit
from pansight.errors import PansightError
from pansight.files import read_json

JOURNAL = "search.journal"
NAME = "sweep"
STARTUP = 10
"""Trials at random before the figures of the earlier ones are looked at; half of the trials where these are few."""


def check_installed() -> None:
    """Raises PansightError where Optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise PansightError(
            where="--search", expected="the package optuna", found="none", hint="pip install 'pansight[sweep]'"
        )


class Trials:
    """A queue of runs, with `plan.seeds` of each trial; the figure of a trial is the mean over its seeds.

    Raises PansightError where Optuna is missing or its journal cannot be read.
    """

    def __init__(self, plan: Plan, folder: Path):
        check_installed()
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan, self.folder = plan, folder
        self.total = plan.trials * len(plan.seeds)
        self.runs: list[Run] = []
        self._names = short_names([each.name for each in plan.varied])
        self._waiting: list[Run] = []
        self._open: dict[str, int] = {}  # run → number of its trial
        self._left: dict[int, list[str]] = {}  # trial → runs that have not ended
        self._failed: set[int] = set()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
                self._study = optuna.create_study(
                    storage=storage, study_name=NAME, direction="maximize", load_if_exists=True
                )
            except (OSError, ValueError, KeyError) as error:
                raise PansightError("cannot be read", where=folder / JOURNAL, reason=error) from error
            # a search that goes on must not draw again what it began with; and a trial that still runs is taken for a
            # bad one, so that jobs beside each other try different settings
            seed = plan.seeds[0] + 1000 * len(self._study.get_trials(deepcopy=False))
            start = max(1, min(STARTUP, plan.trials // 2))
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=start, constant_liar=True)
        self._spaces = {each.name: _space(each) for each in plan.varied}
        self._resume()

    def _resume(self) -> None:
        """List the runs of all trials so far; those of trials that were running wait to be gone on with."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING":
                self._queue(trial.number, trial.params)
            else:
                self.runs += self._runs_of(trial.number, trial.params)
        write_listing(self.folder, self.runs)

    def take(self) -> Run | None:
        """The next run of a trial at hand, else of a new one until there are enough."""
        if not self._waiting and len(self._study.get_trials(deepcopy=False)) < self.plan.trials:
            trial = self._study.ask(self._spaces)
            self._queue(trial.number, trial.params)
            write_listing(self.folder, self.runs)
        return self._waiting.pop(0) if self._waiting else None

    def ended(self, run: Run, failure: str) -> None:
        """Tell the study a trial whose last run this was."""
        from optuna.trial import TrialState

        number = self._open[run.name]
        self._left[number].remove(run.name)
        if failure:
            self._failed.add(number)
        if self._left[number]:
            return
        if number in self._failed:
            self._study.tell(number, state=TrialState.FAIL)
            return
        names = [name for name, trial in self._open.items() if trial == number]
        records = [read_json(folder_of(self.folder, each) / EVALUATION) for each in self.runs if each.name in names]
        figures = [merit(record)[1] for record in records]
        self._study.tell(number, sum(figures) / len(figures))

    def _queue(self, number: int, parameters: Mapping[str, Any]) -> None:
        runs = self._runs_of(number, parameters)
        self.runs += runs
        self._waiting += runs
        self._left[number] = [run.name for run in runs]
        self._open |= {run.name: number for run in runs}

    def _runs_of(self, number: int, parameters: Mapping[str, Any]) -> list[Run]:
        points = [_point(each, parameters[each.name]) for each in self.plan.varied if each.name in parameters]
        if len(points) < len(self.plan.varied):
            raise PansightError(
                where=self.folder / JOURNAL, expected="trials of what is varied", found=f"others in trial {number}"
            )
        return runs_of([variant_of(self._names, points)], self.plan.seeds, f"trial={number}, ")


def _space(each: Axis | Range) -> Any:
    """What Optuna draws from; the values of an axis by their labels, since it takes no lists."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(each, Axis):
        return CategoricalDistribution([point.label for point in each.points])
    if each.whole:
        return IntDistribution(int(each.low), int(each.high), log=each.log)
    return FloatDistribution(each.low, each.high, log=each.log)


def _point(each: Axis | Range, value: Any) -> Point:
    if isinstance(each, Range):
        return Point(f"{value:.4g}" if isinstance(value, float) else str(value), {each.name: value})
    return next(point for point in each.points if point.label == value)
