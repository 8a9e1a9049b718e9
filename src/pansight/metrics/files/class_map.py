"""Scoring predictions of one label space against a truth of another: classes correspond by name or by a TOML file.

    "delivery van" = "vehicle"     # predicted class = class of the truth; several may go to one
    "lane marking" = ""            # does not count: its pixels are void

Equal names on both sides correspond without being listed. A class without a counterpart, on either side, is void.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError, choice_error
from pansight.files import read_plain
from pansight.metrics.files.panoptic_json import UNMAPPED
from pansight.metrics.panoptic.matching import SegmentTable
from pansight.ops.maps.overlap import IntArray, Overlaps
from pansight.types import VOID, LabelSpace

BoolArray = NDArray[np.bool_]

BY_NAME = "names"
"""Given instead of a TOML file: classes correspond by equal names only."""


class ClassMap(NamedTuple):
    """For the classes of both sides, the corresponding class in the label space of the truth; UNMAPPED is void."""

    prediction: IntArray  # int64 (predicted classes,) → index into the truth's label space
    truth: IntArray  # int64 (truth classes,): itself, or UNMAPPED where no predicted class goes to it
    joined: BoolArray | None = None  # bool (truth classes,): stuff that several predicted classes, or a thing, go to

    def unmapped(self, prediction: LabelSpace, truth: LabelSpace) -> tuple[list[str], list[str]]:
        """Names of the predicted and of the true classes that count as void."""
        return (
            [c.name for c in prediction if self.prediction[c.id] == UNMAPPED],
            [c.name for c in truth if self.truth[c.id] == UNMAPPED],
        )

    def notes(self, prediction: LabelSpace, truth: LabelSpace) -> list[str]:
        """`unmapped` as lines for people."""
        lost, unreached = self.unmapped(prediction, truth)
        lines = [f"void       predicted classes without a counterpart: {', '.join(lost)}"] if lost else []
        return lines + (
            [f"void       classes of the truth without a counterpart: {', '.join(unreached)}"] if unreached else []
        )


def read_class_map(source: str | Path, prediction: LabelSpace, truth: LabelSpace) -> ClassMap:
    """source: a TOML file, or the word "names".

    Raises PansightError where the file is unreadable, a name is unknown, a stuff class goes to a thing, or nothing
    meets at all. A thing may go to stuff: its segments then become one.
    """
    listed = {} if str(source) == BY_NAME else read_names(Path(source))
    targets, known = truth.by_name(), prediction.by_name()
    for name, target in listed.items():
        if name not in known:
            raise choice_error(f"predicted class in {source}", name, known)
        if target and target not in targets:
            raise choice_error(f"class of the truth in {source}", target, targets)
    index = np.full(len(prediction), UNMAPPED, np.int64)
    for category in prediction:
        target = targets.get(listed.get(category.name, category.name))
        if target is None:
            continue
        if target.is_thing and not category.is_thing:
            raise PansightError(
                where=f"class map {source}",
                expected=f"a thing for {target.name!r}",
                found=f"stuff {category.name!r}",
                hint=f"map it to void: {category.name!r} = ''",
            )
        index[category.id] = target.id
    sources = np.bincount(index[index != UNMAPPED], minlength=len(truth))  # predicted classes of each true class
    reached = sources > 0
    if not reached.any():
        names = ", ".join(prediction.names[:5])
        raise PansightError(where=f"class map {source}", expected="classes of the truth", found=f"none among {names} …")
    from_things = np.isin(np.arange(len(truth)), [index[c.id] for c in prediction if c.is_thing])
    joined = np.array([not c.is_thing for c in truth], bool) & ((sources > 1) | from_things)
    return ClassMap(index, np.where(reached, np.arange(len(truth)), UNMAPPED), joined)


def read_names(path: Path) -> dict[str, str]:
    """The lines of a TOML file, name → name. Raises PansightError for anything else."""
    try:
        content = tomllib.loads(read_plain(path).decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise PansightError(
            "no such file", where=path, hint=f"expected a class map (TOML) or the word {BY_NAME}", code="missing_file"
        ) from error
    except OSError as error:
        raise PansightError("cannot be read", where=path, reason=error.strerror or error, code="cannot_read") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of 5,000 digits
        raise PansightError(where=path, expected="TOML", found=f"{' '.join(str(error).split()):.200}") from error
    result: dict[str, str] = {}
    for name, target in content.items():
        if not isinstance(target, str):
            raise PansightError(where=path, expected=f"a class of the truth for {name!r}", found=f"{target!r:.60}")
        result[name] = target
    return result


def map_table(
    table: SegmentTable, index: IntArray, joined: BoolArray | None = None
) -> tuple[SegmentTable, dict[int, int]]:
    """A table in the other label space, and the segment ids that change: to VOID, or to the segment they join.

    index: int64 (K,), category → category or UNMAPPED. joined: bool (K',), classes whose segments become one, the
    first; its score is the highest. Stuff that a single class of stuff goes to is left as it was predicted, so that a
    map of equal classes changes no figure.
    """
    categories = index[table.categories]
    changed = dict.fromkeys(table.ids[categories == UNMAPPED].tolist(), VOID)
    keep = categories != UNMAPPED
    scores = table.scores.copy()
    if joined is not None:
        first: dict[int, int] = {}
        for row in np.flatnonzero(keep & joined[categories]).tolist():
            leader = first.setdefault(int(categories[row]), row)
            if leader != row:
                keep[row] = False
                changed[int(table.ids[row])] = int(table.ids[leader])
                scores[leader] = max(scores[leader], scores[row])
    return SegmentTable(table.ids[keep], categories[keep], table.crowd[keep], scores[keep]), changed


def map_overlaps(overlaps: Overlaps, first: dict[int, int], second: dict[int, int]) -> Overlaps:
    """Pairs after ids were changed on either side; pairs that became equal are added."""
    if not first and not second:
        return overlaps
    a, b = (
        np.array([changed.get(i, i) for i in side.tolist()], np.int64)
        for side, changed in ((overlaps.first, first), (overlaps.second, second))
    )
    keys, inverse = np.unique((a << 32) | b, return_inverse=True)
    pixels = np.zeros(len(keys), np.int64)
    np.add.at(pixels, inverse, overlaps.pixels)
    return Overlaps(keys >> 32, keys & 0xFFFFFFFF, pixels)
