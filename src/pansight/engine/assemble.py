"""Build the data sets, the augmentation and the model of a run from its settings."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from pansight.config import AugmentConfig, Config, DataConfig, ModelConfig, override
from pansight.data import DATASETS, SPLITS, Dataset, find_splits, open_dataset, reading_notes, split_dataset
from pansight.data.dataset import limited
from pansight.data.formats.predictions.proposals import Proposals, WithProposals
from pansight.data.left_out import left_out_of, usable
from pansight.data.transforms import (
    Compose,
    CopyPaste,
    ElasticDeformation,
    FixedSizeCrop,
    HorizontalFlip,
    ImageQuality,
    PhotometricDistortion,
    Resize,
    ResizeShortestEdge,
    Rot90,
    RotateAndZoom,
    ScaleJitter,
    Transform,
    VerticalFlip,
    resize_sample,
)
from pansight.engine.infer import GivenProposals
from pansight.engine.progress import ProgressBar
from pansight.errors import PansightError, choice_error, shown
from pansight.models import (
    build,
    builder_options,
    check_decode,
    check_options,
    check_size,
    entry,
    networks_of,
    settled_entry,
)
from pansight.models.contract import Entry
from pansight.ops.resize import ResizeRule
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Sample
from pansight.weights import load_model, transfer
from pansight.weights.borrowed import borrow, borrowing_options
from pansight.weights.fitting import without_pretrained

MANY_FILES = 5000
"""Looking at more files than this takes seconds."""

SHOWN_LEFT_OUT = 20
"""So many lines on what was left out are printed."""


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
    return ", ".join(shown(name, 80) for name in names[:8]) + (" …" if len(names) > 8 else "")


def open_data(config: DataConfig) -> tuple[Dataset, Dataset, str]:
    """(training images, validation images, one line on where the latter come from).

    Without a validation part, a fixed random `validation_fraction` of the training images is split off. A test part is
    never among either. Raises PansightError where there is no source, no such part, or no image.
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
    training = open_dataset(config.source, config.format, split, config.options)
    if split is None and "test" in parts and _same_images(training, _part(config, "test", config.options)):
        raise PansightError(
            where=config.source, expected="images to train on", found="a test part alone", hint="--data.split test"
        )
    options = {**config.options, **config.validation_options}
    own = "val" in parts and split != "val"
    if own and split is None and not config.validation_split:
        own = not _same_images(training, _part(config, "val", options))  # the validation part is all there is
    training = _usable(limited(training, config.limit), config)
    if config.validation_source or config.validation_split or own:
        source = config.validation_source or config.source
        part = config.validation_split or None
        if part is None and "val" in find_splits(source, config.format):
            part = "val"
        validation = _usable(limited(open_dataset(source, config.format, part, options), config.limit), config)
        note = f"{len(validation)} images of {source}" + (f", part {part}" if part else "")
    else:
        training, validation = split_dataset(training, config.validation_fraction)
        note = f"{len(validation)} images split off {config.source}, which has no validation part"
    told = dict.fromkeys(line for data in (training, validation) for line in reading_notes(data))
    return training, relabel(validation, training.labels, "validation data"), "; ".join([note, *told])


def _usable(dataset: Dataset, config: DataConfig) -> Dataset:
    """The images that can be used; all others are told by `left_out`. A bar shows where there are very many.

    They have the regions of ``config.proposals``, where it names any file.
    """
    with ProgressBar("files", len(dataset) > MANY_FILES) as bar:
        return with_proposals(usable(dataset, config.strict, bar.update), config)


def with_proposals(dataset: Dataset, config: DataConfig) -> Dataset:
    """`dataset` with the regions of ``config.proposals``; itself where that names no file.

    Raises PansightError for a file that is none of its kind, or proposes nothing for any of the images.
    """
    return WithProposals(dataset, Proposals(config.proposals)) if config.proposals else dataset


def left_out(*datasets: Dataset) -> tuple[str, ...]:
    """A line for every image and annotation that was left out of any of these, each once."""
    plain = [data.dataset if isinstance(data, Relabelled) else data for data in datasets]
    return tuple(dict.fromkeys(str(error) for data in plain for error in left_out_of(data)))


