"""RoIAlign and RoIPool against torchvision's kernels, RoIWarp against its definition."""

import pytest
import torch
import torchvision

from pansight.ops.regions import roi as ops
from pansight.ops.regions.roi import AlignRule

pytestmark = pytest.mark.usefixtures("both_ways")

STRIDES = (4, 8, 16, 32)


def pyramid(dtype=torch.float32, channels=8, side=128, requires_grad=False) -> ops.Pyramid:
    maps = [torch.randn(2, channels, side // s, side // s + 1, dtype=dtype) for s in STRIDES]
    maps = [m.requires_grad_(requires_grad) for m in maps]
    return ops.make_pyramid(maps, STRIDES)


def awkward_boxes(count: int = 60, side: float = 128.0) -> torch.Tensor:
    """Of all sizes and ratios, some over the edge, one far outside, one a point, one as large as the image."""
    corner = torch.rand(count, 2) * side - 8
    boxes = torch.cat((corner, corner + torch.rand(count, 2) ** 3 * (side + 16)), dim=1)
    special = torch.tensor([[500.0, 500, 540, 530], [30, 30, 30, 30], [0, 0, 128, 128], [-20, -20, 3, 150]])
    return torch.cat((boxes, special))


RULES = [AlignRule(2, False), AlignRule(2, True), AlignRule(0, True), AlignRule(0, False), AlignRule(3, True)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [1, 7, 14])
def test_bags_are_the_kernel_and_so_is_their_gradient(rule: AlignRule, size: int):
    source = pyramid(requires_grad=True)
    boxes = awkward_boxes()
    image = torch.randint(0, 2, (len(boxes),))
    level = ops.pyramid_levels(boxes, 4)
    bags = ops.roi_align_as_bags(source, boxes, image, level, size, rule)
    kernel = ops.roi_by_kernel(source, boxes, image, level, size, rule)
    if rule == AlignRule(0, True):  # a region without area: the kernel's adaptive grid is empty, its result 0
        flat = boxes[:, 2:].eq(boxes[:, :2]).any(1)
        bags, kernel = bags[~flat], kernel[~flat]
    torch.testing.assert_close(bags, kernel, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(bags)
    for a, b in zip(
        torch.autograd.grad((bags * weight).sum(), source.features),
        torch.autograd.grad((kernel * weight).sum(), source.features),
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_each_box_is_read_from_its_image_and_level():
    maps = [torch.full((2, 3, 128 // s, 128 // s), 10.0 * level) for level, s in enumerate(STRIDES)]
    for m in maps:
        m[1] += 1
    boxes = torch.tensor([[40.0, 40, 60, 60], [40.0, 40, 60, 60], [0, 0, 128, 128]])
    level = torch.tensor([0, 2, 3])
    pooled = ops.multilevel_roi_align(
        ops.make_pyramid(maps, STRIDES), boxes, torch.tensor([0, 1, 1]), level, 7, AlignRule(2, True)
    )
    assert pooled.shape == (3, 3, 7, 7)
    assert [float(p.mean()) for p in pooled] == pytest.approx([0.0, 21.0, 31.0], abs=1e-4)


def test_bfloat16_features_keep_their_type():
    source = pyramid(torch.bfloat16)
    boxes = awkward_boxes()
    level = ops.pyramid_levels(boxes, 4)
    image = torch.zeros(len(boxes), dtype=torch.int64)
    half = ops.multilevel_roi_align(source, boxes, image, level, 7, AlignRule(2, True))
    exact = ops.make_pyramid([f.float() for f in source.features], STRIDES)
    full = ops.multilevel_roi_align(exact, boxes, image, level, 7, AlignRule(2, True))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.02, atol=0.04)


def test_no_boxes():
    source = pyramid(requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    pooled = ops.multilevel_roi_align(source, torch.zeros(0, 4), none, none, 7, AlignRule(2, True))
    assert pooled.shape == (0, 8, 7, 7)
    pooled.sum().backward()


def test_pooling_is_torchvisions_level_by_level():
    source = pyramid()
    boxes = awkward_boxes()[:60]
    image = torch.randint(0, 2, (60,))
    level = ops.pyramid_levels(boxes, 4)
    pooled = ops.roi_by_kernel(source, boxes, image, level, 7, None)
    for k in range(60):
        roi = torch.cat((image[k].float()[None], boxes[k]))[None]
        alone = torchvision.ops.roi_pool(source.features[int(level[k])], roi, 7, 1 / STRIDES[int(level[k])])
        assert torch.equal(pooled[k], alone[0])


def test_levels_by_the_papers_rule():
    sides = torch.tensor([1.0, 56, 111.9, 112, 223.9, 224, 447, 448, 2000])
    boxes = torch.stack((torch.zeros(9), torch.zeros(9), sides, sides), dim=1)
    assert ops.pyramid_levels(boxes, 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert ops.pyramid_levels(boxes, 4, canonical_size=112.0).tolist() == [0, 1, 1, 2, 2, 3, 3, 3, 3]
    # an area that floating point leaves just below a boundary: what torchvision's epsilon is for
    almost = torch.tensor([[0.0, 0, 224 * (1 - 2e-7), 224]])
    assert ops.pyramid_levels(almost, 4).tolist() == [1]
    assert ops.pyramid_levels(almost, 4, eps_after_log=1e-6).tolist() == [2]


def bilinear(feature: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """The value of a map (C, H, W) between its cells, whose centres have whole coordinates; moved onto the border."""
    height, width = feature.shape[1:]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    above = (1 - (x - left)) * feature[:, top, left] + (x - left) * feature[:, top, right]
    below = (1 - (x - left)) * feature[:, bottom, left] + (x - left) * feature[:, bottom, right]
    return (1 - (y - top)) * above + (y - top) * below


def warped_by_definition(feature: torch.Tensor, box: list[float], stride: int, size: int) -> torch.Tensor:
    """RoIWarp of one region, cell by cell: cut, sampled at 2 · size points a side, the largest of each four."""
    height, width = feature.shape[1:]
    x1, y1, x2, y2 = (int(corner / stride + 0.5) for corner in box)  # halves away from zero, as RoIPool rounds
    x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
    x2, y2 = min(max(x2, x1), width - 1), min(max(y2, y1), height - 1)
    columns, rows = x2 - x1 + 1, y2 - y1 + 1
    samples = torch.stack(
        [
            torch.stack(
                [
                    bilinear(
                        feature, y1 - 0.5 + (v + 0.5) * rows / (2 * size), x1 - 0.5 + (u + 0.5) * columns / (2 * size)
                    )
                    for u in range(2 * size)
                ],
                dim=1,
            )
            for v in range(2 * size)
        ],
        dim=1,
    )  # (C, 2 size, 2 size)
    return samples.unfold(1, 2, 2).unfold(2, 2, 2).amax((-1, -2))


def test_roi_warp_is_its_definition():
    source = pyramid(channels=3, side=64)
    boxes = torch.cat((torch.rand(12, 2) * 40, torch.zeros(12, 2)), dim=1)
    boxes[:, 2:] = (boxes[:, :2] + 1 + torch.rand(12, 2) * 40).clamp(max=64)
    boxes = torch.cat((boxes, torch.tensor([[10.0, 6, 18, 30], [0, 0, 64, 64], [5, 5, 5.5, 5.5]])))  # halves; all; less
    image = torch.arange(len(boxes)) % 2
    level = torch.arange(len(boxes)) % 4
    found = ops.multilevel_roi_warp(source, boxes, image, level, 3)
    assert found.shape == (len(boxes), 3, 3, 3)
    for n, box in enumerate(boxes.tolist()):
        feature = source.features[int(level[n])][int(image[n])]
        expected = warped_by_definition(feature, box, STRIDES[int(level[n])], 3)
        torch.testing.assert_close(found[n], expected, rtol=1e-4, atol=1e-4)


def test_roi_warp_by_hand():
    """A ramp of 0, 1, 2 … along x. The box from 5 to 15 pixels at stride 4 is cut to the cells 1 … 4 (5 / 4 = 1.25,
    15 / 4 = 3.75). Four samples lie at 1, 2, 3 and 4, and the larger of each pair are 2 and 4.
    """
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    maps = ops.make_pyramid([ramp], (4,))
    found = ops.multilevel_roi_warp(maps, torch.tensor([[5.0, 5, 15, 15]]), torch.tensor([0]), torch.tensor([0]), 2)
    torch.testing.assert_close(found[0, 0], torch.tensor([[2.0, 4], [2, 4]]))
    assert ops.whole_cells(maps, torch.tensor([[5.0, 5, 15, 15]]), torch.tensor([0])).tolist() == [[4, 4, 20, 20]]


def test_roi_warp_of_no_region():
    none = torch.zeros(0, dtype=torch.int64)
    assert ops.multilevel_roi_warp(pyramid(), torch.zeros(0, 4), none, none, 7).shape == (0, 8, 7, 7)
