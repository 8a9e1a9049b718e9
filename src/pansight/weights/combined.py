"""Two trained models put together, as the model ``combined``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from pansight.errors import PansightError
from pansight.models import build, check_options, networks_of
from pansight.ops.fusion.label_spaces import joined_labels
from pansight.weights.fitting import without_pretrained

NAME = "combined"

Loaded = tuple[Any, str, Mapping[str, Any]]
"""A model, its name in MODELS and its builder's options, as `load_model` gives them."""


class CombinedModel(NamedTuple):
    """What ``weights.save_model`` saves, and a line for each kind of class that only one of the two networks has."""

    model: Any
    name: str
    options: dict[str, Any]
    notes: tuple[str, ...]


def combine_loaded(instances: Loaded, semantic: Loaded, thresholds: Mapping[str, float]) -> CombinedModel:
    """Copies of an instance model and a semantic one in one model, in eval mode on the CPU, each with its own input.

    Classes are matched by name: things come from the one, stuff from the other. thresholds: of the merge, by the names
    of the options of ``combined``, which has them for its defaults.
    Raises PansightError where a model gives no instances or no semantic maps, where a class is a thing in one and stuff
    in the other, and for a threshold out of range.
    """
    joined = joined_labels(instances[0].labels, semantic[0].labels)
    options: dict[str, Any] = dict(thresholds)
    for network, (model, name, own), classes in (
        ("instances", instances, joined.instances),
        ("semantic", semantic, joined.semantic),
    ):
        options |= {network: name, f"{network}_options": without_pretrained(own)}
        if model.labels != joined.labels:
            options[f"{network}_classes"] = list(classes)
    try:
        check_options(NAME, options)
    except PansightError as error:
        raise error.at("combine") from error
    whole: Any = build(NAME, joined.labels, **options)
    for network, each in networks_of(whole, NAME).items():
        source = (instances if network == "instances" else semantic)[0]
        each.load_state_dict(source.state_dict())
        each.input = copy.deepcopy(source.input)
    return CombinedModel(whole.eval().cpu(), NAME, options, joined.notes)
