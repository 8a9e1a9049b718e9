"""UPSNet's panoptic head: against loops over pixels and objects, and drawn cases worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pansight.ops.fusion import panoptic_head as rule
from pansight.ops.fusion.contest import Canvas
from pansight.ops.targets import InstanceTargets
from pansight.types import IGNORE, LabelSpace, PanopticSegmentation, Segment

LABELS = LabelSpace.from_names(["cat", "dog", "cow"], ["sky", "sea"])
STUFF = 2
CELLS = 4


def drawn(count: int, size: tuple[int, int], seed: int, things: int = 3) -> rule.Objects:
    """Objects at random places, the last one as large as the map."""
    chance = torch.Generator().manual_seed(seed)
    corner = torch.rand((count, 2), generator=chance) * torch.tensor([size[1] - 1.0, size[0] - 1.0])
    side = torch.rand((count, 2), generator=chance) * torch.tensor([size[1] / 2, size[0] / 2])
    boxes = torch.cat((corner, corner + side), dim=1)
    if count > 2:
        boxes[-1] = torch.tensor([0.0, 0.0, size[1], size[0]])
    labels = torch.randint(things, (count,), generator=chance)
    masks = torch.randn((count, CELLS, CELLS), generator=chance) * 3
    return rule.Objects(rule.crops_of(boxes, size), labels, masks)


def logits_by_loops(semantic: Tensor, stuff: int, objects: rule.Objects) -> Tensor:
    """The head as the paper says it: pixel by pixel."""
    _, height, width = semantic.shape
    count = len(objects.things)
    result = torch.zeros((stuff + count + 1, height, width))
    for y in range(height):
        for x in range(width):
            result[:stuff, y, x] = semantic[:stuff, y, x]
            of_objects: list[float] = []
            for n in range(count):
                x1, y1, x2, y2 = objects.crops[n].tolist()
                said = 0.0
                if x1 <= x < x2 and y1 <= y < y2:
                    said = float(semantic[stuff + int(objects.things[n]), y, x])
                    mask = F.interpolate(objects.mask_logits[None, None, n], (y2 - y1, x2 - x1), mode="bilinear")
                    result[stuff + n, y, x] = said + float(mask[0, 0, y - y1, x - x1])
                of_objects.append(said)
            result[stuff + count, y, x] = max(semantic[stuff:, y, x].tolist()) - (max(of_objects) if count else 0.0)
    return result


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("stuff", [0, 2])
def test_the_scores_are_those_of_a_loop_over_pixels(count: int, stuff: int) -> None:
    torch.manual_seed(count)
    semantic, objects = torch.randn(stuff + 3, 9, 11), drawn(count, (9, 11), count)
    found = rule.panoptic_logits(semantic, stuff, objects)
    torch.testing.assert_close(found, logits_by_loops(semantic, stuff, objects), rtol=1e-5, atol=1e-5)


def test_the_scores_have_gradients() -> None:
    semantic = torch.randn(5, 9, 11, requires_grad=True)
    objects = drawn(3, (9, 11), 0)
    masks = objects.mask_logits.clone().requires_grad_()
    rule.panoptic_logits(semantic, STUFF, objects._replace(mask_logits=masks)).square().sum().backward()
    assert semantic.grad is not None
    assert masks.grad is not None
    assert bool((semantic.grad[:STUFF] != 0).all())
    assert bool((semantic.grad[STUFF + int(objects.things[-1])] != 0).all())  # its box is the whole map
    assert bool((masks.grad != 0).flatten(1).any(1).all())


@pytest.mark.parametrize("count", [0, 1, 2, 12, 60])
@pytest.mark.parametrize("stuff", [0, 2, 11])
@pytest.mark.parametrize("shift", [-3.0, 0.0])
def test_a_running_maximum_finds_the_same_winners(count: int, stuff: int, shift: float) -> None:
    """Also where every score is below 0, so that objects win outside their boxes, and with more classes than fit at a
    time."""
    torch.manual_seed(7)
    things = 9
    logits = torch.randn(stuff + things, 6, 8) + shift
    canvas = Canvas((24, 32), (21, 30), (21, 30))
    objects = drawn(count, canvas.extent, count, things)
    found, expected = (each(logits, stuff, canvas, objects) for each in (rule.winners_in_boxes, rule.plain_winners))
    assert torch.equal(found.semantic, expected.semantic)
    scores = rule.panoptic_logits(rule.resized(logits, canvas.padded)[:, :21, :30], stuff, objects)
    differ = found.code != expected.code  # by rounding alone
    gap = scores.gather(0, expected.code[None]) - scores.gather(0, found.code[None])
    assert float(gap[0][differ].abs().max() if bool(differ.any()) else 0) < 1e-5
    assert int(differ.sum()) <= 2


def test_of_equal_scores_the_first_wins() -> None:
    """Whole numbers, so that there are many ties; masks of one value, which resizing leaves as it is."""
    torch.manual_seed(1)
    canvas = Canvas((12, 12), (12, 12), (12, 12))
    for seed in range(20):
        logits = torch.randint(-1, 2, (5, 12, 12)).float()
        objects = drawn(6, (12, 12), seed)
        values = torch.randint(-1, 2, (6, 1, 1)).float().expand(6, CELLS, CELLS)
        objects = objects._replace(mask_logits=values)
        found, expected = (each(logits, STUFF, canvas, objects) for each in (rule.winners_in_boxes, rule.plain_winners))
        assert torch.equal(found.code, expected.code)
        assert torch.equal(found.semantic, expected.semantic)


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made inside."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, list | tuple) else (result,):
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.numel())
        return result


def test_no_map_of_each_object_is_held() -> None:
    size = (96, 128)
    objects, canvas = drawn(300, size, 3), Canvas(size, size, size)
    logits = torch.randn(40, 24, 32)
    with Largest() as largest:
        rule.winners_in_boxes(logits, 37, canvas, objects)
        rule.prune_masks(objects, size)
    assert largest.numbers <= max(rule.CHANNELS_AT_A_TIME * 96 * 128, 300 * 128 * CELLS)


def one(box: tuple[int, int, int, int], thing: int, value: float) -> rule.Objects:
    return rule.Objects(torch.tensor([box]), torch.tensor([thing]), torch.full((1, CELLS, CELLS), value))


def joined(*objects: rule.Objects) -> rule.Objects:
    return rule.Objects(*(torch.cat(column) for column in zip(*objects, strict=True)))


NOBODY = rule.Objects(torch.zeros((0, 4), dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, 4))
BOTH = pytest.mark.parametrize("winners", [rule.winners_in_boxes, rule.plain_winners])


@BOTH
def test_without_objects_strong_things_are_void_and_not_the_wrong_stuff(winners: Any) -> None:
    """sky, sea | cat, dog, cow at four pixels: stuff stronger; a thing stronger; all below 0, where UPSNet's object of
    zeros wins; and a tie, which stuff wins."""
    logits = torch.tensor([[3.0, 1, -2, 1], [0, 0, -1, 2], [1, 2, -3, 2], [0, 1, -3, 0], [0, 0, -3, 0]])[:, None]
    canvas = Canvas((1, 4), (1, 4), (1, 4))
    found = winners(logits, STUFF, canvas, NOBODY)
    assert found.code.tolist() == [[0, 2, 2, 1]]  # 2: unknown
    assert found.semantic.tolist() == [[0, 2, 1, 1]]


@BOTH
def test_an_object_takes_what_its_class_and_mask_exceed(winners: Any) -> None:
    """A dog with a mask of 10 in the left three of five pixels. Semantic: sky 11, 1, 1, 1, −1; dog 2, 2, −8, 2, −2.

    Its scores: 12, 12, 2, and 0 outside. Unknown = max of things − dog inside = 0 or more; outside it is max of things.
    """
    sky, dog = torch.tensor([11.0, 1, 1, 1, -1]), torch.tensor([2.0, 2, -8, 2, -2])
    low = torch.full((5,), -9.0)
    logits = torch.stack((sky, low, low, dog, low))[:, None]
    canvas = Canvas((1, 5), (1, 5), (1, 5))
    found = winners(logits, STUFF, canvas, one((0, 0, 3, 1), 1, 10.0))
    # object, object, object; a dog beside its box is unknown; where all else is below 0 the object wins outside
    assert found.code.tolist() == [[2, 2, 2, 3, 2]]


def test_over_the_whole_image_unknown_is_what_other_things_exceed_it_by() -> None:
    torch.manual_seed(0)
    semantic = torch.randn(5, 6, 7)
    scores = rule.panoptic_logits(semantic, STUFF, one((0, 0, 7, 6), 1, 10.0))
    torch.testing.assert_close(scores[-1], semantic[STUFF:].amax(0) - semantic[STUFF + 1])
    assert bool((scores[-1] >= 0).all())
    assert bool((scores.argmax(0) == STUFF).all())


@BOTH
def test_two_objects_in_one_box_compete_by_their_sums(winners: Any) -> None:
    """cat 4, 1 with mask 1 against cow 2, 3 with mask 2: 5 against 4, then 2 against 5."""
    low = torch.full((2,), -9.0)
    logits = torch.stack((low, low, torch.tensor([4.0, 1.0]), low, torch.tensor([2.0, 3.0])))[:, None]
    canvas = Canvas((1, 2), (1, 2), (1, 2))
    both = joined(one((0, 0, 2, 1), 0, 1.0), one((0, 0, 2, 1), 2, 2.0))
    assert winners(logits, STUFF, canvas, both).code.tolist() == [[2, 3]]


def test_plain_and_fast_are_chosen_by_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, canvas = torch.randn(5, 4, 4), Canvas((16, 16), (16, 13), (30, 20))
    objects = drawn(4, (16, 13), 2)
    found = rule.panoptic_winners(logits, STUFF, canvas, objects)
    monkeypatch.setattr(rule, "use_plain", lambda: True)
    expected = rule.panoptic_winners(logits, STUFF, canvas, objects)
    assert found.code.shape == found.semantic.shape == (30, 20)
    assert torch.equal(found.code, expected.code)
    assert torch.equal(found.semantic, expected.semantic)


def test_crops_hold_the_pixels_of_the_published_rule() -> None:
    """First pixel rounded down, last pixel to the nearest: a box that ends at the edge 8 has its last pixel at 7."""
    boxes = torch.tensor([[2.7, 0.0, 8.0, 5.0], [3.0, 3.0, 3.2, 3.3], [0.0, 0.0, 20.0, 10.0]])
    assert rule.crops_of(boxes, (10, 20)).tolist() == [[2, 0, 8, 5], [3, 3, 4, 4], [0, 0, 20, 10]]
    # at a quarter: (8 − 1) / 4 = 1.75 → pixels 0 … 2; (5 − 1) / 4 = 1; (3.2 − 1) / 4 = 0.55 → 1; none beyond the map
    assert rule.crops_of(boxes, (3, 5), 4).tolist() == [[0, 0, 3, 2], [0, 0, 2, 2], [0, 0, 5, 3]]


def test_resizing_by_a_matrix_is_interpolation() -> None:
    values = torch.randn(1, 1, CELLS)
    first, stop = torch.tensor([3]), torch.tensor([13])
    matrix = rule.resize_matrix(first, stop, 16, CELLS)[0]
    expected = F.interpolate(values, 10, mode="linear")[0, 0]
    found = matrix @ values[0, 0]
    torch.testing.assert_close(found[3:13], expected)
    assert found[:3].tolist() == [0, 0, 0]
    assert found[13:].tolist() == [0, 0, 0]


def test_masks_are_pruned_within_their_class() -> None:
    """Objects of ten pixels. The second cat lies by 4 of them on the first: dropped. A dog there stays. The third cat
    lies by 3 on the first, which is not more than 0.3, and on the second, which is gone: kept. The last has no mask."""
    objects = joined(
        one((0, 0, 10, 1), 0, 1.0),
        one((6, 0, 16, 1), 0, 1.0),
        one((6, 0, 16, 1), 1, 1.0),
        one((7, 0, 17, 1), 0, 1.0),
        one((0, 0, 5, 1), 2, 0.0),
    )
    assert rule.prune_masks(objects, (1, 20)).tolist() == [0, 2, 3]
    assert rule.prune_masks(objects, (1, 20), 0.29).tolist() == [0, 2]
    assert rule.prune_masks(NOBODY, (1, 20)).tolist() == []


def test_the_semantic_branch_has_a_last_word() -> None:
    """Of a cat's four pixels two are sky: sky. Of a dog's three one is sky, one sea, one dog, the first of equal ones
    being sky with less than half: a dog. A cow that is all cat stays a cow. Void stays void."""
    cat, dog, cow, void = 2, 3, 4, 5
    code = torch.tensor([[cat, cat, cat, cat, dog, dog, dog, cow, void, 1]])
    semantic = torch.tensor([[0, 0, 2, 3, 0, 1, 3, 2, 4, 1]])
    winners = rule.Winners(code, semantic)
    found = rule.segments_of_winners(winners, torch.tensor([0, 1, 2]), torch.tensor([0.9, 0.8, 0.7]), LABELS, 1)
    assert found.ids.tolist() == [[3, 3, 3, 3, 1, 1, 1, 2, 0, 4]]
    names = [(segment.id, LABELS[segment.category].name) for segment in found.segments]
    assert names == [(1, "dog"), (2, "cow"), (3, "sky"), (4, "sea")]
    assert [s.score for s in found.segments[:2]] == pytest.approx([0.8, 0.7])


def test_stuff_below_the_limit_is_void() -> None:
    code = torch.zeros((64, 64), dtype=torch.int64)
    none, no_score = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    whole = rule.segments_of_winners(rule.Winners(code, code), none, no_score, LABELS)
    assert [s.category for s in whole.segments] == [LABELS.stuff[0].id]
    code[0, 0] = STUFF  # unknown; 4,095 pixels are left
    assert rule.segments_of_winners(rule.Winners(code, code), none, no_score, LABELS).segments == ()


def test_the_heuristic_counts_stuff_before_objects_cover_it() -> None:
    """Ten pixels of sky, of which a dog covers six; the second dog lies by 4 of 10 on the first, and is dropped."""
    masks = torch.zeros((2, 1, 20), dtype=torch.bool)
    masks[0, 0, 4:14] = True
    masks[1, 0, 10:20] = True
    sky, cat = LABELS.stuff[0].id, LABELS.things[0].id
    semantic = torch.tensor([[sky] * 10 + [cat] * 10])
    given = (masks, torch.tensor([0.9, 0.8]), torch.tensor([1, 1]), semantic, LABELS)
    found = rule.merge_beside_stuff(*given, min_stuff_area=10)
    assert found.ids.tolist() == [[2] * 4 + [1] * 10 + [0] * 6]
    assert [s.category for s in found.segments] == [1, sky]
    assert len(rule.merge_beside_stuff(*given, min_stuff_area=11).segments) == 1
    assert rule.merge_beside_stuff(*given, score_threshold=0.95, min_stuff_area=11).segments == ()


def test_objects_are_kept_by_a_draw_of_their_own() -> None:
    boxes = torch.rand(10, 4) * 100
    kept = rule.kept_objects(boxes, 0.7)
    assert len(kept) == 7
    assert kept.tolist() == sorted(set(kept.tolist()))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(rule.kept_objects(boxes, 0.7), kept)
    assert torch.equal(torch.get_rng_state(), before)
    drawn_later = [rule.kept_objects(boxes, 0.7, step / 20).tolist() for step in range(20)]
    assert len({*map(tuple, drawn_later)}) > 5
    assert [len(rule.kept_objects(boxes[:n], 0.7)) for n in (0, 1, 2, 3)] == [0, 1, 1, 2]
    assert rule.kept_objects(boxes, 1.0).tolist() == list(range(10))


def test_the_target_numbers_stuff_kept_objects_and_unknown() -> None:
    """A cat (kept), a dog (not), a crowd of cats and void in the sea, at every second pixel."""
    ids = torch.tensor([[1, 1, 2, 2, 3, 3, 0, 0, 4]], dtype=torch.int32)
    segments = (Segment(1, 0), Segment(2, 1), Segment(3, 0, is_crowd=True), Segment(4, LABELS.stuff[1].id))
    truth = PanopticSegmentation(ids, segments)
    boxes = torch.tensor([[0.0, 0, 2, 1], [2, 0, 4, 1]])
    targets = InstanceTargets(
        boxes, torch.tensor([0, 1]), ids[None], torch.tensor([0, 0]), torch.tensor([1, 2], dtype=torch.int32)
    )
    found = rule.panoptic_target(truth, targets, torch.tensor([0]), LABELS, 2)
    assert found.tolist() == [[STUFF, STUFF + 1, STUFF + 1, IGNORE, 1]]
    none = targets._replace(boxes_xyxy=boxes[:0], things=targets.things[:0], mask_value=targets.mask_value[:0])
    none = none._replace(mask_index=targets.mask_index[:0])
    assert rule.panoptic_target(truth, none, torch.zeros(0, dtype=torch.int64), LABELS, 2).tolist() == [
        [STUFF, STUFF, STUFF, IGNORE, 1]
    ]


def test_of_overlapping_objects_the_later_has_the_pixel() -> None:
    ids = torch.full((1, 4), 9, dtype=torch.int32)
    truth = PanopticSegmentation(ids, (Segment(9, LABELS.stuff[0].id),))
    masks = torch.tensor([[[1, 1, 1, 0]], [[0, 1, 0, 0]], [[0, 0, 1, 0]]], dtype=torch.uint8)
    value = torch.ones(3, dtype=torch.int32)
    targets = InstanceTargets(torch.zeros(3, 4), torch.tensor([0, 0, 1]), masks, torch.arange(3), value)
    kept = torch.tensor([0, 2])
    found = rule.panoptic_target(truth, targets, kept, LABELS, 1)
    assert found.tolist() == [[STUFF, STUFF + 2, STUFF + 1, 0]]  # the second is not shown: unknown


def test_classes_of_a_region_are_read_at_the_centres_of_its_cells() -> None:
    target = torch.arange(40).reshape(1, 4, 10)
    found = rule.region_classes(target, torch.tensor([[0.0, 0, 4, 2], [9, 3, 10, 4]]), torch.zeros(2).long(), 2)
    assert found.tolist() == [[[1, 3], [11, 13]], [[39, 39], [39, 39]]]


def test_the_loss_counts_all_that_is_known() -> None:
    logits, target = torch.randn(4, 1, 3), torch.tensor([[2, IGNORE, 0]])
    expected = -(logits[:, 0, 0].log_softmax(0)[2] + logits[:, 0, 2].log_softmax(0)[0])
    torch.testing.assert_close(rule.panoptic_loss(logits, target), expected)
