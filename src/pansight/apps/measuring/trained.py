"""The images that a run was trained on: recorded beside its weights, and found again among those that are measured.

A figure on images that the model has learnt says how well it remembers them, not how well it sees. Small training parts
are recorded by the content of their images, so that a copy under another path or name is noticed too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pansight.data import Dataset
from pansight.errors import PansightError
from pansight.files import read_json, write_json

TRAINING_IMAGES = "training_images.json"
HASHED = 500
"""Of a larger training part only as many images, evenly spread, are recorded by content: reading all takes minutes."""
PROBES = 20
"""Images whose content is compared where a large training part knows their names."""


def write_training_images(folder: Path, dataset: Dataset) -> None:
    """training_images.json: id, file name and, for HASHED of the images, a hash of the pixels."""
    count = len(dataset)
    hashed = range(count) if count <= HASHED else {k * count // HASHED for k in range(HASHED)}
    pixels = [pixel_hash(dataset, i) if i in hashed else None for i in range(count)]
    rows = [[dataset.image_id(i), dataset.file_name(i), pixels[i]] for i in range(count)]
    write_json(folder / TRAINING_IMAGES, {"images": rows})


def count_trained_on(folder: Path, dataset: Dataset, count: int) -> int | None:
    """How many of the first `count` images a run was trained on; None where the run does not say.

    By the content of the images where the run recorded that of all. Else by id and file name together, unless the
    content of the first ones shows that other images merely have the same names.
    Raises PansightError where the record is damaged.
    """
    path = folder / TRAINING_IMAGES
    if not path.is_file():
        return None
    try:
        rows = [(image_id, str(name), pixels) for image_id, name, pixels in read_json(path)["images"]]
        known = {(image_id, name): pixels for image_id, name, pixels in rows}
        contents = {pixels for _, _, pixels in rows if pixels}
    except (KeyError, TypeError, ValueError) as error:
        raise PansightError(where=path, expected="the training images of a run", found=f"{error!r:.60}") from error
    if len(rows) <= HASHED:
        return sum(pixel_hash(dataset, i) in contents for i in range(count))
    named = {i: known[key] for i in range(count) if (key := (dataset.image_id(i), dataset.file_name(i))) in known}
    probes = [i for i, pixels in named.items() if pixels][:PROBES]
    return 0 if probes and not any(pixel_hash(dataset, i) == named[i] for i in probes) else len(named)


def pixel_hash(dataset: Dataset, index: int) -> str | None:
    """A hash of the decoded image; None where it cannot be read, which is told when it is used."""
    try:
        image = dataset[index].image.contiguous().numpy()  # uint8 (3, H, W)
    except PansightError:
        return None
    return hashlib.blake2b(image.tobytes(), digest_size=8, key=str(image.shape).encode()).hexdigest()
