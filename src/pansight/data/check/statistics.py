"""Statistics of a data set: classes, sizes, shares and objects per image, counted image by image."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pansight.data.check.examine import Examined
from pansight.data.check.reader import Class

QUERIES = 100
"""DETR, MaskFormer and their kin find at most as many segments in an image as they have queries: 100 as published."""

SMALL, MEDIUM = 32**2, 96**2
"""Upper bounds of the size classes in pixels, as COCO's average precision has them."""


@dataclass
class ClassCount:
    """Of one class: images it occurs in, segments, pixels, and how many of the segments are crowds."""

    images: int = 0
    segments: int = 0
    pixels: int = 0
    crowds: int = 0


@dataclass
class Statistics:
    """Counts of one part. Memory: a number an image."""

    classes: dict[int, Class]
    counts: dict[int, ClassCount] = field(default_factory=dict)
    images: int = 0
    void: int = 0  # pixels of no segment
    total: int = 0  # pixels of all maps
    crowds: int = 0
    sizes: Counter[str] = field(default_factory=Counter)  # things by size class, crowds left out
    per_image: array[int] = field(default_factory=lambda: array("L"))  # segments, crowds left out
    image_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.counts = {number: ClassCount() for number in self.classes}

    def add(self, image: Examined) -> None:
        self.images += 1
        if image.size is None or not image.pixels:
            return
        self.image_sizes[image.size] += 1
        self.total += image.size[0] * image.size[1]
        seen: set[int] = set()
        objects = covered = 0
        for category, pixels, is_crowd in _segments(image):
            count = self.counts[category]
            count.segments += 1
            count.pixels += pixels
            count.crowds += is_crowd
            count.images += category not in seen
            seen.add(category)
            self.crowds += is_crowd
            objects += not is_crowd
            covered += pixels
            if self.classes[category].is_thing is not False and not is_crowd:
                self.sizes["small" if pixels < SMALL else "medium" if pixels < MEDIUM else "large"] += 1
        # masks may overlap, so what none of them covers was counted
        self.void += image.pixels[0] if image.ids is None else image.size[0] * image.size[1] - covered
        self.per_image.append(objects)

    def pixels(self, is_thing: bool | None) -> int:
        return sum(c.pixels for n, c in self.counts.items() if self.classes[n].is_thing is is_thing)

    def segments(self, is_thing: bool | None) -> int:
        return sum(c.segments for n, c in self.counts.items() if self.classes[n].is_thing is is_thing)

    def objects(self) -> dict[str, int]:
        """Segments an image: median, 90th percentile, maximum, and images beyond QUERIES."""
        counts = np.sort(np.frombuffer(self.per_image, f"u{self.per_image.itemsize}")) if self.per_image else [0]
        last = len(counts) - 1
        median, high, most = (int(counts[round(share * last)]) for share in (0.5, 0.9, 1.0))
        beyond = sum(int(n) > QUERIES for n in counts)
        return {"median": median, "p90": high, "max": most, f"images_over_{QUERIES}": beyond}

    def to_json(self) -> dict[str, Any]:
        """Areas in pixels; `size` as [H, W]."""
        rows = [
            {"id": n, "name": c.name, "isthing": c.is_thing, **vars(self.counts[n])} for n, c in self.classes.items()
        ]
        sizes = [{"size": list(size), "images": n} for size, n in self.image_sizes.most_common()]
        kinds = {"thing": True, "stuff": False, "unknown": None}
        shares = {name: self.pixels(kind) for name, kind in kinds.items()}
        return {
            "images": self.images,
            "pixels": {"total": self.total, "void": self.void, **shares},
            "segments": {name: self.segments(kind) for name, kind in kinds.items()} | {"crowd": self.crowds},
            "thing_sizes": {name: self.sizes[name] for name in ("small", "medium", "large")},
            "segments_per_image": self.objects(),
            "image_sizes": sizes,
            "classes": rows,
        }


def _segments(image: Examined) -> Iterator[tuple[int, int, bool]]:
    """(category, pixels, is_crowd) of every segment that has pixels."""
    yield from image.masks
    for segment in image.declared:
        if segment.id in image.pixels:
            yield segment.category, image.pixels[segment.id], segment.is_crowd
