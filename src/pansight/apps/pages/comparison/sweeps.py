"""The comparison of a sweep: each variant is the mean over its seeds, beside how far the seeds lie apart.

The interval of a difference says what other images would have given: images are drawn with replacement, the same ones
for both variants, and the figures of all seeds of a variant are averaged in every draw. The spread between the seeds
stands beside it, since another seed may change more than other images would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.apps.measuring.facts import read_facts
from pansight.apps.pages.comparison.evaluations import Evaluation, align, read_evaluations
from pansight.apps.pages.comparison.measures import Counts, Measure, figures_of, per_image
from pansight.apps.pages.comparison.pictures import side_by_side
from pansight.apps.pages.comparison.show import p_text, signed
from pansight.apps.pages.comparison.sources import EVALUATION
from pansight.apps.pages.figures import environment, script_json
from pansight.apps.pages.report import curves, read_run
from pansight.errors import PansightError
from pansight.files import read_json, write_json, write_text
from pansight.metrics.bootstrap import Bootstrap, Figures, bootstrap
from pansight.metrics.bootstrap.sums import FloatArray

CONFIDENCE = 0.95
ALL_PAIRS = 8
"""Up to so many variants each is compared with each; of more, each with the best one."""
PICTURES = 96
"""Most pictures on a page; of more runs, fewer images are shown."""

SweepRuns = Mapping[str, Sequence[tuple[str, int, Path]]]
"""Variant → (name, seed and folder of each of its runs)."""


class MeanFigures(NamedTuple):
    """The figures of several runs as one: in every draw of the images, their mean. `Figures` but for `swapped`."""

    runs: tuple[Figures, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        return self.runs[0].groups

    @property
    def scores(self) -> tuple[str, ...]:
        return self.runs[0].scores

    @property
    def tolerance(self) -> float:
        return self.runs[0].tolerance

    @property
    def classes(self) -> int:
        return self.runs[0].classes

    def value(self) -> FloatArray:
        return np.mean([run.value() for run in self.runs], axis=0)

    def drawn(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([run.drawn(weights) for run in self.runs]).mean(axis=0)

    def swapped(self, other: Any) -> Callable[[NDArray[np.float32]], FloatArray]:
        raise NotImplementedError("runs of two variants do not belong together in pairs")


def compare_sweep(
    variants: SweepRuns,
    page: Path,
    json: Path | None = None,
    resamples: int = 2000,
    seed: int = 0,
    study: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compare the runs of a sweep; prints a table, writes the page, and returns (and writes) everything as JSON.

    Keys: measure (name of the figure); images; variants, in the order given → name, mean, spread (standard deviation
    over the seeds; None for one), low, high (of the images), best, worst, seeds, and the medians train_speed,
    predict_speed (images/s), parameters, memory_bytes, minutes; pairs → first, second, value, low, high; runs → the
    same of every run; notes; study → what is given as `study`, the table of a study, which the page shows first.
    Raises PansightError for a run whose files are damaged.
    """
    if not any(variants.values()):
        raise PansightError(where="sweep", expected="a finished run", found="none")
    named = [(variant, *run) for variant, runs in variants.items() for run in runs]
    files = [folder / EVALUATION for _, _, _, folder in named]
    names = [name for _, name, _, _ in named]
    measure, read = read_evaluations(files, [read_json(file) for file in files], names)
    rows = [
        {"name": name, "variant": variant, "seed": number, **_costs(folder)} for variant, name, number, folder in named
    ]
    image_ids, counts, notes = _aligned(read)
    result: dict[str, Any] = {"measure": measure.name, "images": len(image_ids), "notes": notes, "runs": rows}
    result |= {} if study is None else {"study": study}
    if counts:
        figures = _figures(read, counts, len(image_ids))
        values = [float(each.value()[0, 0]) for each in figures]
    else:
        figures, values = [], [_stated(each, measure) for each in read]
    for row, value in zip(rows, values):
        row["value"] = None if math.isnan(value) else value
    groups = {v: [k for k, row in enumerate(rows) if row["variant"] == v] for v in dict.fromkeys(v for v, *_ in named)}
    pooled = {v: MeanFigures(tuple(figures[k] for k in places)) for v, places in groups.items()} if figures else {}
    drawn = bootstrap(list(pooled.values()), len(image_ids), resamples, seed, CONFIDENCE) if pooled else None
    result["variants"] = [
        _variant(v, [rows[k] for k in places], drawn, n) for n, (v, places) in enumerate(groups.items())
    ]
    result["pairs"] = _pairs(result["variants"], pooled, len(image_ids), resamples, seed)
    print(sweep_table(result))
    pictures = _pictures(read, counts, image_ids, measure, files) if counts else []
    write_text(page, sweep_page(result, [folder for *_, folder in named], pictures))
    print(f"page       {page}")
    if json:
        write_json(json, result)
        print(f"figures    {json}")
    return result


