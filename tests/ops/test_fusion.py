"""The merge rules (docs/systems/merging.md) at their limits, and against both variants written a second time."""

import pytest
import torch

from pansight.ops.fusion.instances import accept_instances, merge_by_label_map, merge_by_stuff_masks
from pansight.types import LabelSpace

LABELS = LabelSpace.from_names(["cat", "dog"], ["grass", "sky"])
NO_STUFF = torch.full((8, 8), 255)


def rectangle(y1: int, x1: int, y2: int, x2: int, size: tuple[int, int] = (8, 8)) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


def merge(masks, scores, semantic=NO_STUFF, categories=None, **options):
    masks = torch.stack(masks) if masks else torch.zeros((0, *semantic.shape), dtype=torch.bool)
    categories = torch.zeros(len(masks), dtype=torch.int64) if categories is None else torch.tensor(categories)
    return merge_by_label_map(masks, torch.tensor(scores), categories, semantic, LABELS, **options)


def test_the_second_of_two_identical_masks_is_skipped():
    result = merge([rectangle(0, 0, 4, 4)] * 2, [0.7, 0.9])
    assert [(s.id, s.score) for s in result.segments] == [(1, pytest.approx(0.9))]


def test_an_overlap_of_exactly_half_is_kept_and_painted_half():
    result = merge([rectangle(0, 0, 4, 4), rectangle(2, 0, 6, 4)], [0.9, 0.8])
    assert [int((result.ids == s.id).sum()) for s in result.segments] == [16, 8]


def test_more_than_half_is_skipped():
    result = merge([rectangle(0, 0, 4, 4), rectangle(1, 0, 5, 4)], [0.9, 0.8])
    assert len(result.segments) == 1


def test_hidden_by_three_accepted_ones_of_thirty_percent_each():
    strips = [rectangle(0, 3 * k, 2, 3 * k + 3, (2, 10)) for k in range(3)]
    whole = rectangle(0, 0, 2, 10, (2, 10))
    result = merge([*strips, whole], [0.9, 0.8, 0.7, 0.6], torch.full((2, 10), 255))
    assert len(result.segments) == 3  # the union hides 0.9 of it, though no one hides more than 0.3


def test_score_exactly_at_the_threshold_is_kept_below_is_not_and_nan_never_is():
    masks = [rectangle(0, 0, 2, 2), rectangle(2, 2, 4, 4), rectangle(4, 4, 6, 6)]
    result = merge(masks, [0.5, 0.4999, float("nan")])
    assert [s.score for s in result.segments] == [0.5]


def test_stuff_area_is_counted_after_instances_and_the_limit_itself_is_kept():
    semantic = torch.full((8, 8), 2)
    assert [s.category for s in merge([rectangle(0, 0, 4, 4)], [0.9], semantic, min_stuff_area=48).segments] == [0, 2]
    assert [s.category for s in merge([rectangle(0, 0, 4, 4)], [0.9], semantic, min_stuff_area=49).segments] == [0]


def test_stuff_ascends_and_other_values_stay_void():
    semantic = torch.tensor([[3, 3, 2, 255], [3, 3, 2, 0]])
    result = merge([], [], semantic, min_stuff_area=1)
    assert result.ids.tolist() == [[2, 2, 1, 0], [2, 2, 1, 0]]
    assert [s.category for s in result.segments] == [2, 3]


def test_nothing_at_all_is_a_void_image():
    result = merge([], [])
    assert result.segments == ()
    assert int(result.ids.max()) == 0


def test_an_accepted_instance_is_never_empty_even_with_overlap_one():
    result = merge([rectangle(0, 0, 4, 4), rectangle(1, 1, 2, 2)], [0.9, 0.8], max_overlap=1.0)
    assert len(result.segments) == 1


