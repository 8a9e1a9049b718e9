"""Which images an evaluation measures: the run's own validation part, a part that was named, or other data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pansight.config import Config, DataConfig, override
from pansight.data import Dataset, detect_format, find_splits, open_dataset
from pansight.data.dataset import part_names
from pansight.data.left_out import usable
from pansight.engine import assemble
from pansight.engine.assemble import open_data, open_evaluation_data
from pansight.errors import PansightError


class Part(NamedTuple):
    """The images to be measured, in the classes of their own files."""

    dataset: Dataset
    source: str
    name: str  # "val", "train" …, "split off" for a share of the training images, "all"


def open_part(run: Config | None, data: str | Path | None, split: str | None, given: Mapping[str, Any]) -> Part:
    """The images of `data`, or of the run's own source where it is left out or the same.

    Data without a validation part is measured, by the run that was trained on it, on the share that the run held out.
    run: the settings of a run, None for saved weights. split: train, val, test …; None: val where there is one.
    given: settings under data. that go over those of the run.
    Raises PansightError where there is no such part, or no image.
    """
    if run is not None and (data is None or _is_source(data, run.data)):
        return _own_part(override(run, given).data, split, data is not None)
    assert data is not None
    options = {} if run is None else _reader_options(run.data, data)
    proposals = () if run is None else run.data.proposals
    other = DataConfig(source=str(data), options=options, proposals=proposals)
    config = override(replace(Config(), data=other), given).data
    if split:
        config = replace(config, split=split)
    parts = find_splits(config.source, config.format)
    name = config.split or ("val" if "val" in parts else "all")
    return Part(open_evaluation_data(config, None), config.source, name)


def _own_part(config: DataConfig, split: str | None, named: bool) -> Part:
    """named: the source was named by the user, so that images of another validation source are not meant."""
    wanted = part_names(split)[0] if split else "val"
    elsewhere = named and config.validation_source not in ("", config.source)
    if wanted == "test" and not elsewhere:
        return Part(assemble.open_part(config, "test"), config.test_source or config.source, "test")
    if wanted not in ("train", "val") or elsewhere:
        part = split or ("val" if "val" in find_splits(config.source, config.format) else None)
        dataset = usable(open_dataset(config.source, config.format, part, config.options), config.strict)
        return Part(assemble.with_proposals(dataset, config), config.source, part or "all")
    training, validation, _ = open_data(config)
    if wanted == "train":
        return Part(training, config.source, "train")
    parts = find_splits(config.source, config.format)
    has_part = bool(config.validation_source or config.validation_split) or ("val" in parts and config.split != "val")
    name = (config.validation_split or "val") if has_part else "split off"
    return Part(validation, config.validation_source or config.source, name)


def _is_source(data: str | Path, config: DataConfig) -> bool:
    return str(data) == config.source or Path(data).resolve() == Path(config.source).resolve()


def _reader_options(config: DataConfig, data: str | Path) -> dict[str, Any]:
    """The options of the run's reader, where other data has the same format."""
    if not config.options:
        return {}
    try:
        own = detect_format(config.source) if config.format == "auto" else config.format
        return dict(config.options) if detect_format(data) == own else {}
    except PansightError:  # the training data is gone, or the other is no data: opening it says which
        return {}
