"""EfficientPS's fusion: cases drawn by hand, its limits, and the rule written a second time, pixel by pixel."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pansight.ops.fusion.adaptive import AdaptiveRule, Objects, Part, adaptive_fusion, part_of_box, stretched
from pansight.types import LabelSpace, PanopticSegmentation

LABELS = LabelSpace.from_names(["car", "person"], ["road", "sky"])
CAR, PERSON, ROAD, SKY = range(4)
RULE = AdaptiveRule(min_stuff_area=1)
RELEASED = RULE._replace(bounded=False)


def uniform(height: int, width: int, car: float, person: float, road: float, sky: float) -> Tensor:
    """Semantic logits (4, H, W) that are the same at every pixel."""
    return torch.tensor([car, person, road, sky])[:, None, None].repeat(1, height, width)


def objects(*rows: tuple[list[float], float, float, int], cells: int = 4) -> Objects:
    """(box, logit of every cell of the mask, score, category) of each."""
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
    logits = torch.tensor([row[1] for row in rows])[:, None, None].repeat(1, cells, cells).reshape(-1, cells, cells)
    return Objects(boxes, logits, torch.tensor([row[2] for row in rows]), torch.tensor([row[3] for row in rows]).long())


def fuse(
    logits: Tensor, found: Objects, rule: AdaptiveRule = RULE, labels: LabelSpace = LABELS
) -> PanopticSegmentation:
    return adaptive_fusion(logits, logits.max(0).indices, found, labels, rule)


def areas(result: PanopticSegmentation) -> list[tuple[int, int]]:
    """(category, pixels) of each segment."""
    return [(s.category, int((result.ids == s.id).sum())) for s in result.segments]


def test_drawn_by_hand() -> None:
    """A box of 4×4 pixels whose cells are pixels. Where its class counts, rows and columns 1 … 3, the fused logit is
    (σ(4) + σ(2)) · (4 + 2) = 11.18, in its first row and column (σ(4) + ½) · 4 = 5.93: below the 6 of the road.
    """
    logits = uniform(4, 8, car=2, person=-9, road=6, sky=0)
    found = objects(([0, 0, 4, 4], 1.0, 0.9, CAR))
    expected = torch.full((4, 8), 2, dtype=torch.int32)
    expected[1:4, 1:4] = 1
    for rule in (RULE, RELEASED):
        result = fuse(logits, found, rule)
        assert torch.equal(result.ids, expected)
        assert areas(result) == [(CAR, 9), (ROAD, 23)]
        assert [s.score for s in result.segments] == [pytest.approx(0.9), 1.0]
    # as the paper has it, without the factor: (σ(1) + σ(2)) · 3 = 4.84
    assert areas(fuse(logits, found, RULE._replace(mask_factor=1.0))) == [(ROAD, 32)]
    # a road of 5.9 loses the first row and column too
    logits[ROAD] = 5.9
    assert areas(fuse(logits, found)) == [(CAR, 16), (ROAD, 16)]


def test_two_objects_compete_by_their_fused_logits() -> None:
    """The same mask in the same place, but the skip of covered ones left out: the class with the larger logit wins."""
    logits = uniform(4, 4, car=1, person=3, road=-1, sky=-1)
    found = objects(([0, 0, 4, 4], 1.0, 0.9, CAR), ([0, 0, 4, 4], 1.0, 0.8, PERSON))
    result = fuse(logits, found, RULE._replace(max_overlap=1.0))
    # in the first row and column both have (σ(4) + ½) · 4, and the first of equal ones wins
    assert areas(result) == [(CAR, 7), (PERSON, 9)]
    assert areas(fuse(logits, found)) == [(CAR, 16)]


def test_a_thing_that_no_object_claims_is_void_and_the_contest_decides_no_stuff() -> None:
    logits = uniform(4, 4, car=9, person=0, road=1, sky=0)
    logits[:, :2] = torch.tensor([0.0, 0, 0, 5])[:, None, None]
    result = fuse(logits, objects())
    assert areas(result) == [(SKY, 8)]
    assert (result.ids[2:] == 0).all()


def test_small_stuff_is_void_and_the_limit_itself_is_kept() -> None:
    logits = uniform(4, 8, car=2, person=-9, road=6, sky=0)
    found = objects(([0, 0, 4, 4], 1.0, 0.9, CAR))
    assert areas(fuse(logits, found, RULE._replace(min_stuff_area=23))) == [(CAR, 9), (ROAD, 23)]
    assert areas(fuse(logits, found, RULE._replace(min_stuff_area=24))) == [(CAR, 9)]
    assert areas(fuse(logits, found, RULE._replace(min_stuff_area=0))) == [(CAR, 9), (ROAD, 23)]  # no sky of 0 pixels


@pytest.mark.parametrize(("score", "kept"), [(0.5, False), (0.5001, True), (math.nan, False)])
def test_scores_must_exceed_the_threshold(score: float, kept: bool) -> None:
    result = fuse(uniform(4, 4, 2, -9, 1, 0), objects(([0, 0, 4, 4], 1.0, score, CAR)))
    assert (CAR in [s.category for s in result.segments]) == kept


@pytest.mark.parametrize(("left", "kept"), [(2.0, True), (1.0, False)])
def test_half_of_a_mask_may_be_covered(left: float, kept: bool) -> None:
    """Of 4×4 pixels 8 or 12 are covered by the better object; masks that were skipped cover nothing."""
    found = objects(([left, 0, left + 4, 4], 1.0, 0.8, PERSON), ([0, 0, 4, 4], 1.0, 0.9, CAR))
    result = fuse(uniform(4, 8, 0, 9, -5, -9), found)
    assert [s.category for s in result.segments] == ([CAR, PERSON] if kept else [CAR])


def test_an_object_without_a_pixel_of_its_own_is_left_out() -> None:
    """It is skipped where its mask is empty, and gives no segment where it wins nothing; numbers have no gaps."""
    logits = uniform(4, 8, car=2, person=-9, road=6, sky=0)
    found = objects(([0, 0, 4, 4], -1.0, 0.95, CAR), ([4, 0, 8, 4], 0.1, 0.92, PERSON), ([0, 0, 4, 4], 1.0, 0.9, CAR))
    result = fuse(logits, found)
    assert [(s.id, s.category) for s in result.segments] == [(1, CAR), (2, ROAD)]


def test_outside_of_its_box() -> None:
    """Where all stuff is negative, the value 0 that an object has outside its box wins, as released, unless bounded."""
    logits = uniform(4, 8, car=2, person=3, road=-1, sky=-2)
    found = objects(([0, 0, 4, 4], 1.0, 0.8, CAR), ([4, 0, 8, 4], 1.0, 0.9, PERSON))
    assert areas(fuse(logits, found)) == [(PERSON, 16), (CAR, 16)]
    alone = objects(([0, 0, 4, 4], 1.0, 0.8, CAR))
    assert areas(fuse(logits, alone)) == [(CAR, 16)]
    assert areas(fuse(logits, alone, RELEASED)) == [(CAR, 32)]


def test_without_stuff_an_object_must_be_positive() -> None:
    labels = LabelSpace.from_names(["car", "person"])
    logits = uniform(4, 8, 2, -9, 0, 0)[:2]
    for rule in (RULE, RELEASED):
        assert areas(fuse(logits, objects(([0, 0, 4, 4], 1.0, 0.9, CAR)), rule, labels)) == [(CAR, 16)]
        assert areas(fuse(logits, objects(), rule, labels)) == []


@pytest.mark.parametrize("box", [[-9, -9, -5, -5], [9, 9, 12, 12], [2, 2, 2, 2], [1, 1, 1.001, 3], [-50, -50, 70, 70]])
@pytest.mark.parametrize("rule", [RULE, RELEASED])
def test_boxes_beside_the_image_or_without_area(box: list[float], rule: AdaptiveRule) -> None:
    result = fuse(uniform(5, 7, 0, -9, 1, -1), objects((box, 1.0, 0.9, CAR)), rule)
    assert sum(pixels for _, pixels in areas(result)) == 35


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (6, 1)])
def test_tiny_images(size: tuple[int, int]) -> None:
    result = fuse(uniform(*size, 2, -9, 1, 0), objects(([0, 0, size[1], size[0]], 1.0, 0.9, CAR)))
    assert areas(result) == [(CAR, size[0] * size[1])]


def test_parts() -> None:
    whole = Part(0, 4, 0, 8)
    assert part_of_box([1.4, 0.6, 3.5, 9.0], whole) == Part(1, 4, 1, 3)  # pixels whose centres lie inside
    assert part_of_box([2.0, 1.0, 4.0, 3.0], whole, 0.25) == Part(0, 3, 1, 4)
    assert part_of_box([2.0, 1.0, 4.0, 3.0], whole, 0.5) == Part(0, 4, 1, 5)
    assert part_of_box([9.0, 9.0, 12.0, 12.0], whole).is_empty


def test_masks_are_stretched_as_by_grid_sample() -> None:
    torch.manual_seed(0)
    mask = torch.randn(28, 28)
    box, height, width = [3.3, -2.1, 17.9, 9.4], 12, 20
    y, x = (torch.arange(side) + 0.5 for side in (height, width))
    grid = torch.stack(
        torch.meshgrid(
            2 * (x - box[0]) / (box[2] - box[0]) - 1, 2 * (y - box[1]) / (box[3] - box[1]) - 1, indexing="xy"
        ),
        dim=-1,
    )
    expected = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
    torch.testing.assert_close(stretched(mask, box, Part(0, height, 0, width)), expected, rtol=1e-4, atol=1e-4)


def random_objects(count: int, height: int, width: int, seed: int) -> tuple[Tensor, Objects]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) - 2
    side = 1 + torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat([corner, corner + side], 1)
    masks = 3 * torch.randn(count, 5, 5, generator=generator) + 1
    scores = torch.rand(count, generator=generator)
    categories = torch.randint(0, 2, (count,), generator=generator)
    return 3 * torch.randn(4, height, width, generator=generator) - 1, Objects(boxes, masks, scores, categories)


def sampled(mask: Tensor, box: list[float], y: int, x: int) -> float:
    """The mask's logit at a pixel: of the four nearest cells, those beyond the grid being 0."""
    cells = len(mask)
    v = (y + 0.5 - box[1]) / (box[3] - box[1]) * cells - 0.5
    u = (x + 0.5 - box[0]) / (box[2] - box[0]) * cells - 0.5
    value = 0.0
    for row, column in itertools.product((math.floor(v), math.floor(v) + 1), (math.floor(u), math.floor(u) + 1)):
        if 0 <= row < cells and 0 <= column < cells:
            value += (1 - abs(v - row)) * (1 - abs(u - column)) * float(mask[row, column])
    return value


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def plain(logits: Tensor, found: Objects, rule: AdaptiveRule) -> list[list[tuple[int, int]]]:
    """(category, number of the object or −1) of each pixel, (−1, −1) where it is void."""
    height, width = logits.shape[1:]
    pixels = list(itertools.product(range(height), range(width)))
    kept: list[int] = []
    covered: set[tuple[int, int]] = set()
    for index in sorted(range(len(found.scores)), key=lambda i: -float(found.scores[i])):
        box = found.boxes_xyxy[index].tolist()
        mask = {at for at in pixels if _inside(at, box, rule) and sampled(found.mask_logits[index], box, *at) > 0}
        if float(found.scores[index]) <= rule.score_threshold or not mask:
            continue
        if len(mask & covered) / len(mask) <= rule.max_overlap:
            kept.append(index)
            covered |= mask
    result: list[list[tuple[int, int]]] = [[(-1, -1)] * width for _ in range(height)]
    for at in pixels:
        candidates = [(float(logits[stuff][at]), -1) for stuff in (ROAD, SKY)]
        candidates += [(_fused(logits, found, index, at, rule), index) for index in kept]
        best = max(value for value, _ in candidates)
        index = next(index for value, index in candidates if value == best)
        semantic = int(logits[:, at[0], at[1]].argmax())
        result[at[0]][at[1]] = (int(found.categories[index]), index) if index >= 0 else (semantic, -1)
    for category in (ROAD, SKY):
        of_class = [at for at in pixels if result[at[0]][at[1]] == (category, -1)]
        if len(of_class) < rule.min_stuff_area:
            for y, x in of_class:
                result[y][x] = (-1, -1)
    return [[(-1, -1) if c in (CAR, PERSON) and n < 0 else (c, n) for c, n in row] for row in result]


