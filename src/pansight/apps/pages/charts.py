"""The charts of a report or a comparison as files: each as SVG and as PNG, for papers and slides."""

# matplotlib leaves many of its types open
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pansight.apps.pages.figures import class_table, error_rows
from pansight.errors import PansightError
from pansight.files import replacing
from pansight.types import LabelSpace

DPI = 200
COLORS = ("#2f7fc9", "#d55e00", "#0b8f6a", "#b0479a", "#b58900", "#3fa7d6", "#6b7280", "#8c564b")
"""As in the pages."""

Drawing = tuple[tuple[float, float], Callable[[Axes], None]]
"""Width and height in inches, and what draws into the axes."""


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raises PansightError where the folder is a file, or has charts already and `overwrite` is not set."""
    if folder.is_file():
        raise PansightError(where=folder, expected="a folder for the charts", found="a file")
    taken = next((path for kind in ("svg", "png") for path in sorted(folder.glob(f"*.{kind}"))), None)
    if taken is not None and not overwrite:
        raise PansightError(where=taken, expected="a folder without charts", found="one", hint="add --overwrite")


def report_charts(
    evaluation: Mapping[str, Any], labels: LabelSpace | None, curves: Sequence[Mapping[str, Any]]
) -> dict[str, Drawing]:
    """Name → drawing: the figures of the classes, what errors cost, and the curves of the training.

    evaluation: a record. curves: of `report.curves`.
    """
    drawings: dict[str, Drawing] = {}
    columns, rows = class_table(evaluation, labels)
    if columns:
        key, title, _ = columns[0]
        shown = [row for row in rows if row["present"]][::-1]
        bars = [(str(row["name"]), 100 * (row.get(key) or 0.0), str(row["color"])) for row in shown]
        drawings["classes"] = _bars(bars, f"{title}, percent")
    errors = [(r["name"], 100 * r["pq_gain"], r["color"]) for r in error_rows(evaluation.get("errors", {}))][::-1]
    if errors:
        drawings["errors"] = _bars(errors, "PQ gained if repaired, points")
    for chart in curves:
        drawings[str(chart["title"]).lower().replace(" ", "_")] = _lines(chart)
    return drawings


def comparison_charts(result: Mapping[str, Any]) -> dict[str, Drawing]:
    """Name → drawing: each score of each group with its interval. result: of `compare`."""
    measure, evaluations = result["measure"], result["evaluations"]
    return {
        f"{group}_{key}".lower(): _intervals(
            [(e["name"], e[group][key]) for e in evaluations][::-1], f"{title} of {group.lower()}, percent"
        )
        for group in measure["groups"]
        for key, title in measure["scores"].items()
    }


def write_charts(folder: Path, drawings: Mapping[str, Drawing]) -> list[Path]:
    """NAME.svg and NAME.png of each drawing; their paths. Raises PansightError where they cannot be written."""
    paths: list[Path] = []
    for name, (size, draw) in drawings.items():
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        for kind in ("svg", "png"):
            paths.append(folder / f"{name}.{kind}")
            with replacing(paths[-1]) as temporary:
                figure.savefig(temporary, format=kind, dpi=DPI)
    return paths


def _bars(rows: Sequence[tuple[str, float, str]], title: str) -> Drawing:
    def draw(axes: Axes) -> None:
        names, values, colors = zip(*rows)
        bars = axes.barh(range(len(rows)), values, color=colors)
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.set_yticks(range(len(rows)), [_plain(name) for name in names])
        axes.set_xlabel(title)

    return (6.4, 0.9 + 0.32 * len(rows)), draw


def _lines(chart: Mapping[str, Any]) -> Drawing:
    def draw(axes: Axes) -> None:
        for n, series in enumerate(chart["series"]):
            steps, values = zip(*((step, float("nan") if v is None else v) for step, v in series["points"]))
            mark = "o" if len(steps) <= 24 else ""
            axes.plot(steps, values, mark, ls="-", color=COLORS[n % len(COLORS)], label=_plain(series["name"]))
        axes.set_xlabel("step")
        axes.set_ylabel(chart["title"] + (f", {chart['unit']}" if chart["unit"] else ""))
        if len(chart["series"]) > 1:
            axes.legend(frameon=False)

    return (6.4, 3.6), draw


def _intervals(rows: Sequence[tuple[str, Mapping[str, float | None]]], title: str) -> Drawing:
    def draw(axes: Axes) -> None:
        for place, (_, figure) in enumerate(rows):
            value, low, high = (figure[key] for key in ("value", "low", "high"))
            if value is not None and low is not None and high is not None:
                color = COLORS[(len(rows) - 1 - place) % len(COLORS)]
                reach = [[100 * max(0.0, value - low)], [100 * max(0.0, high - value)]]
                axes.errorbar([100 * value], [place], xerr=reach, fmt="o", color=color, capsize=4)
        axes.set_yticks(range(len(rows)), [_plain(name) for name, _ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(title)

    return (6.4, 1.2 + 0.35 * len(rows)), draw


def _plain(name: str) -> str:
    """A name from a file is no formula of matplotlib's."""
    return name.replace("$", r"\$")
