"""Panoptic quality: PQ, SQ and RQ over all classes, things, stuff and each class.

Source: Kirillov et al., "Panoptic Segmentation", arXiv 1801.00868, section 4, with the rules of its public evaluation
for void and crowds (cocodataset/panopticapi, evaluation.py, ``pq_compute_single_core``):

- a prediction matches a truth segment of its class where IoU > 0.5; the union leaves out what it has on void
- a truth segment without a match is missed (FN), except a crowd, which is neither matched nor missed
- a prediction without a match is a phantom (FP), unless more than half of it lies on void and on crowds of its class
- PQ = ΣIoU / (TP + ½FP + ½FN), SQ = ΣIoU / TP, RQ = TP / (TP + ½FP + ½FN) per class; groups are plain means over the
  classes with TP + FP + FN > 0, so that PQ ≠ SQ · RQ for a group.

Different on purpose: every crowd segment of a class is honoured, where the reference keeps only the last one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pansight.errors import PansightError
from pansight.metrics.overlap import count_overlaps
from pansight.metrics.panoptic.matching import IGNORED, PHANTOM, ImageMatch, SegmentTable, match_tables
from pansight.metrics.scores import ClassCounts, ImageRows, group_means, image_rows, joined_iou
from pansight.ops.maps.overlap import IntArray
from pansight.types import LabelSpace, PanopticSegmentation, Prediction, Sample, Segment


class Match(NamedTuple):
    """A truth segment and the prediction that found it (TP)."""

    truth: Segment
    prediction: Segment
    iou: float  # in (0.5, 1]


class SegmentMatches(NamedTuple):
    """What became of every segment of an image. Crowds of the truth appear nowhere."""

    matches: tuple[Match, ...]  # in rising order of the truth id
    missed: tuple[Segment, ...]  # truth segments nobody found (FN)
    phantom: tuple[Segment, ...]  # predictions of something that is not there (FP)
    ignored: tuple[Segment, ...]  # predictions that lie mostly on void or crowd: they cost nothing


def match_segments(
    truth: PanopticSegmentation, prediction: PanopticSegmentation, background: bool = False
) -> SegmentMatches:
    """Match the segments of one image by the rules at the head of this file.

    background: as in `match_tables`.
    Areas are counted from the maps. Raises PansightError where the sizes differ, a map holds an id that its table
    lacks, or a predicted segment has no pixel. A truth segment without a pixel counts as missed, as in the reference.
    """
    found = match_maps(truth, prediction, background)
    pairs = [(t, int(p)) for t, p in enumerate(found.match.tolist()) if p >= 0]
    matches = (Match(truth.segments[t], prediction.segments[p], float(found.iou[t])) for t, p in pairs)
    states = list(zip(prediction.segments, found.state.tolist()))
    return SegmentMatches(
        tuple(sorted(matches, key=lambda m: m.truth.id)),
        tuple(s for s, lost in zip(truth.segments, found.missed.tolist()) if lost),
        tuple(s for s, state in states if state == PHANTOM),
        tuple(s for s, state in states if state == IGNORED),
    )


def match_maps(truth: PanopticSegmentation, prediction: PanopticSegmentation, background: bool = False) -> ImageMatch:
    """`match_tables` of two segmentations of one image; raises PansightError as `match_segments` does."""
    if truth.size != prediction.size:
        expected, found = ("×".join(map(str, side.size)) for side in (truth, prediction))
        raise PansightError(
            where="prediction", expected=f"the size of the truth {expected}", found=f"{found} (height × width)"
        )
    tables = SegmentTable.of(truth.segments), SegmentTable.of(prediction.segments)
    return match_tables(*tables, count_overlaps(truth.ids, prediction.ids), background=background)


class PanopticQuality:
    """Gathers PQ, SQ and RQ over images.

    >>> metric = PanopticQuality(labels)
    >>> metric.update(prediction, sample)
    >>> metric.compute()["All"]["pq"]

    Models without a panoptic map leave it empty: `compute` then gives {}.
    """

    def __init__(self, labels: LabelSpace):
        self.labels = labels
        self._images = ImageRows(7)  # image, category, TP, FP, FN, ΣIoU as `image_rows` splits it
        self._without = 0  # predictions that brought no panoptic map

    def update(self, prediction: Prediction, truth: Sample) -> ImageMatch | None:
        """Add one image. Gives what became of each segment, or None where the model has no panoptic map.

        Raises PansightError, naming the image, as `match_segments` does or where a category is not in the label space.
        """
        if prediction.panoptic is None:
            self._without += 1
            return None
        try:
            match = match_maps(truth.truth, prediction.panoptic)
            self.add(truth.image_id, match)
        except PansightError as error:
            raise error.at(f"image {truth.image_id}") from error
        return match

    def add(self, image_id: str | int, match: ImageMatch) -> IntArray:
        """Add one image whose segments are matched already; gives its `image_rows`."""
        rows = image_rows(match, len(self.labels))
        self._images.add(image_id, rows)
        return rows

    def compute(self) -> dict[str, Any]:
        """All, Things, Stuff → pq sq rq n; per_class by source id → name isthing pq sq rq tp fp fn iou; images.

        Fractions 0..1; iou is ΣIoU of the matched segments. A group without any segment has n = 0 and scores 0.0.
        `images` lists image_id and pq of every image where something was to be found or was predicted, by falling pq.
        `image_ids` lists every image, and `counts` holds, as columns, what each class contributed in each image:
        image (index into image_ids), category (source id), tp, fp, fn, iou.
        """
        if not self._images.ids:
            return {}
        if self._without:
            raise PansightError(
                where="panoptic quality",
                expected="a panoptic map for every image",
                found=f"none for {self._without} images",
            )
        image_ids, rows = self._images.in_order()
        totals = ClassCounts(self.labels)
        totals.add_rows(rows)
        per_class = totals.rows()
        images = sorted(_image_scores(image_ids, rows), key=lambda image: (-image[1], str(image[0])))
        source = np.array([c.source_id for c in self.labels], np.int64)
        columns = dict(zip(("image", "category", "tp", "fp", "fn"), rows.T[:5].tolist()))
        columns["category"] = source[rows[:, 1]].tolist()
        return {
            **group_means(per_class.values()),
            "per_class": per_class,
            "images": [{"image_id": image_id, "pq": pq} for image_id, pq in images],
            "image_ids": image_ids,
            "counts": columns | {"iou": joined_iou(rows).tolist()},
        }

    def merge(self, other: PanopticQuality) -> None:
        """Add what another process gathered on other images. Raises PansightError for another label space."""
        if other.labels != self.labels:
            raise PansightError("expected the same label space on both sides of a merge", where="panoptic quality")
        self._add(other.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All that was gathered, as plain JSON values."""
        return self._images.state_dict() | {"without": self._without, "classes": len(self.labels)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what was gathered by a `state_dict`."""
        self.__init__(self.labels)
        self._add(state)

    def _add(self, state: dict[str, Any]) -> None:
        if state["classes"] != len(self.labels):
            raise PansightError(
                where="panoptic quality", expected=f"{len(self.labels)} classes", found=state["classes"]
            )
        self._images.extend(state, len(self.labels), "panoptic quality")
        self._without += int(state["without"])


def _image_scores(image_ids: list[str | int], rows: IntArray) -> list[tuple[str | int, float]]:
    """PQ of each image that has one: the mean over the classes that occur in it."""
    weight = rows[:, 2] + 0.5 * rows[:, 3] + 0.5 * rows[:, 4]
    count = np.bincount(rows[:, 0], minlength=len(image_ids))
    total = np.bincount(rows[:, 0], joined_iou(rows) / weight, len(image_ids))
    return [(image_ids[i], float(total[i] / count[i])) for i in np.flatnonzero(count).tolist()]
