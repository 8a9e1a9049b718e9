"""What the training images are like, as far as settings are chosen by it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from pansight.data import Dataset
from pansight.ops.targets import boxes_of_ids

SAMPLED = 48
"""So many images, evenly spread, are looked at."""

FEW_IMAGES = 500
"""With fewer, some models learn at another rate, and small images are learnt by a small network."""


class Choice(NamedTuple):
    key: str
    value: Any
    reason: str


class Statistics(NamedTuple):
    """Of a sample of the images, in which crowds are no objects.

    Sides and object sizes (square root of the box area) are in pixels.
    """

    images: int
    short: float  # median
    long: float  # median
    equal_sizes: bool
    most_objects: int
    most_segments: int  # objects and stuff
    object_small: float  # 5th percentile; 0 without objects
    object_large: float  # 95th percentile


def statistics(dataset: Dataset) -> Statistics:
    """Reads `SAMPLED` samples. Raises PansightError where one of them is bad."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, SAMPLED).astype(int))
    sizes: list[tuple[int, int]] = []
    objects: list[np.ndarray] = []
    most = most_segments = 0
    for index in indices:
        sample = dataset[int(index)]
        sizes.append(sample.truth.size)
        if sample.instances is not None:
            boxes, crowd = sample.instances.boxes_xyxy, sample.instances.is_crowd
            boxes = boxes if crowd is None else boxes[~crowd]  # losses leave crowds out
        else:
            ids = [s.id for s in sample.truth.segments if dataset.labels[s.category].is_thing and not s.is_crowd]
            boxes = boxes_of_ids(sample.truth.ids, torch.tensor(ids, dtype=torch.int64))
        objects.append(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt().numpy())  # (N,)
        most = max(most, len(boxes))
        stuff = sum(not dataset.labels[s.category].is_thing for s in sample.truth.segments)
        most_segments = max(most_segments, len(boxes) + stuff)
    every = np.concatenate(objects)
    small, large = (float(np.percentile(every, q)) if len(every) else 0.0 for q in (5, 95))
    short, long = (float(np.median([f(s) for s in sizes])) for f in (min, max))
    return Statistics(len(dataset), short, long, len(set(sizes)) == 1, most, most_segments, small, large)