def told_left_out(lines: Sequence[str]) -> list[str]:
    """The first of these lines, and how many more there are."""
    more = len(lines) - SHOWN_LEFT_OUT
    return [*lines[:SHOWN_LEFT_OUT], *([f"and {more} more (pansight check lists all)"] if more > 0 else [])]


def _part(config: DataConfig, part: str, options: dict[str, Any]) -> Dataset:
    return open_dataset(config.source, config.format, part, options)


def _same_images(one: Dataset, other: Dataset) -> bool:
    """Whether two parts are the same images under two names, as far as ids and file names tell."""
    if len(one) != len(other):
        return False
    return all((one.image_id(n), one.file_name(n)) == (other.image_id(n), other.file_name(n)) for n in range(len(one)))


def open_part(config: DataConfig, part: str) -> Dataset:
    """The images of a run's own data: "train" and "val" as `open_data` gives them, or "test".

    Raises PansightError for another part, and where there are no test images.
    """
    if part not in SPLITS:
        raise choice_error("part of the data", part, SPLITS)
    if part != "test":
        training, validation, _ = open_data(config)
        return training if part == "train" else validation
    source = config.test_source or config.source
    parts = find_splits(source, config.format)
    split = config.test_split or ("test" if "test" in parts else None)
    if split is None and not config.test_source:
        raise PansightError(
            where=source, expected="a test part", found=", ".join(parts) or "none", hint="--data.test-source DIR"
        )
    return _usable(limited(open_dataset(source, config.format, split, config.options), config.limit), config)


def open_evaluation_data(config: DataConfig, labels: LabelSpace | None) -> Dataset:
    """The images of `source` in the classes of a model: the part `split`, else val where there is one, else all.

    labels: of the model; None leaves the data in its own. Raises PansightError for a class that the model lacks.
    """
    parts = find_splits(config.source, config.format)
    split = config.split or ("val" if "val" in parts else None)
    dataset = _usable(limited(open_dataset(config.source, config.format, split, config.options), config.limit), config)
    return dataset if labels is None else relabel(dataset, labels, str(config.source))


class RandomScale:
    """The size that `rule` gives times a factor from [low, high], log-uniform: halving is as likely as doubling.

    The sample is resized once. The filter is that of the rule.
    """

    def __init__(self, rule: ResizeRule, low: float, high: float):
        self.rule, self.low, self.high = rule, low, high

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        factor = float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))
        height, width = self.rule.target(*sample.truth.size)
        return resize_sample(sample, max(1, round(height * factor)), max(1, round(width * factor)), self.rule.filter)


def make_transform(config: AugmentConfig, rule: ResizeRule) -> tuple[Transform, int]:
    """(the augmentation of a training sample, the divisor that its batches are padded to).

    rule: the model's own, which predictions follow, too: objects are learnt at the size at which they are measured,
    times the random scale. With a crop every batch has the crop's size, rounded up to what the model takes.
    """
    jitter = tuple(config.scale) != (1.0, 1.0)
    crop = min(config.crop, square_of(rule) or config.crop)
    low, high = config.scale
    steps: list[Transform] = []
    if crop > 0 and config.fit:
        steps.append(ScaleJitter(crop, low, high, rule.filter))
    elif config.short_sides:
        steps.append(ResizeShortestEdge(config.short_sides, rule.long or max(config.short_sides) * 2, rule))
        if jitter:
            steps.append(RandomScale(ResizeRule(0, 0, filter=rule.filter), low, high))
    else:
        steps.append(RandomScale(rule, low, high) if jitter else Resize(rule))
    if crop > 0:
        steps.append(FixedSizeCrop(crop))
    if config.hflip:
        steps.append(HorizontalFlip(config.hflip))
    if config.vflip:
        steps.append(VerticalFlip(config.vflip))
    if config.rot90:
        steps.append(Rot90())
    if tuple(config.rotate) != (0, 0) or tuple(config.zoom) != (1, 1):
        steps.append(RotateAndZoom(_pair(config.rotate), _pair(config.zoom), config.fill))
    if config.elastic:
        steps.append(ElasticDeformation(config.elastic_magnitude, p=config.elastic, grid=config.elastic_grid))
    steps += _colour_steps(config)
    # images smaller than the crop are padded to it by the loader, as invalid pixels
    return Compose(steps), max(1, ceil(crop / rule.divisor)) * rule.divisor


