"""Counts by class: the same figures as `PanopticQuality`, to the last digit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawing import LABELS, match_maps, random_maps

from pansight.errors import PansightError
from pansight.metrics import PanopticQuality
from pansight.metrics.scores import ClassCounts, group_means
from pansight.types import LabelSpace, PanopticSegmentation, Prediction, Sample, Segment


def segmentation(ids: np.ndarray, category_of: dict[int, int], crowds: set[int]) -> PanopticSegmentation:
    segments = (Segment(i, category_of[i], is_crowd=i in crowds) for i in np.unique(ids[ids > 0]).tolist())
    return PanopticSegmentation(torch.as_tensor(ids), tuple(segments))


def test_equals_panoptic_quality():
    rng = np.random.default_rng(0)
    metric, counts = PanopticQuality(LABELS), ClassCounts(LABELS)
    for number in range(40):
        maps = random_maps(rng)
        truth, prediction, truth_class, prediction_class, crowds = maps
        sample = Sample(torch.zeros(3, *truth.shape), segmentation(truth, truth_class, crowds), number, truth.shape)
        metric.update(Prediction(panoptic=segmentation(prediction, prediction_class, set())), sample)
        image = match_maps(*maps)
        hit, phantom = image.match >= 0, image.state == 0
        missed = image.truth.categories[image.missed]
        counts.add(image.truth.categories[hit], image.iou[hit], image.prediction.categories[phantom], missed)
    expected = metric.compute()
    assert counts.rows() == expected["per_class"]
    assert group_means(counts.rows().values()) == {name: expected[name] for name in ("All", "Things", "Stuff")}
    assert expected["All"]["n"] == 4


def test_state_of_another_label_space_is_refused():
    with pytest.raises(PansightError, match="expected 4 classes, found 1"):
        ClassCounts(LABELS).add_state(ClassCounts(LabelSpace.from_names(["cat"])).state_dict())
