"""Masks of regions: sampling and pasting, against torchvision's functions."""

import pytest
import torch
import torch.nn.functional as F
import torchvision

from pansight.ops.regions import masks as ops
from pansight.ops.targets import InstanceTargets, boxes_of_ids

SIZE = (60, 80)


def drawn_targets() -> InstanceTargets:
    """Three objects in one id map: a square, a ring around it, a single pixel at the edge."""
    ids = torch.zeros(SIZE, dtype=torch.int32)
    ids[10:50, 20:60] = 9
    ids[20:40, 30:50] = 4
    ids[59, 79] = 300
    values = torch.tensor([9, 4, 300], dtype=torch.int32)
    return InstanceTargets(
        boxes_of_ids(ids, values), torch.tensor([0, 1, 0]), ids[None], torch.zeros(3, dtype=torch.int64), values
    )


def regions() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    corner = torch.rand(40, 2) * 60 - 5
    boxes = torch.cat((corner, corner + torch.rand(40, 2) * 60), dim=1)
    boxes = torch.cat((boxes, torch.tensor([[0.0, 0, 80, 60], [78.0, 58, 80, 60], [31.3, 21.7, 31.6, 22.1]])))
    return boxes, torch.arange(43) % 3


def as_stack(targets: InstanceTargets) -> InstanceTargets:
    """The same objects as overlapping annotations would come: one 0/1 map each."""
    stack = (targets.mask_stack == targets.mask_value[:, None, None]).to(torch.uint8)
    return targets._replace(mask_stack=stack, mask_index=torch.arange(3), mask_value=torch.ones(3, dtype=torch.int32))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_mask_targets_are_roi_align_of_the_bitmask(aligned: bool, stacked: bool):
    targets = drawn_targets()
    boxes, match = regions()
    bitmasks = (targets.mask_stack == targets.mask_value[:, None, None]).float()[:, None]  # (3, 1, H, W)
    rois = torch.cat((match[:, None].float(), boxes), dim=1)
    expected = torchvision.ops.roi_align(bitmasks, rois, 28, 1.0, -1, aligned)[:, 0]
    assert expected.max() > 0.9
    found = ops.mask_targets(as_stack(targets) if stacked else targets, boxes, match, 28, aligned, None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    binary = ops.mask_targets(targets, boxes, match, 28, aligned, 0.5)
    clear = (expected - 0.5).abs() > 1e-4
    assert torch.equal(binary[clear], (expected >= 0.5).float()[clear])


def test_mask_targets_are_exact_under_autocast():
    boxes, match = regions()
    plain = ops.mask_targets(drawn_targets(), boxes, match, 28, True, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.mask_targets(drawn_targets(), boxes, match, 28, True, None), plain)


def test_no_regions():
    none = torch.zeros(0, dtype=torch.int64)
    assert ops.mask_targets(drawn_targets(), torch.zeros(0, 4), none, 28, True, 0.5).shape == (0, 28, 28)
    assert ops.paste_sampled(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE).shape == (0, *SIZE)
    assert ops.paste_integer(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE).shape == (0, *SIZE)


def smooth_probabilities(count: int) -> torch.Tensor:
    return F.interpolate(torch.randn(count, 1, 5, 5) * 3, size=28, mode="bilinear")[:, 0].sigmoid()


def image_boxes() -> torch.Tensor:
    corner = torch.rand(30, 2) * torch.tensor([70.0, 50.0])
    boxes = torch.cat((corner, corner + 0.5 + torch.rand(30, 2) * 50), dim=1)
    return boxes.minimum(torch.tensor([80.0, 60, 80, 60]))


def test_sampled_paste_is_grid_sample():
    """detectron2's rule: each pixel centre inside the image reads the grid at its place in the box, zero outside."""
    torch.manual_seed(2)
    probabilities, boxes = smooth_probabilities(30), image_boxes()
    y = torch.arange(SIZE[0]) + 0.5
    x = torch.arange(SIZE[1]) + 0.5
    grid_y = (y - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2]) * 2 - 1  # (N, H)
    grid_x = (x - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1]) * 2 - 1  # (N, W)
    grid = torch.stack((grid_x[:, None].expand(-1, *SIZE), grid_y[:, :, None].expand(-1, *SIZE)), dim=3)
    expected = F.grid_sample(probabilities[:, None], grid, align_corners=False)[:, 0]
    found = ops.paste_sampled(probabilities, boxes, SIZE)
    clear = (expected - 0.5).abs() > 1e-4
    assert found.any()
    assert torch.equal(found[clear], (expected >= 0.5)[clear])


def test_integer_paste_is_torchvisions():
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    torch.manual_seed(3)
    probabilities, boxes = smooth_probabilities(30), image_boxes()
    expected = paste_masks_in_image(probabilities[:, None], boxes, SIZE)[:, 0]
    found = ops.paste_integer(probabilities, boxes, SIZE)
    clear = (expected - 0.5).abs() > 1e-4
    assert found.any()
    assert torch.equal(found[clear], (expected > 0.5)[clear])


@pytest.mark.parametrize("paste", [ops.paste_sampled, ops.paste_integer])
def test_a_full_grid_fills_its_box(paste):
    boxes = torch.tensor([[10.0, 20, 30, 50], [-10.0, -10, 100, 100], [200.0, 200, 210, 210]])
    masks = paste(torch.ones(3, 28, 28), boxes, SIZE)
    assert int(masks[0].sum()) in range(600, 700)  # 20 × 30, and at most one pixel more around
    assert masks[0, 20:50, 10:30].all()
    assert masks[1].all()
    assert not masks[2].any()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(paste(torch.ones(3, 28, 28), boxes, SIZE), masks)


def test_masks_start_empty_and_can_be_written():
    masks = ops.empty_masks(3, SIZE, torch.device("cpu"))
    masks[1, 2, 3] = True
    assert masks.dtype == torch.bool
    assert int(masks.sum()) == 1
