"""PQ†, a panoptic quality in which stuff needs no match: a stuff class is scored by its IoU.

Source: Porzi et al., "Seamless Scene Segmentation", arXiv 1905.01220, section 4. A stuff class has at most one segment
per image, so the threshold of PQ throws away what is merely imprecise. PQ† of a stuff class is its IoU, summed over
all images and divided by the number of images that have the class in the truth; of a thing class it is PQ.

As in PQ the union leaves out what the prediction has on void, and crowds of the truth are no truth. Where a stuff class
comes in several segments (it should not), they are taken as one region. A stuff class that the truth never has is left
out of the means, also where it was predicted: the definition knows no phantoms of stuff.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.metrics.panoptic.matching import ImageMatch
from pansight.metrics.scores import IOU_UNIT, ClassCounts, image_rows
from pansight.ops.maps.overlap import IntArray
from pansight.types import LabelSpace


class PanopticQualityDagger:
    """Gathers PQ† over images.

    >>> metric = PanopticQualityDagger(labels)
    >>> metric.update(image)
    >>> metric.compute()["All"]["pq_dagger"]
    """

    def __init__(self, labels: LabelSpace):
        self.labels = labels
        self._counts = ClassCounts(labels)
        self._present = [0] * len(labels)  # images with the class in the truth
        self._iou = [0] * len(labels)  # their ΣIoU in units of 2⁻⁵³, each rounded down
        self._updates = 0

    def update(self, image: ImageMatch, rows: IntArray | None = None) -> None:
        """Add one image. rows: its `image_rows`, where they are known already."""
        self._counts.add_rows(image_rows(image, len(self.labels)) if rows is None else rows)
        present, iou = class_iou(image, len(self.labels))
        for category in np.flatnonzero(present).tolist():
            self._present[category] += 1
            self._iou[category] += int(float(iou[category]) * IOU_UNIT)
        self._updates += 1

    def compute(self) -> dict[str, Any]:
        """All, Things, Stuff → pq_dagger, n; per_class by source id → name isthing pq_dagger images.

        Fractions 0..1; a group is the plain mean over its n classes that count, 0.0 without any; pq_dagger of a class
        that does not count is None. images: those with the class in the truth. Without any image: {}.
        """
        if not self._updates:
            return {}
        things = self._counts.rows()
        per_class: dict[str, dict[str, Any]] = {}
        for c in self.labels:
            row, images = things[str(c.source_id)], self._present[c.id]
            score: float | None = None
            if c.is_thing and row["tp"] + row["fp"] + row["fn"]:
                score = row["pq"]
            elif not c.is_thing and images:
                score = self._iou[c.id] / IOU_UNIT / images
            per_class[str(c.source_id)] = {
                "name": c.name,
                "isthing": c.is_thing,
                "pq_dagger": score,
                "images": images,
            }
        rows = [row for row in per_class.values() if row["pq_dagger"] is not None]
        return {
            "All": _mean(rows),
            "Things": _mean([row for row in rows if row["isthing"]]),
            "Stuff": _mean([row for row in rows if not row["isthing"]]),
            "per_class": per_class,
        }

    def merge(self, other: PanopticQualityDagger) -> None:
        """Add what another process gathered on other images. Raises PansightError for another label space."""
        if other.labels != self.labels:
            raise PansightError("expected the same label space on both sides of a merge", where="PQ†")
        self._add(other.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All that was gathered, as plain JSON values."""
        stuff = {"present": list(self._present), "stuff_iou": list(self._iou)}
        return {**self._counts.state_dict(), **stuff, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what was gathered by a `state_dict`."""
        self.__init__(self.labels)
        self._add(state)

    def _add(self, state: dict[str, Any]) -> None:
        self._counts.add_state(state)
        self._present = [a + int(b) for a, b in zip(self._present, state["present"], strict=True)]
        self._iou = [a + int(b) for a, b in zip(self._iou, state["stuff_iou"], strict=True)]
        self._updates += int(state["updates"])


def class_iou(image: ImageMatch, n_classes: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Of each class in one image: is it in the truth, crowds aside, (K,); IoU of its truth and its prediction, (K,).

    The union leaves out void and crowds of the class; IoU is 0.0 where the class is on neither side.
    """
    n_truth = len(image.truth.ids)
    real = np.append(image.truth.categories, n_classes)  # (T + 1,), K: no class
    real[:n_truth][image.truth.crowd] = n_classes
    predicted = np.append(image.prediction.categories, n_classes)  # (P + 1,)
    t, p = real[image.truth_rows], predicted[image.prediction_rows]
    crowd = np.append(np.where(image.truth.crowd, image.truth.categories, -1), -1)[image.truth_rows]
    seen = (image.truth_rows < n_truth) & (crowd != p)
    inside = _sum_by_class(t[t == p], image.pixels[t == p], n_classes)
    truth_area = np.zeros(n_classes + 1, np.int64)
    np.add.at(truth_area, real[:n_truth], image.truth_area)
    predicted_area = _sum_by_class(p[seen], image.pixels[seen], n_classes)
    union = truth_area[:n_classes] + predicted_area - inside
    present = np.bincount(real[:n_truth], minlength=n_classes + 1)[:n_classes] > 0
    return present, inside / np.maximum(union, 1)


def _sum_by_class(classes: IntArray, pixels: IntArray, n_classes: int) -> IntArray:
    return np.bincount(classes, pixels, n_classes + 1)[:n_classes].astype(np.int64)


def _mean(rows: list[dict[str, Any]]) -> dict[str, float | int]:
    return {"pq_dagger": sum(row["pq_dagger"] for row in rows) / max(len(rows), 1), "n": len(rows)}