def _colour_steps(config: AugmentConfig) -> list[Transform]:
    steps: list[Transform] = []
    if config.photometric:
        factors = _pair(config.contrast), _pair(config.saturation)
        steps.append(PhotometricDistortion(config.brightness, *factors, config.hue, config.photometric))
    if config.blur or config.noise or config.jpeg:
        quality = config.jpeg_quality[0], config.jpeg_quality[1]
        ranges = _pair(config.blur_sigma), _pair(config.noise_sigma), quality
        steps.append(ImageQuality(config.blur, config.noise, config.jpeg, *ranges))
    return steps


def _pair(limits: Sequence[float]) -> tuple[float, float]:
    return limits[0], limits[1]


def with_copy_paste(transform: Transform, dataset: Dataset, config: AugmentConfig) -> Transform:
    """`transform`, after which things of other images of `dataset` are pasted where the settings ask for it.

    Raises PansightError for data without things.
    """
    if not config.copy_paste:
        return transform
    if not dataset.labels.things:
        raise PansightError(where="augment.copy_paste", expected="data with things", found="stuff alone")
    return CopyPaste(dataset, transform, config.copy_paste)


def square_of(rule: ResizeRule) -> int:
    """The side of the square that is all a network takes, whatever is cut out of an image; 0 where it takes any."""
    return rule.divisor if rule.short == rule.long == rule.divisor else 0


def model_options(config: ModelConfig) -> dict[str, Any]:
    """What the builder is called with, besides the labels. Raises PansightError for an option that cannot be."""
    options, known = dict(config.options), builder_options(config.name)
    for name in ("backbone", "pretrained"):
        given = getattr(config, name)
        if given != "auto" and (name in known or given != "none"):  # a network without a backbone has no weights of one
            options[name] = given
    return check_options(config.name, options, complete=False)


def with_absolute_paths(config: Config) -> Config:
    """Paths that hold wherever the run is resumed from."""
    paths = {"data.source": config.data.source, "data.validation_source": config.data.validation_source}
    paths |= {
        "data.test_source": config.data.test_source,
        "model.weights": config.model.weights,
        "model.first_recipe": config.model.first_recipe,
    }
    paths |= {
        f"model.options.{key}": str(value) for key, value in config.model.options.items() if key.endswith("_weights")
    }
    resolved: dict[str, Any] = {k: str(Path(v).resolve()) for k, v in paths.items() if v and Path(v).exists()}
    if config.data.proposals:
        resolved["data.proposals"] = [str(Path(path).resolve()) for path in config.data.proposals]
    return override(config, resolved)


def check_proposals(model: Any, name: str, config: DataConfig) -> None:
    """Raises PansightError where a detector must be given regions and is not, and where a model takes none that it is
    given.
    """
    takes = isinstance(model, GivenProposals)
    if config.proposals and not takes:
        raise PansightError(where="data.proposals", expected="a model that is given them, fast_rcnn", found=name)
    if takes and model.needs_proposals and not config.proposals:
        hint = "--data.proposals FILE, or --model.options.proposer_weights RUN"
        raise PansightError(where=f"model {name}", expected="regions that may hold an object", found="none", hint=hint)


def check_model(config: ModelConfig, decode: Mapping[str, Any]) -> None:
    """Raises PansightError for an option of the model or of its decode that cannot be, and for a network that needs
    several times the machine's memory, before anything is read.

    Options that the weights bring, and the model that they bring where it is left to them, are not known yet.
    """
    if config.name == "auto":
        return
    options = check_options(config.name, model_options(config), complete=not config.weights)
    check_decode(config.name, decode)
    if not config.weights:
        check_size(config.name, LabelSpace.from_names(["thing"], ["stuff"]), options)


