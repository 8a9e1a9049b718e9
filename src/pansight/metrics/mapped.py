"""Evaluating a model on data with other classes: predictions and truth are mapped to the classes that both share."""

# torch leaves some of its argument types open
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pansight.metrics.files.class_map import ClassMap, map_table
from pansight.metrics.files.panoptic_json import UNMAPPED
from pansight.metrics.panoptic.matching import SegmentTable
from pansight.ops.idmap import present_ids, relabel
from pansight.ops.maps.overlap import IntArray
from pansight.types import IGNORE, Instances, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment


def map_prediction(prediction: Prediction, class_map: ClassMap, labels: LabelSpace) -> Prediction:
    """Map a prediction to the label space of the truth, `labels`; classes without a counterpart become void."""
    panoptic, semantic, instances = prediction.panoptic, prediction.semantic, prediction.instances
    stuff = np.array([not c.is_thing for c in labels], bool)
    if panoptic is not None:
        panoptic = _map_segments(panoptic, class_map.prediction, class_map.joined)
    if semantic is not None:
        target = torch.from_numpy(class_map.prediction)
        known = torch.where(target == UNMAPPED, IGNORE, target)
        values = torch.cat([known, known.new_tensor([IGNORE])])  # (K + 1,): IGNORE, which is −1, looks up the last
        semantic = values[semantic]
    if instances is not None:
        target = torch.from_numpy(class_map.prediction)[instances.labels]
        thing = ~torch.from_numpy(stuff)[target.clamp(min=0)]
        instances = _take(instances, (target != UNMAPPED) & thing, target)
    return Prediction(panoptic, semantic, instances)


def map_truth(sample: Sample, class_map: ClassMap) -> Sample:
    """A sample whose classes without a predicted counterpart are void."""
    instances = sample.instances
    if instances is not None:
        target = torch.from_numpy(class_map.truth)[instances.labels]
        instances = _take(instances, target != UNMAPPED, target)
    return replace(sample, truth=_map_segments(sample.truth, class_map.truth, None), instances=instances)


def _map_segments(
    segmentation: PanopticSegmentation, index: IntArray, joined: np.ndarray | None
) -> PanopticSegmentation:
    table, changed = map_table(SegmentTable.of(segmentation.segments), index, joined)
    ids = segmentation.ids.cpu().numpy()
    if changed:
        ids = relabel(ids, {number: number for number in present_ids(ids).tolist()} | changed)
    rows = zip(*(column.tolist() for column in table))
    segments = tuple(Segment(number, category, score, crowd) for number, category, crowd, score in rows)
    return PanopticSegmentation(torch.from_numpy(ids), segments)


def _take(instances: Instances, keep: Tensor, labels: Tensor) -> Instances:
    """The rows where keep bool (N,) is True, with other labels int64 (N,)."""
    masks, crowd = instances.masks, instances.is_crowd
    return Instances(
        instances.boxes_xyxy[keep],
        labels[keep],
        instances.scores[keep],
        None if masks is None else masks[keep],
        None if crowd is None else crowd[keep],
    )
