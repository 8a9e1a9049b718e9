"""Panoptic-DeepLab's rule: a case worked out by hand, loops over single pixels, and the fast way beside the plain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pansight.ops.centres.heatmaps import CentreSettings, centre_targets
from pansight.ops.fast import plain
from pansight.ops.fusion.centres import CentreRule, find_centres, group_pixels, majority, nearest_centres, plain_nearest
from pansight.types import LabelSpace, PanopticSegmentation, Segment

LABELS = LabelSpace.from_names(["a", "b"], ["s", "t"])
RULE = CentreRule(window=3, min_stuff_area=3)


def one_hot(rows: list[str], sure: float = 100.0) -> Tensor:
    """Logits (4, H, W) of a map of classes."""
    classes = torch.tensor([[int(c) for c in row] for row in rows])
    return sure * torch.nn.functional.one_hot(classes, 4).permute(2, 0, 1).float()


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Two objects side by side and one pixel of the right one that points to the left one."""
    logits = one_hot(["000112", "001112", "333322"])
    heat = torch.zeros(3, 6)
    heat[0, 1], heat[1, 4], heat[2, 0] = 0.9, 0.5, 0.1  # the last one is no larger than the threshold
    offsets = torch.zeros(2, 3, 6)
    offsets[1, 0, 3] = -2.0
    return logits, heat, offsets


def test_a_drawn_case() -> None:
    """Centres at (0, 1) and (1, 4). The pixel (0, 3) points to (0, 1), the pixels (0, 2) and (1, 1) are nearer to it;
    (1, 2), which says b, is nearer to (0, 1) by √2 to 2. So the first object has 7 pixels, of which 5 say a; (0, 4),
    (1, 3) and (1, 4) are the second. Stuff s and stuff t have 4 pixels each."""
    panoptic, semantic = group_pixels(*drawn(), LABELS, RULE)
    assert panoptic.ids.tolist() == [[1, 1, 1, 1, 2, 3], [1, 1, 1, 2, 2, 3], [4, 4, 4, 4, 3, 3]]
    assert [(s.id, s.category) for s in panoptic.segments] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert semantic.tolist()[0] == [0, 0, 0, 1, 1, 2]
    # 5 of 7 pixels of the first are surely a; their mean place is (3/7, 9/7), whose whole part is (0, 1): heat 0.9
    assert panoptic.segments[0].score == pytest.approx(5 / 7 * 0.9)
    # all three of the second are surely b; (2/3, 11/3) → (0, 3), where there is no heat
    assert panoptic.segments[1].score == 0


def test_without_a_centre_both_published_rules() -> None:
    logits, heat, offsets = drawn()
    panoptic, _ = group_pixels(logits, 0 * heat, offsets, LABELS, RULE)
    assert [s.category for s in panoptic.segments] == [2, 3]
    assert int((panoptic.ids == 0).sum()) == 10
    panoptic, _ = group_pixels(logits, 0 * heat, offsets, LABELS, RULE._replace(grouping="deeplab2"))
    assert [s.category for s in panoptic.segments] == [0, 2, 3]  # five say a, five b: the smaller one
    assert int((panoptic.ids == 1).sum()) == 10


@pytest.mark.parametrize(("grouping", "area", "kept"), [("detectron2", 4, 2), ("deeplab2", 4, 0), ("deeplab2", 3, 2)])
def test_the_least_area_of_stuff(grouping: str, area: int, kept: int) -> None:
    panoptic, _ = group_pixels(*drawn(), LABELS, RULE._replace(min_stuff_area=area, grouping=grouping))
    assert sum(not LABELS[s.category].is_thing for s in panoptic.segments) == kept


def test_peaks_beyond_the_number_and_equal_ones() -> None:
    heat = torch.zeros(20, 20)
    for k in range(4):
        heat[4 * k, 4 * k] = 0.9 - 0.1 * k
    assert find_centres(heat, 0.1, 3, 200).tolist() == [[0, 0], [4, 4], [8, 8], [12, 12]]
    assert find_centres(heat, 0.75, 3, 200).tolist() == [[0, 0], [4, 4]]
    assert find_centres(heat, 0.1, 3, 3).tolist() == [[0, 0], [4, 4]]  # those above the third one
    heat[4, 4] = 0.7
    assert find_centres(heat, 0.1, 3, 2).tolist() == [[0, 0]]
    assert find_centres(heat, 0.1, 9, 200).tolist() == [[0, 0], [8, 8]]  # (4, 4) sees a larger one, (12, 12) too
    assert find_centres(torch.full((1, 1), 0.5), 0.1, 7, 200).tolist() == [[0, 0]]
    assert find_centres(torch.full((3, 3), torch.nan), 0.1, 7, 200).tolist() == []


