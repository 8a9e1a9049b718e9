"""Count the classes of all training images: for the weights of classes in a loss, and to show rare ones more often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pansight.config import Config
from pansight.data import Dataset
from pansight.data.loader import Repeats
from pansight.engine.automatic.statistics import Choice
from pansight.engine.checkpoint.changes import CLASS_WEIGHTS
from pansight.engine.progress import ProgressBar
from pansight.errors import PansightError
from pansight.files import read_json, write_json
from pansight.models import entry
from pansight.models.contract import BACKGROUND
from pansight.ops.idmap import areas
from pansight.ops.semantic.class_weights import WORDS, class_weights, repeat_factors
from pansight.types import LabelSpace

REPEATS = "repeats.json"
"""The file of a run folder that says how often each training image is shown, so that a resumption need not count."""

Pixels = NDArray[np.int64]
Counted = Callable[[], Pixels]
"""Gives the counts, and counts when it is asked first."""


def count_pixels(dataset: Dataset, shown: bool = False) -> Pixels:
    """int64 (N, C): the pixels of each class in each image, at the size of its file; crowds are of their class.

    Reads every image once. shown: with a progress bar. Raises PansightError where an image is bad.
    """
    pixels = np.zeros((len(dataset), len(dataset.labels)), np.int64)
    with ProgressBar("classes", shown) as bar:
        for index, row in enumerate(pixels):
            truth = dataset[index].truth
            found = areas(truth.ids.numpy())
            for segment in truth.segments:
                row[segment.category] += found.get(segment.id, 0)
            bar.update((index + 1) / len(pixels), f"counted in image {index + 1}/{len(pixels)}")
    return pixels


def choose_class_weights(config: Config, labels: LabelSpace, counted: Counted) -> list[Choice]:
    """The numbers that a word for the weights of classes stands for, counted from all training images.

    Raises PansightError for a word that is none, and where no pixel has a class.
    """
    rule = config.model.options.get("class_weights")
    if not isinstance(rule, str) or rule not in WORDS:
        return []
    pixels = _of_loss(counted(), config.model.name, labels)  # (N, K)
    beside = (pixels.sum(1, keepdims=True) * (pixels > 0)).sum(0)
    weights = class_weights(rule, pixels.sum(0), beside)
    absent = int((weights == 0).sum())
    reason = f"{rule}, counted from all {len(pixels)} images" + (
        f"; {absent} of {len(weights)} classes never occur" if absent else ""
    )
    return [Choice(CLASS_WEIGHTS, [float(f"{weight:.5g}") for weight in weights], reason)]


def _of_loss(pixels: Pixels, name: str, labels: LabelSpace) -> Pixels:
    """int64 (N, K): the pixels of the classes that the loss of a model tells apart, which may put things together."""
    rows = list(entry(name).pixel_classes(labels))
    other = rows.index(BACKGROUND) if BACKGROUND in rows else -1
    place = {row: index for index, row in enumerate(rows)}
    result = np.zeros((len(pixels), len(rows)), np.int64)
    for category in labels:
        column = place.get(category.name, other)
        if column >= 0:
            result[:, column] += pixels[:, category.id]
    return result


def choose_repeats(threshold: float, counted: Counted) -> list[float] | None:
    """How often each training image is shown in an epoch, on average; None where each is shown once."""
    if not threshold:
        return None
    return [float(f"{factor:.6g}") for factor in repeat_factors(counted() > 0, threshold)]


def epoch_length(threshold: float, images: int, counted: Counted) -> int:
    """How many images are shown in an epoch of `images` different ones."""
    factors = choose_repeats(threshold, counted)
    return images if factors is None else Repeats(factors).length


def told(factors: Sequence[float], threshold: float) -> str:
    """One line on what is repeated."""
    more = sum(factor > 1 for factor in factors)
    return (
        f"{more} of {len(factors)} images with rare classes up to {max(factors):.1f} times, {Repeats(factors).length} "
        f"images an epoch (train.repeat_threshold = {threshold:g})"
    )


def write_repeats(folder: Path, threshold: float, factors: Sequence[float]) -> None:
    """Keep the factors in a run folder."""
    write_json(folder / REPEATS, {"threshold": threshold, "factors": list(factors)})


def read_repeats(folder: Path, threshold: float, images: int) -> list[float] | None:
    """The factors of a run folder; None where it has none, or those of another threshold or of other images.

    Raises PansightError for a file that is damaged.
    """
    if not (folder / REPEATS).is_file():
        return None
    content = read_json(folder / REPEATS)
    factors = content.get("factors") if isinstance(content, dict) else None
    if not isinstance(factors, list) or not all(isinstance(factor, int | float) for factor in factors):
        raise PansightError(where=folder / REPEATS, expected="factors of images", found="none")
    return factors if content.get("threshold") == threshold and len(factors) == images else None
