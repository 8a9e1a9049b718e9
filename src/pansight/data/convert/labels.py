"""Join the classes of all parts of a source to one label space, and ask for what is not known of a class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from pansight.data.convert.source import Source, SourceCategory
from pansight.errors import PansightError, choice_error
from pansight.files import listed
from pansight.types import Category, LabelSpace, palette_color

Ask = Callable[[Sequence[str]], Iterable[str]]
"""Classes of which it is not known whether they are things → those that are."""


class Joined(NamedTuple):
    """The classes of several sources under one numbering."""

    categories: tuple[SourceCategory, ...]
    of_source: tuple[tuple[int, ...], ...]  # for each source: its index of a class → index in `categories`
    fill: int | None  # index of the class that takes pixels without annotation


class Classes(NamedTuple):
    """The same, with every class either a thing or stuff."""

    labels: LabelSpace
    of_source: tuple[tuple[int, ...], ...]
    fill: int | None


def join_classes(sources: Sequence[Source], fill: str | None) -> Joined:
    """Classes of one name are one class, under the id that came first; an id that is taken gives way to a free one.

    fill: name of the stuff class for pixels without annotation; a new one gets the next id. Where one source calls a
    class a thing and another stuff, nobody has said it.
    """
    known: dict[str, SourceCategory] = {}
    said: dict[str, set[bool]] = {}
    for source in sources:
        for category in source.categories:
            if not category.name.strip():
                raise PansightError(
                    where="classes", expected="a name for every class", found=f"none for {category.source_id}"
                )
            known[category.name] = _joined(known.get(category.name), category, known)
            said.setdefault(category.name, set()).update([] if category.is_thing is None else [category.is_thing])
    for name, answers in said.items():
        known[name] = known[name]._replace(is_thing=answers.pop() if len(answers) == 1 else None)
    if fill is not None:
        known[fill] = known.get(fill) or SourceCategory(fill, _free_id(known), False)
        if known[fill].is_thing is None:
            known[fill] = known[fill]._replace(is_thing=False)
    place = {name: n for n, name in enumerate(known)}
    of_source = tuple(tuple(place[category.name] for category in source.categories) for source in sources)
    return Joined(tuple(known.values()), of_source, None if fill is None else place[fill])


def _joined(old: SourceCategory | None, new: SourceCategory, known: dict[str, SourceCategory]) -> SourceCategory:
    if old is None:
        taken = {category.source_id for category in known.values()}
        return new._replace(source_id=_free_id(known)) if new.source_id in taken else new
    return old._replace(color=old.color or new.color)


def _free_id(known: dict[str, SourceCategory]) -> int:
    return max((category.source_id for category in known.values()), default=0) + 1


def decide_things(joined: Joined, things: Sequence[str] | None, ask: Ask | None) -> Classes:
    """An answer for every class: from `things`, where given, for all of them; else from the source, else from `ask`.

    things: names of all classes that are things, also several in one text with commas; or only "all" or "none".
    Raises PansightError listing the classes that nobody answers for, and for names that are none.
    """
    names = [category.name for category in joined.categories]
    if things is not None:
        chosen = _named(things, names, _new_fill(joined))
        answers = [name in chosen for name in names]
    else:
        unknown = [category.name for category in joined.categories if category.is_thing is None]
        if unknown and ask is None:
            shown = ", ".join(unknown[:50]) + (f" … ({len(unknown)} in all)" if len(unknown) > 50 else "")
            raise PansightError(
                where="classes",
                expected="to know which are things (objects that are counted) and which are stuff",
                found=f"no answer for {shown}",
                hint="name the things: --things A,B (or all, or none)",
            )
        chosen = _named(list(ask(unknown)), names) if unknown and ask is not None else set[str]()
        answers = [c.name in chosen if c.is_thing is None else c.is_thing for c in joined.categories]
    if joined.fill is not None and answers[joined.fill]:
        raise PansightError(where="fill", expected="a stuff class", found=f"the thing class {names[joined.fill]!r}")
    labels = LabelSpace(
        Category(n, category.name, answer, category.color or palette_color(n), category.source_id)
        for n, (category, answer) in enumerate(zip(joined.categories, answers, strict=True))
    )
    return Classes(labels, joined.of_source, joined.fill)


def _new_fill(joined: Joined) -> set[str]:
    """The name of the filling class where no source has it: "all" does not mean it."""
    fill = joined.fill
    return set() if fill is None or any(fill in index for index in joined.of_source) else {joined.categories[fill].name}


def _named(things: Sequence[str], names: Sequence[str], besides: set[str] | None = None) -> set[str]:
    words = [word for text in things for word in listed(text, names)]
    if len(words) == 1 and words[0] in ("all", "none") and words[0] not in names:
        return set(names) - (besides or set()) if words[0] == "all" else set()
    for word in words:
        if word not in names:
            raise choice_error("class", word, names)
    return set(words)
