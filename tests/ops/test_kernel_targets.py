"""Panoptic FCN's targets and losses: cases worked out by hand, and each rule written a second time as loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.centres import kernels
from pansight.ops.centres.kernels import KernelSettings
from pansight.ops.fast import plain
from pansight.ops.targets import InstanceTargets
from pansight.types import IGNORE

RANGES = KernelSettings().size_ranges


def disjoint(ids: Tensor, boxes: list[list[float]], things: list[int]) -> InstanceTargets:
    """Objects 1 … N of one map of ids (H, W)."""
    count = len(things)
    numbers = torch.arange(1, count + 1, dtype=torch.int32)
    index = torch.zeros(count, dtype=torch.int64)
    return InstanceTargets(torch.tensor(boxes).reshape(-1, 4), torch.tensor(things), ids[None], index, numbers)


@pytest.mark.parametrize(
    ("height", "width", "radius"),
    [(100, 100, 27), (64, 32, 11), (20, 8, 3), (10, 10, 2), (3, 5, 1), (4, 4, 1), (1, 1, 0)],
)
def test_radius(height: int, width: int, radius: int) -> None:
    assert kernels.gaussian_radius(torch.tensor([float(height)]), torch.tensor([float(width)])).tolist() == [radius]
    assert int(min(three_radii(height, width))) == radius


def three_radii(h: float, w: float, m: float = 0.7) -> list[float]:
    """The solutions of the three equations of CornerNet, none of them divided by its first coefficient."""
    first = ((h + w) + math.sqrt((h + w) ** 2 - 4 * w * h * (1 - m) / (1 + m))) / 2
    second = (2 * (h + w) + math.sqrt(4 * (h + w) ** 2 - 16 * (1 - m) * w * h)) / 2
    third = (-2 * m * (h + w) + math.sqrt(4 * m * m * (h + w) ** 2 - 16 * m * (m - 1) * w * h)) / 2
    return [first, second, third]


def test_the_third_radius_is_the_least() -> None:
    sides = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 300
    found = kernels.gaussian_radius(sides[:, 0], sides[:, 1])
    assert found.tolist() == [max(0, int(min(three_radii(h, w)))) for h, w in sides.tolist()]


def test_both_ends_of_a_range_belong_to_it() -> None:
    sides = torch.tensor([0.5, 1, 31, 32, 64, 65, 128, 256, 2048, 2049])
    boxes = torch.stack((torch.zeros(10), torch.zeros(10), sides, sides), dim=1)
    levels = kernels.levels_of_boxes(boxes, RANGES)
    found = [[level + 3 for level in range(5) if levels[level, n]] for n in range(10)]
    assert found == [[], [3], [3], [3, 4], [3, 4, 5], [4, 5], [4, 5, 6], [5, 6, 7], [7], []]


def test_centres_are_drawn_by_hand() -> None:
    """Two centres of class 0 whose squares meet: the larger value counts; one of class 1 partly outside of the map."""
    centres = torch.tensor([[2, 2], [2, 3], [5, 0]])
    heat = kernels.centre_heat(centres, torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1]), (2, 5, 6))
    near, far = math.exp(-1 / 2), math.exp(-2 / 2)  # sigma is 1 for radius 1
    assert heat[0, 2].tolist() == pytest.approx([0, near, 1, 1, 0, 0])
    assert heat[0, 1].tolist() == pytest.approx([0, far, near, far, 0, 0])
    assert heat[0, 0].tolist() == heat[0, 4].tolist() == [0] * 6
    assert heat[1, 4].tolist() == pytest.approx([near, far, 0, 0, 0, 0])
    assert float(heat[1, :4].sum()) == 0


def test_centres_place_by_place() -> None:
    draw = torch.Generator().manual_seed(1)
    count, shape = 70, (3, 9, 13)  # more than are drawn at once
    centres = torch.stack([torch.randint(0, side + 1, (count,), generator=draw) for side in shape[1:]], dim=1)
    radii, classes = (torch.randint(0, high, (count,), generator=draw) for high in (4, 3))
    expected = torch.zeros(shape)
    for (y, x), r, c in zip(centres.tolist(), radii.tolist(), classes.tolist(), strict=True):
        sigma = (2 * r + 1) / 3
        for row in range(max(0, y - r), min(shape[1], y + r + 1)):
            for column in range(max(0, x - r), min(shape[2], x + r + 1)):
                value = math.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * sigma**2))
                expected[c, row, column] = max(float(expected[c, row, column]), value)
    torch.testing.assert_close(kernels.centre_heat(centres, radii, classes, shape), expected)


@pytest.mark.parametrize("size", [(32, 64), (61, 50), (1, 1), (2, 31), (3, 5)])
def test_soft_masks_are_torchs_bilinear_ones(size: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 4, size, generator=draw, dtype=torch.int32)
    target = disjoint(ids, [[0, 0, 1, 1]] * 3, [0, 0, 0])
    overlapping = target._replace(
        mask_stack=torch.stack([(ids == n).to(torch.uint8) for n in (1, 2, 3)]),
        mask_index=torch.arange(3),
        mask_value=torch.ones(3, dtype=torch.int32),
    )
    rows, columns = (max(1, int(side / 4 + 0.5)) for side in size)
    for given in (target, overlapping):
        masks = kernels.soft_masks(given, size, (64, 64), torch.tensor([2, 0]))
        assert masks.shape == (2, 16, 16)
        for mask, number in zip(masks, (3, 1), strict=True):
            one = (ids == number).float()[None, None]
            expected = F.interpolate(one, (rows, columns), mode="bilinear", align_corners=False)[0, 0]
            torch.testing.assert_close(mask[:rows, :columns], expected, rtol=1e-5, atol=1e-5)
            assert float(mask[rows:].sum()) == float(mask[:, columns:].sum()) == 0


def test_an_exact_quarter_has_steps_of_a_quarter() -> None:
    ids = torch.zeros((32, 32), dtype=torch.int32)
    ids[0:2, 0:3] = 1  # of the four middle pixels of the first block, two
    masks = kernels.soft_masks(disjoint(ids, [[0, 0, 3, 2]], [0]), (32, 32), (32, 32), torch.tensor([0]))
    assert float(masks[0, 0, 0]) == 0.5
    assert float(masks.sum()) == 0.5


def test_centres_of_mass_and_of_boxes() -> None:
    masks = torch.zeros(2, 8, 8)
    masks[0, 1, 1:4], masks[0, 2:5, 1] = 0.25, 1.0  # an angle: the share of a place does not count
    boxes = torch.tensor([[4.0, 4, 16, 20], [8, 12, 9, 13]])
    of_mass = kernels.centres_of(masks, boxes, by_mass=True)
    assert of_mass[0].tolist() == pytest.approx([(1 * 3 + 2 + 3 + 4) / 6, (1 + 2 + 3 + 1 * 3) / 6])
    assert of_mass[1].tolist() == pytest.approx([12.5 / 4, 8.5 / 4])  # nothing is left of it at a quarter
    assert kernels.centres_of(masks, boxes, by_mass=False)[0].tolist() == pytest.approx([3.0, 2.5])


def test_an_object_on_two_levels() -> None:
    ids = torch.zeros((64, 64), dtype=torch.int32)
    ids[8:48, 16:56] = 1
    target = disjoint(ids, [[16, 8, 56, 48]], [1])
    found = kernels.object_targets(target, (64, 64), (64, 64), 2, KernelSettings())
    assert found.levels[:, 0].tolist() == [True, True, False, False, False]
    # rows 2 … 11 of 16, columns 4 … 13: the means are 6.5 and 8.5, so 3.25 and 4.25 of 8
    assert (found.heat[0][1] == 1).nonzero().tolist() == [[3, 4]]
    assert (found.heat[1][1] == 1).nonzero().tolist() == [[1, 2]]
    assert int((found.heat[0] > 0).sum()) == 9  # 5 places long: radius 1
    assert int((found.heat[1] > 0).sum()) == 1  # 2.5 places long: radius 0
    assert all(float(found.heat[level].sum()) == 0 for level in (2, 3, 4))
    assert [tuple(h.shape) for h in found.heat] == [(2, 8, 8), (2, 4, 4), (2, 2, 2), (2, 1, 1), (2, 1, 1)]


def test_no_objects_at_all() -> None:
    none = disjoint(torch.zeros((32, 32), dtype=torch.int32), [], [])._replace(things=torch.zeros(0, dtype=torch.int64))
    found = kernels.object_targets(none, (32, 32), (32, 32), 3, KernelSettings())
    assert found.masks.shape == (0, 8, 8)
    assert all(float(heat.sum()) == 0 for heat in found.heat)


def test_soft_targets_of_stuff() -> None:
    draw = torch.Generator().manual_seed(3)
    semantic = torch.randint(-1, 3, (64, 96), generator=draw).repeat_interleave(8, 0)[:64]
    assert IGNORE in semantic
    one_hot = torch.stack([semantic == c for c in range(3)]).float()
    quarter, levels = kernels.stuff_targets(semantic, 3, (64, 96), kernels.level_sizes((64, 96)))
    expected = F.interpolate(one_hot[None], scale_factor=0.25, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(quarter, expected)
    for level, size in zip(levels, [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)], strict=True):
        scores = F.interpolate(expected[None], size, mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(level, torch.where(scores < 0.5, 0.0, scores))


@pytest.mark.parametrize("size", [(61, 50), (1, 1), (2, 31)])
def test_stuff_of_the_unpadded_part_alone_is_resized(size: tuple[int, int]) -> None:
    """A side that is no multiple of four is not read in steps of four, as masks of things are not."""
    semantic = torch.full((64, 64), IGNORE)
    semantic[: size[0], : size[1]] = torch.randint(0, 2, size, generator=torch.Generator().manual_seed(6))
    quarter, _ = kernels.stuff_targets(semantic, 2, size, kernels.level_sizes((64, 64)))
    one_hot = torch.stack([semantic[: size[0], : size[1]] == c for c in range(2)]).float()
    rows, columns = (max(1, int(side / 4 + 0.5)) for side in size)
    expected = F.interpolate(one_hot[None], (rows, columns), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(quarter[:, :rows, :columns], expected, rtol=1e-5, atol=1e-5)
    assert float(quarter[:, rows:].sum()) == float(quarter[:, :, columns:].sum()) == 0


def test_places_of_an_object() -> None:
    """The region has three places; of the five that are asked for, two are outside and weigh nothing."""
    logits = torch.full((2, 4, 4), -9.0)
    probabilities = {(0, 0): 0.6, (0, 1): 0.3, (1, 0): 0.1}
    for (row, column), p in probabilities.items():
        logits[1, row, column] = math.log(p / (1 - p))
    logits[1, 3, 3] = 9.0  # outside of the object
    logits[0] = 9.0  # another class
    masks = torch.zeros(1, 8, 8)
    masks[0, :2, :4], masks[0, 2:4, :2] = 1.0, 1.0
    places, weights = kernels.pick_places(logits, masks, torch.tensor([1]), 5, weighted=True)
    assert places.shape == weights.shape == (1, 5)
    assert places[0, :3].tolist() == [0, 1, 4]
    assert weights[0].tolist() == pytest.approx([0.6, 0.3, 0.1, 0, 0], abs=1e-5)
    _, alike = kernels.pick_places(logits, masks, torch.tensor([1]), 5, weighted=False)
    assert alike[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])
    few, _ = kernels.pick_places(logits[:, :1, :1], masks, torch.tensor([1]), 7, weighted=True)
    assert few.shape == (1, 1)
    _, nowhere = kernels.pick_places(logits, torch.zeros(1, 8, 8), torch.tensor([1]), 5, weighted=True)
    assert nowhere.tolist() == [[0.0] * 5]


def test_weighted_dice_mask_by_mask() -> None:
    """In pieces that are computed again, and by the plain way; with gradients."""
    draw = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    values = (random(20, 7, 5), random(5, 6, 4), random(20, 6, 4).sigmoid(), random(20, 7).softmax(1))
    given = [v.clone().requires_grad_() for v in values]
    again = [v.clone().requires_grad_() for v in values]
    found = kernels.weighted_dice(*given)
    expected = torch.zeros((), dtype=torch.float64)
    for n in range(20):
        for j in range(7):
            p = torch.einsum("d,dhw->hw", again[0][n, j], again[1]).sigmoid()
            t = again[2][n]
            expected = expected + again[3][n, j] * (1 - 2 * (p * t).sum() / ((p * p).sum() + (t * t).sum()))
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    for a, b in zip(given, again, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_plain_way_gives_the_same() -> None:
    draw = torch.Generator().manual_seed(5)
    kernels_, features = torch.randn(30, 7, 4, generator=draw), torch.randn(4, 5, 5, generator=draw)
    masks, weights = torch.rand(30, 5, 5, generator=draw), torch.rand(30, 7, generator=draw)
    fast = kernels.weighted_dice(kernels_.requires_grad_(), features, masks, weights)
    with plain():
        torch.testing.assert_close(kernels.weighted_dice(kernels_, features, masks, weights), fast)


def test_the_mean_kernel_counts_places_outside_as_zero() -> None:
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[10.0, 20.0], [30.0, 40.0]]])
    regions = torch.tensor([[[True, False], [False, True]], [[False, False], [False, False]]])
    assert kernels.mean_kernels(maps, regions).tolist() == [[5 / 4, 50 / 4], [0, 0]]
