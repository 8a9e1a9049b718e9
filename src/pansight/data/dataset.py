"""The `Dataset` protocol, and small functions that all readers share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pansight.errors import PansightError
from pansight.types import LabelSpace, Sample

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""The names under which the parts of a data set are looked for."""


class Dataset(Protocol):
    """A data set: samples by index, at the size of their files."""

    @property
    def labels(self) -> LabelSpace: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Raises PansightError, naming the file, where it is bad; IndexError past the end."""
        ...

    def image_id(self, index: int) -> str | int:
        """The id of an image, without reading it."""
        ...

    def file_name(self, index: int) -> str:
        """The name of an image file within its folder, without reading it."""
        ...


class Subset:
    """The samples of `dataset` at `indices`, in that order."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]):
        bad = [i for i in indices if not 0 <= i < len(dataset)]
        if bad:
            raise PansightError(where="subset", expected=f"indices 0 … {len(dataset) - 1}", found=bad[0])
        self.dataset = dataset
        self.indices = tuple(int(i) for i in indices)

    @property
    def labels(self) -> LabelSpace:
        return self.dataset.labels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]

    def image_id(self, index: int) -> str | int:
        return self.dataset.image_id(self.indices[index])

    def file_name(self, index: int) -> str:
        return self.dataset.file_name(self.indices[index])


def split_dataset(dataset: Dataset, fraction: float = 0.1, seed: int = 0) -> tuple[Subset, Subset]:
    """(train, val) for data without a validation part: `fraction` of the images, at least one, drawn by `seed`.

    Raises PansightError where that leaves no image to train on.
    """
    if not 0 < fraction < 1:
        raise PansightError(where="split", expected="a fraction between 0 and 1", found=fraction)
    if len(dataset) < 2:
        raise PansightError(
            where="split", expected="at least 2 images to split off a validation part", found=len(dataset)
        )
    count = min(max(1, round(len(dataset) * fraction)), len(dataset) - 1)
    order = np.random.default_rng(seed).permutation(len(dataset))
    return Subset(dataset, sorted(order[count:].tolist())), Subset(dataset, sorted(order[:count].tolist()))


def limited(dataset: Dataset, limit: float) -> Dataset:
    """The images of a trial, evenly spread over the data set: `limit` of them, or that share where it is below 1.

    0, or as many as there are, leave the data set as it is; a share leaves at least one image. Files that lie in the
    order of classes or of scenes are all represented.
    """
    count = round(limit * len(dataset)) if limit < 1 else int(limit)
    if limit == 0 or count >= len(dataset):
        return dataset
    count = max(count, 1)
    return Subset(dataset, [(2 * n + 1) * len(dataset) // (2 * count) for n in range(count)])


def image_tensor(image: NDArray[Any]) -> Tensor:
    """(H, W, 3) → a (3, H, W) view of the same memory, so that OpenCV can take it back without a copy."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)  # (H, W, 3) → (3, H, W)


def image_array(image: Tensor) -> NDArray[Any]:
    """The inverse of image_tensor: (3, H, W) → contiguous (H, W, 3), a view where it was one."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())  # (3, H, W) → (H, W, 3)


def ids_tensor(ids: NDArray[Any]) -> Tensor:
    """int32 (H, W) array → tensor of the same memory."""
    return torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int32))


def part_names(split: str | None) -> tuple[str, ...]:
    """The names under which a split is looked for: its synonyms, or itself where it is none of the usual ones."""
    if split is None:
        return ()
    return next((names for names in SPLITS.values() if split in names), (split,))


def first_folder(candidates: Sequence[Path], holds: str, what: str, option: str) -> Path:
    """The first candidate that contains the file `holds`. Raises PansightError listing all that were looked into."""
    for folder in candidates:
        if (folder / holds).is_file():
            return folder
    looked = ", ".join(dict.fromkeys(str(c) for c in candidates))
    raise PansightError(
        f"expected {what} in one of {looked}; found it in none (name the folder: {option}=DIR)", where=holds
    )


def expect(condition: bool, source: str | Path, expected: str, found: Any) -> None:
    """Raise PansightError in one line unless `condition` holds; a long `found` is shortened."""
    if not condition:
        text = repr(found)
        raise PansightError(where=source, expected=expected, found=text if len(text) <= 120 else text[:117] + "...")