def by_pixels(logits: Tensor, heat: Tensor, offsets: Tensor, rule: CentreRule) -> list[list[int]]:
    """class · 1000 + number of each pixel, −1 where void, loop by loop."""
    _, height, width = logits.shape
    half = rule.window // 2
    peaks: list[tuple[int, int]] = []
    for y in range(height):
        for x in range(width):
            near = heat[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
            if heat[y, x] > rule.threshold and heat[y, x] == near.max():
                peaks.append((y, x))
    classes = logits.argmax(0)
    owner = -np.ones((height, width), int)
    for y in range(height):
        for x in range(width):
            if LABELS[int(classes[y, x])].is_thing and peaks:
                py, px = np.float32(y) + offsets[:, y, x].numpy()[0], np.float32(x) + offsets[:, y, x].numpy()[1]
                far = [(np.float32(cy) - py) ** 2 + (np.float32(cx) - px) ** 2 for cy, cx in peaks]
                owner[y, x] = far.index(min(far))
    result = -np.ones((height, width), int)
    number = 0
    for k in range(len(peaks)):
        inside = owner == k
        if inside.any():
            number += 1
            votes = np.bincount(classes.numpy()[inside])
            result[inside] = 1000 * int(votes.argmax()) + number
    for category in LABELS.stuff:
        inside = classes.numpy() == category.id
        if inside.sum() >= max(1, rule.min_stuff_area):
            result[inside] = 1000 * category.id
    return result.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_random_maps_as_pixel_by_pixel(seed: int, both_ways: None) -> None:
    """Offsets and centres are whole numbers, so that many distances are equal."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn((4, 14, 17), generator=draw)
    heat = torch.rand((14, 17), generator=draw)
    offsets = torch.randint(-3, 4, (2, 14, 17), generator=draw).float()
    rule = CentreRule(threshold=0.3, window=3, min_stuff_area=[0, 40, 60, 1000, 5][seed])
    panoptic, _ = group_pixels(logits, heat, offsets, LABELS, rule)
    category = {s.id: s.category for s in panoptic.segments} | {0: -1}
    things = {s.id for s in panoptic.segments if LABELS[s.category].is_thing}
    found = [
        [-1 if i == 0 else 1000 * category[i] + (i if i in things else 0) for i in row] for row in panoptic.ids.tolist()
    ]
    assert found == by_pixels(logits, heat, offsets, rule)


def test_the_loop_equals_the_plain_way_bit_by_bit() -> None:
    """Also where an offset is no number, and over several threads' parts."""
    draw = torch.Generator().manual_seed(0)
    offsets = torch.randn((2, 300, 500), generator=draw) * 40
    offsets[0, 5, 7], offsets[1, 6, 8] = torch.nan, torch.inf
    centres = torch.randint(0, 300, (50, 2), generator=draw)
    is_thing = torch.rand((300, 500), generator=draw) > 0.05
    with plain(False):
        fast = nearest_centres(centres, offsets, is_thing)
    with plain():
        assert torch.equal(fast, nearest_centres(centres, offsets, is_thing))
    assert set(fast[~is_thing].tolist()) == {0}
    assert int(fast[5, 7]) == 1 or not is_thing[5, 7]


def test_of_equally_near_centres_the_first() -> None:
    assert plain_nearest(torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 0.0]])).item() == 1


def test_equal_votes_are_for_the_smaller_class() -> None:
    numbers = torch.tensor([[1, 1, 2, 2, 0]])
    assert majority(numbers, torch.tensor([[3, 1, 2, 2, 0]]), 3, 4).tolist() == [1, 2, 0]


def test_the_truth_itself_comes_back() -> None:
    """Maps made of the truth give the truth, without a least area of stuff."""
    ids = torch.full((40, 60), 3, dtype=torch.int32)
    ids[3:20, 5:15], ids[3:20, 15:40], ids[25:39, 30:58] = 1, 2, 4
    truth = PanopticSegmentation(ids, (Segment(1, 0), Segment(2, 0), Segment(3, 2), Segment(4, 1)))
    target = centre_targets(truth, LABELS, CentreSettings(sigma=2.0))
    classes = torch.tensor([0, 0, 0, 2, 1])[ids.long()]
    logits = torch.nn.functional.one_hot(classes, 4).permute(2, 0, 1).float()
    panoptic, _ = group_pixels(logits, target.heat, target.offsets_yx, LABELS, CentreRule(min_stuff_area=0))
    pairs = set(zip(ids.flatten().tolist(), panoptic.ids.flatten().tolist(), strict=True))
    assert len(pairs) == 4  # one segment each
    categories = {s.id: s.category for s in panoptic.segments}
    assert all(categories[ours] == truth.segments[theirs - 1].category for theirs, ours in pairs)
