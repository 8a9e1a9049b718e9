"""The assignment of queries to segments, and its costs, against brute force, torchvision and transformers."""

import itertools

import pytest
import torch

from pansight.errors import PansightError
from pansight.ops.queries.matching import box_cost, class_cost, focal_cost, hungarian, mask_cost
from pansight.ops.regions.boxes import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh, generalized_iou


def test_least_cost_of_each_layer_and_image():
    cost = torch.randn((3, 2, 4, 3), generator=torch.Generator().manual_seed(0))
    counts = [3, 2]
    cost[:, 1, :, 2] = torch.nan  # padding is never looked at
    found = hungarian(cost, counts)
    rows = list(zip(*(column.tolist() for column in found), strict=True))
    assert rows == sorted(rows)
    assert len(rows) == 3 * (3 + 2)
    for layer, image in itertools.product(range(3), range(2)):
        pairs = [(q, t) for a, b, q, t in rows if (a, b) == (layer, image)]
        assert sorted(t for _, t in pairs) == list(range(counts[image]))
        total = sum(float(cost[layer, image, q, t]) for q, t in pairs)
        every = itertools.permutations(range(4), counts[image])
        best = min(sum(float(cost[layer, image, q, t]) for t, q in enumerate(order)) for order in every)
        assert total == pytest.approx(best)


def test_without_targets():
    found = hungarian(torch.zeros((2, 2, 5, 0)), [0, 0])
    assert all(column.shape == (0,) and column.dtype == torch.int64 for column in found)
    found = hungarian(torch.zeros((1, 2, 5, 1)), [0, 1])
    assert [column.tolist() for column in found] == [[0], [1], [0], [0]]


def test_more_targets_than_queries():
    cost = torch.tensor([[5.0, 1, 9], [2, 5, 9]])[None, None]  # (1, 1, Q 2, N 3)
    with pytest.warns(UserWarning, match="more objects than the 2 queries"):
        found = hungarian(cost, [3])
    assert found.query.tolist() == [0, 1]
    assert found.target.tolist() == [1, 0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_cost_that_is_no_number(bad):
    cost = torch.zeros((2, 3, 4, 2))
    cost[1, 2, 0, 1] = bad
    with pytest.raises(PansightError, match=r"layer 1, image 2 .* expected finite costs, found (nan|inf)"):
        hungarian(cost, [2, 2, 2])


def test_class_cost():
    logits = torch.randn((2, 1, 3, 4), generator=torch.Generator().manual_seed(0))
    found = class_cost(logits, torch.tensor([[2, 0]]))
    assert torch.equal(found, -logits.softmax(-1)[..., [2, 0]])


def test_boxes_there_and_back():
    boxes = torch.tensor([[2.0, 1, 6, 4]])
    assert box_xyxy_to_cxcywh(boxes).tolist() == [[4, 2.5, 4, 3]]
    assert torch.equal(box_cxcywh_to_xyxy(box_xyxy_to_cxcywh(boxes)), boxes)


def test_generalized_iou_drawn():
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [1, 1, 1, 1]])
    b = torch.tensor([[1.0, 0, 3, 2], [2, 0, 3, 1], [1, 1, 1, 1]])
    # overlap 2 of union 6; apart: union 2 of hull 3; two points on each other: no area, and no NaN
    assert generalized_iou(a, b).tolist() == pytest.approx([1 / 3, -1 / 3, 0])


def test_box_cost():
    import torchvision

    draw = torch.Generator().manual_seed(0)
    boxes, targets = torch.rand((2, 2, 5, 4), generator=draw), torch.rand((2, 3, 4), generator=draw)
    distance, overlap = box_cost(boxes, targets)
    for layer, image in itertools.product(range(2), range(2)):
        a, b = boxes[layer, image], targets[image]
        torch.testing.assert_close(distance[layer, image], torch.cdist(a, b, p=1))
        expected = torchvision.ops.generalized_box_iou(box_cxcywh_to_xyxy(a), box_cxcywh_to_xyxy(b))
        torch.testing.assert_close(overlap[layer, image], -expected)


def test_mask_costs_equal_transformers():
    from transformers.models.mask2former import modeling_mask2former as mask2former
    from transformers.models.maskformer import modeling_maskformer as maskformer

    draw = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 2, 5, 70), generator=draw) * 5
    targets = torch.rand((2, 3, 70), generator=draw).round()
    binary, dice = mask_cost(logits, targets)
    focal = focal_cost(logits, targets)
    assert binary.shape == dice.shape == focal.shape == (2, 2, 5, 3)
    for layer, image in itertools.product(range(2), range(2)):
        a, b = logits[layer, image], targets[image]
        expected = mask2former.pair_wise_sigmoid_cross_entropy_loss(a, b)
        torch.testing.assert_close(binary[layer, image], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(dice[layer, image], mask2former.pair_wise_dice_loss(a, b))
        expected = maskformer.pair_wise_sigmoid_focal_loss(a, b)
        torch.testing.assert_close(focal[layer, image], expected, atol=1e-5, rtol=1e-5)


def test_float32_under_autocast():
    logits, targets = torch.randn((1, 1, 4, 50)) * 3, torch.rand((1, 2, 50)).round()
    with torch.autocast("cpu", torch.bfloat16):
        low = (*mask_cost(logits, targets), focal_cost(logits, targets))
    for a, b in zip(low, (*mask_cost(logits, targets), focal_cost(logits, targets)), strict=True):
        assert torch.equal(a, b)
