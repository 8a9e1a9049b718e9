"""Counts for each class: sums of IoU are exact for any number of segments."""

from __future__ import annotations

import numpy as np
import pytest
from drawing import LABELS, match_maps, random_maps

from pansight.errors import PansightError
from pansight.metrics.panoptic.boundary import BoundaryQuality
from pansight.metrics.panoptic.dagger import PanopticQualityDagger
from pansight.metrics.panoptic.errors import ErrorAnalysis
from pansight.metrics.scores import IOU_UNIT, ClassCounts, image_rows
from pansight.types import LabelSpace


def test_the_sum_of_many_ious_is_exact():
    """ΣIoU of thousands of segments is far beyond 64 bits in units of 2⁻⁵³."""
    rng = np.random.default_rng(0)
    images = [match_maps(*random_maps(rng)) for _ in range(60)] * 200
    counts = ClassCounts(LABELS)
    counts.add_rows(np.concatenate([image_rows(image, len(LABELS)) for image in images]))
    assert max(counts.iou) > 2**63
    for c in LABELS:
        ious = [iou for image in images for iou in image.iou[image.truth.categories == c.id].tolist() if iou]
        assert counts.iou[c.id] == sum(int(iou * IOU_UNIT) for iou in ious)
        assert counts.tp[c.id] == len(ious)
        assert counts.fn[c.id] == sum(int((image.missed & (image.truth.categories == c.id)).sum()) for image in images)


def test_state_of_another_label_space_is_refused():
    with pytest.raises(PansightError, match="expected 4 classes, found 1"):
        ClassCounts(LABELS).add_state(ClassCounts(LabelSpace.from_names(["cat"])).state_dict())


def test_a_category_outside_the_label_space_is_named():
    ids = np.array([[1, 2]], np.int32)
    image = match_maps(ids, ids, {1: 0, 2: 3}, {1: 0, 2: 3})
    with pytest.raises(PansightError, match="expected an index below 3, found 3"):
        image_rows(image, 3)


@pytest.mark.parametrize("metric", [ErrorAnalysis, BoundaryQuality, PanopticQualityDagger])
def test_a_shortened_state_is_never_half_added(metric):
    """A damaged part of an evaluation must not pass as one with fewer segments."""
    state = metric(LABELS).state_dict()
    tables = [key for key, value in state.items() if isinstance(value, list)]
    assert len(tables) >= 4
    for key in tables:
        with pytest.raises((PansightError, ValueError)):
            metric(LABELS).load_state_dict(state | {key: state[key][:-1]})