def _aligned(read: Sequence[Evaluation]) -> tuple[list[str | int], list[Counts], list[str]]:
    """What `align` gives; no counts, and a note, where the runs were not measured on the same images and classes."""
    try:
        image_ids, counts, notes = align(read)
    except PansightError as error:
        return [], [], [f"The runs were not measured alike, so that there are no intervals: {error}."]
    return image_ids, counts, notes


def _figures(read: Sequence[Evaluation], counts: Sequence[Counts], images: int) -> list[Figures]:
    things = np.array(list(read[0].classes.values()), bool)
    return [figures_of(each, things, images, evaluation.convention) for each, evaluation in zip(counts, read)]


def _stated(evaluation: Evaluation, measure: Measure) -> float:
    """The figure as the file of an evaluation states it."""
    part = measure.part_of(evaluation.record) or {}
    value = part["All"]["pq"] if not measure.part else part[measure.kind]["ap"] if measure.kind else part["miou"]
    return math.nan if value is None else float(value)


def _costs(folder: Path) -> dict[str, Any]:
    """Speed, size, memory and time of a run, each None where its folder does not tell."""
    run, facts = read_run(folder), read_facts(folder)
    training = [row for row in run.log if row.get("kind") == "train"]
    speeds = [row["images_per_second"] for row in training if isinstance(row.get("images_per_second"), int | float)]
    last = training[-1] if training else {}
    seconds = last.get("time")
    return {
        "train_speed": median(speeds) if speeds else None,
        "predict_speed": run.evaluation.get("images_per_second"),
        "parameters": facts.get("parameters"),
        "memory_bytes": facts.get("memory_bytes") or None,
        "minutes": seconds / 60 if isinstance(seconds, int | float) else None,
        "steps": last.get("step"),
        "stopped_by": facts.get("stopped_by"),
    }


COSTS = ("train_speed", "predict_speed", "parameters", "memory_bytes", "minutes")


def _variant(name: str, rows: Sequence[Mapping[str, Any]], drawn: Bootstrap | None, place: int) -> dict[str, Any]:
    values = [row["value"] for row in rows if row["value"] is not None]
    costs = {key: [row[key] for row in rows if row[key] is not None] for key in COSTS}
    ends = {"low": None, "high": None}
    if drawn is not None:
        ends = {key: _known(float(getattr(drawn, key)[place, 0, 0])) for key in ends}
    return {
        "name": name,
        "mean": mean(values) if values else None,
        "spread": stdev(values) if len(values) > 1 else None,
        **ends,
        "best": max(values, default=None),
        "worst": min(values, default=None),
        "seeds": [row["seed"] for row in rows],
        **{key: median(found) if found else None for key, found in costs.items()},
    }


