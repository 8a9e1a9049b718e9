"""export.json: all that is to be done before and after a graph, for whoever runs it without this package."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pansight.apps.exporting.tracing import Graph, Size, dtype_of
from pansight.models import builder_options, entry, networks_of
from pansight.types import LabelSpace

EXPORT = "export.json"
FORMAT, VERSION = "pansight export", 1


def rule_of(model: Any, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The rule of decode, by the name of the general entry that has it, and every number that it goes by.

    The numbers are the plain attributes of the model, by their names; of numbers in a tuple joined by dots
    (``rules.overlap``). Of networks put together each has a rule, and labels, of its own.
    """
    rule = {"name": entry(name).variant_of or name, "options": plain_attributes(model)}
    networks = networks_of(model, name)
    if "" in networks:
        return rule
    complete = builder_options(name) | dict(options)
    inner = {
        network: {
            **rule_of(each, complete[network], complete[f"{network}_options"] or {}),
            "labels": label_rows(each.labels),
        }
        for network, each in networks.items()
    }
    return {**rule, "networks": inner}


def plain_attributes(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in vars(model).items():
        if key.startswith("_") or key == "training":
            continue
        found |= _numbers(key, value)
    return found


def _numbers(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, bool | int | float | str):
        return {key: value}
    fields: Sequence[str] = getattr(value, "_fields", ())
    if isinstance(value, tuple) and fields:
        return {k: v for field in fields for k, v in _numbers(f"{key}.{field}", getattr(value, field)).items()}
    if isinstance(value, tuple | list) and all(isinstance(each, int | float) for each in value):  # pyright: ignore[reportUnknownVariableType]
        return {key: list(value)}  # pyright: ignore[reportUnknownArgumentType]
    return {}


def label_rows(labels: LabelSpace) -> list[dict[str, Any]]:
    return [
        {"name": each.name, "is_thing": each.is_thing, "color": list(each.color), "source_id": each.source_id}
        for each in labels
    ]


def input_of(size: Size) -> dict[str, Any]:
    """How a photo becomes `images`: see ``ops.resize.ResizeRule``, whose numbers these are."""
    dtype = "float32" if dtype_of(size.rule) == torch.float32 else "uint8"
    return {**size.rule._asdict(), "dtype": dtype, "size": None if size.fixed is None else list(size.fixed)}


def digest_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def described(
    graph: Graph,
    name: str,
    options: Mapping[str, Any],
    target: str,
    file: Path,
    inputs: Sequence[str],
    sizes: Sequence[Size],
) -> dict[str, Any]:
    """The content of export.json. inputs: those that the graph has, in its order."""
    first, *further = sizes
    model, inside = graph.model, graph.rule_inside
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": name,
        "target": target,
        "file": file.name,
        "sha256": digest_of(file),
        "inputs": list(inputs),
        "outputs": list(graph.names),
        "rule": rule_of(model, name, options) | ({"inside": True} if inside else {}),
        "labels": label_rows(model.labels),
        "input": input_of(first),
        **({"further_input": input_of(further[0])} if further else {}),
        "dynamic": first.fixed is None,
        "size": None if first.fixed is None else list(first.fixed),
        "tasks": [] if inside else list(entry(name).tasks),
        "produces": ["panoptic"] if inside else list(entry(name).produces),
        "precision": "float32",
    }
