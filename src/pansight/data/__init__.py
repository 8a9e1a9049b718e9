"""Data sets: readers, transforms and the loader.

    dataset = open_dataset("coco", split="val")        # the format is detected
    dataset = open_dataset("shapes", count=200)        # generated

A new format is one file with an opener and one line in DATASETS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pansight.data.dataset import SPLITS, Dataset, Subset, means_split, split_dataset
from pansight.data.formats.coco_files import find_json, kind_of
from pansight.data.formats.coco_instances import CocoInstances, open_coco_instances
from pansight.data.formats.coco_panoptic import CocoPanoptic, open_coco_panoptic
from pansight.data.formats.instance_png import InstancePng, find_layout, open_instance_png
from pansight.data.formats.official import (
    OFFICIAL,
    official_format,
    official_splits,
    open_ade20k,
    open_cityscapes,
    open_vistas,
)
from pansight.data.formats.shapes import Shapes
from pansight.data.formats.webdataset import WebDataset, is_webdataset, open_webdataset, webdataset_parts
from pansight.data.formats.webdataset.storage import is_address
from pansight.data.left_out import FileDataset
from pansight.data.options import checked_options
from pansight.errors import PansightError, choice_error
from pansight.files import read_json

__all__ = [
    "DATASETS",
    "SPLITS",
    "CocoInstances",
    "CocoPanoptic",
    "Dataset",
    "InstancePng",
    "Shapes",
    "Subset",
    "WebDataset",
    "detect_format",
    "find_splits",
    "open_dataset",
    "reading_notes",
    "split_dataset",
]


def open_shapes(
    source: str | Path = "shapes",
    split: str | None = None,
    count: int | None = None,
    height: int = 128,
    width: int = 128,
    seed: int = 0,
    background: str = "stuff",
    triangles: float | None = None,
) -> Shapes:
    """Generated shapes: 1000 images to train on and 200 to measure on, or `count` of each.

    `source` is only the word that asks for them.
    """
    if count is None:
        count = 1000 if split in (None, "train") else 200
    return Shapes(count, height, width, seed, split or "train", background, triangles)


DATASETS: dict[str, Callable[..., Dataset]] = {
    "shapes": open_shapes,
    "coco_panoptic": open_coco_panoptic,
    "coco_instances": open_coco_instances,
    "instance_png": open_instance_png,
    "cityscapes": open_cityscapes,
    "ade20k": open_ade20k,
    "vistas": open_vistas,
    "webdataset": open_webdataset,
}


def open_dataset(
    source: str | Path,
    format: str = "auto",
    split: str | None = None,
    options: Mapping[str, Any] | None = None,
    **named: Any,
) -> Dataset:
    """The data set at `source`: a folder, an annotation file, the address of shards in a store, or the word "shapes".

    split: "train", "val" or any other name that its files bear; without one, the whole set or its training part.
    options: those of the format's opener, by name; in Python they may be `named` as keywords, too, but for those that
    are called like a parameter above. Raises PansightError listing formats, options or files that were looked for.
    """
    name = detect_format(source, split) if format == "auto" else format
    if name not in DATASETS:
        raise choice_error("data format", name, DATASETS)
    opener = DATASETS[name]
    chosen = checked_options(name, opener, {**(options or {}), **named})
    if name != "shapes" and not is_address(source) and not Path(source).exists():
        raise PansightError(where=source, expected="a data folder or annotation file", found="none")
    dataset = opener(source, split, **chosen)
    if len(dataset) == 0:
        raise PansightError(where=source, expected="images", found="an empty data set")
    return dataset


def reading_notes(dataset: Dataset) -> tuple[str, ...]:
    """What the user must know of how a data set was read, such as images that lie under another path than is stated."""
    if isinstance(dataset, Subset):
        return reading_notes(dataset.dataset)
    return tuple(dataset.notes) if isinstance(dataset, FileDataset) else ()


def detect_format(source: str | Path, split: str | None = None) -> str:
    """The key in DATASETS of what lies at `source`. Raises PansightError listing what was looked for."""
    path = Path(source)
    if str(source) == "shapes":
        return "shapes"
    if is_address(source) or is_webdataset(path):  # nothing else is read out of a store
        return "webdataset"
    official = official_format(path, with_panoptic=True)
    if official is not None:
        return official
    if path.is_file():
        return _format_of_json(path)
    if not path.is_dir():
        raise PansightError(where=source, expected="a data folder, an annotation file or 'shapes'", found="none")
    for part in dict.fromkeys((split, None)):
        for prefix in ("panoptic", "instances"):
            file = find_json(path, prefix, part)
            if file is not None:
                named = file.stem.startswith(prefix) or kind_of(file) == f"coco_{prefix}"
                return f"coco_{prefix}" if named else _format_of_json(file)
        official = official_format(path, with_panoptic=False)  # its opener says which files are missing
        if official is not None:
            return official
        if find_layout(path, part) is not None:
            return "instance_png"
    looked = "annotations/panoptic_*.json, annotations/instances_*.json, images/ + instances/, PNGImages/ + PedMasks/"
    sets, hint = (
        "tar shards with categories.json, a Cityscapes, ADE20K or Vistas root",
        f"other annotations: pansight convert {source} --to OUT",
    )
    raise PansightError(
        f"expected one of {looked} (also in train/, val/), {sets}; found none of them; {hint}", where=source
    )


def _format_of_json(path: Path) -> str:
    content = read_json(path)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if isinstance(annotations, list) and annotations and isinstance(annotations[0], dict):
        if "segments_info" in annotations[0]:
            return "coco_panoptic"
        if "segmentation" in annotations[0]:
            return "coco_instances"
    raise PansightError(where=path, expected="COCO annotations with segments_info or segmentation", found="neither")


def find_splits(source: str | Path, format: str = "auto") -> tuple[str, ...]:
    """Which of train, val and test exist at `source`, without opening them; empty for data in one piece."""
    name = detect_format(source) if format == "auto" else format
    if name not in DATASETS:
        raise choice_error("data format", name, DATASETS)
    if name == "shapes":
        return tuple(SPLITS)
    path = Path(source)
    if name in OFFICIAL:
        return official_splits(path, name)
    if path.is_file():
        return ()
    if name == "instance_png":
        return tuple(split for split in SPLITS if find_layout(path, split) is not None)
    if name == "webdataset":
        parts = () if str(source).endswith(".tar") else webdataset_parts(str(source))
        return tuple(split for split in SPLITS if any(means_split(part, split) for part in parts))
    prefix = name.removeprefix("coco_")
    return tuple(split for split in SPLITS if find_json(path, prefix, split) is not None)