def _inside(at: tuple[int, int], box: list[float], rule: AdaptiveRule) -> bool:
    y, x = at[0] + 0.5, at[1] + 0.5
    return not rule.bounded or (box[1] <= y < box[3] and box[0] <= x < box[2])


def _fused(logits: Tensor, found: Objects, index: int, at: tuple[int, int], rule: AdaptiveRule) -> float:
    box = found.boxes_xyxy[index].tolist()
    if not _inside(at, box, rule):
        return -math.inf
    a = rule.mask_factor * sampled(found.mask_logits[index], box, *at)
    rows, columns = range(int(box[1] + 1), round(box[3] - 1) + 1), range(int(box[0] + 1), round(box[2] - 1) + 1)
    b = float(logits[int(found.categories[index])][at]) if at[0] in rows and at[1] in columns else 0.0
    return (sigmoid(a) + sigmoid(b)) * (a + b)


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_equal_to_the_rule_pixel_by_pixel(seed: int, bounded: bool) -> None:
    logits, found = random_objects(7, 13, 17, seed)
    rule = AdaptiveRule(0.3, 0.6, 5, 4.0 if seed % 2 else 1.0, bounded)
    result = fuse(logits, found, rule)
    expected = plain(logits, found, rule)
    segments = {s.id: s for s in result.segments}
    scores = [round(float(score), 6) for score in found.scores]
    for y, x in itertools.product(range(13), range(17)):
        segment, (category, number) = segments.get(int(result.ids[y, x])), expected[y][x]
        assert (-1 if segment is None else segment.category) == category, (y, x)
        assert segment is None or number < 0 or scores.index(round(segment.score, 6)) == number, (y, x)
    assert len({n for row in expected for _, n in row}) > 2  # several objects were seen


class LargestOutput(TorchDispatchMode):
    """Notes how many values the largest tensor has that any operation inside makes."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.values = max([self.values, *sizes])
        return result


@pytest.mark.parametrize("bounded", [True, False])
def test_no_map_for_each_object(bounded: bool) -> None:
    """Whatever the number of objects, nothing is made that is larger than one map of the image."""
    logits, found = random_objects(60, 48, 64, 0)
    semantic = logits.max(0).indices
    with LargestOutput() as largest:
        adaptive_fusion(logits, semantic, found, LABELS, AdaptiveRule(0.0, 1.0, 1, 4.0, bounded))
    assert 0 < largest.values <= max(48 * 64, found.mask_logits.numel())


def test_inputs_are_left_alone() -> None:
    logits, found = random_objects(5, 13, 17, 0)
    kept = logits.clone(), [column.clone() for column in found]
    fuse(logits, found, RELEASED)
    assert torch.equal(logits, kept[0])
    assert all(torch.equal(a, b) for a, b in zip(found, kept[1], strict=True))
