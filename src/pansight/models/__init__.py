"""The systems: one file each, and the one table of what they are.

A model file is imported here and nowhere else; everyone else asks `MODELS` and `build`.
"""

from __future__ import annotations

import inspect
from typing import Any

from pansight.errors import PansightError, choice_error
from pansight.models import detr, eomt, faster_rcnn, mask2former, mask_rcnn, maskformer, panoptic_fpn
from pansight.models.contract import Entry, Model
from pansight.types import LabelSpace

MODELS: dict[str, Entry] = {
    **faster_rcnn.ENTRIES,
    **mask_rcnn.ENTRIES,
    **panoptic_fpn.ENTRIES,
    **detr.ENTRIES,
    **maskformer.ENTRIES,
    **mask2former.ENTRIES,
    **eomt.ENTRIES,
}
"""name → what its file declares of it; see ``contract.Entry``."""


def entry(name: str) -> Entry:
    """The entry of that name. Raises PansightError for an unknown one, listing what exists."""
    if name not in MODELS:
        raise choice_error("model", name, MODELS)
    return MODELS[name]


def build(name: str, labels: LabelSpace, **options: Any) -> Model:
    """The model `name` for `labels`. Raises PansightError for an unknown name or option, listing what exists."""
    chosen = entry(name)
    known = builder_options(name)
    for option in options:
        if option not in known:
            raise choice_error(f"option of model {name}:", option, known)
    if chosen.needs_things and not labels.things:
        raise PansightError(where=f"model {name}", expected="at least one thing among the classes", found="stuff only")
    return chosen.build(labels, **options)


def builder_options(name: str) -> dict[str, Any]:
    """Option → default value of a builder."""
    parameters = list(inspect.signature(MODELS[name].build).parameters.values())[1:]  # labels come first
    return {p.name: p.default for p in parameters}
