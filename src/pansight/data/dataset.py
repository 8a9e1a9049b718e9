"""The `Dataset` protocol, and small functions that all readers share.

torch is loaded when the first tensor is made: what reads annotations alone (convert, check, split) starts without.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.types import LabelSpace, Sample

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""The usual names of the parts of a data set; `split_of` knows which part any other name means."""

_SPLIT_OF_WORD = {word + end: part for part, words in SPLITS.items() for word in words for end in ("", "set")} | {
    "dev": "val",
    "devset": "val",
}


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
    import torch

    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)  # (H, W, 3) → (3, H, W)


def image_array(image: Tensor) -> NDArray[Any]:
    """The inverse of image_tensor: (3, H, W) → contiguous (H, W, 3), a view where it was one."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())  # (3, H, W) → (H, W, 3)


def ids_tensor(ids: NDArray[Any]) -> Tensor:
    """int32 (H, W) array → tensor of the same memory."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int32))


def split_of(name: str) -> str | None:
    """The part of a data set, a key of SPLITS, that the name of a folder, file or part means; None where it means none.

    "coco_train", "train2017", "TRAIN", "trainset", "Validation" and "images/train" are understood; "trainval", which is
    two parts, and "trainer" are none. "dev" is the validation part, but the "test-dev" of COCO a test part.
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    found = {_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD}
    if "dev" in words and found == {"val", "test"}:
        return "test"
    return found.pop() if len(found) == 1 else None


def means_split(name: str, split: str) -> bool:
    """Whether a part called `name` is the one that is asked for as `split`: the same name, or another for that part.

    A name with a year or the like ("train2017") is asked for by itself, or by the plain name of its part.
    """
    asked = _SPLIT_OF_WORD.get(split.lower())
    return name == split or (asked is not None and split_of(name) == asked)


def part_folders(*folders: Path) -> tuple[str, ...]:
    """The names of all sub-folders that name a part of a data set: training parts first, then validation, then test.

    Of the same part, the usual names come first. Folders that do not exist or cannot be read have none.
    """
    names = {name for folder in folders for name in next(os.walk(folder), ("", [], []))[1]}
    ranked = [(part, name) for name in names if not name.startswith(".") and (part := split_of(name)) is not None]

    def rank(row: tuple[str, str]) -> tuple[int, int, str]:
        part, name = row
        usual = SPLITS[part]
        return list(SPLITS).index(part), usual.index(name) if name in usual else len(usual), name

    return tuple(name for _, name in sorted(ranked, key=rank))


def part_names(split: str | None) -> tuple[str, ...]:
    """The usual names of the part that `split` means, or itself where it means none of them."""
    if split is None:
        return ()
    part = split_of(split)
    return (split,) if part is None else tuple(dict.fromkeys((split, *SPLITS[part])))


def expect(condition: bool, source: str | Path, expected: str, found: Any) -> None:
    """Raise PansightError in one line unless `condition` holds; a long `found` is shortened."""
    if not condition:
        text = repr(found)
        raise PansightError(where=source, expected=expected, found=text if len(text) <= 120 else text[:117] + "...")
