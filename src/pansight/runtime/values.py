"""What goes in and comes out: classes, sizes, and predictions of NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Outputs = Mapping[str, Array]
"""The outputs of a graph for one photo, by name, each with the axis of images that the model has in front."""

IGNORE = -1
"""In a semantic map: the class is unknown."""


class Label(NamedTuple):
    """A class. source_id: its id in the files of the data set."""

    name: str
    is_thing: bool
    color: tuple[int, int, int]
    source_id: int


class Canvas(NamedTuple):
    """The sizes (H, W) on the way of a map to the photo: resized to `padded`, cut to `extent`, then to `size`."""

    padded: tuple[int, int]
    extent: tuple[int, int]
    size: tuple[int, int]


class Segment(NamedTuple):
    """A segment of a panoptic map. category: index into the labels."""

    id: int
    category: int
    score: float = 1.0


@dataclass(frozen=True, eq=False)
class Panoptic:
    """ids: int32 (H, W), 0 = void. segments: one for every other id."""

    ids: NDArray[np.int32]
    segments: tuple[Segment, ...]


@dataclass(frozen=True, eq=False)
class Instances:
    """N objects by falling score: boxes_xyxy float32 (N, 4) in pixels, labels int64 (N,), scores float32 (N,).

    masks: bool (N, H, W), None of a model for boxes alone.
    """

    boxes_xyxy: Array
    labels: Array
    scores: Array
    masks: Array | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of a photo, at its size; None where it produces no such thing.

    semantic: int64 (H, W), indices into the labels, IGNORE where unknown.
    """

    panoptic: Panoptic | None = None
    semantic: Array | None = None
    instances: Instances | None = None


class Rule(NamedTuple):
    """What decode goes by: the name of the rule, its numbers by name, the classes, and the rules of inner networks.

    inside: the graph has applied it, and gives the panoptic map of what the network saw.
    """

    name: str
    options: Mapping[str, Any]
    labels: tuple[Label, ...]
    networks: Mapping[str, Rule] = {}
    inside: bool = False

    @property
    def things(self) -> list[int]:
        """The indices of the classes that are things."""
        return [index for index, label in enumerate(self.labels) if label.is_thing]

    @property
    def stuff(self) -> list[int]:
        """The indices of the classes that are stuff."""
        return [index for index, label in enumerate(self.labels) if not label.is_thing]

    def number(self, name: str) -> Any:
        """One of the numbers of decode. Raises KeyError where the folder does not have it."""
        return self.options[name]
