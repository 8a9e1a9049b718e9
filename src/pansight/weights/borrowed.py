"""A trained detector whose first stage becomes a frozen part of another model (`Entry.borrows`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pansight.errors import PansightError
from pansight.models.contract import Entry
from pansight.weights.fitting import without_pretrained

Loaded = tuple[Any, str, Mapping[str, Any]]
"""A model, its name in MODELS and its builder's options, as `load_model` gives them."""


def borrowing_options(entry: Entry, options: Mapping[str, Any], source: Loaded) -> dict[str, Any]:
    """The options of a model of `entry` that borrows from `source`: whose name and options stand for its weights.

    So the options say all that the model must be built from wherever it is loaded, without where it was copied from.
    """
    name = entry.borrows
    kept = {key: value for key, value in options.items() if key != f"{name}_weights"}
    return {**kept, name: source[1], f"{name}_options": without_pretrained(source[2])}


def borrow(entry: Entry, model: Any, source: Loaded) -> None:
    """Copy the weights of `source` into the part of `model`, built by `borrowing_options`, that stands for it.

    The statistics of its input are part of the state of that part. Raises PansightError where they do not fit.
    """
    part, detector = getattr(model, entry.borrows), source[0]
    try:
        for name, own in (("backbone", part.backbone), ("fpn", part.fpn), ("rpn", part.rpn)):
            theirs = detector.rcnn.rpn if name == "rpn" else getattr(detector, name)
            own.load_state_dict(theirs.state_dict())
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        where = f"{entry.borrows} of model {entry.architecture}"
        raise PansightError(f"the weights of {source[1]} do not fit", where=where, reason=reason) from error
    part.input.mean.copy_(detector.input.mean)
    part.input.scale.copy_(detector.input.scale)
