"""Show a comparison: as a table in the terminal and as a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from pansight.apps.pages.figures import environment

ALPHA = 0.05
"""A difference with p below is called one; the intervals are those of 1 − ALPHA."""
IMAGES_SHOWN = 50
"""Images in a table of the page."""


def table(result: Mapping[str, Any]) -> str:
    """The comparison as text, at most 100 columns: percent, differences in percentage points."""
    evaluations, scores = result["evaluations"], result["measure"]["scores"]
    lines = [
        f"{result['images']:,} images, {result['classes']} classes; percent, [95 % interval] of "
        f"{result['resamples']:,} resamples of the images",
        *(f"NOTE: {note}" for note in result["notes"]),
        "",
        f"{'':26}" + "".join(f"{title:24}" for title in scores.values()).rstrip(),
    ]
    for group in result["measure"]["groups"]:
        lines.append(group)
        for k, evaluation in enumerate(evaluations):
            figures = [evaluation[group][score] for score in scores]
            lines.append(_row(f"  {_short(evaluation['name'], 22)}", [_interval(f, _percent) for f in figures]))
            if k:
                changes = [f["difference"] for f in figures]
                lines.append(_row("    difference", [_interval(c, signed) for c in changes]))
                lines.append(_row("    p", [_stars(c["p"]) for c in changes]))
    lines += _pair_lines(result)
    if result["others"]:
        pairs = (f"{name} {' -> '.join(map(_percent, values))}" for name, values in result["others"].items())
        lines += ["", f"without interval: {'; '.join(pairs)}"]
    for k in range(1, len(evaluations)):
        lines += ["", *_class_lines(result, k), "", *_image_lines(result, k)]
    if len(evaluations) > 1:
        lines += ["", "* p < 0.05; of classes, with their number allowed for (Benjamini-Hochberg)"]
    return "\n".join([*lines, *result["verdict"]])


def _pair_lines(result: Mapping[str, Any]) -> list[str]:
    """Three or more evaluations as equals: their order, and the difference of each pair."""
    if not result["pairs"]:
        return []
    lines = ["", f"Every pair, {result['measure']['name']} of all classes; from best to worst: "]
    lines[-1] += ", ".join(result["ranking"])
    for row in result["pairs"]:
        pair = f"  {_short(row['second'], 22)} - {_short(row['first'], 22)}"
        p = "" if row["p"] is None else p_text(row["p"]) + (" *" if row["p_adjusted"] < ALPHA else "")
        lines.append(f"{pair:50}{_interval(row, signed):26}{p}".rstrip())
    return lines


def _class_lines(result: Mapping[str, Any], k: int, most: int = 5) -> list[str]:
    rows = class_changes(result, k)
    gains = [row for row in rows if row["value"] > 0][:most]
    losses = [row for row in reversed(rows) if row["value"] < 0][:most]
    other, first = (_short(result["evaluations"][i]["name"], 30) for i in (k, 0))
    lines = [f"Classes, {other} against {first}" + ("" if gains or losses else ": all the same")]
    for title, chosen in (("gains", gains), ("losses", losses)):
        for n, row in enumerate(chosen):
            figures = (
                f"{_percent(row['figures'][0]):>5} -> {_percent(row['figures'][1]):>5}  {_interval(row, signed):24} "
            )
            p = p_text(row["p"]) + (" *" if row["p_adjusted"] < ALPHA else "")
            lines.append(f"  {title if n == 0 else '':8}{_short(row['name'], 28):28}  {figures}{p}")
    return lines


def _image_lines(result: Mapping[str, Any], k: int, most: int = 5) -> list[str]:
    rows = image_changes(result, k)
    if not rows:
        return ["Images: all score the same"]
    better = sum(row["value"] > 0 for row in rows)
    lines = [
        f"Images: {better:,} better, {len(rows) - better:,} worse, {result['images'] - len(rows):,} the same; "
        "they differ most on"
    ]
    for row in rows[:most]:
        figures = f"{_percent(row['figures'][0]):>5} -> {_percent(row['figures'][1]):>5}  {signed(row['value']):>7}"
        lines.append(f"  {_short(str(row['image_id']), 36):36}  {figures}")
    return lines


def class_changes(result: Mapping[str, Any], k: int) -> list[dict[str, Any]]:
    """The classes that both sides have a figure of: name, isthing, figures, value, low, high, p …, best gain first."""
    first, other = (result["evaluations"][i]["per_class"] for i in (0, k))
    key = result["measure"]["key"]
    rows = [
        {"name": n, "isthing": row["isthing"], "figures": (first[n][key]["value"], row[key]["value"])}
        | row[key]["difference"]
        for n, row in other.items()
        if row[key]["difference"]["p"] is not None
    ]
    return sorted(rows, key=lambda row: -row["value"])


def image_changes(result: Mapping[str, Any], k: int) -> list[dict[str, Any]]:
    """The images that differ: image_id, value, and pairs of figures, tp, fp, fn, the largest difference first."""
    key, counts = result["measure"]["image"][0], ("tp", "fp", "fn") if result["measure"]["counts"] else ()
    rows = [
        {"image_id": row["image_id"], "value": row["difference"][k], "figures": (row[key][0], row[key][k])}
        | {name: (row[name][0], row[name][k]) for name in counts}
        for row in result["per_image"]
        if row["difference"][k]
    ]
    return sorted(rows, key=lambda row: -abs(row["value"]))


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:26}" + "".join(f"{cell:24}" for cell in cells).rstrip()


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else "…" + name[1 - width :]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f}".replace("-0.00", "+0.00")


def _interval(figure: Mapping[str, Any], text: Callable[[float | None], str]) -> str:
    if figure["value"] is None:
        return "-"
    low, high = (text(figure[key]) for key in ("low", "high"))
    return f"{text(figure['value'])} [{low}, {high}]"


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _stars(p: float | None) -> str:
    return "" if p is None else p_text(p).removeprefix("p ").removeprefix("= ") + (" *" if p < ALPHA else "")


def page(result: Mapping[str, Any], pictures: Sequence[Mapping[str, Any]] = ()) -> str:
    """The comparison as one HTML file that needs no other. pictures: of `pictures.side_by_side`."""
    evaluations = result["evaluations"]
    names = [evaluation["name"] for evaluation in evaluations]
    comparisons: list[dict[str, Any]] = []
    for k, evaluation in enumerate(evaluations[1:], 1):
        classes, images = class_changes(result, k), image_changes(result, k)
        comparisons.append(
            {
                "name": evaluation["name"],
                "color": k % 8,
                "differences": _strips(result, [k], "difference"),
                "classes": classes,
                "reach": max([abs(row[key]) for row in classes for key in ("value", "low", "high")] + [1e-9]),
                "images": images[:IMAGES_SHOWN],
                "furthest": max([abs(row["value"]) for row in images] + [1e-9]),
                "better": sum(row["value"] > 0 for row in images),
                "worse": sum(row["value"] < 0 for row in images),
            }
        )
    templates = environment()
    templates.filters |= {"points": _points, "p": lambda p: "–" if p is None else p_text(p)}
    return templates.get_template("compare.html.j2").render(
        result=result,
        title=" against ".join(reversed(names)) if len(names) == 2 else " · ".join(names),
        scores=_strips(result, range(len(evaluations)), None),
        comparisons=comparisons,
        pictures=pictures,
        alpha=ALPHA,
        version=version("pansight"),
    )


def _strips(result: Mapping[str, Any], chosen: Iterable[int], part: str | None) -> list[dict[str, Any]]:
    """For each group: name, n, and for each score a strip of dots with whiskers on an axis of its own.

    part: the key of the figures shown, None for the scores themselves. Positions in percent of the strip's width.
    """
    groups: list[dict[str, Any]] = []
    for group in result["measure"]["groups"]:
        strips: list[dict[str, Any]] = []
        for score, title in result["measure"]["scores"].items():
            figures = [(k, result["evaluations"][k][group][score]) for k in chosen]
            figures = [(k, figure[part] if part else figure) for k, figure in figures]
            known = [(k, figure) for k, figure in figures if figure["value"] is not None]
            if known:
                ends = [100 * figure[key] for _, figure in known for key in ("value", "low", "high")]
                low, high, ticks = _axis([*ends, 0.0] if part else ends)
                at = partial(_position, low=low, high=high)
                dots = [
                    {"k": k, "figure": f} | {key: at(100 * f[key]) for key in ("value", "low", "high")}
                    for k, f in known
                ]
                strips.append(
                    {
                        "score": title,
                        "dots": dots,
                        "ticks": [(at(tick), f"{tick:g}".replace("-", "−")) for tick in ticks],
                    }
                )
        groups.append({"name": group, "strips": strips})
    return groups


def _axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Both ends of an axis that shows the values, and about four round ticks within."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.5
    low, high = low - margin, high + margin
    power = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= (high - low) / 4 * 0.999)
    first = math.ceil(low / step)
    return low, high, [round(k * step, 9) for k in range(first, math.floor(high / step) + 1)]


def _position(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def _points(value: float | None) -> str:
    """0.0123 → "+1.23", with a true minus."""
    return signed(value).replace("-", "−")
