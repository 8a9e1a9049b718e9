"""The commands sweep and study. What they need is loaded when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pansight.apps.commandline.settings import Settings, given_settings


def register(app: App) -> None:
    """Add the command to the command line."""
    app.command(
        sweep,
        help_epilogue="Examples: pansight sweep shapes/panoptic_fpn --vary model.backbone=resnet18,convnext_atto "
        "--vary train.lr=1e-4,1e-3 --seeds 3; pansight sweep runs/sweep-panoptic_fpn; "
        "pansight sweep studies/cityscapes_detr_repaired --data DIR --dry-run",
    )
    app.command(
        study, help_epilogue="Examples: pansight study; pansight study upsnet_head; pansight study roi_ops --seeds 1"
    )


def sweep(
    target: str | None = None,
    /,
    *,
    vary: Annotated[list[str] | None, Parameter(negative=())] = None,
    seeds: int | None = None,
    jobs: int | None = None,
    search: str | None = None,
    trials: int | None = None,
    one_at_a_time: bool | None = None,
    data: str | None = None,
    out: Path | None = None,
    dry_run: bool = False,
    settings: Settings = None,
) -> int:
    """Train every combination of some settings, or search them, each with several seeds; then compare all runs.

    Finished runs are skipped and broken ones resumed: the same command goes on where it was stopped. Ends with code 1
    where a run failed; the others are trained nevertheless.

    Parameters
    ----------
    target
        A recipe, a study (studies/NAME), a TOML file of either kind, or the folder of a sweep that goes on.
    vary
        KEY=VALUE,VALUE for each setting that is varied. Lists stand in brackets: train.milestones=[0.5,0.8];[0.6,0.9].
        For a search also ranges: train.lr=1e-5..1e-3:log, model.options.queries=50..100.
    seeds
        Runs of each combination. [default: 1, or as the study says]
    jobs
        Runs at a time. [default: one for each GPU, or one]
    search
        tpe: try --trials combinations, each chosen by what the earlier ones gave; needs the extra sweep (Optuna).
    trials
        Of a search.
    one_at_a_time
        Only the first values of all, and every other value alone: one run for each, not for each combination.
    data
        A folder or annotation file, as for train. [default: that of the recipe]
    out
        The folder of the sweep. [default: runs/sweep-NAME]
    dry_run
        Print the command of every run and start none.
    """
    from pansight.apps import sweeping

    given = dict(given_settings) | ({} if data is None else {"data.source": data})
    return sweeping.sweep(target, vary or (), seeds, jobs, out, search, trials, one_at_a_time, given, dry_run)


def study(
    name: str | None = None,
    /,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    data: str | None = None,
    out: Path | None = None,
    dry_run: bool = False,
    settings: Settings = None,
) -> int:
    """Repeat a published comparison at small scale, and show its table beside the published one; or list the studies.

    A study is a sweep: finished runs are skipped, broken ones resumed, and one that fails stops nobody, but ends the
    command with code 1.

    Parameters
    ----------
    name
        A study, a TOML file with one, or the folder of one that goes on. [default: list them]
    minutes
        Of each training, in place of what the study says.
    steps
        Of each training, in place of its time.
    seeds
        Runs of each row. [default: as the study says]
    jobs
        Runs at a time. [default: one for each GPU, or one]
    data
        A folder or annotation file, as for train. [default: that of the study]
    out
        The folder of the study. [default: runs/study-NAME]
    dry_run
        Print the command of every run and start none.
    """
    from pansight.apps import sweeping

    if name is None:
        print(sweeping.list_studies())
        return 0
    given = dict(given_settings) | ({} if data is None else {"data.source": data})
    return sweeping.study(name, minutes, steps, seeds, jobs, out, given, dry_run)
