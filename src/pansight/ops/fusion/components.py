"""Objects from a semantic map: the connected components of each class of things.

What a semantic network can say of objects, and how U-Net counts cells: neighbours that touch are one.
"""

# torch and OpenCV leave some of their return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pansight.ops.idmap import IdArray, boxes_xyxy
from pansight.types import IGNORE, Instances, LabelSpace, PanopticSegmentation, Prediction, Segment

CONNECTIVITY = 8
"""Pixels that meet at a corner are of one object."""


def connected_components(
    semantic: Tensor, labels: LabelSpace, min_area: int = 0, scores: Tensor | None = None
) -> PanopticSegmentation:
    """Things become one segment for each connected component, stuff one segment for each class.

    semantic int64 (H, W), indices into `labels`, IGNORE where unknown, which becomes void. Components of things of
    fewer than `min_area` pixels become void, too. scores float (H, W): how sure the class of each pixel is; a segment
    has the mean of its pixels, 1 where there are none. Segments are numbered from 1, in the order of classes and,
    within one, of their first pixel. On the CPU, wherever `semantic` is.
    """
    classes = semantic.cpu().numpy()
    sure = None if scores is None else scores.float().cpu().numpy()
    ids = np.zeros(classes.shape, np.int32)
    segments: list[Segment] = []
    for category in np.unique(classes).tolist():
        if category == IGNORE:
            continue
        mask = classes == category
        parts = np.asarray(mask, np.int32)
        if labels[category].is_thing:
            parts = _components(mask)
        areas = np.bincount(parts.ravel())  # (1 + components,), the first outside of the class
        kept = areas >= (min_area if labels[category].is_thing else 0)
        kept[0] = False
        numbers = np.where(kept, np.cumsum(kept) + len(segments), 0).astype(np.int32)
        ids += numbers[parts]
        sums = areas if sure is None else np.bincount(parts.ravel(), sure.ravel())
        means = np.clip(sums[kept] / areas[kept], 0, 1).tolist()
        segments += [Segment(n, category, score) for n, score in zip(numbers[kept].tolist(), means, strict=True)]
    return PanopticSegmentation(torch.from_numpy(ids), tuple(segments))


def _components(mask: NDArray[np.bool_]) -> IdArray:
    """int32 (H, W): the number of the component of each pixel, from 1 in the order of first pixels; 0 outside."""
    parts = np.asarray(cv2.connectedComponents(mask.astype(np.uint8), connectivity=CONNECTIVITY)[1], np.int32)
    found, first = np.unique(parts, return_index=True)
    order = found[np.argsort(first)]
    order = order[order > 0]
    table = np.zeros(len(found) + 1, np.int32)  # there may be no pixel outside, which is 0 among `found`
    table[order] = np.arange(1, len(order) + 1)
    return table[parts]


def objects_of(panoptic: PanopticSegmentation, labels: LabelSpace) -> Instances:
    """The things of a panoptic map as objects with masks, by falling score."""
    boxes = boxes_xyxy(panoptic.ids.cpu().numpy())
    things = sorted((s for s in panoptic.segments if labels[s.category].is_thing), key=lambda s: -s.score)
    numbers = torch.tensor([s.id for s in things], dtype=torch.int32).reshape(-1, 1, 1)
    return Instances(
        torch.tensor([boxes[s.id] for s in things], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([s.category for s in things], dtype=torch.int64),
        torch.tensor([s.score for s in things], dtype=torch.float32),
        panoptic.ids.cpu() == numbers,  # (N, H, W)
    )


def predicted_components(semantic: Tensor, labels: LabelSpace, min_area: int, scores: Tensor) -> Prediction:
    """A semantic map with the panoptic map and the objects that follow from it; see `connected_components`."""
    panoptic = connected_components(semantic, labels, min_area, scores)
    return Prediction(panoptic, semantic, objects_of(panoptic, labels))


def decided(
    likeliest: Tensor,
    scores: Tensor,
    labels: LabelSpace,
    components: bool = False,
    min_area: int = 0,
    certainty: float = 0.0,
) -> Prediction:
    """A semantic map, int64 (H, W), whose pixels are IGNORE where `scores`, float (H, W), are below `certainty`.

    components: with the panoptic map and the objects that follow from it, too; see `connected_components`.
    """
    semantic = likeliest.masked_fill(scores < certainty, IGNORE) if certainty else likeliest
    if not components:
        return Prediction(semantic=semantic)
    return predicted_components(semantic, labels, min_area, scores)
