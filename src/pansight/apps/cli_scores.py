"""The commands about figures: compare. What a command needs is loaded when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter


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
    from pansight.apps import comparison

    result = comparison.compare(
        evaluations, out, names, resamples, seed, fail_below, fail_worse, json=json, overwrite=overwrite
    )
    return int(bool(result["failures"]))
