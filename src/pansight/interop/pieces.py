"""What was found in a photo, piece by piece: what every other format is made of."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.ops.idmap import boxes_xyxy
from pansight.ops.maps.regions import class_regions, surer_than
from pansight.types import Category, Instances, LabelSpace, PanopticSegmentation, Prediction


class Piece(NamedTuple):
    """A segment or an object.

    box_xyxy: in pixels, x2 and y2 exclusive; whole numbers where there is a mask, which lies in it and touches its
    sides. mask: bool (y2 - y1, x2 - x1), or None for an object of which only the box is known.
    """

    id: int
    category: Category
    score: float
    box_xyxy: tuple[float, float, float, float]
    mask: NDArray[np.bool_] | None

    def whole_mask(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """bool (H, W) of a photo of this size; a box without a mask is filled."""
        x1, y1, x2, y2 = self.pixels(size)
        whole = np.zeros(size, np.bool_)
        whole[y1:y2, x1:x2] = True if self.mask is None else self.mask
        return whole

    def pixels(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The pixels of a photo of this size that the box covers: x1, y1, x2, y2, at least one of each."""
        x1, y1, x2, y2 = (round(side) for side in self.box_xyxy)
        left, top = min(max(x1, 0), size[1] - 1), min(max(y1, 0), size[0] - 1)
        return left, top, min(max(x2, left + 1), size[1]), min(max(y2, top + 1), size[0])


def pieces(prediction: Prediction, labels: LabelSpace, score: float = 0.5, stuff: bool = True) -> list[Piece]:
    """The pieces of a prediction: the segments of its panoptic map, else its objects, else the regions of classes.

    score: objects below it are left out, where there is no panoptic map. stuff: False leaves out what is no thing.
    """
    if prediction.panoptic is not None:
        found = _segments(prediction.panoptic, labels)
    elif prediction.instances is not None:
        found = _objects(surer_than(prediction.instances, score), labels)
    else:
        assert prediction.semantic is not None  # one of the three is there
        found = _segments(class_regions(prediction.semantic), labels)
    return [piece for piece in found if stuff or piece.category.is_thing]


def _segments(panoptic: PanopticSegmentation, labels: LabelSpace) -> list[Piece]:
    ids = panoptic.ids.cpu().numpy()
    boxes = boxes_xyxy(ids)
    found: list[Piece] = []
    for segment in panoptic.segments:
        x1, y1, x2, y2 = boxes[segment.id]
        mask = ids[y1:y2, x1:x2] == segment.id
        found.append(Piece(segment.id, labels[segment.category], segment.score, (x1, y1, x2, y2), mask))
    return found


def _objects(instances: Instances, labels: LabelSpace) -> list[Piece]:
    found: list[Piece] = []
    rows = zip(instances.boxes_xyxy.tolist(), instances.labels.tolist(), instances.scores.tolist(), strict=True)
    for index, (box, category, score) in enumerate(rows):
        cropped = None if instances.masks is None else _cropped(instances.masks[index].cpu().numpy())
        if cropped is None and instances.masks is not None:
            continue  # nothing of its mask is left
        box, mask = cropped or (tuple(box), None)
        found.append(Piece(len(found) + 1, labels[category], score, box, mask))
    return found


def _cropped(mask: NDArray[np.bool_]) -> tuple[tuple[int, int, int, int], NDArray[np.bool_]] | None:
    """The tight box of a mask and what lies in it; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    y1, y2, x1, x2 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return (x1, y1, x2, y2), mask[y1:y2, x1:x2]


def size_of(prediction: Prediction) -> tuple[int, int]:
    """(H, W) of the photo, which a prediction of boxes alone does not know.

    Raises PansightError for such a one.
    """
    for each in (prediction.panoptic and prediction.panoptic.ids, prediction.semantic):
        if each is not None:
            return each.shape[0], each.shape[1]
    if prediction.instances is not None and prediction.instances.masks is not None:
        return prediction.instances.masks.shape[1], prediction.instances.masks.shape[2]
    raise PansightError(where="prediction", expected="a map or masks", found="boxes alone")


def required(load: Callable[[], Any], name: str, extra: str) -> Any:
    """What `load` imports. Raises PansightError, naming the extra, where the package `name` is missing."""
    try:
        return load()
    except ModuleNotFoundError as error:
        raise PansightError(
            where=name, expected=f"the package {name}", found="none", hint=f"install the extra pansight[{extra}]"
        ) from error
