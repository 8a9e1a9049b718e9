"""Leave out the images of a data set that cannot be used, before anything is learnt or measured, and say which.

A photo or mask that is missing, cut off, no image or of another size is found without decoding it. So the images that
are counted, shown and drawn at random are those that can be read, and the same ones whenever a run is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pansight.data.dataset import Dataset, Subset
from pansight.data.formats.coco_instances import CocoInstances
from pansight.data.formats.coco_panoptic import CocoPanoptic
from pansight.data.formats.instance_png import InstancePng
from pansight.data.formats.webdataset import WebDataset
from pansight.errors import PansightError

FolderDataset = CocoPanoptic | CocoInstances | InstancePng
"""The readers of data sets whose photos are files of a folder."""

FileDataset = FolderDataset | WebDataset
"""The readers of files; they know what is wrong with an image."""

THREADS = 8
"""Files that are looked at at once: a network disk answers many as quickly as one."""


class Usable(Subset):
    """The samples of a data set that can be used. left_out: why, for every image or annotation that cannot."""

    def __init__(self, dataset: Dataset, indices: Sequence[int], left_out: Sequence[PansightError]):
        super().__init__(dataset, indices)
        self.left_out = tuple(left_out)


def usable(
    dataset: Dataset, strict: bool = False, progress: Callable[[float, str], None] | None = None
) -> Dataset | Usable:
    """`dataset` itself where nothing is wrong with its files, else its images that can be used.

    strict: raise the first error instead. progress: called with the share that is done, 0 … 1, and a line.
    Raises PansightError where no image can be used.
    """
    files, indices = _files_of(dataset)
    if files is None:
        return dataset
    problems: list[PansightError | None] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for number, problem in enumerate(pool.map(files.problem, indices), 1):
            problems.append(problem)
            if progress is not None:
                progress(number / len(indices), f"file {number}/{len(indices)}")
    left_out = [*files.damaged, *(problem for problem in problems if problem is not None)]
    if not left_out:
        return dataset
    good = [n for n, problem in enumerate(problems) if problem is None]
    if strict:
        raise left_out[0]
    if not good:
        first = next(problem for problem in problems if problem is not None)
        raise first if len(problems) == 1 else first.at(f"none of {len(problems)} images can be used; the first")
    return Usable(dataset, good, left_out)


def left_out_of(dataset: Dataset) -> tuple[PansightError, ...]:
    """What `usable` left out of a data set, or of the one that it is a part of."""
    if isinstance(dataset, Usable):
        return dataset.left_out
    return left_out_of(dataset.dataset) if isinstance(dataset, Subset) else ()


def _files_of(dataset: Dataset) -> tuple[FileDataset | None, list[int]]:
    """(the reader of the files, where there is one; the numbers that the samples of `dataset` have there)."""
    indices = list(range(len(dataset)))
    while isinstance(dataset, Subset):
        indices = [dataset.indices[index] for index in indices]
        dataset = dataset.dataset
    return (dataset if isinstance(dataset, FileDataset) else None), indices
