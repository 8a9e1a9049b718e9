"""The classes of two networks put together: things are those of the instance network, stuff is that of the semantic
one, and both are matched by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pansight.errors import PansightError, shown
from pansight.types import Category, LabelSpace, palette_color

MISSING = -1
"""In place of the index of a class that the joined label space does not have."""


class JoinedLabels(NamedTuple):
    """One label space for two networks. instances, semantic: of each class of that network, its index in `labels`, or
    MISSING. notes: a line for each kind of class that the one network has and the other would be needed for.
    """

    labels: LabelSpace
    instances: tuple[int, ...]
    semantic: tuple[int, ...]
    notes: tuple[str, ...]


def check_kinds(first: LabelSpace, second: LabelSpace, name: str, other_name: str) -> None:
    """Raises PansightError where a class that both have is a thing in one and stuff in the other."""
    by_name = second.by_name()
    for category in first:
        other = by_name.get(category.name)
        if other is not None and other.is_thing != category.is_thing:
            kinds = [("stuff", "a thing")[each.is_thing] for each in (category, other)]
            found = f"{kinds[0]} of {name} and {kinds[1]} of {other_name}"
            where = f"class {shown(category.name, 80)!r}"
            raise PansightError(where=where, expected="a thing in both or stuff in both", found=found)


def joined_labels(instances: LabelSpace, semantic: LabelSpace) -> JoinedLabels:
    """The things of `instances` and the stuff of `semantic`, under their own source ids.

    Where one of the two has just these classes, its order is kept. Otherwise things come first; source ids are those of
    the semantic network where it knows a class, and are counted from 1 where two classes would have the same.
    Raises PansightError where a class is a thing in one and stuff in the other, and where there is no thing.
    """
    check_kinds(instances, semantic, "the instances", "the semantic maps")
    if not instances.things:
        raise PansightError(where="instances", expected="at least one thing among the classes", found="stuff only")
    wanted = [*(c.name for c in instances.things), *(c.name for c in semantic.stuff)]
    whole = next((labels for labels in (semantic, instances) if set(labels.names) == set(wanted)), None)
    labels = _things_then_stuff(instances, semantic) if whole is None else whole
    place = {category.name: category.id for category in labels}
    notes: list[str] = []
    lost_things = [c.name for c in semantic.things if c.name not in place]
    lost_stuff = [c.name for c in instances.stuff if c.name not in place]
    if lost_things:
        notes.append(f"things that only the semantic side knows, whose pixels stay void: {_some(lost_things)}")
    if lost_stuff:
        notes.append(f"stuff that only the instance side knows, which is never found: {_some(lost_stuff)}")
    if not semantic.stuff:
        notes.append("the semantic side has no stuff: what no object covers stays void")
    columns = [tuple(place.get(c.name, MISSING) for c in each) for each in (instances, semantic)]
    return JoinedLabels(labels, columns[0], columns[1], tuple(notes))


def _things_then_stuff(instances: LabelSpace, semantic: LabelSpace) -> LabelSpace:
    known = semantic.by_name()
    rows = [known.get(c.name, c) for c in instances.things] + list(semantic.stuff)
    if len({c.source_id for c in rows}) < len(rows):
        rows = [c._replace(source_id=number) for number, c in enumerate(rows, 1)]
    return LabelSpace(c._replace(id=index) for index, c in enumerate(rows))


def _some(names: Sequence[str]) -> str:
    return ", ".join(shown(name, 80) for name in names[:8]) + (f" … ({len(names)} in all)" if len(names) > 8 else "")


def labels_of_network(labels: LabelSpace, classes: Sequence[int], missing_things: bool) -> LabelSpace:
    """The label space of a network whose n-th class is ``labels[classes[n]]``; `labels` where `classes` is empty.

    In place of a MISSING class stands one without a name of its own; missing_things: whether such classes are things.
    Raises PansightError where an index is no class, or occurs twice.
    """
    if not classes:
        return labels
    kept = [index for index in classes if index != MISSING]
    if len(set(kept)) < len(kept) or not all(0 <= index < len(labels) for index in kept):
        expected = f"indices of the {len(labels)} classes, each once, or {MISSING}"
        raise PansightError(where="classes", expected=expected, found=f"{list(classes)!r:.80}")
    free = max(c.source_id for c in labels) + 1
    rows: list[Category] = []
    for n, index in enumerate(classes):
        unnamed = Category(n, f"(class {n} of the network)", missing_things, palette_color(n), free + n)
        rows.append(unnamed if index == MISSING else labels[index]._replace(id=n))
    return LabelSpace(rows)