def make_model(
    config: ModelConfig,
    labels: LabelSpace,
    source: tuple[Any, str, dict[str, Any]] | None = None,
    freeze: Sequence[str] = (),
) -> tuple[Any, str, dict[str, Any], list[str]]:
    """(model, its name, the builder's options, lines on what was taken from ``config.weights``).

    source: what `load_model` gives of the weights, where they are loaded already. freeze: of the settings of training;
    a line names the classes that a frozen head was never taught.
    With weights, the network is theirs unless the settings say otherwise, and classes are kept by name. They may come
    from another builder of the same architecture: DETR's weights start DETR-panoptic.
    Raises PansightError for weights of another architecture.
    """
    name, options = config.name, model_options(config)
    if not config.weights:
        untaught = _never_taught(settled_entry(name, options), labels, labels.names, freeze)
        model, options, lines = _built(name, labels, options)
        return model, name, options, [*untaught, *lines]
    loaded, found, saved = source or load_model(config.weights)
    if not same_architecture(name, found):
        raise PansightError(where=config.weights, expected=f"weights of {name}", found=f"{found} (--model {found})")
    known, declared = builder_options(name), entry(name).options
    # what was counted for other classes says nothing of these
    counted = {key for key in saved if key in declared and declared[key].words and loaded.labels != labels}
    if loaded.labels != labels:
        counted |= {f"{network}_classes" for network in entry(name).networks}
    options = _over({key: value for key, value in saved.items() if key in known and key not in counted}, options)
    if "pretrained" in known:
        options["pretrained"] = "none"
    options = without_pretrained(options)  # the weights bring their own backbones: nothing needs to be downloaded first
    model, options, borrowed = _built(name, labels, options)
    entries = settled_entry(name, options), settled_entry(found, saved)
    state = loaded.state_dict()
    if borrowed:  # a first stage that is asked for goes before that of the weights
        state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{entry(name).borrows}.")}
    report = transfer(model, state, loaded.labels, labels, *entries)
    _take_inputs(model, loaded, name, options, config.options)
    missing = set(report.classes_new)
    if entry(found).stuff and not saved.get(entry(found).stuff, False):
        missing |= {category.name for category in loaded.labels.stuff}
    lines = [*str(report).splitlines(), *_never_taught(entries[0], labels, missing, freeze), *borrowed]
    return model, name, options, lines


def _built(name: str, labels: LabelSpace, options: dict[str, Any]) -> tuple[Any, dict[str, Any], list[str]]:
    """(the model, the options that say all of it, a line on what it borrows from a trained detector)."""
    borrows = entry(name).borrows
    path = options.get(f"{borrows}_weights") if borrows else None
    if path is None:
        return build(name, labels, **options), options, []
    source = load_model(path)
    options = borrowing_options(entry(name), options, source)
    model: Any = build(name, labels, **options)
    borrow(entry(name), model, source)
    return model, options, [f"{borrows}: the first stage of {source[1]} from {path}, frozen"]


def _over(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that weights bring, with those that are given over them; tables of options are joined."""
    tables = {
        k: {**saved[k], **v} for k, v in given.items() if isinstance(v, Mapping) and isinstance(saved.get(k), Mapping)
    }
    return {**saved, **given, **tables}


def _take_inputs(model: Any, loaded: Any, name: str, options: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Give each network of `model` the input of the weights; its size is its own where an option of it is `given`."""
    for network, each in networks_of(model, name).items():
        own = each.input.resize
        each.input = copy.deepcopy((getattr(loaded, network) if network else loaded).input)
        declared = entry({**builder_options(name), **options}[network] if network else name).options
        stated = given.get(f"{network}_options", {}) if network else given
        if any(key in stated for key, option in declared.items() if option.resizes):
            each.input.resize = own


def _never_taught(model: Entry, labels: LabelSpace, missing: Collection[str], freeze: Sequence[str]) -> list[str]:
    """A warning for every frozen head that has one of the classes `missing`, which nothing has taught it so far."""
    lines: list[str] = []
    for head, rows in model.class_rows.items():
        classes = set(rows(labels)) & set(missing)
        names = tuple(name for name in labels.names if name in classes)
        if names and any(f"{head}.".startswith(f"{prefix}.") for prefix in freeze):
            lines.append(
                f"warning: {head} is frozen and was never taught {_some(names)}, which will not be found; "
                "leave it out of train.freeze, or start from weights that know these classes"
            )
    return lines


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
