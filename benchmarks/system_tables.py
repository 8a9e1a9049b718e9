"""The generated parts of each system's page: its options, from its entry, and its figures, from systems.json.

A page is named after the model's file: docs/systems/panoptic_fpn.md is that of `models/panoptic/panoptic_fpn.py`.
"""

from __future__ import annotations

from typing import Any

from common import table
from systems_page import DATA_TITLES, Rows, by_system, mean_of

FIGURES = ("PQ", "PQ_th", "PQ_st", "SQ", "RQ", "mIoU", "AP", "box AP")


def pages() -> dict[str, list[str]]:
    """Document → the models it tells of, without those that only fix the sizes of a general one."""
    from pansight.models import MODELS

    found: dict[str, list[str]] = {}
    for name, entry in MODELS.items():
        if not entry.variant_of:
            page = page_of(name)
            found.setdefault(page, []).append(name)
    return found


def page_of(name: str) -> str:
    """The document of a model, by the file that its builder stands in."""
    from pansight.models import MODELS

    home = MODELS[name].build.__module__.rpartition(".")[2]
    return "docs/combining.md" if home == "combined" else f"docs/systems/{home}.md"


def cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("<", "&lt;")


def options_table(names: list[str]) -> str:
    """A row for each option that one of the models has, with the default of each; then the options of decoding."""
    from pansight.apps.commands.listing import facts_of

    facts = {name: facts_of(name) for name in names}
    header = ["option", "what it means", "values", *("default" if len(names) == 1 else f"`{name}`" for name in names)]
    lines = [header, ["---"] * len(header)]
    for key in dict.fromkeys(key for fact in facts.values() for key in fact["options"]):
        told = next(fact["options"][key] for fact in facts.values() if key in fact["options"])
        defaults = [_default(fact["options"].get(key)) for fact in facts.values()]
        lines.append([f"`{key}`", cell(told["meaning"]), cell(told["values"]), *defaults])
    decode = {key: told for fact in facts.values() for key, told in fact["decode_options"].items()}
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    text = "\n".join(["Of the network (`--model.options.NAME VALUE`):", "", *rows])
    if decode:
        lines = ["| option | what it means | values |", "| --- | --- | --- |"]
        lines += [f"| `{key}` | {cell(told['meaning'])} | {cell(told['values'])} |" for key, told in decode.items()]
        text += "\n\nOf the prediction (`--evaluate.decode.NAME VALUE`); left out, the model's own:\n\n" + "\n".join(
            lines
        )
    return text


def _default(told: dict[str, Any] | None) -> str:
    """The default as it is typed; a dash where the model does not have the option."""
    if told is None or "default" not in told:
        return "–"
    value = told["default"]
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if str(value) else "empty"


def measured_table(names: list[str], record: dict[str, Any]) -> str:
    """What systems.json holds of the models, the mean over the seeds; "" where it holds nothing."""
    header = ["data", "model", *FIGURES, "seeds", "minutes of training"]
    lines = [header, ["---"] * len(header)]
    for data, title in DATA_TITLES.items():
        rows: Rows = [row for row in record["rows"] if row["data"] == data and row["system"] in names]
        for name, runs in by_system(rows).items():
            figures = [mean_of(runs, figure) for figure in FIGURES]
            cells = ["" if value is None else f"{value:.1f}" for value in figures]
            lines.append([title, f"`{name}`", *cells, str(len(runs)), f"{runs[0]['minutes']:g}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if len(lines) > 2 else ""


def parts(record: dict[str, Any] | None) -> dict[str, dict[str, str]]:
    """Document → name of a generated part → its text."""
    found: dict[str, dict[str, str]] = {}
    for document, names in pages().items():
        found[document] = {"options": options_table(names)}
        measured = measured_table(names, record) if record is not None else ""
        if measured:
            found[document]["measured"] = measured
    return found


def study_tables(record: dict[str, Any]) -> str:
    """A table for each study: its rows, our figures and the published ones beside them, in percent."""
    texts: list[str] = []
    for row in record["rows"]:
        told = [column for column in row["columns"] if any(line["published"].get(column) for line in row["rows"])]
        header = ["", *row["columns"], *(f"published {column}" for column in told)]
        lines: list[list[str]] = []
        for line in row["rows"]:
            ours = [_percent(line["ours"][column]) for column in row["columns"]]
            lines.append([cell(line["name"]), *ours, *(_of_paper(line["published"].get(column)) for column in told)])
        seeds = "one seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
        note = f"{row['minutes']:g} minutes of one core each, {seeds}, {row['images']} images of generated shapes"
        texts.append(f"`pansight study {row['study']}`: {row['title']}\n\n{table(header, lines)}\n\n{note}")
    return "\n\n".join(texts)


def _percent(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{100 * value['mean']:.1f}" + (f" ± {100 * value['spread']:.1f}" if value["spread"] is not None else "")


def _of_paper(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
