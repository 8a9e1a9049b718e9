"""What ``pansight models`` and ``pansight models NAME`` print, from the tables that the options are checked by."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from pansight.apps.commands.listing.published import MILLIONS, SCORES, SCORES_ELSEWHERE
from pansight.models import MODELS, build, builder_options, decode_options, entry
from pansight.models.options import Option
from pansight.types import LabelSpace
from pansight.weights.licences import of_published

LEGEND = "Parameters are for COCO's classes, scores those published for COCO val2017. pansight models NAME says more."


def facts_of(name: str) -> dict[str, Any]:
    """What is known of a model, as plain values: for ``--json``. Raises PansightError for an unknown name."""
    chosen, licence = entry(name), of_published(name)
    return {
        "name": name,
        "system": chosen.architecture,
        "summary": first_line(chosen.build),
        "produces": list(chosen.produces),
        "tasks": list(chosen.tasks),
        "parameters_in_millions": MILLIONS.get(name),
        "published_score": SCORES.get(name, SCORES_ELSEWHERE.get(name)),
        "licence_of_published_weights": None if licence is None else str(licence),
        "options": _facts(chosen.options, builder_options(name)),
        "decode_options": _facts(decode_options(name), {}),
    }


def list_models() -> str:
    """All models, by system."""
    lines: list[str] = []
    for system in dict.fromkeys(each.architecture for each in MODELS.values()):
        rows = [facts_of(name) for name, each in MODELS.items() if each.architecture == system]
        lines += ["", system] if lines else [system]
        lines += table((f"  {row['name']}", _in_a_line(row)) for row in rows).splitlines()
    return "\n".join(
        [*lines, "", "PQ and AP are those published for COCO val2017; pansight models NAME explains the options."]
    )


def describe_model(name: str) -> str:
    """What a model gives, whose weights there are, and each of its options. Raises PansightError: unknown."""
    told = facts_of(name)
    facts = [("gives", ", ".join(told["produces"]))]
    facts += [("tasks", ", ".join(told["tasks"]))] if told["tasks"] else []
    facts += [("parameters", f"{told['parameters_in_millions']:g} M")] if name in MILLIONS else []
    facts += [("score", f"{SCORES[name]} on COCO val2017, as published")] if name in SCORES else []
    facts += [("score", f"{SCORES_ELSEWHERE[name]}, as published")] if name in SCORES_ELSEWHERE else []
    licence = told["licence_of_published_weights"]
    facts += [("weights", f"published under {licence}")] if licence else []
    facts.append(("parts", f"{', '.join(parts_of(name))} (for train.freeze)"))
    given: list[tuple[str, str]] = []
    for key, value in builder_options(name).items():
        option = entry(name).options.get(key)
        given.append((f"--model.options.{key}", _explained(option, f"default {value!r}")))
        given += [(f"  {key}.{inner}", meaning) for inner, meaning in option.keys.items()] if option else []
    decode = [(f"--evaluate.decode.{key}", _explained(option, "")) for key, option in decode_options(name).items()]
    return "\n".join([f"{name}: {told['summary']}", table(facts), table([*given, *decode])])


def parts_of(name: str) -> list[str]:
    """The parts of a model that have weights, by the names that ``train.freeze`` knows."""
    labels = LabelSpace.from_names(["thing"], ["stuff"])
    options = {"pretrained": "none"} if "pretrained" in builder_options(name) else {}
    with torch.device("meta"):  # without memory for its weights, in a fraction of a second
        model: Any = build(name, labels, **options)
    return [part for part, child in model.named_children() if any(True for _ in child.parameters())]


def as_json(name: str | None) -> str:
    """The facts of one model, or of all."""
    return json.dumps(facts_of(name) if name else [facts_of(each) for each in MODELS], indent=2, ensure_ascii=False)


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Two columns."""
    rows = list(rows)
    width = max((len(key) for key, _ in rows), default=0)
    return "\n".join(f"{key:{width}}  {text}" for key, text in rows)


def first_line(thing: Any) -> str:
    """Of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _in_a_line(row: Mapping[str, Any]) -> str:
    millions, score = row["parameters_in_millions"], row["published_score"]
    parts = ["" if millions is None else f"{millions:7.1f} M", f"{'+'.join(row['produces']):27}", score or ""]
    return "  ".join([*parts, row["licence_of_published_weights"] or ""]).rstrip()


def _explained(option: Option | None, default: str) -> str:
    if option is None:
        return default
    left_out = " or none" if option.optional else ""
    parts = [option.meaning, option.expected() + left_out, default]
    return "; ".join(part for part in parts if part)


def _facts(declared: Mapping[str, Option], defaults: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    keys = [key for key in (defaults or declared) if key in declared]
    told: dict[str, dict[str, Any]] = {
        key: {"meaning": declared[key].meaning, "values": declared[key].expected()} for key in keys
    }
    for key in keys:
        told[key] |= {"keys": dict(declared[key].keys)} if declared[key].keys else {}
    return {key: facts | ({"default": defaults[key]} if key in defaults else {}) for key, facts in told.items()}
