"""All settings of a run, as flat dataclasses that are read from TOML and overridden by dotted keys.

``Config`` is what ``config.toml`` in a run folder holds. No model, layer or data set takes one: the engine and the
command line read the numbers and pass them on. Values of 0, -1 or "auto" are chosen from the model, the data and the
machine (``pansight.engine.automatic``), printed, and written out as the numbers that were used. Only a run by the
clock, whose time is given and whose steps are not, keeps 0 and -1 for numbers of steps: its end alone will tell them.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import tomli_w

from pansight.errors import PansightError, choice_error
from pansight.files import listed, write_text

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "poly", "step", "constant")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
MIOU = ("cityscapes", "detectron2", "semseg")
"""The conventions of `metrics.semantic_iou`, which this file does not import."""
DECAYS = ("weights", "biases", "everything")
FILLS = ("zero", "mean")
AUGMENT_RANGES = {
    "rotate": (-360, 360),
    "zoom": (0.01, 100),
    "contrast": (0, 10),
    "saturation": (0, 10),
    "blur_sigma": (0, 100),
    "noise_sigma": (0, 255),
    "jpeg_quality": (1, 100),
}
"""The settings of augmentation that are two numbers, with what both must lie between."""


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and what it starts from."""

    name: str = "panoptic_fpn"
    """A system; `pansight models` lists them; auto: that of the `weights`."""
    backbone: str = "auto"
    """Any timm backbone by name; auto: the model's own default."""
    pretrained: str = "auto"
    """Weights of the backbone: none, timm (downloaded), packaged (EfficientNet-Lite0); auto: the model's default."""
    weights: str = ""
    """Fine-tune from this run folder, saved model or official checkpoint; classes are kept by name."""
    first_recipe: str = ""
    """Training in two steps: the recipe of the first step, which runs before this one and whose best weights this one
    starts from; not where `weights` are given."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of the model's builder, as `--model.options.NAME VALUE`; `pansight models NAME` lists them."""


