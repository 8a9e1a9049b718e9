"""FCIS: which regions it learns from, how it reads maps, and what its options change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import LABELS, SMALL, shapes_batch

from pansight.errors import PansightError
from pansight.models import build
from pansight.models.instances.fcis import hardest_regions
from pansight.nn.rcnn.rpn import RPN
from pansight.nn.rcnn.two_stage import Regions
from pansight.ops.targets import instance_targets

TINY = SMALL["fcis"]


def model(**options: Any) -> Any:
    torch.manual_seed(0)
    return build("fcis", LABELS, **{**TINY, **options})


def test_the_hardest_regions_of_each_image_by_hand() -> None:
    """Two of each image, in their order; of the objects (rows 1, 2 and 4) the second is left out."""
    regions = Regions(
        torch.arange(24.0).view(6, 4),
        torch.tensor([0, 0, 0, 1, 1, 1]),
        torch.tensor([-1, 5, 6, -1, 7, -1]),
        torch.tensor([1, 2, 4]),
        torch.tensor([[1.0] * 4, [2.0] * 4, [3.0] * 4]),
        torch.tensor([10, 11, 12]),
    )
    found = hardest_regions(regions, torch.tensor([0.9, 0.5, 0.1, 0.2, 0.3, 0.9]), 2)
    assert found.image_index.tolist() == [0, 0, 1, 1]
    assert found.things.tolist() == [-1, 5, 7, -1]
    assert found.objects.tolist() == [1, 2]
    assert found.boxes_xyxy[:, 0].tolist() == [0, 4, 16, 20]
    assert found.codes[:, 0].tolist() == [1, 3]
    assert found.match.tolist() == [10, 12]


def test_maps_have_two_scores_for_each_class_and_cell() -> None:
    ours = model(cells=5).eval()
    batch = shapes_batch(1)
    (fourth, last), _ = ours._features(batch.images, batch.valid)
    score_maps, box_maps = ours.head.maps(last)
    classes = len(LABELS.things) + 1
    assert fourth.shape[2:] == last.shape[2:] == (6, 6)  # stride 16, dilated
    assert score_maps.shape == (1, classes * 2 * 25, 6, 6)
    assert box_maps.shape == (1, 100, 6, 6)
    reading = ours.head.read((score_maps, box_maps), torch.tensor([[0.0, 0, 96, 96]]), torch.tensor([0]))
    assert reading.class_logits.shape == (1, classes)
    assert reading.mask_logits.shape == (1, classes, 5, 5)
    assert reading.codes.shape == (1, 4)


@pytest.mark.parametrize("options", [{"roi_op": "align"}, {"hardest": False}, {"output_stride": 8}, {"cells": 1}])
def test_options_train_and_predict(options: dict[str, Any]) -> None:
    ours, batch = model(**options).train(), shapes_batch()
    losses = ours.loss(batch)
    assert set(losses) == {"rpn_objectness", "rpn_box", "box_class", "box_regression", "mask"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in ours.parameters() if p.requires_grad)
    with torch.inference_mode():
        found = ours.eval().decode(ours(batch.images, batch.valid), batch.sizes)
    assert all(each.panoptic is not None and each.instances is not None for each in found)


def test_mining_learns_from_at_most_so_many_regions_of_an_image() -> None:
    ours, batch = model(roi_samples=7).train(), shapes_batch()
    counts = ours.counts(batch)
    assert counts["regions"] == 14
    features, extents = ours._features(batch.images, batch.valid)
    targets = instance_targets(batch, LABELS)
    maps = ours.head.maps(features[1])
    proposals = ours.head.rpn.propose(ours.head.rpn([features[0]]), extents, training=True)
    regions = ours.head.sample_regions(proposals, targets, maps)
    assert regions.image_index.bincount().tolist() == [7, 7]


def test_without_proposals_every_layer_still_has_a_gradient() -> None:
    """An image without objects, whose proposals are all dropped, leaves no region at all."""
    ours, batch = model().train(), shapes_batch(1)
    ours.head.rpn.min_size = 1e9
    losses = ours.head.loss(ours._features(batch.images, batch.valid)[0], torch.tensor([[96, 96]]), [
        target._replace(boxes_xyxy=target.boxes_xyxy[:0], things=target.things[:0], mask_index=target.mask_index[:0],
                        mask_value=target.mask_value[:0])
        for target in instance_targets(batch, LABELS)
    ])  # fmt: skip
    assert losses["mask"].item() == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in ours.parameters() if p.requires_grad)
    with torch.inference_mode():
        (found,) = ours.eval().decode(ours(batch.images), batch.sizes)
    assert found.instances is not None
    assert len(found.instances) == 0


def test_anchors_of_several_sizes_on_one_map() -> None:
    rpn = RPN(8, [(16, 32)], ratios=(1.0,), strides=(16,), channels=4)
    assert rpn.anchors_per_place == 2
    assert rpn.objectness.weight.shape == (2, 4, 1, 1)
    anchors = rpn.anchors(0, torch.tensor([0, 1, 2]), 3, (16, 16))
    assert anchors.tolist() == [[-8, -8, 8, 8], [-16, -16, 16, 16], [8, -8, 24, 8]]


def test_no_anchor_size_is_a_line() -> None:
    with pytest.raises(PansightError, match="anchor_sizes of model fcis: expected at least one size, found none"):
        model(anchor_sizes=[])
