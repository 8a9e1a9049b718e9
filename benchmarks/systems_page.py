"""What docs/benchmarks.md shows of results/systems.json: the rows of its tables, and a scatter plot for each data."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

Rows = list[dict[str, Any]]
FIGURES = ("PQ", "PQ_th", "PQ_st", "SQ", "RQ", "mIoU", "AP", "box AP")
HEADER = ["", *FIGURES, "parameters", "s a step", "ms a photo", "MiB, training", "MiB, prediction"]
DATA_TITLES = {"shapes": "Generated shapes of 128×128, 200 images never seen", "nuclei": "Nuclei, 81 whole images"}


def by_system(rows: Rows) -> dict[str, Rows]:
    """System → its rows, one for each seed."""
    return {name: [row for row in rows if row["system"] == name] for name in dict.fromkeys(r["system"] for r in rows)}


def mean_of(rows: Rows, figure: str) -> float | None:
    """The mean over the seeds; None where the system does not have the figure."""
    values = [row["figures"][figure] for row in rows if row["figures"][figure] is not None]
    return statistics.mean(values) if values else None


def system_rows(rows: Rows) -> list[list[str]]:
    """The cells of each system under HEADER: the best PQ first, then the best mIoU, then the best AP of boxes."""
    found = by_system(rows)

    def merit(name: str) -> list[float]:
        values = [mean_of(found[name], figure) for figure in ("PQ", "mIoU", "box AP")]
        return [-1.0 if value is None else value for value in values]

    return [[f"`{name}`", *_cells(found[name])] for name in sorted(found, key=merit, reverse=True)]


def _cells(rows: Rows) -> list[str]:
    figures = [mean_of(rows, name) for name in FIGURES]
    seconds = [row["step_seconds"] for row in rows if row["step_seconds"] is not None]
    middle = {
        key: statistics.median(row[key] for row in rows)
        for key in ("parameters", "inference_ms", "training_mib", "inference_mib")
    }
    return [
        *("" if value is None else f"{value:.1f}" for value in figures),
        f"{middle['parameters'] / 1e6:.2f} M",
        f"{statistics.median(seconds):.2f}" if seconds else "",
        *(f"{middle[key]:.0f}" for key in ("inference_ms", "training_mib", "inference_mib")),
    ]


# --- the plot --------------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    name: str
    milliseconds: float
    figure: float  # percent


def plot_of(data: str) -> str:
    """The place of a plot, seen from docs/."""
    return f"images/systems_{data}.svg"


def draw_systems(rows: Rows, docs: Path) -> None:
    """The plot of each data: a point for each system that has PQ, the mean over its seeds."""
    for data in dict.fromkeys(row["data"] for row in rows):
        points: list[Point] = []
        for name, found in by_system([row for row in rows if row["data"] == data]).items():
            quality = mean_of(found, "PQ")
            if quality is not None:
                points.append(Point(name, statistics.median(row["inference_ms"] for row in found), quality))
        if points:
            write_scatter(docs / plot_of(data), points, "PQ")


def write_scatter(path: Path, points: Sequence[Point], figure: str) -> None:
    """An SVG whose text stays text. Time is drawn on a logarithmic axis; better is up and to the left."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    from pansight.apps.pages.charts import COLORS

    drawing = Figure((8, 5), layout="constrained")
    axes = drawing.add_subplot()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds from a photo to its prediction")
    axes.set_ylabel(f"{figure}, percent")
    axes.grid(True, which="both", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15, y=0.12)
    axes.xaxis.set_major_formatter(_round_number)
    axes.xaxis.set_minor_formatter(_round_number)
    span = max(point.figure for point in points) - min(point.figure for point in points) or 1.0
    times = [point.milliseconds for point in points]
    heights = apart([point.figure for point in points], 0.04 * span, times)
    for place, (point, height) in enumerate(zip(points, heights)):
        spot = (point.milliseconds, point.figure)
        color = COLORS[place % len(COLORS)]
        axes.plot([spot[0]], [spot[1]], "o", color=color)
        up = (8, 270 * (height - point.figure) / span - 3)  # the axes are about 270 points high
        axes.annotate(point.name, spot, xytext=up, textcoords="offset points", fontsize=8, color=color)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pansight"}):
        FigureCanvasSVG(drawing).print_svg(path, metadata={"Date": None})


def _round_number(value: float, place: int) -> str:
    """100, 200, 500, 1000; nothing at the marks between. place: of the mark, which matplotlib tells, too."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def apart(heights: Sequence[float], least: float, times: Sequence[float], near: float = 1.6) -> list[float]:
    """The heights of labels, spread where they would lie closer than `least` to each other.

    Labels whose times differ by more than the factor `near` lie beside each other and are left alone. Those that are
    spread keep their order and their mean, so that each stays near its point.
    """
    moved = list(heights)
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    groups: list[list[int]] = []
    for place in order:
        group = next((g for g in groups if _touches(g, place, heights, times, least, near)), None)
        if group is None:
            groups.append([place])
        else:
            group.append(place)
    for group in groups:
        middle = statistics.mean(heights[place] for place in group)
        for number, place in enumerate(group):
            if len(group) > 1:
                moved[place] = middle + (number - (len(group) - 1) / 2) * least
    return moved


def _touches(
    group: Sequence[int], place: int, heights: Sequence[float], times: Sequence[float], least: float, near: float
) -> bool:
    """Whether the label at `place` would lie on that of the highest of a group, or the group reaches up to it."""
    close = any(max(times[place], times[other]) / min(times[place], times[other]) < near for other in group)
    return close and heights[place] - heights[group[-1]] < least