@dataclass(frozen=True)
class DataConfig:
    """Where the images and their truth come from."""

    source: str = ""
    """A folder, a JSON file or the name of a built-in data set; `pansight datasets` lists the formats."""
    format: str = "auto"
    """The format of the source; auto: found out by looking."""
    split: str = ""
    """The part to train on, where the source has parts; empty: train, or all there is."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the reader, as `--data.options.NAME VALUE`."""
    validation_source: str = ""
    """Where the validation images are; empty: the same source."""
    validation_split: str = ""
    """The part to validate on; empty: val, or a part split off the training images where there is none."""
    validation_options: dict[str, Any] = field(default_factory=dict)
    """Options of the validation reader, over those of `options`."""
    test_source: str = ""
    """Where the test images are, which nothing is trained or chosen on; empty: the same source."""
    test_split: str = ""
    """The part to test on, by `evaluate --part test`; empty: test."""
    proposals: tuple[str, ...] = ()
    """Files of regions that may hold an object, as COCO results with boxes, of all images: for a detector that is given
    them (fast_rcnn)."""
    limit: float = 0.0
    """For a trial: so many images of each part (200), evenly spread, or that share of them (0.1); 0: all."""
    strict: bool = False
    """Stop at the first image that cannot be used, instead of leaving it out and telling it."""
    validation_fraction: float = 0.1
    """The share of images that is split off for validation where the source has no such part."""
    workers: int = -1
    """Processes that load images; -1: chosen from the machine, 0: none."""

    def __post_init__(self) -> None:
        _check(0 < self.validation_fraction < 1, "data.validation_fraction", "a value between 0 and 1", self)
        _check(self.workers >= -1, "data.workers", "-1, 0 or more", self)
        counts = 0 <= self.limit < 1 or self.limit == int(self.limit) > 0
        _check(counts, "data.limit", "0, a share below 1, or a number of images", self)


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to a training image, in this order."""

    scale: tuple[float, ...] = (1.0, 1.0)
    """Resize by a random factor between these two, of the size that the model's rule gives; with `fit`, of the crop."""
    crop: int = -1
    """Cut or pad to a square of so many pixels; 0: whole images by the model's rule; -1: chosen from the data."""
    fit: bool = False
    """With `crop`: fit the image into it before scaling (large-scale jitter) instead of following the model's rule."""
    short_sides: tuple[int, ...] = ()
    """Draw the short side from these instead of the model's own; not with `fit`."""
    hflip: float = 0.5
    """Probability of a left-right flip."""
    vflip: float = 0.0
    """Probability of an upside-down flip."""
    rot90: bool = False
    """Turn by 0, 90, 180 or 270 degrees."""
    rotate: tuple[float, ...] = (0.0, 0.0)
    """Turn by a random angle between these two, in degrees, counter-clockwise; the size of the image stays."""
    zoom: tuple[float, ...] = (1.0, 1.0)
    """Enlarge about the middle by a random factor between these two, at the same size: below 1 a border is added."""
    fill: str = "zero"
    """Colour of what `rotate` and `zoom` bring into the image from outside. zero: black; mean: that of the image."""
    elastic: float = 0.0
    """Probability of an elastic deformation."""
    elastic_magnitude: float = 8.0
    """Of an elastic deformation: standard deviation of the displacement at the points of its grid, in pixels."""
    elastic_grid: int = 0
    """Points a side of that grid; 0: one every 64 pixels. U-Net takes 3, with a magnitude of 10."""
    photometric: float = 0.0
    """Probability of changed brightness, contrast, saturation and hue, of each by itself."""
    brightness: float = 32.0
    """For `photometric`: brightness changes by up to so many levels of 0 … 255."""
    contrast: tuple[float, ...] = (0.5, 1.5)
    """For `photometric`: the least and the largest factor of the contrast; 1, 1: it stays."""
    saturation: tuple[float, ...] = (0.5, 1.5)
    """For `photometric`: the least and the largest factor of the saturation; 1, 1: it stays."""
    hue: float = 18.0
    """For `photometric`: the hue turns by up to so many degrees."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, ...] = (0.3, 2.0)
    """For `blur`: the least and the largest deviation of the Gaussian, in pixels."""
    noise: float = 0.0
    """Probability of Gaussian noise."""
    noise_sigma: tuple[float, ...] = (1.0, 12.0)
    """For `noise`: its least and largest deviation, in levels of 0 … 255."""
    jpeg: float = 0.0
    """Probability that the image is compressed as a JPEG."""
    jpeg_quality: tuple[int, ...] = (40, 95)
    """For `jpeg`: the least and the largest quality, 1 … 100."""
    copy_paste: float = 0.0
    """Probability that things of another training image, which is augmented alike, are pasted onto the image."""

    def __post_init__(self) -> None:
        ordered = len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1]
        _check(ordered, "augment.scale", "two positive factors, the smaller first", self)
        _check(self.crop >= -1, "augment.crop", "-1, 0 or more pixels", self)
        for name in ("hflip", "vflip", "photometric", "elastic", "blur", "noise", "jpeg", "copy_paste"):
            _check(0 <= getattr(self, name) <= 1, f"augment.{name}", "a probability", self)
        _check(self.elastic_magnitude >= 0, "augment.elastic_magnitude", "0 or more pixels", self)
        _check(self.elastic_grid == 0 or 2 <= self.elastic_grid <= 64, "augment.elastic_grid", "0 or 2 … 64", self)
        for name, (least, most) in AUGMENT_RANGES.items():
            limits = getattr(self, name)
            inside = len(limits) == 2 and least <= limits[0] <= limits[1] <= most
            _check(inside, f"augment.{name}", f"two numbers of {least:g} … {most:g}, the smaller first", self)
        _check(0 <= self.brightness <= 255, "augment.brightness", "0 … 255 levels", self)
        _check(0 <= self.hue <= 180, "augment.hue", "0 … 180 degrees", self)
        if self.fill not in FILLS:
            raise choice_error("augment.fill", self.fill, FILLS)


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 0
    """Optimiser steps; 0: chosen from the number of images, or as many as `max_minutes` allow."""
    batch_size: int = 0
    """Images a step, over all processes; 0: chosen from the image size and the machine; -1: as many as the memory of
    the accelerator holds, found by trying steps of one process. On a CPU, -1 is the same as 0."""
    epochs: float = 0.0
    """In place of `steps`: how many times each training image is seen; 0: it goes by the steps."""
    accumulate: int = 1
    """Parts that the batch of a process is computed in, to save memory. The result is the same, unless the model trains
    BatchNorm, which then normalises each part by the images of that part alone."""
    sync_bn: bool = False
    """Trained BatchNorm normalises by the images of all processes, not by those of each; on accelerators only. Parts
    of a process (`accumulate`) are still normalised one by one, and a process that runs out of memory ends the run."""
    optimizer: str = "adamw"
    """adamw, adam (whose decay is part of the gradient: none unless `weight_decay` is given) or sgd (with momentum)."""
    lr: float = 0.0
    """Peak learning rate; 0: chosen from the optimiser and the batch size."""
    backbone_lr_factor: float = -1.0
    """The backbone's learning rate as a share of `lr`; -1: chosen from the model."""
    layer_decay: float = -1.0
    """For a ViT backbone: each block learns at so many times the rate of the one above; 1: all alike; -1: chosen."""
    weight_decay: float = -1.0
    """Decay of weights; -1: chosen from the model."""
    decay: str = "weights"
    """What decays. weights: matrices and filters; biases: these and biases, as in detectron2; everything: norms and
    embeddings too, as in DETR and EoMT."""
    momentum: float = 0.9
    """For sgd."""
    schedule: str = "cosine"
    """cosine, poly, step or constant: the learning rate over the run."""
    warmup_steps: int = -1
    """Steps over which the learning rate rises linearly to its peak; -1: a twentieth of the run, at most 500."""
    warmup_factor: float = 0.001
    """The share of the peak that warm-up starts from."""
    backbone_delay: tuple[int, ...] = ()
    """Two numbers of steps: first the backbone stands still, then it has a warm-up of its own, as in EoMT; empty: it
    warms up with the rest."""
    milestones: tuple[float, ...] = (0.667, 0.889)
    """For schedule step: the shares of the run after which the rate is multiplied by `gamma`."""
    gamma: float = 0.1
    """For schedule step."""
    power: float = 0.9
    """For schedule poly: (1 - progress) ** power."""
    final_lr_factor: float = 0.0
    """For cosine and poly: the share of the peak rate at the end."""
    clip_norm: float = -1.0
    """Largest gradient norm (L2, all parameters); 0: no clipping; -1: chosen from the model."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which is then what is evaluated and saved; 0: no average."""
    repeat_threshold: float = 0.0
    """Show images of rare classes more often (LVIS): an image counts √(threshold / f) times, at least once, where f is
    the share of images that its rarest class is in; 0: each image once."""
    precision: str = "auto"
    """fp32, bf16 or fp16 (autocast); auto: bf16 where the machine computes in it, else fp32."""
    channels_last: bool = True
    """Weights and images in channels-last memory: faster convolutions, the same result."""
    freeze: tuple[str, ...] = ()
    """Parameters whose names start so are not trained, e.g. backbone."""
    checkpointing: bool = False
    """Compute backbones and transformer layers again in the backward pass instead of keeping what is between their
    layers: less memory, more time, the same gradients."""
    evaluate_every: int = -1
    """Steps between evaluations, which choose the best checkpoint; 0: at the end only; -1: a fifth of the run."""
    evaluate_share: float = -1.0
    """Evaluations before the end take at most this share of the time of training; what would take longer is put off.
    0: they may take any time; -1: 0.2 where `evaluate_every` is left open, else 0."""
    patience: int = 0
    """Stop after so many evaluations in a row that are no better than the best before them; 0: go on to the end."""
    checkpoint_every: int = 500
    """Steps between checkpoints to resume from; 0: at the end only."""
    max_minutes: float = 0.0
    """Train for this long, evaluations not counted; the whole schedule follows the clock where it is ahead of the
    steps, and a warm-up ends with the first twentieth of the time or its share of `steps`. 0: no limit."""
    seed: int = 0
    """Of weights, order of images, augmentation and sampling."""
    log_every: int = 20
    """Steps between lines in metrics.jsonl and in the trackers."""
    trackers: tuple[str, ...] = ("auto",)
    """tensorboard, wandb, mlflow … as Accelerate names them; auto: tensorboard where installed."""
    tracker_images: int = 8
    """At every evaluation the trackers get the predictions of so many validation images, always the same ones; 0: none.
    For tensorboard and wandb."""
    deterministic: bool = False
    """Repeat bit for bit on an accelerator too, more slowly. On one CPU, with as many threads, runs repeat but for the
    last digits of float32: torch's convolutions of maps of few pixels may round their gradients in another order."""

    def __post_init__(self) -> None:
        choices = ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS), ("decay", DECAYS)
        for name, known in choices:
            if getattr(self, name) not in known:
                raise choice_error(f"train.{name}", getattr(self, name), known)
        at_least_0 = ("steps", "epochs", "lr", "max_minutes", "checkpoint_every", "final_lr_factor", "seed")
        for name in (*at_least_0, "tracker_images", "patience"):
            _check(getattr(self, name) >= 0, f"train.{name}", "0 or more", self)
        for name in ("evaluate_every", "warmup_steps", "batch_size", "weight_decay", "clip_norm", "backbone_lr_factor"):
            value = getattr(self, name)
            _check(value == -1 or value >= 0, f"train.{name}", "-1, 0 or more", self)
        share = self.evaluate_share == -1 or 0 <= self.evaluate_share <= 1
        _check(share, "train.evaluate_share", "-1 or a share from 0 to 1", self)
        _check(self.layer_decay == -1 or 0 < self.layer_decay <= 1, "train.layer_decay", "-1 or a share up to 1", self)
        delay = not self.backbone_delay or (len(self.backbone_delay) == 2 and min(self.backbone_delay) >= 0)
        _check(delay, "train.backbone_delay", "two numbers of steps", self)
        for name in ("accumulate", "log_every"):
            _check(getattr(self, name) >= 1, f"train.{name}", "1 or more", self)
        _check(0 <= self.repeat_threshold <= 1, "train.repeat_threshold", "a share from 0 to 1", self)
        _check(0 <= self.ema_decay < 1, "train.ema_decay", "at least 0 and below 1", self)
        rising = list(self.milestones) == sorted(self.milestones) and all(0 < m <= 1 for m in self.milestones)
        _check(rising, "train.milestones", "rising shares of the run between 0 and 1", self)


