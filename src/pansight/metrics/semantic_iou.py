"""Mean intersection over union of semantic maps, at the original resolution, from the pixels of the whole data set.

IoU_c = TP / (TP + FP + FN) in pixels; void in the truth is left out of all three; a void prediction is a miss.
Tools disagree on classes that the truth lacks, so the convention has a name:

| convention | class absent in the truth, predicted somewhere | absent and never predicted |
|---|---|---|
| cityscapes (default) | counts as 0 | left out |
| detectron2 | left out | left out |
| semseg (PSPNet) | counts as 0 | counts as 0 |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError, choice_error
from pansight.metrics.overlap import count_overlaps
from pansight.metrics.panoptic.matching import ImageMatch
from pansight.metrics.scores import ImageRows
from pansight.ops.maps.overlap import IntArray
from pansight.types import IGNORE, VOID, LabelSpace, PanopticSegmentation, Prediction, Sample

if TYPE_CHECKING:
    from torch import Tensor

BoolArray = NDArray[np.bool_]

CONVENTIONS = ("cityscapes", "detectron2", "semseg")


def image_classes(truth: PanopticSegmentation, prediction: Prediction, n_classes: int) -> IntArray | None:
    """What each class contributes in one image: int64 (R, 5), one row for each class that is there or predicted.

    Columns: 0 (for the caller's number of the image), category, pixels that are right, of the truth, predicted where
    the truth is not void. The predicted map is `prediction.semantic`, else the classes of `prediction.panoptic`; None
    where both are missing.
    Raises PansightError for another size, an id outside its table or a class outside 0 … K − 1.
    """
    ids, class_of = _predicted_classes(prediction, n_classes)
    if ids is None:
        return None
    if tuple(ids.shape) != truth.size:
        expected, found = ("×".join(map(str, size)) for size in (truth.size, tuple(ids.shape)))
        raise PansightError(
            where="prediction", expected=f"the size of the truth {expected}", found=f"{found} (height × width)"
        )
    overlaps = count_overlaps(truth.ids, ids)
    truth_class = {s.id: s.category for s in truth.segments} | {VOID: n_classes}
    true = _look_up(truth_class, overlaps.first, "truth")
    shift = 0 if prediction.semantic is None else IGNORE
    predicted = _look_up(class_of, overlaps.second, "prediction", shift)
    return _rows(true, predicted, overlaps.pixels, n_classes)


def _rows(true: IntArray, predicted: IntArray, pixels: IntArray, k: int) -> IntArray:
    """`image_classes` from pairs (N,) of classes, k standing for none, and their pixels."""
    labelled = true < k
    same = labelled & (true == predicted)
    columns = [
        np.bincount(true[same], pixels[same], k),
        np.bincount(true[labelled], pixels[labelled], k),
        np.bincount(predicted[labelled], pixels[labelled], k + 1)[:k],
    ]
    table = np.stack([np.zeros(k), np.arange(k), *columns], 1).astype(np.int64)  # (K, 5)
    return table[(table[:, 3:] > 0).any(1)]


def image_miou(rows: IntArray) -> float | None:
    """mIoU of one image, 0..1, over the classes that are there or predicted; None where the truth is all void."""
    return float((rows[:, 2] / (rows[:, 3] + rows[:, 4] - rows[:, 2])).mean()) if len(rows) else None


class SemanticIoU:
    """Gathers pixels by class over images. Models without any class map leave it empty: `compute` gives {}."""

    def __init__(self, labels: LabelSpace, convention: str = "cityscapes"):
        if convention not in CONVENTIONS:
            raise choice_error("mIoU convention", convention, CONVENTIONS)
        self.labels = labels
        self.convention = convention
        self._images = ImageRows(5)
        self._without = 0

    def update(self, prediction: Prediction, truth: Sample) -> IntArray | None:
        """Add one image; the truth's classes come from `truth.truth`. Gives its `image_classes`.

        Raises PansightError, naming the image.
        """
        try:
            rows = image_classes(truth.truth, prediction, len(self.labels))
        except PansightError as error:
            raise error.at(f"image {truth.image_id}") from error
        if rows is None:
            self._without += 1
            return None
        self._images.add(truth.image_id, rows)
        return rows

    def add(self, image_id: str | int, match: ImageMatch) -> None:
        """Add one image whose segments are matched already: its class maps are those of the segments."""
        k = len(self.labels)
        true = np.append(match.truth.categories, k)[match.truth_rows]
        predicted = np.append(match.prediction.categories, k)[match.prediction_rows]
        self._images.add(image_id, _rows(true, predicted, match.pixels, k))

    def compute(self) -> dict[str, Any]:
        """miou, fwiou (weighted by the truth's pixels), pixel_accuracy, mean_accuracy, n, convention, per_class.

        Fractions 0..1. `per_class` by source id → name, isthing, iou, accuracy (None where left out), pixels (of the
        truth), predicted. Without a single scored class every figure is 0.0 and n = 0.
        `image_ids` lists every image, and `counts` holds, as columns, what each class contributed in each image: image
        (index into image_ids), category (source id), hits, truth and predicted, in pixels that are not void.
        """
        if not self._images.ids:
            return {}
        if self._without:
            raise PansightError(
                where="mIoU", expected="a class map for every image", found=f"none for {self._without} images"
            )
        k = len(self.labels)
        image_ids, rows = self._images.in_order()
        sums = np.zeros((k, 3), np.int64)
        np.add.at(sums, rows[:, 1], rows[:, 2:])
        hits, truth, predicted = sums.T  # (K,) each
        union = truth + predicted - hits
        counted = counted_classes(truth > 0, union > 0, self.convention)
        iou = hits / np.maximum(union, 1)
        accuracy = hits / np.maximum(truth, 1)
        present = truth > 0
        share = truth / max(int(truth.sum()), 1)
        per_class = {
            str(c.source_id): {
                "name": c.name,
                "isthing": c.is_thing,
                "iou": float(iou[c.id]) if counted[c.id] else None,
                "accuracy": float(accuracy[c.id]) if present[c.id] else None,
                "pixels": int(truth[c.id]),
                "predicted": int(predicted[c.id]),
            }
            for c in self.labels
        }
        source = np.array([c.source_id for c in self.labels], np.int64)
        columns = dict(zip(("image", "category", "hits", "truth", "predicted"), rows.T.tolist()))
        return {
            "miou": float(iou[counted].mean()) if counted.any() else 0.0,
            "fwiou": float((share * iou).sum()),
            "pixel_accuracy": float((share * accuracy).sum()),
            "mean_accuracy": float(accuracy[present].mean()) if present.any() else 0.0,
            "n": int(counted.sum()),
            "convention": self.convention,
            "per_class": per_class,
            "image_ids": image_ids,
            "counts": columns | {"category": source[rows[:, 1]].tolist()},
        }

    def merge(self, other: SemanticIoU) -> None:
        """Add what another process gathered. Raises PansightError for another label space or convention."""
        if other.labels != self.labels or other.convention != self.convention:
            raise PansightError("expected the same label space and convention on both sides of a merge", where="mIoU")
        self._images.extend(other._images.state_dict(), len(self.labels), "mIoU")
        self._without += other._without

    def state_dict(self) -> dict[str, Any]:
        """All that was gathered, as plain JSON values."""
        return self._images.state_dict() | {"without": self._without, "classes": len(self.labels)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what was gathered by a `state_dict`."""
        if state["classes"] != len(self.labels):
            raise PansightError(where="mIoU", expected=f"{len(self.labels)} classes", found=state["classes"])
        self._images = ImageRows(5)
        self._images.extend(state, len(self.labels), "mIoU")
        self._without = int(state["without"])


def counted_classes(present: BoolArray, met: BoolArray, convention: str) -> BoolArray:
    """Which classes the mean is over. present: in the truth; met: in the truth or predicted. Any shape."""
    return {"cityscapes": met, "detectron2": present, "semseg": np.ones_like(met)}[convention]


def _predicted_classes(prediction: Prediction, n_classes: int) -> tuple[Tensor | None, dict[int, int]]:
    """A map (H, W) and the class of each of its values; n_classes stands for "no class"."""
    if prediction.semantic is not None:
        shifted = prediction.semantic - IGNORE  # from 0 on, as overlaps are counted of ids
        return shifted, {c - IGNORE: c for c in range(n_classes)} | {0: n_classes}
    if prediction.panoptic is not None:
        classes = {s.id: s.category for s in prediction.panoptic.segments}
        return prediction.panoptic.ids, classes | {VOID: n_classes}
    return None, {}


def _look_up(class_of: dict[int, int], values: IntArray, side: str, shift: int = 0) -> IntArray:
    """The class of each value; `shift` more is what the map itself held."""
    try:
        return np.array([class_of[v] for v in values.tolist()], np.int64)
    except KeyError as error:
        raise PansightError(
            f"found the value {error.args[0] + shift}, which stands for no class", where=side
        ) from error
