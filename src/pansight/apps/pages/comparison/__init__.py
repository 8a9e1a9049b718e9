"""Comparison of evaluations: whether the second model is really better than the first, in which classes and images.

An evaluation is the evaluation.json that `pansight evaluate` writes, or a folder with it. Evaluations are compared on
the same images, classes (by name) and truth; intervals and p-values are those of `metrics.bootstrap`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.apps.pages.charts import check_folder, comparison_charts, write_charts
from pansight.apps.pages.comparison.evaluations import align, other_figures, read_evaluations, shared
from pansight.apps.pages.comparison.measures import Counts, Measure, class_sums, figures_of, per_image
from pansight.apps.pages.comparison.pairs import all_pairs, ranking
from pansight.apps.pages.comparison.pictures import side_by_side
from pansight.apps.pages.comparison.show import ALPHA, p_text, page, signed, table
from pansight.apps.pages.comparison.sources import EVALUATION, Truth, find_files, names_of, read_records
from pansight.errors import PansightError
from pansight.files import write_json, write_text
from pansight.metrics.bootstrap import Bootstrap, adjust, bootstrap, paired_test


def compare(
    evaluations: Sequence[str | Path],
    out: str | Path | None = None,
    names: Sequence[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    fail_below: float | None = None,
    fail_worse: bool = False,
    json: str | Path | None = None,
    overwrite: bool = False,
    gt: str | Path | None = None,
    gt_dir: str | Path | None = None,
    class_map: str | Path | None = None,
    charts: str | Path | None = None,
) -> dict[str, Any]:
    """Compare evaluations with the first of them; prints a table and returns everything as a JSON-able dict.

    evaluations: evaluation.json files, or folders with one; with gt (and gt_dir, its PNGs) prediction files in COCO
    panoptic as well. class_map: the word names, or a TOML file, where their classes differ (see `evaluations.shared`).
    They are compared by PQ where all have it, else by AP of
    masks or boxes, else by mIoU: the measure. out: an HTML page; json: the returned dict as a file.
    charts: a folder of the scores as SVG and PNG. names: one for each
    evaluation, by default its folder or file name. fail_below: the least main figure (All) of the last evaluation, a
    fraction; fail_worse: the last must not be worse than the first with p < 0.05. What fails stands under `failures`.

    Returned keys: measure → name, key of the main figure, groups, scores; evaluations → name, file and All, Things,
    Stuff, per_class (by name) → pq, sq, rq (or iou, accuracy, or ap, ap50, ap75) → value, low, high and, but for the
    first evaluation, difference → value, low, high, p (of a class's main figure also p_adjusted); pairs, of three or
    more every difference of two; ranking, names from best to worst; others, figures
    without interval by name; per_image, the images by falling difference; images, classes, resamples, seed, confidence,
    verdict, notes, failures. None stands for a figure that does not exist.
    Raises PansightError for files that cannot be read or compared, or that stand where `out` or `json` should go.
    """
    _check_arguments(evaluations, names, resamples, seed, fail_below, fail_worse)
    truth = Truth(Path(gt), None if gt_dir is None else Path(gt_dir)) if gt else None
    files = find_files(evaluations, truth)
    _check_targets(out, json, charts, files, overwrite)
    given = list(names) if names else names_of(files)
    measure, read = read_evaluations(files, read_records(files, truth), given)
    read, unshared = shared(read, class_map)
    image_ids, counts, notes = align(read)
    notes = [*unshared, *notes]
    things = np.array(list(read[0].classes.values()), bool)
    figures = [figures_of(c, things, len(image_ids), e.convention) for c, e in zip(counts, read)]
    intervals = bootstrap(figures, len(image_ids), resamples, seed, 1 - ALPHA)
    p = [None, *(paired_test(figures[0], each, len(image_ids), resamples, seed) for each in figures[1:])]
    result: dict[str, Any] = {
        "measure": measure._asdict() | {"key": measure.key},
        "evaluations": [
            {"name": e.name, "file": str(e.file), **_scored(read[0].classes, k, measure, intervals, p[k], counts[k])}
            for k, e in enumerate(read)
        ],
        "others": {} if notes else other_figures(read, measure),
        "per_image": per_image(image_ids, counts, measure),
        "images": len(image_ids),
        "classes": len(things),
        "resamples": resamples,
        "seed": seed,
        "confidence": 1 - ALPHA,
        "notes": notes,
    }
    result["pairs"] = all_pairs(figures, given, len(image_ids), resamples, seed, 1 - ALPHA) if len(read) > 2 else []
    result["ranking"] = ranking(result["evaluations"], measure.key)
    result["verdict"] = [_verdict(result, k) for k in range(1, len(read))]
    result["failures"] = _failures(result, fail_below, fail_worse)
    print(table(result))
    _write(result, files, out, json, charts)
    for failure in result["failures"]:
        print(f"FAILED: {failure}")
    return result


def _write(
    result: dict[str, Any],
    files: Sequence[Path],
    out: str | Path | None,
    json: str | Path | None,
    charts: str | Path | None,
) -> None:
    if out:
        write_text(out, page(result, side_by_side(result, files)))
        print(f"page: {out}")
    if json:
        write_json(json, result)
        print(f"figures: {json}")
    if charts:
        write_charts(Path(charts), comparison_charts(result))
        print(f"charts: {charts}")


def _check_arguments(
    evaluations: Sequence[str | Path],
    names: Sequence[str] | None,
    resamples: int,
    seed: int,
    fail_below: float | None,
    fail_worse: bool,
) -> None:
    if not evaluations:
        raise PansightError(where="compare", expected=f"at least one {EVALUATION} or a folder with it", found="none")
    if fail_worse and len(evaluations) < 2:
        raise PansightError(where="--fail-worse", expected="a second evaluation", found="one alone")
    if names and len(names) != len(evaluations):
        raise PansightError(where="--names", expected=f"{len(evaluations)}, one for each evaluation", found=len(names))
    if names and len(set(names)) < len(names):
        raise PansightError(where="--names", expected="different names", found=", ".join(names))
    if not 100 <= resamples <= 1_000_000:
        raise PansightError(where="--resamples", expected="100 … 1,000,000", found=resamples)
    if seed < 0:
        raise PansightError(where="--seed", expected="0 or more", found=seed)
    if fail_below is not None and not 0 <= fail_below <= 1:
        hint = f"; {fail_below:g} % is {fail_below / 100:g}" if 1 < fail_below <= 100 else ""
        raise PansightError(where="--fail-below", expected="a fraction 0 … 1", found=f"{fail_below:g}{hint}")


def _check_targets(
    out: str | Path | None,
    json: str | Path | None,
    charts: str | Path | None,
    files: Sequence[Path],
    overwrite: bool,
) -> None:
    """Raises PansightError where something stands in a place, or two results would go to one."""
    if out and json and Path(out).resolve() == Path(json).resolve():
        raise PansightError(where="--json", expected="another file than the page", found=f"{json} for both")
    if charts:
        check_folder(Path(charts), overwrite)
    for target in (out, json):
        _check_target(target, files, overwrite)


def _check_target(target: str | Path | None, sources: Sequence[Path], overwrite: bool) -> None:
    if target is None:
        return
    if Path(target).resolve() in [source.resolve() for source in sources]:
        raise PansightError("expected another file than the evaluations to write to", where=target)
    if Path(target).exists() and not overwrite:
        raise PansightError(
            where=target, expected="no file yet", found="one", hint="add --overwrite or choose another name"
        )


def _scored(
    classes: Mapping[str, bool],
    k: int,
    measure: Measure,
    intervals: Bootstrap,
    p: NDArray[Any] | None,
    counts: Counts,
) -> dict[str, Any]:
    """The figures of evaluation k: the groups, and per_class by name."""

    def figure(row: int, column: int) -> dict[str, Any]:
        at = (k, row, column)
        result: dict[str, Any] = _known(value=intervals.value[at], low=intervals.low[at], high=intervals.high[at])
        if p is not None:
            low, high = intervals.difference_low[at], intervals.difference_high[at]
            result["difference"] = _known(value=intervals.difference[at], low=low, high=high, p=p[row, column])
        return result

    first = len(measure.groups)
    sums = class_sums(counts, len(classes))
    adjusted = None if p is None else adjust(p[first:, 0])
    per_class: dict[str, dict[str, Any]] = {}
    for c, (name, thing) in enumerate(classes.items()):
        row: dict[str, Any] = {"isthing": thing}
        row |= {score: figure(first + c, column) for column, score in enumerate(measure.scores)}
        row |= {key: int(total[c]) for key, total in sums.items()}
        if adjusted is not None:
            row[measure.key]["difference"] |= _known(p_adjusted=adjusted[c])
        per_class[name] = row
    scores = list(enumerate(measure.scores))
    groups = {g: {score: figure(r, column) for column, score in scores} for r, g in enumerate(measure.groups)}
    return groups | {"per_class": per_class}


def _known(**values: float) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else float(value) for key, value in values.items()}


def _verdict(result: Mapping[str, Any], k: int) -> str:
    """One sentence about evaluation k against the first."""
    first, other = result["evaluations"][0], result["evaluations"][k]
    name, key = result["measure"]["name"], result["measure"]["key"]
    change = other["All"][key]["difference"]
    if change["p"] is None:
        return f"{other['name']} and {first['name']} cannot be compared: nothing was to be found or was predicted."
    if change["value"] == change["low"] == change["high"] == 0:
        return f"{other['name']} scores exactly as {first['name']}."
    figures = (
        f"{name} {signed(change['value'])} [{signed(change['low'])}, {signed(change['high'])}], {p_text(change['p'])}"
    )
    if change["p"] >= ALPHA:
        return f"{other['name']} and {first['name']} cannot be told apart: {figures}."
    return f"{other['name']} is {'better' if change['value'] > 0 else 'worse'} than {first['name']}: {figures}."


def _failures(result: Mapping[str, Any], fail_below: float | None, fail_worse: bool) -> list[str]:
    """Why the last evaluation does not pass."""
    last = result["evaluations"][-1]
    main, failures = last["All"][result["measure"]["key"]], list[str]()
    if fail_below is not None and (main["value"] is None or main["value"] < fail_below):
        found = "none" if main["value"] is None else f"{main['value']:.4f}"
        name = result["measure"]["name"]
        failures.append(f"{last['name']}: expected a {name} of at least {fail_below:g}, found {found} (--fail-below)")
    change = main.get("difference", {})
    if fail_worse and change.get("p") is not None and change["p"] < ALPHA and change["value"] < 0:
        failures.append(f"{result['verdict'][-1].rstrip('.')} (--fail-worse)")
    return failures
