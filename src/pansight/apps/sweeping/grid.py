"""What a sweep varies: axes of settings, ranges for a search, the variants that they make, and the names of the runs.

Pure functions; nothing here reads data or starts anything.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from pansight.config import Config, flatten, override
from pansight.errors import PansightError
from pansight.files import listed

SEED = "train.seed"
LONGEST_NAME = 150
"""Letters in the name of a run folder; file systems allow 255 bytes."""


class Point(NamedTuple):
    """One choice of an axis: how it is called, and the dotted settings that it stands for."""

    label: str
    settings: dict[str, Any]


class Axis(NamedTuple):
    """What is varied: a dotted key, or the free name of settings that change together."""

    name: str
    points: tuple[Point, ...]


class Range(NamedTuple):
    """A setting that a search draws from low … high, both included; evenly, or evenly in the logarithm."""

    name: str
    low: float
    high: float
    log: bool = False
    whole: bool = False


Varied = Axis | Range


@dataclass(frozen=True)
class Variant:
    """One combination of choices. label: "" where nothing is varied."""

    label: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training: a variant with a seed. `name` is its folder's; `settings` go over those of the sweep.

    of: the trainings whose networks it measures again, where it is no training itself; `variant` is then its row.
    """

    name: str
    variant: str
    seed: int
    settings: dict[str, Any]
    of: tuple[str, ...] = ()


# --- reading ---------------------------------------------------------------------------------------------------------


def parse_varied(text: str) -> Varied:
    """``train.lr=1e-4,1e-3``, ``train.milestones=[0.5,0.8];[0.6,0.9]``, ``train.lr=1e-5..1e-3:log``.

    Values are separated by commas, or by semicolons where there are any; what stands in brackets or quotes stays
    together. Raises PansightError for an unknown key and for a value that the setting cannot have.
    """
    key, equals, values = text.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not key:
        raise PansightError(where="--vary", expected="KEY=VALUE,VALUE such as train.lr=1e-4,1e-3", found=f"{text!r}")
    ends = re.fullmatch(r"\s*([-+.\deE]+?)\.\.([-+.\deE]+?)(:log)?\s*", values)
    if ends is not None:
        return make_range(key, ends[1], ends[2], ends[3] is not None)
    return make_axis(key, _split(values))


def make_axis(name: str, values: Sequence[Any] | Mapping[str, Any]) -> Axis:
    """values: of the setting `name`; or named tables of settings, ``{"none": {}, "colour": {"augment.hue": 10}}``.

    Raises PansightError for an unknown key, a value that the setting cannot have, and one that is given twice.
    """
    where = f"--vary {name}"
    if isinstance(values, Mapping):
        points = [Point(str(label), _settings(table, f"{where}: {label}")) for label, table in values.items()]
    else:
        points = [_point(name, value) for value in values]
    if not points:
        raise PansightError(where=where, expected="at least one value", found="none")
    if any(SEED in point.settings for point in points):
        raise PansightError(where=where, expected="other settings", found="the seed", hint="--seeds N repeats each run")
    for n, point in enumerate(points):
        if any(point.settings == other.settings for other in points[:n]):
            raise PansightError(where=where, expected="each value once", found=f"{point.label!r} twice")
    labels = [point.label for point in points]
    if len(set(labels)) < len(labels):  # numbers that differ in late digits, files of one name in several folders
        points = [Point(f"{point.label} ({n})", point.settings) for n, point in enumerate(points, 1)]
    return Axis(name, tuple(points))


def make_range(name: str, low: Any, high: Any, log: bool = False) -> Range:
    """Raises PansightError for a key that is no number, and for ends that are none or stand the wrong way round."""
    ends = [_point(name, end).settings[name] for end in (low, high)]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise PansightError(where=f"--vary {name}", expected="two numbers LOW..HIGH", found=f"{low}..{high}")
    if not ends[0] < ends[1]:
        raise PansightError(where=f"--vary {name}", expected="the lower end first", found=f"{low}..{high}")
    if log and ends[0] <= 0:
        raise PansightError(where=f"--vary {name}", expected="a lower end above 0 for :log", found=low)
    return Range(name, ends[0], ends[1], log, all(isinstance(end, int) for end in ends))


def _point(key: str, value: Any) -> Point:
    settings = _settings({key: value}, "--vary")
    return Point(label_of(settings[key]), settings)


