"""Build the data sets, the augmentation and the model of a run from its settings."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np

from pansight.config import AugmentConfig, DataConfig, ModelConfig
from pansight.data import DATASETS, Dataset, find_splits, open_dataset, split_dataset
from pansight.data.transforms import (
    Compose,
    ElasticDeformation,
    FixedSizeCrop,
    HorizontalFlip,
    PhotometricDistortion,
    Resize,
    ResizeShortestEdge,
    Rot90,
    ScaleJitter,
    Transform,
    VerticalFlip,
    resize_sample,
)
from pansight.errors import PansightError
from pansight.models import build, builder_options, check_decode, check_options, entry
from pansight.ops.resize import ResizeRule
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Sample
from pansight.weights import load_model, transfer


class Relabelled:
    """A data set whose truth speaks in the classes of another label space, found by their names."""

    def __init__(self, dataset: Dataset, labels: LabelSpace, what: str):
        known = labels.by_name()
        for category in dataset.labels:
            if category.name not in known:
                raise PansightError(
                    where=what,
                    expected=f"classes among the {len(labels)} of the model ({_some(labels.names)})",
                    found=f"{category.name!r} among the {len(dataset.labels)} of the data",
                )
            if category.is_thing != known[category.name].is_thing:
                kinds = {True: "a thing", False: "stuff"}
                expected, found = kinds[known[category.name].is_thing], kinds[category.is_thing]
                raise PansightError(where=what, expected=f"class {category.name!r} to be {expected}", found=found)
        self.dataset = dataset
        self.labels = labels
        self._index = [known[category.name].id for category in dataset.labels]

    def __len__(self) -> int:
        return len(self.dataset)

    def image_id(self, index: int) -> str | int:
        return self.dataset.image_id(index)

    def file_name(self, index: int) -> str:
        return self.dataset.file_name(index)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        segments = tuple(s._replace(category=self._index[s.category]) for s in sample.truth.segments)
        instances = sample.instances
        if instances is not None:
            moved = instances.labels.new_tensor([self._index[c] for c in instances.labels.tolist()])
            instances = Instances(instances.boxes_xyxy, moved, instances.scores, instances.masks, instances.is_crowd)
        return replace(sample, truth=PanopticSegmentation(sample.truth.ids, segments), instances=instances)


def relabel(dataset: Dataset, labels: LabelSpace, what: str) -> Dataset:
    """`dataset` in the classes of `labels`; itself where it has them.

    Raises PansightError, headed by `what`, for a class that `labels` lacks or has as the other of thing and stuff.
    """
    return dataset if dataset.labels == labels else Relabelled(dataset, labels, what)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")


def open_data(config: DataConfig) -> tuple[Dataset, Dataset, str]:
    """(training images, validation images, one line on where the latter come from).

    Without a validation part, a fixed random `validation_fraction` of the training images is split off.
    Raises PansightError where there is no source, no such part, or no image.
    """
    if not config.source:
        raise PansightError(
            where="data.source",
            expected="a folder or file (--data DIR) or 'shapes'",
            found="none",
            hint=f"known formats: {', '.join(DATASETS)}",
        )
    parts = find_splits(config.source, config.format)
    split = config.split or ("train" if "train" in parts else None)
    training = open_dataset(config.source, config.format, split, **config.options)
    options = {**config.options, **config.validation_options}
    if config.validation_source or config.validation_split or ("val" in parts and split != "val"):
        source = config.validation_source or config.source
        part = config.validation_split or None
        if part is None and "val" in find_splits(source, config.format):
            part = "val"
        validation = open_dataset(source, config.format, part, **options)
        note = f"{len(validation)} images of {source}" + (f", part {part}" if part else "")
    else:
        training, validation = split_dataset(training, config.validation_fraction)
        note = f"{len(validation)} images split off {config.source}, which has no validation part"
    return training, relabel(validation, training.labels, "validation data"), note


def open_evaluation_data(config: DataConfig, labels: LabelSpace | None) -> Dataset:
    """The images of `source` in the classes of a model: the part `split`, else val where there is one, else all.

    labels: of the model; None leaves the data in its own. Raises PansightError for a class that the model lacks.
    """
    parts = find_splits(config.source, config.format)
    split = config.split or ("val" if "val" in parts else None)
    dataset = open_dataset(config.source, config.format, split, **config.options)
    return dataset if labels is None else relabel(dataset, labels, str(config.source))


class RandomScale:
    """The whole sample times a factor from [low, high], log-uniform: halving is as likely as doubling.

    filter: the model's, see `resize_sample`.
    """

    def __init__(self, low: float, high: float, filter: str = "pillow"):
        self.low, self.high, self.filter = low, high, filter

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        factor = float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))
        height, width = sample.truth.size
        return resize_sample(sample, max(1, round(height * factor)), max(1, round(width * factor)), self.filter)


def make_transform(config: AugmentConfig, rule: ResizeRule) -> tuple[Transform, int]:
    """(the augmentation of a training sample, the divisor that its batches are padded to).

    rule: the model's own, for whole images. With a crop every batch has the crop's size.
    """
    jitter = tuple(config.scale) != (1.0, 1.0)
    low, high = config.scale
    steps: list[Transform] = []
    if config.crop > 0:
        if config.fit:
            steps.append(ScaleJitter(config.crop, low, high, rule.filter))
        elif jitter:
            steps.append(RandomScale(low, high, rule.filter))
        steps.append(FixedSizeCrop(config.crop))
    else:
        if config.short_sides:
            steps.append(ResizeShortestEdge(config.short_sides, rule.long or max(config.short_sides) * 2, rule))
        else:
            steps.append(Resize(rule))
        if jitter:
            steps.append(RandomScale(low, high, rule.filter))
    if config.hflip:
        steps.append(HorizontalFlip(config.hflip))
    if config.vflip:
        steps.append(VerticalFlip(config.vflip))
    if config.rot90:
        steps.append(Rot90())
    if config.elastic:
        steps.append(ElasticDeformation(p=config.elastic))
    if config.photometric:
        steps.append(PhotometricDistortion(p=config.photometric))
    # images smaller than the crop are padded to it by the loader, as invalid pixels
    return Compose(steps), lcm(rule.divisor, config.crop) if config.crop > 0 else rule.divisor


def model_options(config: ModelConfig) -> dict[str, Any]:
    """What the builder is called with, besides the labels. Raises PansightError for an option that cannot be."""
    options = dict(config.options)
    for name in ("backbone", "pretrained"):
        if getattr(config, name) != "auto":
            options[name] = getattr(config, name)
    return check_options(config.name, options, complete=False)


def check_model(config: ModelConfig, decode: Mapping[str, Any]) -> None:
    """Raises PansightError for an option of the model or of its decode that cannot be, before anything is read.

    Options that the weights bring, and the model that they bring where it is left to them, are not known yet.
    """
    if config.name == "auto":
        return
    check_options(config.name, model_options(config), complete=not config.weights)
    check_decode(config.name, decode)


def make_model(
    config: ModelConfig, labels: LabelSpace, source: tuple[Any, str, dict[str, Any]] | None = None
) -> tuple[Any, str, dict[str, Any], list[str]]:
    """(model, its name, the builder's options, lines on what was taken from ``config.weights``).

    source: what `load_model` gives of the weights, where they are loaded already.
    With weights, the network is theirs unless the settings say otherwise, and classes are kept by name. They may come
    from another builder of the same architecture: DETR's weights start DETR-panoptic.
    Raises PansightError for weights of another architecture.
    """
    name, options = config.name, model_options(config)
    if not config.weights:
        return build(name, labels, **options), name, options, []
    loaded, found, saved = source or load_model(config.weights)
    if not same_architecture(name, found):
        raise PansightError(where=config.weights, expected=f"weights of {name}", found=f"{found} (--model {found})")
    known = builder_options(name)
    options = {**{key: value for key, value in saved.items() if key in known}, **options}
    if "pretrained" in known:
        options["pretrained"] = "none"  # the weights bring their own backbone: nothing needs to be downloaded first
    model: Any = build(name, labels, **options)
    report = transfer(model, loaded.state_dict(), loaded.labels, labels, entry(name), entry(found))
    own = model.input.resize
    model.input = copy.deepcopy(loaded.input)
    if any(key in config.options for key, option in entry(name).options.items() if option.resizes):
        model.input.resize = own
    return model, name, options, str(report).splitlines()


def same_architecture(name: str, other: str) -> bool:
    """Whether the weights of one model start the other. Raises PansightError for an unknown name."""
    return entry(name).architecture == entry(other).architecture


def describe(source: str | Path, dataset: Dataset) -> str:
    """One line: how many images, which things, which stuff."""
    things, stuff = dataset.labels.things, dataset.labels.stuff
    classes = f"{len(things)} things ({_some(tuple(c.name for c in things))})" if things else "no things"
    if stuff:
        classes += f", {len(stuff)} stuff ({_some(tuple(c.name for c in stuff))})"
    return f"{len(dataset)} images of {source}: {classes}"