def _pairs(
    variants: Sequence[Mapping[str, Any]], pooled: Mapping[str, Figures], images: int, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """The difference of two variants in the figure of all classes, with its interval: the second minus the first."""
    names = list(pooled)
    if len(names) > ALL_PAIRS:
        best = max(variants, key=lambda row: -1.0 if row["mean"] is None else row["mean"])["name"]
        chosen = [(best, name) for name in names if name != best]
    else:
        chosen = list(combinations(names, 2))
    rows: list[dict[str, Any]] = []
    for first, second in chosen:
        found = bootstrap([pooled[first], pooled[second]], images, resamples, seed, CONFIDENCE)
        tables = {"value": found.difference, "low": found.difference_low, "high": found.difference_high}
        row = {key: _known(float(table[1, 0, 0])) for key, table in tables.items()}
        rows.append({"first": first, "second": second, **row})
    return rows


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _pictures(
    read: Sequence[Evaluation],
    counts: Sequence[Counts],
    image_ids: Sequence[str | int],
    measure: Measure,
    files: Sequence[Path],
) -> list[dict[str, Any]]:
    """The same images for every run, those on which the runs differ most."""
    shown = {
        "measure": measure._asdict(),
        "evaluations": [{"name": each.name} for each in read],
        "per_image": per_image(image_ids, counts, measure),
    }
    return side_by_side(shown, files)[: max(1, PICTURES // (len(files) + 1))]


# --- showing ---------------------------------------------------------------------------------------------------------


def sweep_table(result: Mapping[str, Any]) -> str:
    """The variants as text, the best first: percent, differences in points."""
    width = max(12, *(len(row["name"]) for row in result["variants"]))
    lines = [f"NOTE: {note}" for note in result["notes"]]
    lines += [
        f"{result['measure']}, percent: mean ± standard deviation over the seeds, [95 % interval] over the images",
        f"{'variant':{width}}  {result['measure']:>14}  {'interval':>14}  seeds  {'train':>7}  {'predict':>7}  "
        f"{'params':>8}  {'memory':>8}",
    ]
    for row in ranked(result["variants"]):
        lines.append(
            f"{row['name']:{width}}  {_figure(row):>14}  {_interval(row):>14}  {len(row['seeds']):>5}  "
            f"{_speed(row['train_speed']):>7}  {_speed(row['predict_speed']):>7}  {_millions(row['parameters']):>8}  "
            f"{_gigabytes(row['memory_bytes']):>8}"
        )
    lines.append("train, predict: images a second; memory: the most that a training took")
    for row in result["pairs"][:20]:
        firm = "" if row["low"] is None or row["low"] <= 0 <= row["high"] else " *"
        ends = f"[{signed(row['low'])}, {signed(row['high'])}]"
        lines.append(f"{row['second']} - {row['first']}: {signed(row['value'])} {ends}{firm}")
    if result["pairs"]:
        lines.append("* the interval is on one side of 0: other images would hardly turn the order; mind the spread")
    return "\n".join(lines)


def ranked(variants: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The best first; those without a figure last."""
    return sorted(variants, key=lambda row: (row["mean"] is None, -(row["mean"] or 0.0)))


def sweep_page(result: Mapping[str, Any], folders: Sequence[Path], pictures: Sequence[Mapping[str, Any]]) -> str:
    """The comparison as one HTML file that needs no other."""
    templates = environment()
    templates.filters |= {
        "points": lambda value: signed(value).replace("-", "−"),
        "spread": _figure,
        "over_seeds": _over_seeds,
        "speed": _speed,
        "millions": _millions,
        "gigabytes": _gigabytes,
        "p": p_text,
    }
    ends = [row[key] for row in result["variants"] for key in ("low", "high", "best", "worst") if row[key] is not None]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.01
    return templates.get_template("sweep.html.j2").render(
        result=result,
        variants=ranked(result["variants"]),
        low=low - margin,
        reach=high - low + 2 * margin,
        charts=script_json(sweep_curves(result, folders)),
        pictures=pictures,
    )


def sweep_curves(result: Mapping[str, Any], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Charts with a line for each run: its figure at every evaluation, its loss, and that on the validation images.

    Runs of one variant have one colour.
    """
    names = [row["name"] for row in result["variants"]]
    of_runs = [(row, curves(read_run(folder).log)) for row, folder in zip(result["runs"], folders)]
    figure = {"PQ": "PQ all", "Mask AP": "mask AP", "Box AP": "box AP"}.get(result["measure"], "mIoU")
    wanted = (
        (f"{result['measure']} on the validation images", "%", "Quality on the validation images", figure),
        ("Loss", "", "Loss", "total"),
        ("Loss on the validation images", "", "Loss", "total, validation"),
    )
    charts: list[dict[str, Any]] = []
    for title, unit, chart_title, line in wanted:
        series = [
            {"name": row["name"], "points": each["points"], "color": names.index(row["variant"])}
            for row, charts_of_run in of_runs
            for chart in charts_of_run
            if chart["title"] == chart_title
            for each in chart["series"]
            if each["name"] == line
        ]
        if series:
            charts.append({"title": title, "unit": unit, "main": True, "series": series})
    return charts


def _figure(row: Mapping[str, Any]) -> str:
    """87.3 ± 0.4, without the spread where there is one seed."""
    if row["mean"] is None:
        return "–"
    spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.1f}"
    return f"{100 * row['mean']:.1f}{spread}"


def _over_seeds(cell: Mapping[str, Any] | None) -> str:
    """A figure of a study: None where the model does not produce it."""
    return "–" if cell is None else _figure(cell)


def _interval(row: Mapping[str, Any]) -> str:
    return "–" if row["low"] is None else f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _speed(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _millions(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value:,.0f}"


def _gigabytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**30:.2f} GB"
