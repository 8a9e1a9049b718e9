"""What holds of a recipe for other data than its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pansight.config import AugmentConfig, Config, DataConfig
from pansight.data import DATASETS, detect_format
from pansight.errors import PansightError

OF_THE_SOURCE = ("format", "split", "options", "validation_source", "validation_split", "validation_options")
"""The settings of ``[data]`` that say how one source is read; the test part is another two."""

OF_THE_SIZES = ("short", "long", "size", "anchor_sizes", "detections", "queries", "min_stuff_area")
"""Options of models that fit the sizes and numbers of the objects of one data set."""

GENERATED = "shapes"
"""The format whose images are made on demand, at a size that says nothing about photos."""


def for_other_data(config: Config, given: Mapping[str, Any], name: str) -> tuple[Config, list[str]]:
    """(the recipe `config` for the data that is `given`, a line for each kind of settings that were dropped).

    given: dotted settings that will go over the recipe, which are never dropped. How the recipe's own source is read
    holds for data of the same format. A recipe without a source keeps what the reader of the given data knows. Sizes
    that were measured on generated images are chosen anew for others.
    Raises PansightError where the format of the data cannot be found out.
    """
    source = str(given.get("data.source", config.data.source))
    if not source or _same_place(source, config.data.source):
        return config, []
    wanted = given.get("data.format", "auto")
    wanted = detect_format(source, given.get("data.split")) if wanted == "auto" else str(wanted)
    own = _format_of(config.data)
    lines: list[str] = []
    data = _read_as(config.data, own, wanted)
    dropped = [f"data.{key}" for key in OF_THE_SOURCE if getattr(data, key) != getattr(config.data, key)]
    if dropped:
        lines.append(f"{name} has settings of its own data that do not hold for {source}: {', '.join(dropped)} dropped")
    config = replace(config, data=data)
    if own == GENERATED and wanted != GENERATED:
        config, sizes = _without_sizes(config)
        sizes = [key for key in sizes if key not in given]
        if sizes:
            lines.append(f"{name} was measured on generated images: {', '.join(sizes)} chosen anew for {source}")
    return config, lines


def _format_of(data: DataConfig) -> str:
    """The format of a recipe's own source; "" where it names neither, or a source that is not here."""
    if data.format != "auto" or not data.source:
        return "" if data.format == "auto" else data.format
    try:
        return detect_format(data.source, data.split or None)
    except PansightError:
        return ""


def _same_place(one: str, other: str) -> bool:
    return one == other or (bool(other) and Path(one).exists() and Path(one).resolve() == Path(other).resolve())


def _read_as(data: DataConfig, own: str, wanted: str) -> DataConfig:
    """`data` without what does not hold for another source, of the format `wanted`."""
    if own and own == wanted:
        return replace(data, validation_source="", test_source="")
    known = list(inspect.signature(DATASETS[wanted]).parameters)[2:] if wanted in DATASETS else []
    if data.source or own:
        known = []
    options, validation = ({k: v for k, v in d.items() if k in known} for d in (data.options, data.validation_options))
    kept = {"options": options, "validation_options": validation}
    empty = {key: getattr(DataConfig(), key) for key in (*OF_THE_SOURCE, "test_source", "test_split")}
    return replace(data, **(empty | kept))


def _without_sizes(config: Config) -> tuple[Config, list[str]]:
    """(`config` with the sizes of its images and objects left open, the dotted keys of what was taken out)."""
    options = {key: value for key, value in config.model.options.items() if key not in OF_THE_SIZES}
    keys = [f"model.options.{key}" for key in config.model.options if key in OF_THE_SIZES]
    augment, plain = config.augment, AugmentConfig()
    changes = {key: getattr(plain, key) for key in ("crop", "scale", "fit", "short_sides")}
    keys += [f"augment.{key}" for key, value in changes.items() if getattr(augment, key) != value]
    return replace(config, model=replace(config.model, options=options), augment=replace(augment, **changes)), keys
