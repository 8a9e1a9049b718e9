"""An exported folder: export.json, which says what is to be done before and after the graph beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .errors import RuntimeFault
from .resizing import FILTERS, ROUNDINGS, ResizeRule
from .rules import RULES
from .values import Label, Rule

DESCRIPTION, FORMAT, VERSION = "export.json", "pansight export", 1
HINT = "pansight export WEIGHTS --to onnx --out FOLDER makes one"


class Export(NamedTuple):
    """What export.json says. inputs, outputs: names of the graph's, in its order. further: of a second network."""

    folder: Path
    graph: Path
    target: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rule: Rule
    input: ResizeRule
    further: ResizeRule | None
    tasks: tuple[str, ...]


def read_export(folder: str | Path) -> Export:
    """Raises RuntimeFault where it is no exported folder, of another version, or its graph is another than it says."""
    folder = Path(folder)
    path = folder / DESCRIPTION
    try:
        said: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RuntimeFault(folder, "an exported folder", f"no {DESCRIPTION} in it", HINT) from error
    except (OSError, ValueError) as error:
        raise RuntimeFault(path, "JSON", f"something else ({error!s:.80})") from error
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise RuntimeFault(path, f'"format": "{FORMAT}"', "another file", HINT)
    if said.get("version") != VERSION:
        found, hint = f"{said.get('version')!r:.20}", "use the pansight-runtime of the pansight that has exported it"
        raise RuntimeFault(path, f"version {VERSION}", found, hint)
    try:
        export = _export(folder, said)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RuntimeFault(path, "all that a prediction needs", f"a gap or an odd value: {error!s:.80}") from error
    _check(export, said["sha256"], path)
    return export


def _export(folder: Path, said: Mapping[str, Any]) -> Export:
    further = said.get("further_input")
    return Export(
        folder,
        folder / Path(said["file"]).name,
        said["target"],
        tuple(said["inputs"]),
        tuple(said["outputs"]),
        _rule(said["rule"], said["labels"]),
        _resizing(said["input"]),
        None if further is None else _resizing(further),
        tuple(said.get("tasks", ())),
    )


def _rule(said: Mapping[str, Any], labels: list[Mapping[str, Any]]) -> Rule:
    rows = tuple(
        Label(row["name"], bool(row["is_thing"]), tuple(row["color"]), int(row["source_id"])) for row in labels
    )
    inner = {name: _rule(each, each["labels"]) for name, each in said.get("networks", {}).items()}
    return Rule(said["name"], said.get("options", {}), rows, inner, bool(said.get("inside", False)))


def _resizing(said: Mapping[str, Any]) -> ResizeRule:
    known = {name: said[name] for name in ResizeRule._fields if said.get(name) is not None}
    if "size" in known:
        height, width = known["size"]
        known["size"] = int(height), int(width)
    return ResizeRule(**known)


def _check(export: Export, digest: str, path: Path) -> None:
    """Raises RuntimeFault for what this version cannot do, and for a graph that is not the one described."""
    for name in (export.rule.name, *(each.name for each in export.rule.networks.values())):
        if name not in RULES:
            raise RuntimeFault(path, f"a rule of {', '.join(RULES)}", repr(name), "use a newer pansight-runtime")
    for rule in (export.input, export.further):
        if rule is not None and (rule.filter not in FILTERS or rule.rounding not in ROUNDINGS):
            raise RuntimeFault(path, "a known filter and rounding", f"{rule.filter!r}, {rule.rounding!r}")
    if not export.graph.is_file():
        raise RuntimeFault(export.graph, "the graph", "no such file", "export it again")
    if digest_of(export.graph) != digest:
        raise RuntimeFault(export.graph, f"the graph that {DESCRIPTION} describes", "another one", "export it again")


def digest_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