def _settings(table: Any, where: str) -> dict[str, Any]:
    """Dotted settings with values of the right types; lists for settings that are lists."""
    if not isinstance(table, Mapping):
        raise PansightError(where=where, expected="a table of settings", found=f"{table!r}")
    defaults = flatten(Config().to_dict())
    given = {
        key: listed(value) if isinstance(defaults.get(key), list) else value for key, value in flatten(table).items()
    }
    try:
        known = flatten(override(Config(), given).to_dict())
    except PansightError as error:
        raise error.at(where) from error
    return {key: known[key] for key in given}


def _split(text: str) -> list[str]:
    """The parts between semicolons where there are any, else between commas, outside of brackets and quotes."""
    for separator in ";,":
        parts, depth, quote = [""], 0, ""
        for letter in text:
            if quote:
                quote = "" if letter == quote else quote
            elif letter in "\"'":
                quote = letter
            depth += (letter in "[{") - (letter in "]}") if not quote else 0
            if letter == separator and not depth and not quote:
                parts.append("")
            else:
                parts[-1] += letter
        if len(parts) > 1 or separator == ",":
            return [part.strip() for part in parts if part.strip() or len(parts) > 1]
    raise AssertionError  # the loop returns


# --- variants and runs -----------------------------------------------------------------------------------------------


def variants(axes: Sequence[Axis], one_at_a_time: bool = False) -> list[Variant]:
    """Every combination of the points of all axes; or the first of each, and each other point with the first of the
    other axes. Raises PansightError where two axes change one setting.
    """
    _check_apart(axes)
    names = short_names([axis.name for axis in axes])
    if one_at_a_time:
        firsts = tuple(axis.points[0] for axis in axes)
        chosen = [firsts]
        chosen += [(*firsts[:n], p, *firsts[n + 1 :]) for n, axis in enumerate(axes) for p in axis.points[1:]]
    else:
        chosen = list(itertools.product(*(axis.points for axis in axes)))
    return [variant_of(names, points) for points in chosen]


def variant_of(names: Sequence[str], points: Sequence[Point]) -> Variant:
    """The variant of one point of each axis."""
    label = ", ".join(f"{name}={point.label}" for name, point in zip(names, points))
    return Variant(label, {key: value for point in points for key, value in point.settings.items()})


def _check_apart(axes: Sequence[Varied]) -> None:
    taken: dict[str, str] = {}
    for axis in axes:
        keys = {axis.name} if isinstance(axis, Range) else {key for point in axis.points for key in point.settings}
        for key in sorted(keys):
            if key in taken:
                raise PansightError(where=f"--vary {axis.name}", expected="each setting once", found=f"{key} twice")
            taken[key] = axis.name


def short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each dotted key, or the whole key where two would be called alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return [short if last.count(short) == 1 else key for key, short in zip(keys, last)]


def runs_of(chosen: Sequence[Variant], seeds: Sequence[int], prefix: str = "") -> list[Run]:
    """Each variant with each seed, the first seed of all variants first: so the table fills evenly."""
    taken: set[str] = set()
    return [
        Run(name_of(f"{prefix}{variant.label}", seed, taken), variant.label, seed, variant.settings | {SEED: seed})
        for seed, variant in itertools.product(seeds, chosen)
    ]


def name_of(label: str, seed: int, taken: set[str]) -> str:
    """A folder name that is like the label, safe on every system, and unlike those `taken`."""
    text = re.sub(r"[^\w.+=,-]+", "-", ",".join(filter(None, [label.replace(", ", ","), f"seed={seed}"])))
    if len(text) > LONGEST_NAME:
        text = f"{text[: LONGEST_NAME - 20]}-{hashlib.sha256(text.encode()).hexdigest()[:8]},seed={seed}"
    name = next(each for each in _numbered(text) if each.lower() not in taken)
    taken.add(name.lower())  # some file systems do not tell capitals apart
    return name


def _numbered(text: str) -> Iterator[str]:
    yield text
    yield from (f"{text}-{n}" for n in itertools.count(2))


def label_of(value: Any) -> str:
    """0.0001 → "0.0001", [0.5, 0.8] → "0.5+0.8", [] → "none", a path → its last part."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "+".join(map(label_of, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return (PurePath(text).name if "/" in text else text) or "none"