@dataclass(frozen=True)
class EvaluateConfig:
    """Measuring and predicting."""

    batch_size: int = 1
    """Images at once; their padding may change results in the last digits."""
    max_detections: int = 100
    """Objects of an image and class that count for AP: 100 for COCO, more for crowded images."""
    miou: str = "cityscapes"
    """Which classes the mIoU is a mean over. cityscapes: those in the truth or predicted; detectron2: those in the
    truth; semseg: all."""
    decode: dict[str, Any] = field(default_factory=dict)
    """Options of the model's decode, thresholds and its task, as `--evaluate.decode.NAME VALUE`; left out: the model's
    own."""
    least_score: float = 0.0
    """Objects under this score do not count."""
    flip: bool = False
    """Look at the mirrored photo too, and average what is seen; for models that can (docs/training.md)."""
    scales: tuple[float, ...] = (1.0,)
    """Look at the photo at so many times the model's size each, and average what is seen; as for `flip`."""
    window: int = 0
    """Look at the resized photo through square windows of so many pixels a side, usually the crop of training; 0: as a
    whole. Class scores are averaged where windows overlap; panoptic maps and objects are stitched."""
    window_stride: float = 2 / 3
    """From one window to the next, as a share of its side."""
    precision: str = "auto"
    """fp32, bf16 or fp16 (autocast); auto: as in training, fp32 for saved models."""
    channels_last: bool = True
    """Channels-last memory."""
    limit: int = 0
    """Only the first so many images; 0: all."""
    loss: bool = False
    """Compute the loss on the measured images, too: a second pass through the network for each."""
    sheet: int = 6
    """How many of the best and of the worst images the report shows."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise choice_error("evaluate.precision", self.precision, PRECISIONS)
        if self.miou not in MIOU:
            raise choice_error("evaluate.miou", self.miou, MIOU)
        _check(bool(self.scales) and all(s > 0 for s in self.scales), "evaluate.scales", "positive factors", self)
        _check(0 <= self.least_score <= 1, "evaluate.least_score", "0 … 1", self)
        for name in ("batch_size", "max_detections"):
            _check(getattr(self, name) >= 1, f"evaluate.{name}", "1 or more", self)
        _check(0 < self.window_stride <= 1, "evaluate.window_stride", "a share above 0, up to 1", self)
        for name in ("limit", "sheet", "window"):
            _check(getattr(self, name) >= 0, f"evaluate.{name}", "0 or more", self)


@dataclass(frozen=True)
class Config:
    """A run: ``[model]``, ``[data]``, ``[augment]``, ``[train]`` and ``[evaluate]`` of a TOML file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; tuples become lists."""
        return {name: _plain(section) for name, section in asdict(self).items()}

    def save(self, path: str | Path, heading: str = "") -> None:
        """Write TOML that ``read_config`` turns into an equal Config; `heading` lines come first, as comments."""
        comment = "".join(f"# {line}\n" for line in heading.splitlines())
        write_text(path, comment + tomli_w.dumps(self.to_dict()))


def read_toml(path: str | Path) -> dict[str, Any]:
    """Raises PansightError where the file is missing or no TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # editors of Windows write a byte order mark
    except FileNotFoundError as error:
        raise PansightError("no such file", where=path, hint="expected TOML", code="missing_file") from error
    except OSError as error:
        raise PansightError("cannot be read", where=path, reason=error.strerror or error, code="cannot_read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PansightError(where=path, expected="TOML", found=error) from error


def read_config(path: str | Path) -> Config:
    """A Config from a TOML file; keys left out have their defaults. Errors name the file."""
    values = read_toml(path)
    try:
        return override(Config(), values)
    except PansightError as error:
        raise error.at(path) from error


def recipes() -> dict[str, Path]:
    """The shipped recipes by name, ``shapes/panoptic_fpn``, in order; without the studies, which are sweeps."""
    root = Path(__file__).parent / "recipes"
    found = (path for path in sorted(root.rglob("*.toml")) if path.parent.name != "studies")
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in found}


