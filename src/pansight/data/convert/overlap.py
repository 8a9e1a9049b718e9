"""Give each pixel of overlapping annotations to one region, by a named policy; every decision is counted.

From the bottom up: the source's own map, then crowds, then the other regions, among which the policy decides. Regions
of one stuff class are one segment, and a crowd of stuff is plain stuff: only objects are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import numpy as np

from pansight.data.convert.source import Annotated, Region
from pansight.errors import PansightError, choice_error
from pansight.ops.idmap import IdArray, areas, relabel
from pansight.types import LabelSpace, Segment

DEFAULT_POLICY = "smaller-on-top"

POLICIES: dict[str, Callable[[Region], float]] = {
    "smaller-on-top": lambda region: -int(np.count_nonzero(region.mask)),
    "larger-on-top": lambda region: int(np.count_nonzero(region.mask)),
    "later-on-top": lambda region: 0,
    "score": lambda region: region.score,
    "error": lambda region: 0,
}
"""Name → what puts a region higher; of equals, the later one of the source lies on top. `error` refuses instead."""

OVER_MAP, OVER_CROWD = "over-map", "over-crowd"
"""The two rules beside the policy: regions lie over the source's own map, and over crowds."""


class Decision(NamedTuple):
    """One kind of decision: pixels that two segments claimed and one kept."""

    rule: str  # a policy's name, OVER_MAP or OVER_CROWD
    winner: int  # index of a category
    loser: int


class Vanished(NamedTuple):
    """A segment of which no pixel is left."""

    category: int  # index
    pixels: int  # that it had; 0: thinner than a pixel, or outside the image
    is_crowd: bool = False


class Resolved(NamedTuple):
    """An image with one owner per pixel."""

    ids: IdArray  # int32 (H, W), 0 = void
    segments: tuple[Segment, ...]  # a row for every id in the map, in the order of the source
    decisions: Counter[Decision]  # pixels that changed hands, counted from the bottom up
    vanished: tuple[Vanished, ...]
    void: int  # pixels without an owner that stayed void
    filled: int  # pixels without an owner that the filling class took


def resolve(image: Annotated, labels: LabelSpace, policy: str = DEFAULT_POLICY, fill: int | None = None) -> Resolved:
    """One owner per pixel. labels: the categories by index; fill: the stuff among them that takes what nobody owns.

    Ids of the source's own map stay as they are; regions get the smallest free ones. Raises PansightError for an
    unknown policy, where a region is not inside the image, and under the policy `error` where two regions overlap.
    """
    if policy not in POLICIES:
        raise choice_error("overlap policy", policy, POLICIES)
    board = _Board(image, labels)
    height_of = POLICIES[policy]
    ranks = [(not board.is_crowd(region), height_of(region), n) for n, region in enumerate(image.regions)]
    numbers = [board.number_for(region) for region in image.regions]
    for _, _, n in sorted(ranks):
        board.paint(image.regions[n], numbers[n], policy)
    filled = void = int(np.count_nonzero(board.ids == 0))
    if fill is not None and void:
        board.fill(fill)
    return board.result(void if fill is None else 0, 0 if fill is None else filled)


class _Board:
    """The map while it is painted."""

    def __init__(self, image: Annotated, labels: LabelSpace):
        self.image, self.labels = image, labels
        self.is_thing = [category.is_thing for category in labels]
        self.segments: dict[int, Segment] = {}  # by number, in the order of the source
        self.claimed: Counter[int] = Counter()  # pixels that each number was given, overlaps included
        self.decisions: Counter[Decision] = Counter()
        self._stuff: dict[int, int] = {}  # category → its one number
        self.ids = self._start()
        self._map_numbers = set(self.segments)
        self._free = (number for number in count(1) if number not in self._map_numbers)

    def _start(self) -> IdArray:
        image = self.image
        if image.ids is None:
            return np.zeros(image.size, np.int32)
        if image.ids.shape != image.size:
            found = "×".join(str(n) for n in image.ids.shape)
            raise PansightError(
                where=image.file_name, expected=f"a map of {image.size[0]}×{image.size[1]}", found=found
            )
        pixels = areas(image.ids)
        new: dict[int, int] = {}
        for number, (category, crowd) in image.segments.items():
            new[number] = number if self.is_thing[category] else self._stuff.setdefault(category, number)
            self.segments.setdefault(new[number], Segment(number, category, 1.0, crowd and self.is_thing[category]))
            self.claimed[new[number]] += pixels.get(number, 0)
        strange = pixels.keys() - image.segments.keys() - {0}
        if strange:
            raise PansightError(where=image.file_name, expected="only listed ids in the map", found=min(strange))
        same = all(number == merged for number, merged in new.items())
        return image.ids.copy() if same else relabel(image.ids, new)

    def is_crowd(self, region: Region) -> bool:
        return region.is_crowd and self.is_thing[region.category]

    def number_for(self, region: Region) -> int:
        """A new number for an object, the class's one for stuff."""
        category = region.category
        if self.is_thing[category]:
            number = next(self._free)
        else:
            number = self._stuff[category] if category in self._stuff else next(self._free)
            self._stuff[category] = number
        known = self.segments.get(number)
        score = region.score if known is None else max(known.score, region.score)
        self.segments[number] = Segment(number, category, score, self.is_crowd(region))
        return number

    def paint(self, region: Region, number: int, policy: str) -> None:
        (height, width), (top, left) = region.mask.shape, (region.top, region.left)
        crop = self.ids[max(top, 0) : top + height, max(left, 0) : left + width]
        if crop.shape != region.mask.shape:
            where = f"{self.image.file_name}: region {height}×{width} at row {top}, column {left}"
            raise PansightError(where=where, expected=f"it inside the image of {self.image.size}", found="it outside")
        before = crop[region.mask]
        self.claimed[number] += before.size
        for loser, pixels in areas(before[None]).items() if before.any() else ():
            if loser not in (0, number):
                self._decide(number, loser, pixels, policy)
        crop[region.mask] = number

    def _decide(self, number: int, loser: int, pixels: int, policy: str) -> None:
        over, under = self.segments[number], self.segments[loser]
        rule = OVER_MAP if loser in self._map_numbers else OVER_CROWD if under.is_crowd > over.is_crowd else policy
        if rule == "error":
            found = f"{pixels} pixels of both {self.labels[over.category].name} and {self.labels[under.category].name}"
            raise PansightError(where=self.image.file_name, expected="no overlaps (policy error)", found=found)
        self.decisions[Decision(rule, over.category, under.category)] += pixels

    def fill(self, category: int) -> None:
        number = self._stuff[category] if category in self._stuff else next(self._free)
        self.segments.setdefault(number, Segment(number, category))
        self.ids[self.ids == 0] = number

    def result(self, void: int, filled: int) -> Resolved:
        present = areas(self.ids).keys()
        gone = [Vanished(s.category, self.claimed[n], s.is_crowd) for n, s in self.segments.items() if n not in present]
        gone += [Vanished(category, 0) for category in self.image.empty]
        rest = tuple(segment for number, segment in self.segments.items() if number in present)
        return Resolved(self.ids, rest, self.decisions, tuple(gone), void, filled)
