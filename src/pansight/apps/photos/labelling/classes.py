"""The classes of pseudo-labels: those of the model that are asked for, joined by name with those of annotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pansight.errors import PansightError, choice_error, shown
from pansight.files import listed
from pansight.ops.fusion.label_spaces import check_kinds
from pansight.types import Category, LabelSpace

WORDS = ("all", "things", "stuff")
"""In place of the names of classes; a class of that name comes first."""


class Joined(NamedTuple):
    """labels: of what is written. of_model: class of the model → class of `labels`, of those that may be written.

    new: the names of those that the annotations do not have.
    """

    labels: LabelSpace
    of_model: dict[int, int]
    new: tuple[str, ...] = ()


def own_classes(model: LabelSpace, asked: Sequence[str] = ()) -> Joined:
    """The classes of the model that are asked for, all where none is named, under their own source ids.

    Raises PansightError for a name that the model does not know, and where none is left.
    """
    chosen = _chosen(model, asked or ("all",))
    labels = LabelSpace(category._replace(id=index) for index, category in enumerate(chosen))
    return Joined(labels, {category.id: index for index, category in enumerate(chosen)})


def joined_classes(annotated: LabelSpace, model: LabelSpace, asked: Sequence[str] = ()) -> Joined:
    """The classes of annotations, then those of the model that are asked for and that they do not have.

    asked: names, or a word of WORDS; (): the stuff of the model. Classes are matched by name. A new class keeps its
    source id where it is free.
    Raises PansightError where a class is a thing in one and stuff in the other, where the model knows no class of the
    annotations and its classes are not named, and as `own_classes` does.
    """
    check_kinds(annotated, model, "the annotations", "the model")
    known = annotated.by_name()
    if not asked and not known.keys() & set(model.names):
        found = f"none of {_some(annotated.names)} among {_some(model.names)}"
        hint = "classes are matched by name; name the new ones to be added: --classes A,B"
        raise PansightError(where="weights", expected="a class of the annotations", found=found, hint=hint)
    chosen = _chosen(model, asked or ("stuff",))
    rows, of_model = list(annotated), dict[int, int]()
    taken = {category.source_id for category in rows}
    for category in chosen:
        if category.name not in known:
            source_id = category.source_id if category.source_id not in taken else max(taken) + 1
            taken.add(source_id)
            rows.append(category._replace(id=len(rows), source_id=source_id))
        of_model[category.id] = known[category.name].id if category.name in known else rows[-1].id
    new = tuple(category.name for category in rows[len(annotated) :])
    return Joined(LabelSpace(rows), of_model, new)


def _chosen(model: LabelSpace, asked: Sequence[str]) -> list[Category]:
    """In the order of the model."""
    by_name, names = model.by_name(), set[str]()
    of_words = {"all": tuple(model), "things": model.things, "stuff": model.stuff}
    for name in listed(list(asked), by_name):
        if name in by_name:
            names.add(name)
        elif name in WORDS:
            names |= {category.name for category in of_words[name]}
        else:
            raise choice_error("class of the model", name, (*by_name, *WORDS))
    if not names:
        found = f"none ({_some(model.names)})"
        raise PansightError(where="--classes", expected=f"{' and '.join(asked)} of the model", found=found)
    return [category for category in model if category.name in names]


def _some(names: Sequence[str]) -> str:
    return ", ".join(shown(name, 60) for name in names[:6]) + (f" … ({len(names)} in all)" if len(names) > 6 else "")
