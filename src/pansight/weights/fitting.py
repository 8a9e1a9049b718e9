"""Build a model from settings that lie beside its weights, which anyone may have written.

A number in a file can ask for a billion layers. So nothing is built before the settings are values of a usual kind and
size; the model is then built without memory first (on torch's meta device), stopped as soon as it has more layers than
the file has weights for, and compared with the weights by names and shapes. Only what fits is built.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pansight.errors import PansightError
from pansight.models import build
from pansight.types import LabelSpace
from pansight.weights.keys import MISFITS, check_fit, load_strictly

LARGEST, LONGEST, MOST = 10**6, 200, 10_000
"""Of the settings of a model: the largest number, letters of a text, values of a list or table."""

PARAMETERS_FREE, PARAMETERS_RATIO = 5000, 4
"""A model may create so many parameters while it is built, and so many for each tensor of its file: parts of a backbone
are built twice, or built and dropped."""


def build_to_fit(
    name: str,
    labels: LabelSpace,
    options: Mapping[str, Any],
    state: Mapping[str, Tensor],
    source: str,
    described: str = "",
) -> Any:
    """The model `name` (in eval mode, on the CPU) with the weights `state`, whose names are ours.

    source, described: where weights and options come from, for messages (described "": both from `source`).
    Raises PansightError where an option is of another kind or out of bounds, or a weight is missing, left over, or of
    another shape or kind; in bounded time and memory.
    """
    given = without_pretrained(options)  # weights are at hand
    check_settings(name, labels, given, state, source, described or source)
    model: Any = build(name, labels, **given)
    load_strictly(model, state, source)
    return model.eval()


def without_pretrained(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a builder, those of its networks included, by which no backbone comes with weights of its own."""
    return {
        key: "none" if key == "pretrained" else without_pretrained(value) if isinstance(value, Mapping) else value
        for key, value in options.items()
    }


def check_settings(
    name: str,
    labels: LabelSpace,
    options: Mapping[str, Any],
    state: Mapping[str, Tensor],
    source: str,
    described: str,
) -> None:
    """Raises PansightError, as `build_to_fit` does, where a model of these options has other weights than `state`."""
    check_plain(options, described)
    try:
        with warnings.catch_warnings(), torch.device("meta"), _at_most(PARAMETERS_FREE + PARAMETERS_RATIO * len(state)):
            warnings.simplefilter("ignore")  # of layers without any channels, before the line that refuses them
            outline: Any = build(name, labels, **options)
    except PansightError as error:
        raise error.at(described) from error
    except NotImplementedError:
        outline = None  # it reads values while it is built, which the meta device has not
    except MISFITS as error:
        found = f"{type(error).__name__}: {' '.join(f'{error}'.split())}"
        raise PansightError(where=described, expected=f"options that make a {name}", found=found) from error
    if outline is not None:
        check_fit(outline.state_dict(), state, source)


def check_plain(options: Mapping[str, Any], source: str) -> None:
    """Raises PansightError for an option that is no number, text, list or table of usual size."""
    for key, value in options.items():
        if (found := _unusual(value, depth=3)) is not None:
            expected = f"option {key} as a number, text, list or table of usual size"
            raise PansightError(where=source, expected=expected, found=found)


def _unusual(value: Any, depth: int) -> str | None:
    """What is wrong with a value of a JSON file, None where nothing is."""
    if isinstance(value, bool | None):
        return None
    if isinstance(value, int | float):
        is_usual = -LARGEST <= value <= LARGEST  # false of NaN
        return None if is_usual else f"{value}"[:20] if isinstance(value, float) else f"a number beyond {LARGEST}"
    if isinstance(value, str):
        return None if len(value) <= LONGEST else f"a text of {len(value)} letters"
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    if items is None or depth == 0 or len(items) > MOST:
        return f"a {type(value).__name__}" + (f" of {len(items)} values" if items is not None else "")
    return next((found for item in items if (found := _unusual(item, depth - 1)) is not None), None)


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Inside, this thread cannot build a network of more than `count` parameters (tensors, not their numbers)."""
    thread, created = threading.get_ident(), 0

    def note(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal created
        created += threading.get_ident() == thread
        if created > count:
            found = "more layers than its file has weights for"
            raise PansightError(expected="options that the weights fit", found=found)

    handle = register_module_parameter_registration_hook(note)
    try:
        yield
    finally:
        handle.remove()


def labels_of(rows: Any, source: str) -> LabelSpace:
    """The classes of a saved model: rows of ``id``, ``name``, ``isthing`` and ``color``.

    Raises PansightError, one line, for any other content.
    """
    expected = "labels: a list of categories (id, name, isthing, color)"
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise PansightError(where=source, expected=expected, found=f"{rows!r:.80}")
    for row in rows:
        color = row.get("color")
        numbers = [row.get("id", 0), *(color if isinstance(color, list) else [])]
        is_sound = isinstance(row.get("name", ""), str) and row.get("isthing", 0) in (0, 1)
        if not is_sound or not all(type(n) is int and abs(n) < 2**31 for n in numbers) or isinstance(color, str | dict):
            raise PansightError(where=source, expected=expected, found=f"{row!r:.120}")
    try:
        return LabelSpace.from_json(rows)
    except (TypeError, ValueError) as error:
        raise PansightError(where=source, expected=expected, found=error) from error
