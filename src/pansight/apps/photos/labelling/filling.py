"""Which segments of a prediction become annotations: the sure ones, where nobody has annotated anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pansight.ops.idmap import MAX_ID, IdArray, areas, present_ids, relabel
from pansight.types import VOID, LabelSpace, PanopticSegmentation, Segment

UNSURE, SMALL, OTHER, TAKEN, NOTHING = "unsure", "small", "other", "taken", "nothing"

REASONS = {
    UNSURE: "below the confidence",
    SMALL: "objects of too few pixels",
    OTHER: "of classes that were not asked for",
    TAKEN: "objects that are annotated already, for the most part",
    NOTHING: "where the model says nothing",
}
"""Why pixels stay void."""


class Rule(NamedTuple):
    """What becomes an annotation. labels: of what is written. classes: class of the model → class of `labels`.

    confidence: the least score of a segment. min_area: the least pixels of a thing. max_overlap: a thing of which
    annotations cover more than this share is dropped, as in the merge of objects (`ops.fusion.instances`).
    void_is: the reason why pixels are void in the prediction.
    """

    labels: LabelSpace
    classes: Mapping[int, int]
    confidence: float
    min_area: int = 0
    max_overlap: float = 0.5
    void_is: str = NOTHING


class Added(NamedTuple):
    """A segment that the model gave."""

    category: int  # of the labels that are written
    pixels: int
    score: float


class Labelled(NamedTuple):
    """map: what is written. is_kept: bool (H, W), where it was annotated. added: a row for each segment of the model.

    void: reason of REASONS → pixels that stay void.
    """

    map: PanopticSegmentation
    is_kept: NDArray[np.bool_]
    added: tuple[Added, ...]
    void: Counter[str]

    @property
    def kept(self) -> int:
        """Pixels that were annotated."""
        return int(self.is_kept.sum())

    def part(self, kept: bool) -> PanopticSegmentation:
        """What was annotated, or what the model added, alone."""
        ids = np.where(self.is_kept == kept, self.map.ids.numpy(), VOID)
        present = set(present_ids(ids).tolist())
        return PanopticSegmentation(torch.from_numpy(ids), tuple(s for s in self.map.segments if s.id in present))


def labelled(found: PanopticSegmentation, rule: Rule, kept: PanopticSegmentation | None = None) -> Labelled:
    """The sure segments of a prediction in the void of `kept`, whose pixels, ids and segments stay as they are.

    found: in the classes of the model. kept: in those of ``rule.labels``, of the same size; None: all is void. Stuff
    joins the segment that `kept` has of its class; everything else gets the smallest ids that are free, in the order of
    `found`. Nothing is changed in place.
    """
    ids = found.ids.cpu().numpy()
    base = np.zeros_like(ids) if kept is None else kept.ids.cpu().numpy()
    segments = [] if kept is None else list(kept.segments)
    open_ids = np.where(base == VOID, ids, -1).astype(np.int32)  # −1 where somebody has annotated
    whole, visible = areas(ids), areas(open_ids)
    stuff = {s.category: s.id for s in segments if not rule.labels[s.category].is_thing and not s.is_crowd}
    taken = {segment.id for segment in segments}
    free = (number for number in count(1) if number not in taken)
    void = Counter({rule.void_is: visible.get(VOID, 0)})
    mapping: dict[int, int] = {}
    added: list[Added] = []
    for segment in found.segments:
        pixels = visible.get(segment.id, 0)
        reason = _refused(segment, pixels, whole.get(segment.id, 0), rule)
        if reason or not pixels:
            void[reason] += pixels
            continue
        category = rule.classes[segment.category]
        number = stuff.get(category)
        if number is None:
            number = next(free)
            segments.append(Segment(number, category, segment.score))
            if not rule.labels[category].is_thing:
                stuff[category] = number
        mapping[segment.id] = number
        added.append(Added(category, pixels, segment.score))
    joined: IdArray = base + relabel(open_ids, mapping)
    assert len(segments) <= MAX_ID  # there are fewer pixels
    void = Counter({reason: pixels for reason, pixels in void.items() if pixels})
    result = PanopticSegmentation(torch.from_numpy(joined), tuple(segments))
    return Labelled(result, base != VOID, tuple(added), void)


def _refused(segment: Segment, pixels: int, whole: int, rule: Rule) -> str:
    """The reason why a segment of `whole` pixels, of which `pixels` are not annotated, is not taken; "" for none."""
    category = rule.classes.get(segment.category)
    if category is None:
        return OTHER
    if not segment.score >= rule.confidence:  # NaN is not sure
        return UNSURE
    if not rule.labels[category].is_thing:
        return ""
    if whole - pixels > rule.max_overlap * whole:
        return TAKEN
    return SMALL if pixels < rule.min_area else ""