def read_recipe(name: str | Path) -> Config:
    """A shipped recipe by its name, or a TOML file by its path. Raises PansightError listing what is shipped."""
    return read_config(recipe_path(name))


def recipe_path(name: str | Path) -> Path:
    """The file of a recipe. Raises PansightError listing what is shipped."""
    shipped = recipes()
    if str(name) in shipped:
        return shipped[str(name)]
    if Path(name).suffix == ".toml" or Path(name).is_file():
        return Path(name)
    raise choice_error("recipe", str(name), shipped)


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """A new Config with `values` over it: nested ``{"train": {"steps": 5}}`` or dotted ``{"train.steps": "5"}``.

    Texts are converted to the type of the field; dictionaries of options are merged, not replaced.
    Raises PansightError for an unknown key, listing what exists, and for a value of the wrong type.
    """
    for key, value in flatten(values).items():
        section_name, name, option = [*key.split(".", 2), "", ""][:3]
        section = _field(config, section_name, key)
        if not name:
            raise PansightError(where=key, expected=f"settings as {key}.NAME", found=f"{value!r}")
        current = _field(section, name, key)
        kind = get_type_hints(type(section))[name]
        if get_origin(kind) is dict:
            if not option:
                raise PansightError(where=key, expected=f"options as {key}.NAME", found=f"{value!r}")
            table, _, inner = option.partition(".")  # an option may be a table itself
            outer = current.get(table) if isinstance(current.get(table), dict) else {}
            new: Any = {**current, table: {**outer, inner: _guess(value)} if inner else _guess(value)}
        elif option:
            raise PansightError("unknown key", where=key, hint=f"{section_name}.{name} is a single value")
        else:
            new = _convert(value, kind, key)
        config = replace(config, **{section_name: replace(section, **{name: new})})
    return config


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"train": {"steps": 5}}`` → ``{"train.steps": 5}``; a section's option tables end at their names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name.count(".") < 2:  # options that are tables themselves stay whole
            flat.update(flatten(value, name + "."))
        else:
            flat[name] = value
    return flat


