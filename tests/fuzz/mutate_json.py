"""JSON that is still JSON, or nearly: one node of it is another than a reader expects."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

DEEP, LONG = 10_000, 3_000

MARKS = {
    '"@deep list@"': "[" * DEEP + "]" * DEEP,
    '"@deep object@"': '{"a":' * DEEP + "1" + "}" * DEEP,
    '"@digits@"': "9" * 5000,
    '"@exponent@"': "1e999",
    '"@minus zero@"': "-0.0",
    '"@lone surrogate@"': '"\\ud800"',
    '"@nul@"': '"\\u0000"',
    "@again@": "",  # in front of a key: the same key twice
}
"""What json.dumps cannot write, put in afterwards."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 256**3, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63, 2**64, 10**30, -(10**30),
    0.5, 5.0, 1e-320, 1e15, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), "", " ", "a", "0", "1e5", "é",
    "ａ", "\u202e",
    "a\nb", "../x", "/etc/passwd", "..", ".", "C:\\x", "a/../../x", "x" * LONG, "{" * LONG, [], {}, [[]], [{}], [None],
    [1, 2, 3], {"": None}, {"a": [1]}, [0] * LONG, *(mark for mark in MARKS if mark != "@again@"),
)  # fmt: skip


def mutate_json(rng: np.random.Generator, data: bytes, other: bytes) -> tuple[str, bytes]:
    """Change 1 … 3 nodes. Raises ValueError where `data` is no JSON (any more)."""
    value = json.loads(data)
    other_value = _parsed(other)
    told: list[str] = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        holder = [value]
        told.append(_change(rng, holder, other_value))
        value = holder[0]
    text = json.dumps(value)
    for mark, literal in MARKS.items():
        text = text.replace(json.dumps(mark) if mark.startswith('"') else mark, literal)
    return "; ".join(told), text.encode()


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return {"other": [1, 2]}


def _change(rng: np.random.Generator, holder: list[Any], other: Any) -> str:
    places = _places(holder)
    # a level first, then a place on it: else the many leaves take all
    level = int(rng.choice(sorted({len(path) for *_, path in places})))
    places = [place for place in places if len(place[2]) == level]
    parent, key, path = places[int(rng.integers(len(places)))]
    actions: list[Callable[[], Any]] = [
        lambda: _set(parent, key, VALUES[int(rng.integers(len(VALUES)))]),
        lambda: _set(parent, key, _copy(_any(rng, holder))),
        lambda: _set(parent, key, _copy(_any(rng, [other]))),
        lambda: _set(parent, key, _turned(parent[key])),
        lambda: _remove(parent, key),
        lambda: _repeat(rng, parent, key),
        lambda: _nudge(rng, parent, key),
    ]
    chosen = int(rng.choice(7, p=[0.4, 0.1, 0.05, 0.1, 0.15, 0.1, 0.1]))
    name = ("value", "other node", "foreign node", "turned", "removed", "again", "nudged")[chosen]
    actions[chosen]()
    return f"{name} at {'/'.join(map(str, path[1:])) or 'the root'}"[:200]


def _places(holder: list[Any]) -> list[tuple[Any, Any, tuple[Any, ...]]]:
    """(parent, key, path) of every node; without recursion."""
    found: list[tuple[Any, Any, tuple[Any, ...]]] = []
    stack: list[tuple[Any, tuple[Any, ...]]] = [(holder, ())]
    while stack and len(found) < 3000:
        node, path = stack.pop()
        keys = range(len(node)) if isinstance(node, list) else list(node)
        for key in keys:
            found.append((node, key, (*path, key)))
            if isinstance(node[key], list | dict):
                stack.append((node[key], (*path, key)))
    return found


def _any(rng: np.random.Generator, holder: list[Any]) -> Any:
    places = _places(holder)
    parent, key, _ = places[int(rng.integers(len(places)))]
    return parent[key]


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _set(parent: Any, key: Any, value: Any) -> None:
    parent[key] = value


def _turned(value: Any) -> Any:
    """A list as an object and the other way round; a number as text, a text as a list."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list):
        return {str(n): v for n, v in enumerate(value)}
    return [value] if isinstance(value, str) else str(value)


def _remove(parent: Any, key: Any) -> None:
    if len(parent) > 1 or isinstance(parent, dict):
        del parent[key]


def _repeat(rng: np.random.Generator, parent: Any, key: Any) -> None:
    """The same row or key twice, or under another name."""
    if isinstance(parent, list):
        parent.insert(int(rng.integers(len(parent) + 1)), _copy(parent[key]))
    elif rng.random() < 0.5:
        parent[f"@again@{key}"] = VALUES[int(rng.integers(len(VALUES)))]
    else:
        parent[f"{key}_"] = parent.pop(key)


def _nudge(rng: np.random.Generator, parent: Any, key: Any) -> None:
    value = parent[key]
    if isinstance(value, int | float):
        parent[key] = value + int(rng.choice([-1000, -1, 1, 1000]))
    elif isinstance(value, str):
        parent[key] = value[::-1] if rng.random() < 0.5 else value + chr(int(rng.integers(1, 0x3000)))
    elif isinstance(value, list):
        parent[key] = value[: int(rng.integers(len(value) + 1))]
    elif isinstance(value, dict):
        parent[key] = {k.upper(): v for k, v in value.items()}
