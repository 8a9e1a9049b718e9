"""What makes a sweep a study: which figures are told, what is measured besides the trainings, and what was published.

The section [study] of a plan. Its rows are the variants of the sweep. Where only the decoding differs, every training
is measured once for each entry of `evaluate`; an entry of `combine` puts two trained networks together, which are then
measured as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from pansight.errors import PansightError, choice_error
from pansight.files import value_at

COLUMNS: dict[str, tuple[str, ...]] = {
    "PQ": ("All", "pq"),
    "SQ": ("All", "sq"),
    "RQ": ("All", "rq"),
    "PQ_th": ("Things", "pq"),
    "PQ_st": ("Stuff", "pq"),
    "mIoU": ("semantic", "miou"),
    "AP": ("instances", "mask", "ap"),
    "AP50": ("instances", "mask", "ap50"),
    "AP75": ("instances", "mask", "ap75"),
    "box AP": ("instances", "box", "ap"),
}
"""Figure → where an evaluation.json has it. Besides these: "PQ CLASS" and "IoU CLASS", of one class by its name."""
OF_CLASS = {"PQ": "pq", "IoU": "iou"}


@dataclass(frozen=True)
class Published:
    """Rows of a published table: label of a row of the study → column → percent.

    recalled: the numbers were written down from memory and not checked. note: what the table lacks.
    """

    source: str = ""
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    recalled: bool = False
    note: str = ""


@dataclass(frozen=True)
class Pair:
    """Two variants whose networks become one: labels of variants. decode: options of the model that comes of it."""

    instances: str
    semantic: str
    decode: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """What the rows are and what is told of them.

    columns: figures, see COLUMNS. evaluate: label → decode options, over those of the trainings. combine: label → two
    variants.
    """

    title: str = ""
    columns: tuple[str, ...] = ()
    evaluate: dict[str, dict[str, Any]] = field(default_factory=dict)
    combine: dict[str, Pair] = field(default_factory=dict)
    published: Published = field(default_factory=Published)


# --- the section of a plan -------------------------------------------------------------------------------------------


def read_study(content: object) -> Study:
    """The section [study]. Raises PansightError for unknown keys and for values of another kind."""
    given = _table(content, "study", ("title", "columns", "evaluate", "combine", "published"))
    columns = given.get("columns", [])
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise PansightError(where="study: columns", expected="a list of figures", found=f"{columns!r:.80}")
    for name in columns:
        _check_column(name)
    evaluate = {label: _table(row, f"study: evaluate: {label}") for label, row in _rows(given, "evaluate", "study")}
    combine = {label: _pair(row, f"study: combine: {label}") for label, row in _rows(given, "combine", "study")}
    if evaluate and combine:
        raise PansightError(where="study", expected="evaluate or combine", found="both")
    published = _published(given.get("published", {}))
    return Study(_text(given, "title", "study"), tuple(columns), evaluate, combine, published)


def _table(content: object, where: str, known: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise PansightError(where=where, expected="a table", found=f"{content!r:.80}")
    unknown = sorted(set(content) - set(known)) if known else []
    if unknown:
        raise choice_error(f"key of [{where}]", unknown[0], known)
    return dict(content)


def _rows(given: Mapping[str, Any], key: str, where: str) -> list[tuple[str, Any]]:
    return list(_table(given.get(key, {}), f"{where}: {key}").items())


def _text(given: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(given.get(key, ""), str):
        raise PansightError(where=f"{where}: {key}", expected="a text", found=f"{given[key]!r:.80}")
    return given.get(key, "")


def _check_column(name: str) -> None:
    kind, space, of_class = name.partition(" ")
    if name not in COLUMNS and not (kind in OF_CLASS and space and of_class):
        raise choice_error("column of a study", name, [*COLUMNS, *(f"{kind} CLASS" for kind in OF_CLASS)])


def _pair(content: object, where: str) -> Pair:
    given = _table(content, where, ("instances", "semantic", "decode"))
    instances, semantic = _text(given, "instances", where), _text(given, "semantic", where)
    if not instances or not semantic:
        raise PansightError(where=where, expected="a variant for instances and one for semantic", found=f"{given}")
    return Pair(instances, semantic, _table(given.get("decode", {}), f"{where}: decode"))


def _published(content: object) -> Published:
    where = "study: published"
    given = _table(content, where, ("source", "rows", "recalled", "note"))
    rows: dict[str, dict[str, float]] = {}
    for label, row in _rows(given, "rows", where):
        for name, value in _table(row, f"{where}: {label}").items():
            _check_column(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
                raise PansightError(where=f"{where}: {label}: {name}", expected="percent", found=f"{value!r:.80}")
            rows.setdefault(label, {})[name] = float(value)
    source, recalled = _text(given, "source", where), given.get("recalled", False)
    if rows and not source:
        raise PansightError(where=where, expected="the source of its rows", found="none")
    if not isinstance(recalled, bool):
        raise PansightError(where=f"{where}: recalled", expected="true or false", found=f"{recalled!r:.80}")
    return Published(source, rows, recalled, _text(given, "note", where))


def plain_study(study: Study) -> dict[str, Any]:
    """The section as TOML has it, empty where nothing is said; `read_study` reads it back."""
    published = study.published
    told = {"source": published.source, "recalled": published.recalled, "note": published.note, "rows": published.rows}
    pairs = {
        label: {"instances": pair.instances, "semantic": pair.semantic, "decode": pair.decode}
        for label, pair in study.combine.items()
    }
    section = {"title": study.title, "columns": list(study.columns), "evaluate": study.evaluate, "combine": pairs}
    section["published"] = told if published != Published() else {}
    return {key: value for key, value in section.items() if value}


# --- the table -------------------------------------------------------------------------------------------------------


def study_table(study: Study, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The measured rows beside the published ones, as JSON has them; every figure is a fraction of 1.

    records: label of a row → its evaluations, one for each seed. Rows that were only measured, or only published, have
    None on the other side, as have figures that the model does not produce.
    """
    rows: list[dict[str, Any]] = []
    published, names = study.published, columns(study)
    for label in [*records, *(label for label in published.rows if label not in records)]:
        ours = {name: _over_seeds([figure(each, name) for each in records.get(label, ())]) for name in names}
        theirs = {name: value / 100 for name, value in published.rows.get(label, {}).items()}
        rows.append({"name": label, "ours": ours, "published": {name: theirs.get(name) for name in names}})
    return {
        "title": study.title,
        "columns": names,
        "rows": rows,
        "has_published": bool(published.rows),
        "source": published.source,
        "recalled": published.recalled,
        "note": published.note,
    }


