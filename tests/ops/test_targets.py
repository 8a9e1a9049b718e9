"""Boxes, masks and semantic maps that are computed from the one truth."""

import pytest
import torch

from pansight.ops.targets import boxes_of_ids, instance_targets, lookup, semantic_targets, valid_extents
from pansight.types import IGNORE, Batch, Instances, LabelSpace, PanopticSegmentation, Segment

LABELS = LabelSpace.from_names(["cat", "dog"], ["grass"])
IDS = torch.tensor([[0, 5, 5, 9], [0, 5, 7, 9], [7, 7, 7, 9]], dtype=torch.int32)


def batch_of(truth: PanopticSegmentation, instances: Instances | None = None, padded=(4, 6)) -> Batch:
    valid = torch.zeros((1, *padded), dtype=torch.bool)
    valid[0, : truth.size[0], : truth.size[1]] = True
    images = torch.zeros((1, 3, *padded), dtype=torch.uint8)
    return Batch(images, valid, (truth.size,), (truth,), ("a",), (instances,))


def test_boxes_are_tight_pixel_edges_and_absent_ids_are_empty():
    boxes = boxes_of_ids(IDS, torch.tensor([7, 5, 9, 3]))
    assert boxes.tolist() == [[0, 1, 3, 3], [1, 0, 3, 2], [3, 0, 4, 3], [0, 0, 0, 0]]


@pytest.mark.parametrize("scale", [1, 70_000])  # the table and the search
def test_boxes_equal_the_plain_way(scale):
    ids = torch.randint(0, 12, (37, 23), generator=torch.Generator().manual_seed(0), dtype=torch.int32) * scale
    wanted = torch.arange(1, 12) * scale
    for box, value in zip(boxes_of_ids(ids, wanted).tolist(), wanted.tolist(), strict=True):
        y, x = (ids == value).nonzero(as_tuple=True)
        assert box == [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]


@pytest.mark.parametrize("scale", [1, 70_000])
def test_lookup(scale):
    out = lookup(IDS * scale, torch.tensor([9, 5]) * scale, torch.tensor([1, 2]), default=-1)
    assert out.tolist() == [[-1, 2, 2, 1], [-1, 2, -1, 1], [-1, -1, -1, 1]]
    assert lookup(IDS, torch.tensor([], dtype=torch.int64), torch.tensor([]), 3).unique().tolist() == [3]


def test_disjoint_truth_gives_things_without_crowds_and_shares_the_map():
    truth = PanopticSegmentation(IDS, (Segment(5, 1), Segment(7, 2), Segment(9, 0, is_crowd=True)))
    (target,) = instance_targets(batch_of(truth), LABELS)
    assert target.boxes_xyxy.tolist() == [[1, 0, 3, 2]]
    assert target.things.tolist() == [1]
    assert torch.equal(target.mask_stack[target.mask_index[0]] == target.mask_value[0], IDS == 5)


def test_overlapping_truth_keeps_each_mask():
    masks = torch.zeros((3, 3, 4), dtype=torch.bool)
    masks[:, 0, :] = True
    boxes = torch.tensor([[0.0, 0, 4, 1]]).repeat(3, 1)
    instances = Instances(boxes, torch.tensor([0, 1, 0]), torch.ones(3), masks, torch.tensor([False, False, True]))
    truth = PanopticSegmentation(torch.zeros((3, 4), dtype=torch.int32), ())
    (target,) = instance_targets(batch_of(truth, instances), LABELS)
    assert target.things.tolist() == [0, 1]
    assert all(
        torch.equal(target.mask_stack[i] == v, m) for i, v, m in zip(target.mask_index, target.mask_value, masks)
    )


def test_semantic_targets_ignore_void_and_padding_and_keep_crowds():
    truth = PanopticSegmentation(IDS, (Segment(5, 1), Segment(7, 2), Segment(9, 0, is_crowd=True)))
    target = semantic_targets(batch_of(truth), [0, 0, 1])
    assert target[0, :3, :4].tolist() == [[IGNORE, 0, 0, 0], [IGNORE, 0, 1, 0], [1, 1, 1, 0]]
    assert target[0, 3].unique().tolist() == [IGNORE]
    assert target[0, :, 4:].unique().tolist() == [IGNORE]


def test_no_objects_is_legal():
    truth = PanopticSegmentation(torch.zeros((3, 4), dtype=torch.int32), ())
    (target,) = instance_targets(batch_of(truth), LABELS)
    assert target.boxes_xyxy.shape == (0, 4)
    assert semantic_targets(batch_of(truth), [0, 0, 1]).unique().tolist() == [IGNORE]


def test_valid_extents():
    truth = PanopticSegmentation(IDS, (Segment(5, 1), Segment(7, 2), Segment(9, 0)))
    batch = batch_of(truth)
    assert valid_extents(batch.images, batch.valid).tolist() == [[3, 4]]
    assert valid_extents(batch.images, None).tolist() == [[4, 6]]
