"""The commands about figures: compare, and evaluate for files. What a command needs is loaded when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from pansight.errors import PansightError

if TYPE_CHECKING:
    from pansight.apps.cli import FileSettings


def register(app: App) -> None:
    """Add the commands to the command line."""
    app.command(
        compare,
        help_epilogue="Examples: pansight compare runs/old runs/new; "
        "pansight compare old.json new.json --fail-below 0.5 --fail-worse --overwrite",
    )


def compare(
    *evaluations: Path,
    out: Path = Path("comparison.html"),
    json: Path | None = None,
    names: Annotated[list[str] | None, Parameter(negative=())] = None,
    resamples: int = 10_000,
    seed: int = 0,
    fail_below: float | None = None,
    fail_worse: bool = False,
    overwrite: bool = False,
) -> int:
    """Compare evaluations with the first: intervals, p-values, classes, images; as a table and a page.

    Exit code: 0; 1 where --fail-below or --fail-worse finds fault; 2 for bad input.

    Parameters
    ----------
    evaluations
        Files evaluation.json, or folders with one: the baseline first, the one in question last.
    out
        The page (HTML).
    json
        Write all figures to this file as well.
    names
        What to call the evaluations. [default: their folders]
    resamples
        Of the images, for the intervals; and as many swaps for the p-values.
    seed
        Of the resamples: the same seed gives the same figures.
    fail_below
        Exit with 1 where the PQ (All) of the last evaluation is below this fraction: 0.5 is 50 %.
    fail_worse
        Exit with 1 where the last evaluation is worse than the first with p < 0.05.
    overwrite
        Replace the files that stand there.
    """
    from pansight.apps.pages import comparison

    result = comparison.compare(
        evaluations, out, names, resamples, seed, fail_below, fail_worse, json=json, overwrite=overwrite
    )
    return int(bool(result["failures"]))


def evaluate_files(settings: FileSettings, overwrite: bool) -> None:
    """What ``pansight evaluate`` does without a model."""
    from pansight.apps import scoring
    from pansight.metrics.files.score import Figures

    outputs = scoring.Outputs(
        settings.json, settings.table, settings.report, settings.images, settings.partial, overwrite
    )
    if settings.merge:
        scoring.merge_files(settings.merge, outputs)
        return
    if settings.gt is None or settings.pred is None:
        raise PansightError("evaluate: expected a run or model, or --gt FILE --pred FILE, or --merge PARTS; found none")
    if (settings.table or settings.report) and not settings.errors:
        raise PansightError("evaluate: expected error classes for --table and --report, found --no-errors")
    figures = Figures(settings.errors, settings.boundary, None, settings.convention)
    scoring.evaluate_files(
        settings.gt,
        settings.pred,
        settings.gt_dir,
        settings.pred_dir,
        outputs,
        figures,
        settings.map,
        _shard(settings.shard),
        settings.strict_compat,
        settings.threads,
    )


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal()):
        raise PansightError(f"--shard: expected PART/PARTS such as 3/16, found {text!r}")
    return int(part), int(parts)
