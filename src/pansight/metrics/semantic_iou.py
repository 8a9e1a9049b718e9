"""Mean intersection over union of semantic maps, at the original resolution, from the pixels of the whole data set.

IoU_c = TP / (TP + FP + FN) in pixels; void in the truth is left out of all three; a void prediction is a miss.
Tools disagree on classes that the truth lacks, so the convention has a name (sources: docs/metrics.md):

| convention | class absent in the truth, predicted somewhere | absent and never predicted |
|---|---|---|
| cityscapes (default) | counts as 0 | left out |
| detectron2 | left out | left out |
| semseg (PSPNet) | counts as 0 | counts as 0 |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pansight.errors import PansightError, choice_error
from pansight.metrics.overlap import count_overlaps
from pansight.metrics.panoptic.matching import ImageMatch
from pansight.ops.maps.overlap import IntArray
from pansight.types import IGNORE, VOID, LabelSpace, PanopticSegmentation, Prediction, Sample

if TYPE_CHECKING:
    from torch import Tensor

CONVENTIONS = ("cityscapes", "detectron2", "semseg")


def confusion_matrix(truth: PanopticSegmentation, prediction: Prediction, n_classes: int) -> IntArray | None:
    """Pixels of one image by class: int64 (K, K + 1), rows truth, columns prediction, the last column "no class".

    The predicted map is `prediction.semantic`, else the classes of `prediction.panoptic`; None where both are missing.
    Raises PansightError for another size, an id outside its table or a class outside 0 … K − 1.
    """
    ids, class_of = _predicted_classes(prediction, n_classes)
    if ids is None:
        return None
    if tuple(ids.shape) != truth.size:
        expected, found = ("×".join(map(str, size)) for size in (truth.size, tuple(ids.shape)))
        raise PansightError(f"prediction: expected the size of the truth {expected}, found {found} (height × width)")
    overlaps = count_overlaps(truth.ids, ids)
    truth_class = {s.id: s.category for s in truth.segments} | {VOID: n_classes}
    rows = _look_up(truth_class, overlaps.first, "truth")
    columns = _look_up(class_of, overlaps.second, "prediction")
    matrix = np.zeros((n_classes + 1, n_classes + 1), np.int64)
    np.add.at(matrix, (rows, columns), overlaps.pixels)
    return matrix[:n_classes]


class SemanticIoU:
    """Gathers the confusion matrix over images. Models without any class map leave it empty: `compute` gives {}."""

    def __init__(self, labels: LabelSpace, convention: str = "cityscapes"):
        if convention not in CONVENTIONS:
            raise choice_error("mIoU convention", convention, CONVENTIONS)
        self.labels = labels
        self.convention = convention
        self._matrix = np.zeros((len(labels), len(labels) + 1), np.int64)
        self._updates = 0
        self._without = 0

    def update(self, prediction: Prediction, truth: Sample) -> None:
        """Add one image; the truth's classes come from `truth.truth`. Raises PansightError, naming the image."""
        try:
            matrix = confusion_matrix(truth.truth, prediction, len(self.labels))
        except PansightError as error:
            raise PansightError(f"image {truth.image_id}: {error}") from error
        if matrix is None:
            self._without += 1
            return
        self._updates += 1
        self._matrix += matrix

    def add(self, match: ImageMatch) -> None:
        """Add one image whose segments are matched already: its class maps are those of the segments."""
        k = len(self.labels)
        rows = np.append(match.truth.categories, k)[match.truth_rows]
        columns = np.append(match.prediction.categories, k)[match.prediction_rows]
        matrix = np.zeros((k + 1, k + 1), np.int64)
        np.add.at(matrix, (rows, columns), match.pixels)
        self._matrix += matrix[:k]
        self._updates += 1

    def compute(self) -> dict[str, Any]:
        """miou, fwiou (weighted by the truth's pixels), pixel_accuracy, mean_accuracy, n, convention, per_class.

        Fractions 0..1. `per_class` by source id → name, iou, accuracy (None where left out), pixels (of the truth).
        Without a single scored class every figure is 0.0 and n = 0.
        """
        if not self._updates:
            return {}
        if self._without:
            raise PansightError(f"mIoU: expected a class map for every image, found none for {self._without} images")
        k = len(self.labels)
        hits = np.diag(self._matrix).astype(np.float64)  # (K,)
        truth = self._matrix.sum(axis=1)  # (K,)
        predicted = self._matrix[:, :k].sum(axis=0)  # (K,)
        union = truth + predicted - hits
        counted = {
            "cityscapes": union > 0,
            "detectron2": truth > 0,
            "semseg": np.ones(k, bool),
        }[self.convention]
        iou = hits / np.maximum(union, 1)
        accuracy = hits / np.maximum(truth, 1)
        present = truth > 0
        share = truth / max(int(truth.sum()), 1)
        per_class = {
            str(c.source_id): {
                "name": c.name,
                "iou": float(iou[c.id]) if counted[c.id] else None,
                "accuracy": float(accuracy[c.id]) if present[c.id] else None,
                "pixels": int(truth[c.id]),
            }
            for c in self.labels
        }
        return {
            "miou": float(iou[counted].mean()) if counted.any() else 0.0,
            "fwiou": float((share * iou).sum()),
            "pixel_accuracy": float((share * accuracy).sum()),
            "mean_accuracy": float(accuracy[present].mean()) if present.any() else 0.0,
            "n": int(counted.sum()),
            "convention": self.convention,
            "per_class": per_class,
        }

    def merge(self, other: SemanticIoU) -> None:
        """Add what another process gathered. Raises PansightError for another label space or convention."""
        if other.labels != self.labels or other.convention != self.convention:
            raise PansightError("mIoU: expected the same label space and convention on both sides of a merge")
        self._matrix += other._matrix
        self._updates += other._updates
        self._without += other._without

    def state_dict(self) -> dict[str, Any]:
        """All that was gathered, as plain JSON values."""
        return {"matrix": self._matrix.tolist(), "updates": self._updates, "without": self._without}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what was gathered by a `state_dict`."""
        matrix = np.array(state["matrix"], np.int64).reshape(-1, len(self.labels) + 1)
        if matrix.shape != self._matrix.shape:
            raise PansightError(f"mIoU: expected a confusion matrix of {self._matrix.shape}, found {matrix.shape}")
        self._matrix = matrix
        self._updates = int(state["updates"])
        self._without = int(state["without"])


def _predicted_classes(prediction: Prediction, n_classes: int) -> tuple[Tensor | None, dict[int, int]]:
    """A map (H, W) and the class of each of its values; n_classes stands for "no class"."""
    if prediction.semantic is not None:
        return prediction.semantic, {c: c for c in range(n_classes)} | {IGNORE: n_classes}
    if prediction.panoptic is not None:
        classes = {s.id: s.category for s in prediction.panoptic.segments}
        return prediction.panoptic.ids, classes | {VOID: n_classes}
    return None, {}


def _look_up(class_of: dict[int, int], values: IntArray, side: str) -> IntArray:
    try:
        return np.array([class_of[v] for v in values.tolist()], np.int64)
    except KeyError as error:
        raise PansightError(f"{side}: found the value {error.args[0]}, which stands for no class") from error