def columns(study: Study) -> list[str]:
    """The figures that are told: those of the study, then those that were published besides."""
    of_rows = (column for row in study.published.rows.values() for column in row)
    return list(dict.fromkeys([*study.columns, *of_rows]))


def figure(record: Mapping[str, Any], column: str) -> float | None:
    """A figure of an evaluation, 0 … 1; None where it has none."""
    if column in COLUMNS:
        return value_at(record, COLUMNS[column])
    kind, _, name = column.partition(" ")
    part = record if kind == "PQ" else record.get("semantic", {})
    classes = part.get("per_class", {}).values()
    return next((row.get(OF_CLASS[kind]) for row in classes if row.get("name") == name), None)


def _over_seeds(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"mean": mean(known), "spread": stdev(known) if len(known) > 1 else None, "values": known}


def study_text(table: Mapping[str, Any]) -> str:
    """The table in percent for a terminal: ours to the left, the published figures to the right."""
    names, rows = table["columns"], table["rows"]
    width = max([12, *(len(row["name"]) for row in rows)])
    ours = [[over_seeds(row["ours"][name]) for name in names] for row in rows]
    theirs = [[percent(row["published"][name]) for name in names] for row in rows]
    wide = [max(len(name), *(len(cells[n]) for cells in ours)) for n, name in enumerate(names)]
    narrow = [max(len(name), 5) for name in names]

    def line(first: str, left: Sequence[str], right: Sequence[str]) -> str:
        text = "  ".join([f"{first:{width}}", *(f"{cell:>{size}}" for cell, size in zip(left, wide))])
        published = "  ".join(f"{cell:>{size}}" for cell, size in zip(right, narrow))
        return f"{text}  |  {published}" if table["has_published"] else text

    lines = [table["title"]] if table["title"] else []
    lines += [line("measured here", names, names) + ("  published" if table["has_published"] else "")]
    lines += [line(row["name"], left, right) for row, left, right in zip(rows, ours, theirs)]
    if table["source"]:
        lines.append(f"published: {table['source']}{'; recalled, not checked' if table['recalled'] else ''}")
    return "\n".join([*lines, *([f"note: {table['note']}"] if table["note"] else [])])


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def over_seeds(cell: Mapping[str, Any] | None) -> str:
    """41.3 ± 0.2 over several seeds."""
    if cell is None:
        return "–"
    return percent(cell["mean"]) + ("" if cell["spread"] is None else f" ± {100 * cell['spread']:.1f}")
