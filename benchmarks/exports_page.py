"""The table of docs/export.md: which system is exported to what."""

from __future__ import annotations

from typing import Any

TITLES = {"onnx": "ONNX", "openvino": "OpenVINO", "torch": "torch.export"}


def export_table(record: dict[str, Any]) -> str:
    """A row for each system, a column for each target; below, why a graph takes one size alone, or there is none."""
    cells = {(row["model"], row["target"]): row for row in record["rows"]}
    models = sorted({model for model, _ in cells})
    reasons = list(dict.fromkeys(row["why"] for row in record["rows"] if row["why"]))
    lines = [f"| model | {' | '.join(TITLES.values())} |", "| --- | --- | --- | --- |"]
    for model in models:
        lines.append(f"| `{model}` | {' | '.join(_cell(cells.get((model, target)), reasons) for target in TITLES)} |")
    notes = [f"{number}. `{reason}`" for number, reason in enumerate(reasons, start=1)]
    facts = "any: photos of any size. " + ("Numbers lead to the reasons below. " if notes else "")
    machine = record["machine"]
    measured = f"Measured on {record['what']}; torch {machine['torch']}; {machine['date']}"
    return "\n".join([*lines, "", facts + measured, *([""] if notes else []), *notes])


def _cell(row: dict[str, Any] | None, reasons: list[str]) -> str:
    if row is None:
        return "not measured yet"
    note = f" ({reasons.index(row['why']) + 1})" if row["why"] else ""
    if not row["exported"]:
        return f"no{note}"
    return f"{row['size']}{note}; {_percent(row['alike'])} alike"


def _percent(share: float) -> str:
    """Rounded down, so that 100 % is said of all pixels alone."""
    return "100 %" if share == 1 else f"{int(share * 100_000) / 1000:.3f} %"