def _field(section: Any, name: str, key: str) -> Any:
    known = [f.name for f in fields(section)]
    if name not in known:
        close = difflib.get_close_matches(name, known, 1) or [other for other in known if other.startswith(name)]
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise PansightError(f"unknown key {name!r}{hint}", where=key, hint=f"known: {', '.join(known)}")
    return getattr(section, name)


def _convert(value: Any, kind: Any, key: str) -> Any:
    """`value` as the type `kind` (int, float, bool, str or tuple of one of them)."""
    if get_origin(kind) is tuple:
        return tuple(_convert(v, get_args(kind)[0], key) for v in listed(value))
    error = PansightError(where=key, expected=_KINDS[kind], found=f"{value!r}")
    if kind is str:
        if not isinstance(value, str | Path):
            raise error
        return str(value)
    if kind is bool:
        words = {"true": True, "false": False, "yes": True, "no": False}
        found = words.get(value.lower()) if isinstance(value, str) else value
        if not isinstance(found, bool):
            raise error
        return found
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise error
    try:
        number = float(value)
    except ValueError:
        raise error from None
    if number != number or number in (float("inf"), float("-inf")):
        raise error
    if kind is int and number != int(number):
        raise error
    return int(value) if kind is int and not isinstance(value, str) else kind(number)


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _guess(value: Any) -> Any:
    """An option's value: texts from the command line are read as TOML where they are TOML, else kept as texts."""
    if not isinstance(value, str):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except ValueError:  # no TOML, or a number of thousands of digits
        return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _check(ok: bool, key: str, expected: str, section: Any) -> None:
    if not ok:
        raise PansightError(where=key, expected=expected, found=f"{getattr(section, key.partition('.')[2])!r}")
