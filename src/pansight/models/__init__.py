"""The systems: one file each, and the one table of what they are.

A model file is imported here and nowhere else; everyone else asks `MODELS` and `build`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_type_hints

import torch

from pansight.errors import PansightError, choice_error
from pansight.models import combined
from pansight.models.contract import ClassRows, Entry, Model
from pansight.models.instances import fast_rcnn, faster_rcnn, fcis, mask_rcnn
from pansight.models.options import DECODE_OPTIONS, Option, check_together
from pansight.models.panoptic import efficientps, panoptic_deeplab, panoptic_fcn, panoptic_fpn, upsnet
from pansight.models.queries import detr, eomt, mask2former, maskformer
from pansight.models.semantic import deeplab, fcn, pspnet, segnet, semantic_fpn, unet
from pansight.nn.memory import check_memory, machine_memory
from pansight.ops.fusion.label_spaces import labels_of_network
from pansight.types import LabelSpace

MODELS: dict[str, Entry] = {
    **fast_rcnn.ENTRIES,
    **faster_rcnn.ENTRIES,
    **mask_rcnn.ENTRIES,
    **fcis.ENTRIES,
    **panoptic_fpn.ENTRIES,
    **panoptic_fcn.ENTRIES,
    **panoptic_deeplab.ENTRIES,
    **upsnet.ENTRIES,
    **efficientps.ENTRIES,
    **detr.ENTRIES,
    **maskformer.ENTRIES,
    **mask2former.ENTRIES,
    **eomt.ENTRIES,
    **fcn.ENTRIES,
    **segnet.ENTRIES,
    **unet.ENTRIES,
    **pspnet.ENTRIES,
    **deeplab.ENTRIES,
    **semantic_fpn.ENTRIES,
    **combined.ENTRIES,
}
"""name → what its file declares of it; see ``contract.Entry``."""


def entry(name: str) -> Entry:
    """The entry of that name. Raises PansightError for an unknown one, listing what exists."""
    if name not in MODELS:
        raise choice_error("model", name, MODELS)
    return MODELS[name]


def build(name: str, labels: LabelSpace, **options: Any) -> Model:
    """The model `name` for `labels`.

    Raises PansightError for an unknown name or option, listing what exists, and for a value that cannot be meant.
    """
    chosen = entry(name)
    options = check_options(name, options)
    if chosen.needs_things and not labels.things:
        raise PansightError(where=f"model {name}", expected="at least one thing among the classes", found="stuff only")
    known, is_outline = builder_options(name), torch.get_default_device().type == "meta"
    if not is_outline and any(_is_larger(value, known[key]) for key, value in options.items()):
        check_size(name, labels, options, training=False)
    return chosen.build(labels, **_means(chosen), **options)


def _means(chosen: Entry) -> dict[str, Any]:
    """What a builder is given besides the options, where it makes other models."""
    return {"build": build} if chosen.networks or chosen.borrows else {}


SEVERAL_TIMES = 2
"""A network is refused that needs so many times the memory of the machine, whatever the size of the images."""


def check_size(
    name: str, labels: LabelSpace, options: Mapping[str, Any], training: bool = True, memory: int | None = None
) -> None:
    """Raises PansightError where model `name` with these options needs several times the memory of the machine.

    Each option is within its range, but their product may be anything. Nothing is built, and time is bounded.
    training: gradients and the state of an optimiser count too. memory: another number of bytes. Of networks put
    together each is looked at by itself.
    """
    chosen, given = entry(name), check_options(name, options)
    if chosen.networks:
        given = builder_options(name) | given
        for network in chosen.networks:
            check_size(given[network], labels, given[f"{network}_options"] or {}, training, memory)
        return
    by_class = {key for key, option in chosen.options.items() if option.words}  # lists as long as there are classes
    given = {key: value for key, value in given.items() if key not in by_class}
    given |= {"pretrained": "none"} if "pretrained" in builder_options(name) else {}
    most = SEVERAL_TIMES * (machine_memory() if memory is None else memory)
    try:
        check_memory(lambda: chosen.build(labels, **_means(chosen), **given), most, training)
    except PansightError as error:
        raise error.at(f"model {name}") from error


def _is_larger(value: Any, default: Any) -> bool:
    """Whether an option may make a model larger than its default does."""
    if isinstance(value, Mapping | list | tuple):
        return bool(value) and value != default
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not isinstance(default, int | float) or value > default


def builder_options(name: str) -> dict[str, Any]:
    """Option → default value of a builder. Raises PansightError for an unknown model."""
    parameters = list(inspect.signature(entry(name).build).parameters.values())[1:]  # labels come first
    return {p.name: p.default for p in parameters if p.default is not p.empty}  # without `build`


def networks_of(model: Any, name: str) -> dict[str, Any]:
    """The networks that `model`, an instance of the model `name`, consists of, each with an `input` of its own.

    By the names of ``Entry.networks``; under "" the model itself where it is a single network.
    """
    return {network: getattr(model, network) for network in entry(name).networks} or {"": model}


def settled_entry(name: str, options: Mapping[str, Any]) -> Entry:
    """The entry as these options of the builder make it: of networks put together, with the class rows of each.

    Raises PansightError for an unknown model.
    """
    chosen, rows = entry(name), dict[str, ClassRows]()
    complete = builder_options(name) | dict(options)
    for network in chosen.networks:
        inner = settled_entry(complete[network], complete[f"{network}_options"] or {})
        classes = complete[f"{network}_classes"]
        for module, of_network in inner.class_rows.items():
            rows[f"{network}.{module}"] = partial(_rows_of_network, of_network, classes, network == "semantic")
    return replace(chosen, class_rows={**chosen.class_rows, **rows})


def _rows_of_network(rows: ClassRows, classes: Sequence[int], things: bool, labels: LabelSpace) -> Sequence[str]:
    return rows(labels_of_network(labels, classes, things))


def decode_options(name: str) -> dict[str, Option]:
    """What may be given to the decode of model `name`: thresholds, and its tasks. Raises PansightError."""
    chosen = entry(name)
    model: type[Model] | None = get_type_hints(chosen.build).get("return")
    if model is None:  # a builder that does not say what it returns
        return {}
    known = [key for key in inspect.signature(model.decode).parameters if key in DECODE_OPTIONS]
    options = {key: DECODE_OPTIONS[key] for key in known}
    return options | ({"task": replace(options["task"], choices=chosen.tasks)} if "task" in options else {})


def check_decode(name: str, given: Mapping[str, Any]) -> None:
    """Raises PansightError for an option that the decode of model `name` does not have, or a value out of range."""
    model = get_type_hints(entry(name).build).get("return")
    if not given or model is None:
        return  # of a builder that does not say what it returns, only the model itself can tell
    explained = decode_options(name)
    known = [key for key in inspect.signature(model.decode).parameters if key not in ("self", "outputs", "sizes")]
    for option, value in given.items():
        if option not in known:
            raise choice_error(f"decode option of {name}", f"{option:.80}", known)
        if option in explained:
            explained[option].settled(value, f"{option} of {name}")


def check_options(name: str, options: Mapping[str, Any], complete: bool = True) -> dict[str, Any]:
    """The options as the builder of `name` takes them: a single number of a list option is a list of one.

    Nothing is built or read, and time and memory are bounded whatever the values are. complete: options left out have
    their defaults, which must fit the given ones (`channels` that `heads` do not divide); False where weights that are
    read later have options of their own.
    Raises PansightError for an unknown model or option, and for a value of another kind or out of range.
    """
    known, declared = builder_options(name), entry(name).options
    for option in options:
        if option not in known:
            raise choice_error(f"option of model {name}:", f"{option:.80}", known)
    settled = {
        key: declared[key].settled(value, f"{key} of model {name}") if key in declared else value
        for key, value in options.items()
    }
    for network in entry(name).networks:
        settled |= _settled_network(name, network, settled, known if complete else {})
    _check_borrowed(name, settled)
    if complete:
        check_together(known | settled, {key: declared[key] for key in known if key in declared}, name)
    return settled


def _check_borrowed(name: str, given: Mapping[str, Any]) -> None:
    """Raises PansightError where the detector that the model `name` borrows from is none, or has other options."""
    key = entry(name).borrows
    model = given.get(key) if key else None
    if model is None:
        return
    detectors = [each for each, its in MODELS.items() if its.needs_things and not (its.networks or its.borrows)]
    if model not in detectors:
        general = [each for each in detectors if not MODELS[each].variant_of]
        raise choice_error(f"{key} of model {name}:", f"{model:.80}", general)
    try:
        check_options(model, given.get(f"{key}_options") or {})
    except PansightError as error:
        raise error.at(f"{key}_options of model {name}") from error


def _settled_network(name: str, network: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `given` that say what the network `network` of the model `name` is, as they are passed on.

    defaults: of the builder, {} where weights that are read later have options of their own.
    """
    values = {**defaults, **given}
    if network not in values:
        return {}
    model, needed = values[network], NEEDED[network]
    suited = [each for each, its in MODELS.items() if needed <= {*its.produces} and not its.networks]
    if model not in suited:
        if model in MODELS:
            expected, found = f"a model of {' and '.join(sorted(needed))}", f"{model}, which is none"
            raise PansightError(where=f"{network} of model {name}", expected=expected, found=found)
        raise choice_error(
            f"{network} of model {name}:", f"{model:.80}", [each for each in suited if not MODELS[each].variant_of]
        )
    key = f"{network}_options"
    try:
        options = check_options(model, values.get(key) or {}, complete=bool(defaults))
    except PansightError as error:
        raise error.at(f"{key} of model {name}") from error
    return {key: options} if given.get(key) is not None else {}


NEEDED = {"instances": {"panoptic", "instances"}, "semantic": {"semantic"}}
"""What a network must produce to be used for this; objects of a model with panoptic maps have masks."""
