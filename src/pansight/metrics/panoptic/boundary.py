"""Boundary IoU and Boundary PQ, which measure outlines; the IoU of a large segment hardly depends on its outline.

Source: Cheng et al., "Boundary IoU", arXiv 2103.16562, section 5, and the rules of its public evaluation:

- the boundary of a segment is its pixels within d of its contour: those that d erosions by a 3×3 square take away;
  d = 2 % of the image diagonal, rounded, at least 1. The border of the image counts as contour, void as outside
- Boundary IoU of a pair is the IoU of its two boundaries; the union leaves out what the prediction's has on void
- Boundary PQ is PQ with min(IoU, Boundary IoU) as the IoU of a pair: it matches above 0.5. Phantoms are excused
  by void and crowds as in PQ, by their whole area

Own computation: one pass over the map instead of one erosion per segment. A pixel is boundary where another id or
the outside lies in the (2d + 1)² square around it, so where a pixel that touches another id lies in the (2d − 1)² one.

Different on purpose: every crowd of a class is honoured, as in `panoptic_quality`; ids may have any value (the public
code marks the inside of segments by a number that can be an id).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.metrics.panoptic.matching import IGNORED, PHANTOM, ImageMatch
from pansight.metrics.scores import IOU_UNIT, ClassCounts, group_means, image_rows
from pansight.ops.maps.overlap import IntArray, overlaps_of
from pansight.types import VOID, LabelSpace

IdArray = NDArray[np.int32]

_INSIDE = 2**31 - 1
"""Stands for the pixels of a segment that are not boundary; beyond all ids that a file can hold."""

_STRIP_PIXELS = 2**18
"""Pairs are counted in strips of the image: large ones need no second copy of themselves."""


def boundary_distance(size: tuple[int, int], ratio: float = 0.02) -> int:
    """d in pixels for an image of size (H, W): ratio of its diagonal, rounded, at least 1."""
    return max(1, round(ratio * math.sqrt(size[0] ** 2 + size[1] ** 2)))


def boundary_ids(ids: IdArray, ratio: float = 0.02) -> IdArray:
    """The boundaries of all segments: int32 (H, W) → int32 (H, W), 0 on void and on the inside of segments.

    To tell void from the inside, ask the map it was made of. ratio: of the image diagonal.
    """
    return np.where(_is_boundary(ids, boundary_distance(ids.shape, ratio)), ids, np.int32(VOID))


def boundary_iou(
    truth_ids: IdArray, prediction_ids: IdArray, image: ImageMatch, ratio: float = 0.02
) -> NDArray[np.float64]:
    """(T,), Boundary IoU in [0, 1] of each truth segment with the prediction that PQ matched; 0.0 where none.

    truth_ids, prediction_ids: int32 (H, W), the maps that `image` was made of.
    Raises PansightError where their sizes differ.
    """
    if truth_ids.shape != prediction_ids.shape:
        expected, found = ("×".join(map(str, ids.shape)) for ids in (truth_ids, prediction_ids))
        raise PansightError(
            where="prediction", expected=f"the size of the truth {expected}", found=f"{found} (height × width)"
        )
    result = np.zeros(len(image.match))
    found = np.flatnonzero(image.match >= 0)
    if not found.size:
        return result
    shared, truth_area, prediction_area = _count_boundaries(truth_ids, prediction_ids, image, ratio)
    inside = shared[found]
    result[found] = inside / (truth_area[found] + prediction_area[found] - inside)
    return result


def boundary_match(image: ImageMatch, boundary: NDArray[np.float64]) -> ImageMatch:
    """The match of Boundary PQ: pairs of PQ whose min(IoU, Boundary IoU) stays above 0.5, with that as their IoU.

    boundary: (T,), of `boundary_iou`.
    """
    iou = np.minimum(image.iou, boundary)
    hit = iou > 0.5
    lost = image.match[(image.match >= 0) & ~hit]
    state = image.state.copy()
    state[lost] = np.where(image.excused[lost], IGNORED, PHANTOM)
    none = image.again[:0], image.again_iou[:0]
    return image._replace(
        match=np.where(hit, image.match, -1), iou=np.where(hit, iou, 0.0), state=state, again=none[0], again_iou=none[1]
    )


class BoundaryQuality:
    """Gathers Boundary PQ, and the Boundary IoU of what PQ found, over images.

    >>> metric = BoundaryQuality(labels)
    >>> metric.update(truth_ids, prediction_ids, image)
    >>> metric.compute()["All"]["pq"]
    """

    def __init__(self, labels: LabelSpace, ratio: float = 0.02):
        self.labels = labels
        self.ratio = ratio
        self._counts = ClassCounts(labels)
        self._found = [0] * len(labels)  # matches of PQ
        self._boundary = [0] * len(labels)  # their ΣBoundary IoU, in units of 2⁻⁵³, each rounded down
        self._updates = 0

    def update(self, truth_ids: IdArray, prediction_ids: IdArray, image: ImageMatch) -> NDArray[np.float64]:
        """Add one image; gives its `boundary_iou` (T,). Arguments and errors: see there."""
        boundary = boundary_iou(truth_ids, prediction_ids, image, self.ratio)
        self._counts.add_rows(image_rows(boundary_match(image, boundary), len(self.labels)))
        found = image.match >= 0
        for category, units in zip(image.truth.categories[found].tolist(), (boundary[found] * IOU_UNIT).tolist()):
            self._found[category] += 1
            self._boundary[category] += int(units)
        self._updates += 1
        return boundary

    def compute(self) -> dict[str, Any]:
        """All, Things, Stuff → pq sq rq n, of Boundary PQ; per_class by source id → name isthing pq sq rq tp fp fn iou
        boundary_iou; boundary_iou; ratio.

        boundary_iou: mean Boundary IoU over the segments that PQ found, of the class and of all; None without any.
        Fractions 0..1; classes and groups as in `PanopticQuality`. Without any image: {}.
        """
        if not self._updates:
            return {}
        rows = self._counts.rows()
        for c in self.labels:
            rows[str(c.source_id)]["boundary_iou"] = _mean(self._boundary[c.id], self._found[c.id])
        overall = _mean(sum(self._boundary), sum(self._found))
        return {**group_means(rows.values()), "per_class": rows, "boundary_iou": overall, "ratio": self.ratio}

    def merge(self, other: BoundaryQuality) -> None:
        """Add what another process gathered on other images. Raises PansightError for other labels or ratio."""
        if other.labels != self.labels or other.ratio != self.ratio:
            raise PansightError(
                "expected the same label space and ratio on both sides of a merge", where="boundary quality"
            )
        self._add(other.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All that was gathered, as plain JSON values."""
        gathered = {"found": list(self._found), "boundary": list(self._boundary), "updates": self._updates}
        return {**self._counts.state_dict(), **gathered, "ratio": self.ratio}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what was gathered by a `state_dict`. Raises PansightError for other classes or another ratio."""
        if state["ratio"] != self.ratio:
            raise PansightError(where="boundary quality", expected=f"the ratio {self.ratio}", found=state["ratio"])
        self.__init__(self.labels, self.ratio)
        self._add(state)

    def _add(self, state: dict[str, Any]) -> None:
        self._counts.add_state(state)
        self._found = [a + int(b) for a, b in zip(self._found, state["found"], strict=True)]
        self._boundary = [a + int(b) for a, b in zip(self._boundary, state["boundary"], strict=True)]
        self._updates += int(state["updates"])


def _is_boundary(ids: IdArray, distance: int) -> NDArray[np.bool_]:
    """bool (H, W): another id or the outside within `distance` (Chebyshev). Void is an id like any other here."""
    import cv2  # here, since figures without boundaries do without it

    edge = np.zeros(ids.shape, bool)  # one of the eight neighbours is another id, or outside
    edge[:1], edge[-1:], edge[:, :1], edge[:, -1:] = True, True, True, True
    height, width = ids.shape
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = np.s_[: height - dy, max(0, -dx) : width - max(0, dx)]
        there = np.s_[dy:, max(0, dx) : width + min(0, dx)]
        differ = ids[here] != ids[there]
        edge[here] |= differ
        edge[there] |= differ
    if distance == 1 or not edge.size:
        return edge
    square = np.ones((2 * distance - 1, 2 * distance - 1), np.uint8)
    return cv2.dilate(edge.view(np.uint8), square).view(bool)


def _count_boundaries(
    truth_ids: IdArray, prediction_ids: IdArray, image: ImageMatch, ratio: float
) -> tuple[IntArray, IntArray, IntArray]:
    """Of each truth segment and its match, in boundary pixels: shared, truth, prediction without void. int64 (T,).

    Rows without a match are meaningless.
    """
    distance = boundary_distance(truth_ids.shape, ratio)
    truth_edge, prediction_edge = (_is_boundary(ids, distance) for ids in (truth_ids, prediction_ids))
    truth_edge |= truth_ids == VOID  # void stays void: what lies on it must be told from what lies inside
    n_truth, n_prediction = len(image.truth.ids), len(image.prediction.ids)
    table = np.zeros((n_truth + 2, n_prediction + 1), np.int64)  # row T: on void, T + 1: inside; column P: no boundary
    height, width = truth_ids.shape
    step = max(1, _STRIP_PIXELS // max(1, width))
    for top in range(0, height, step):
        strip = slice(top, top + step)
        truth = np.where(truth_edge[strip], truth_ids[strip], np.int32(_INSIDE))
        prediction = np.where(prediction_edge[strip], prediction_ids[strip], np.int32(VOID))
        pairs = overlaps_of(truth, prediction)
        rows = _rows_of(pairs.first, np.append(image.truth.ids, (VOID, _INSIDE)))
        table[rows, _rows_of(pairs.second, np.append(image.prediction.ids, VOID))] += pairs.pixels
    truth_area = table[:n_truth].sum(axis=1)
    prediction_area = (table.sum(axis=0) - table[n_truth])[image.match]
    return table[np.arange(n_truth), image.match], truth_area, prediction_area


def _rows_of(values: IntArray, ids: IntArray) -> IntArray:
    """(Q,) ids → their places in `ids`, which holds each of them once."""
    order = np.argsort(ids)
    rows = order[np.minimum(np.searchsorted(ids, values, sorter=order), len(ids) - 1)]
    stray = values[ids[rows] != values]
    if stray.size:
        raise PansightError(
            where="boundary", expected="the maps that the match was made of", found=f"the id {int(stray[0])}"
        )
    return rows


def _mean(units: int, n: int) -> float | None:
    return units / IOU_UNIT / n if n else None
