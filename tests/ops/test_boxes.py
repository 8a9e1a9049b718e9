"""Boxes: code, overlaps, suppression and matching, against torchvision and by hand."""

import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from pansight.ops.regions import boxes as ops


def random_boxes(count: int, side: float = 100.0) -> torch.Tensor:
    corner = torch.rand(count, 2) * side
    return torch.cat((corner, corner + 1 + torch.rand(count, 2) * side / 2), dim=1)


def test_iou_of_drawn_boxes():
    a = torch.tensor([[0.0, 0, 4, 4], [10, 10, 10, 12]])
    b = torch.tensor([[2.0, 2, 6, 6], [0, 0, 4, 4], [10, 10, 10, 12]])
    expected = torch.tensor([[4 / 28, 1, 0], [0, 0, 0]])  # two empty boxes share nothing
    torch.testing.assert_close(ops.box_iou_matrix(a, b), expected)


def test_iou_is_torchvisions():
    a, b = random_boxes(30), random_boxes(50)
    torch.testing.assert_close(ops.box_iou_matrix(a, b), torchvision.ops.box_iou(a, b))


def test_box_code_by_hand():
    anchor = torch.tensor([[0.0, 0, 10, 20]])
    box = torch.tensor([[5.0, 0, 25, 20]])  # centre moved by one width, twice as wide
    code = ops.encode_boxes(box, anchor, (10, 10, 5, 5))
    torch.testing.assert_close(code, torch.tensor([[10.0, 0, 5 * math.log(2), 0]]))
    torch.testing.assert_close(ops.decode_boxes(code, anchor, (10, 10, 5, 5)), box)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_decoding_undoes_encoding(seed: int):
    torch.manual_seed(seed)
    boxes, anchors = random_boxes(20), random_boxes(20)
    for weights in ((1, 1, 1, 1), (10, 10, 5, 5)):
        decoded = ops.decode_boxes(ops.encode_boxes(boxes, anchors, weights), anchors, weights)
        torch.testing.assert_close(decoded, boxes, rtol=1e-4, atol=1e-3)


def test_growth_is_limited():
    anchor = torch.tensor([[0.0, 0, 16, 16]])
    decoded = ops.decode_boxes(torch.tensor([[0.0, 0, 100, 100]]), anchor, (1, 1, 1, 1))
    torch.testing.assert_close(decoded[0, 2:] - decoded[0, :2], torch.tensor([1000.0, 1000.0]))


def test_clipping_uses_the_extent_of_each_box():
    boxes = torch.tensor([[-5.0, -5, 50, 50], [-5.0, -5, 50, 50]])
    extents = torch.tensor([[20, 30], [40, 10]])  # height, width
    assert ops.clip_boxes(boxes, extents).tolist() == [[0, 0, 30, 20], [0, 0, 10, 40]]


def test_nan_infinite_and_small_boxes_are_not_usable():
    nan, inf = math.nan, math.inf
    boxes = torch.tensor([[0.0, 0, 5, 5], [0, 0, nan, 5], [0, 0, inf, 5], [0, 0, 5, 5], [0, 0, 0.5, 5], [3, 3, 3, 5]])
    scores = torch.tensor([1.0, 1, 1, nan, 1, 1])
    assert ops.usable_boxes(boxes, scores, 0.0).tolist() == [True, False, False, False, True, False]
    assert ops.usable_boxes(boxes, scores, 1.0).tolist() == [True, False, False, False, False, False]


@pytest.mark.parametrize("count", [0, 1, 300, 1500])  # below and above the size at which groups are taken one by one
def test_suppression_within_groups_is_torchvisions(count: int):
    boxes, scores = random_boxes(count), torch.rand(count)
    groups = torch.randint(0, 7, (count,))
    kept = ops.batched_nms(boxes, scores, groups, 0.5)
    assert kept.tolist() == torchvision.ops.batched_nms(boxes, scores, groups, 0.5).tolist()


@pytest.mark.parametrize("count", [200, 1200])
def test_ties_keep_their_order(count: int):
    corner = torch.arange(count)[:, None] * 20.0 * torch.ones(1, 2)  # nothing overlaps
    boxes = torch.cat((corner, corner + 10), dim=1)
    kept = ops.batched_nms(boxes, torch.full((count,), 0.5), torch.arange(count) % 3, 0.5)
    assert kept.tolist() == list(range(count))


def test_first_of_each_image():
    image = torch.tensor([1, 0, 1, 1, 0, 2])
    assert ops.first_of_each(image, 2).tolist() == [1, 4, 0, 2, 5]
    assert ops.first_of_each(image[:0], 2).tolist() == []


def test_matching():
    iou = torch.tensor([[0.8, 0.5, 0.2, 0.1, 0.0], [0.1, 0.4, 0.1, 0.25, 0.25]])
    match = ops.match_boxes(iou, 0.3, 0.7, low_quality=False)
    assert match.tolist() == [0, ops.BETWEEN, ops.BELOW, ops.BELOW, ops.BELOW]
    # truth 1 is met best by anchor 1, whose own best truth is 0
    assert ops.match_boxes(iou, 0.3, 0.7, low_quality=True).tolist() == [0, 0, ops.BELOW, ops.BELOW, ops.BELOW]
    iou[1, 3:] = 0.45  # two anchors share the highest overlap: both are taken
    assert ops.match_boxes(iou, 0.3, 0.7, low_quality=True).tolist() == [0, ops.BETWEEN, ops.BELOW, 1, 1]


def test_without_truth_everything_is_background():
    assert ops.match_boxes(torch.zeros(0, 3), 0.3, 0.7, low_quality=True).tolist() == [ops.BELOW] * 3
    assert ops.match_boxes(torch.zeros(2, 0), 0.3, 0.7, low_quality=True).tolist() == []


def test_sampling_keeps_its_shares_and_follows_the_global_seed():
    match = torch.tensor([ops.BELOW, ops.BETWEEN] * 50 + [3] * 40)
    torch.manual_seed(5)
    positive, negative = ops.sample_matches(match, 40, 0.25)
    assert (len(positive), len(negative)) == (10, 30)
    assert bool((match[positive] == 3).all())
    assert bool((match[negative] == ops.BELOW).all())
    assert positive.tolist() == sorted(set(positive.tolist()))
    torch.manual_seed(5)
    again, _ = ops.sample_matches(match, 40, 0.25)
    other, _ = ops.sample_matches(match, 40, 0.25)
    assert torch.equal(positive, again)
    assert not torch.equal(positive, other)
    few, rest = ops.sample_matches(match[96:102], 40, 0.5)  # fewer than wanted: all of them
    assert (len(few), len(rest)) == (2, 2)


def test_the_highest_of_an_exported_graph_are_always_as_many(monkeypatch: pytest.MonkeyPatch):
    scores = torch.tensor([[0.1, 0.5, 0.3], [0.4, 0.2, 0.4]])
    assert [each.tolist() for each in ops.highest(scores, 2)] == [each.tolist() for each in scores.topk(2)]
    assert ops.highest(scores, 5)[0].shape == (2, 3)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    best, place = ops.highest(scores, 5)
    assert best[:, 3:].tolist() == [[-math.inf] * 2] * 2
    assert torch.equal(best[:, :3], scores.sort(descending=True).values)
    assert int(place.max()) == 2
