"""Join the classes of all parts of a source to one label space, and ask for what is not known of a class."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from pansight.data.convert.source import Source, SourceCategory
from pansight.errors import PansightError, choice_error
from pansight.files import listed
from pansight.types import Category, LabelSpace, palette_color

RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
"""A number of a class, or the first and the last of several."""

STUFF_WORDS = frozenset(
    [
        *("background", "sky", "road", "street", "sidewalk", "pavement", "grass", "lawn", "ground", "floor", "ceiling"),
        *("wall", "water", "sea", "river", "lake", "sand", "snow", "vegetation", "terrain", "earth", "field", "dirt"),
        *("mountain", "building", "fence", "tree", "trees", "stuff"),
    ]
)
"""Words in the names of classes without countable objects: for a proposal, never for a decision."""

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
    if not known:
        count = sum(len(source) for source in sources)
        hint = "annotate a region, or name the stuff class of all pixels (--fill NAME)"
        raise PansightError(where="classes", expected="at least one class", found=f"none in {count} images", hint=hint)
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


def decide_things(
    joined: Joined, things: Sequence[str] | None, ask: Ask | None, stuff: Sequence[str] | None = None
) -> Classes:
    """An answer for every class: from `things` or `stuff`, where given, for all; else from the source, else from `ask`.

    things: all classes that are things, by name or number, also several in one text with commas, and ranges of numbers
    such as 17-64; or only "all" or "none". stuff: all that are not, in place of `things`.
    Raises PansightError listing the classes that nobody answers for, and for names that are none.
    """
    names = [category.name for category in joined.categories]
    if things is not None and stuff is not None:
        raise PansightError(where="classes", expected="the things or the stuff", found="both", hint="the rest follows")
    if things is not None:
        chosen = _named(things, joined.categories, _new_fill(joined))
        answers = [name in chosen for name in names]
    elif stuff is not None:
        chosen = _named(stuff, joined.categories) | _new_fill(joined)
        answers = [name not in chosen for name in names]
    else:
        unknown = [category.name for category in joined.categories if category.is_thing is None]
        if unknown and ask is None:
            shown = ", ".join(unknown[:50]) + (f" … ({len(unknown)} in all)" if len(unknown) > 50 else "")
            raise PansightError(
                where="classes",
                expected="to know which are things (objects that are counted) and which are stuff",
                found=f"no answer for {shown}",
                hint=_proposal(joined.categories),
            )
        chosen = _named(list(ask(unknown)), joined.categories) if unknown and ask is not None else set[str]()
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


def _named(chosen: Sequence[str], categories: Sequence[SourceCategory], besides: set[str] | None = None) -> set[str]:
    """The names of the classes that are meant, by name, by number or by a range of numbers; "all" but for `besides`."""
    names = [category.name for category in categories]
    words = listed(chosen if isinstance(chosen, str) else list(chosen), names)
    if len(words) == 1 and words[0] in ("all", "none") and words[0] not in names:
        return set(names) - (besides or set()) if words[0] == "all" else set()
    found: set[str] = set()
    for word in words:
        bounds = RANGE.fullmatch(word)
        if word in names:
            found.add(word)
        elif bounds is not None:
            first, last = int(bounds[1]), int(bounds[2] or bounds[1])
            inside = {category.name for category in categories if first <= category.source_id <= last}
            if not inside:
                raise PansightError(where="classes", expected="numbers of classes", found=f"{word}, which none has")
            found |= inside
        else:
            raise choice_error("class", word, names)
    return found


def _proposal(categories: Sequence[SourceCategory]) -> str:
    """The way on where nobody says which classes are things: the flag, with the names that probably are stuff."""
    unknown = [category.name for category in categories if category.is_thing is None]
    stuff = [name for name in unknown if any(word in STUFF_WORDS for word in re.split(r"[^a-z]+", name.lower()))]
    if stuff and len(stuff) < len(unknown):
        guess = f"by their names perhaps --stuff {','.join(stuff)}"
        return f"name the things: --things A,B (or all, or none), or the stuff; {guess}"
    return "name the things: --things A,B (or all, or none), or the stuff: --stuff C,D"
