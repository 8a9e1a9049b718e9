"""The options of a reader: one mapping of names to values, checked against the function that takes them.

They travel as a mapping and never as keywords of a function that has parameters of its own: a reader may well call an
option `images`, `split` or `to`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from pansight.errors import PansightError, choice_error


def known_options(opener: Callable[..., Any], hidden: Collection[str] = ()) -> dict[str, inspect.Parameter]:
    """The options of a reader: the parameters of `opener` behind source and split, without the `hidden` ones."""
    parameters = list(inspect.signature(opener).parameters.values())[2:]
    return {parameter.name: parameter for parameter in parameters if parameter.name not in hidden}


def checked_options(
    name: str, opener: Callable[..., Any], options: Mapping[str, Any], hidden: Collection[str] = ()
) -> dict[str, Any]:
    """The options as `opener` takes them: words of the command line become numbers where it has numbers, and a number
    that was meant as a text ("1.2") a text. name: of the format.

    Raises PansightError listing the options for an unknown one, and for a value of another kind.
    """
    known = known_options(opener, hidden)
    for option in options:
        if not known:
            raise PansightError(f"unknown option of {name} {option!r}", hint="it has none", code="unknown_choice")
        if option not in known:
            raise choice_error(f"option of {name}", option, known)
    return {option: _typed(f"option {option}", value, known[option]) for option, value in options.items()}


def _typed(where: str, value: Any, parameter: inspect.Parameter) -> Any:
    kinds = str(parameter.annotation)  # "str | Path | None": annotations are texts
    if value is None or "Sequence" in kinds:
        return value
    if kinds.startswith("int"):
        number = int(value) if isinstance(value, str) and value.strip().lstrip("-").isdecimal() else value
        if type(number) is not int:
            raise PansightError(where=where, expected="a whole number", found=f"{value!r:.60}")
        return number
    if kinds.startswith("float"):
        return _number(where, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str | Path):
        raise PansightError(where=where, expected="a text", found=f"{value!r:.60}")
    return value


def _number(where: str, value: Any) -> float:
    try:
        if not isinstance(value, int | float | str) or isinstance(value, bool):
            raise ValueError
        return float(value)
    except ValueError:
        raise PansightError(where=where, expected="a number", found=f"{value!r:.60}") from None