def test_without_a_semantic_map_the_only_stuff_class_takes_the_rest():
    labels = LabelSpace.from_names(["nucleus"], ["background"])
    masks = rectangle(0, 0, 2, 2)[None]
    result = merge_by_label_map(masks, torch.tensor([0.9]), torch.tensor([0]), None, labels)
    assert [(s.category, int((result.ids == s.id).sum())) for s in result.segments] == [(0, 4), (1, 60)]
    two_stuff = merge_by_label_map(masks, torch.tensor([0.9]), torch.tensor([0]), None, LABELS)
    assert [s.category for s in two_stuff.segments] == [0]


def test_inputs_are_not_changed():
    masks, scores = torch.stack([rectangle(0, 0, 4, 4), rectangle(1, 0, 5, 4)]), torch.tensor([0.6, 0.9])
    semantic = torch.full((8, 8), 2)
    copies = masks.clone(), scores.clone(), semantic.clone()
    merge_by_label_map(masks, scores, torch.tensor([0, 1]), semantic, LABELS, min_stuff_area=1)
    assert all(torch.equal(a, b) for a, b in zip(copies, (masks, scores, semantic)))


def plain_accept(masks, scores, score_threshold, max_overlap):
    """panopticapi's rule word by word: `used` is the union of the full masks of accepted instances."""
    used = torch.zeros(masks.shape[1:], dtype=torch.bool)
    canvas = torch.zeros(masks.shape[1:], dtype=torch.int32)
    accepted = []
    for k in sorted(range(len(scores)), key=lambda k: -float(scores[k])):
        area = int(masks[k].sum())
        if float(scores[k]) < score_threshold or area == 0:
            continue
        if int((used & masks[k]).sum()) / area > max_overlap:
            continue
        accepted.append(k)
        canvas[masks[k] & ~used] = len(accepted)
        used |= masks[k]
    return canvas, accepted


@pytest.mark.parametrize("seed", range(20))
def test_accepted_instances_equal_the_plain_rule(seed):
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for _ in range(30):
        y, x, h, w = (int(v) for v in torch.randint(1, 20, (4,), generator=generator))
        masks.append(rectangle(y, x, y + h, x + w, (32, 40)) & (torch.rand((32, 40), generator=generator) > 0.2))
    scores = (torch.rand(30, generator=generator) * 10).round() / 10  # with ties
    canvas, accepted = accept_instances(torch.stack(masks), scores, 0.3, 0.5)
    plain_canvas, plain_accepted = plain_accept(torch.stack(masks), scores, 0.3, 0.5)
    assert accepted == plain_accepted
    assert torch.equal(canvas, plain_canvas)


def test_variant_a_takes_overlapping_stuff_in_order_with_colour_ids():
    labels = LabelSpace.from_json(
        [
            {"id": 1, "name": "cat", "isthing": 1, "color": [10, 0, 0]},
            {"id": 7, "name": "sky", "isthing": 0, "color": [0, 20, 0]},
            {"id": 8, "name": "sea", "isthing": 0, "color": [0, 0, 30]},
        ]
    )
    masks = torch.stack([rectangle(0, 0, 2, 2), rectangle(4, 4, 6, 6)])
    stuff = torch.stack([rectangle(0, 0, 8, 4), rectangle(0, 0, 8, 8), rectangle(0, 0, 8, 8)])
    result = merge_by_stuff_masks(
        masks, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), stuff, [2, 1, 0], labels, min_stuff_area=10
    )
    first, second, sea, sky = result.segments
    assert first.id == 10  # the first instance has the colour of its class
    assert second.id not in (0, 10)
    assert all(abs((second.id >> shift & 255) - c) <= 30 for shift, c in ((0, 10), (8, 0), (16, 0)))
    assert (sea.id, sky.id) == (30 * 65536, 20 * 256)  # sea came first and got the overlap; the thing mask was dropped
    assert int((result.ids == sea.id).sum()) == 28
    assert int((result.ids == sky.id).sum()) == 28
    again = merge_by_stuff_masks(
        masks, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), stuff, [2, 1, 0], labels, min_stuff_area=10
    )
    assert again.segments == result.segments
