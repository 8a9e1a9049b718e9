"""The images that a run was trained on: recorded beside its weights, and found again among those that are measured.

A figure on images that the model has learnt says how well it remembers them, not how well it sees. Small training parts
are recorded by the content of their images, so that a copy under another path or name is noticed too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pansight.data import Dataset
from pansight.errors import PansightError
from pansight.files import read_json, write_json

TRAINING_IMAGES = "training_images.json"
HASHED = 500
"""A larger training part is recorded by the ids and file names alone: reading all of its images would take minutes."""


def write_training_images(folder: Path, dataset: Dataset) -> None:
    """training_images.json: id and file name of each image, and a hash of its pixels unless there are too many."""
    indices = range(len(dataset))
    record: dict[str, Any] = {"images": [[dataset.image_id(i), dataset.file_name(i)] for i in indices]}
    if len(dataset) <= HASHED:
        record["pixels"] = [pixel_hash(dataset, i) for i in indices]
    write_json(folder / TRAINING_IMAGES, record)


def count_trained_on(folder: Path, dataset: Dataset, count: int) -> int | None:
    """How many of the first `count` images a run was trained on; None where the run does not say.

    By the pixels where the run recorded them, else by id and file name together.
    Raises PansightError where the record is damaged.
    """
    path = folder / TRAINING_IMAGES
    if not path.is_file():
        return None
    record = read_json(path)
    try:
        names = {(image_id, str(name)) for image_id, name in record["images"]}
        pixels = set(record.get("pixels", ())) - {None}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PansightError(where=path, expected="the training images of a run", found=f"{error!r:.60}") from error
    if pixels:
        return sum(pixel_hash(dataset, i) in pixels for i in range(count))
    return sum((dataset.image_id(i), dataset.file_name(i)) in names for i in range(count))


def pixel_hash(dataset: Dataset, index: int) -> str | None:
    """A hash of the decoded image; None where it cannot be read, which is told when it is used."""
    try:
        image = dataset[index].image.contiguous().numpy()  # uint8 (3, H, W)
    except PansightError:
        return None
    return hashlib.blake2b(image.tobytes(), digest_size=8, key=str(image.shape).encode()).hexdigest()
