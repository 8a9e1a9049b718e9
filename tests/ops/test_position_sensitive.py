"""Position-sensitive score maps and the vote of masks: cases worked out by hand, and plain loops on random numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pansight.ops.regions.boxes import box_iou_matrix
from pansight.ops.regions.position_sensitive import (
    POOLS,
    class_and_mask_logits,
    position_sensitive_read,
    stretched_masks,
    voted_masks,
)


def pooled_by_definition(maps: Tensor, box: list[float], cells: int, stride: int) -> Tensor:
    """R-FCN's equation 1: the mean over each cell, whose edges are rounded outwards, of the map of that cell."""
    height, width = maps.shape[1:]
    x1, y1, x2, y2 = (math.floor(corner / stride + 0.5) for corner in box)
    across, down = max(x2 - x1, 1) / cells, max(y2 - y1, 1) / cells
    classes = len(maps) // cells**2
    found = torch.zeros(classes, cells, cells)
    for row in range(cells):
        for column in range(cells):
            top = min(max(math.floor(row * down) + y1, 0), height)
            bottom = min(max(math.ceil((row + 1) * down) + y1, 0), height)
            left = min(max(math.floor(column * across) + x1, 0), width)
            right = min(max(math.ceil((column + 1) * across) + x1, 0), width)
            for number in range(classes):
                part = maps[number * cells**2 + row * cells + column, top:bottom, left:right]
                found[number, row, column] = part.mean() if part.numel() else 0.0
    return found


def test_each_cell_reads_its_own_map() -> None:
    maps = torch.arange(8.0)[None, :, None, None].expand(1, 8, 6, 6)  # the value of a map is its channel
    found = position_sensitive_read(maps, torch.tensor([[4.0, 4, 20, 20]]), torch.tensor([0]), 2, 4)
    assert found.tolist() == [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]]
    aligned = position_sensitive_read(maps, torch.tensor([[4.0, 4, 20, 20]]), torch.tensor([0]), 2, 4, "align")
    torch.testing.assert_close(aligned, found)


def test_pooling_is_its_definition() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3 * 9, 8, 10)
    corner = torch.rand(20, 2) * 25
    boxes = torch.cat((corner, corner + 2 + torch.rand(20, 2) * 25), dim=1)
    boxes = boxes[((boxes / 4 + 0.5) % 1 - 0.5).abs().amin(1) > 0]  # any but exact halves
    image = torch.arange(len(boxes)) % 2
    found = position_sensitive_read(maps, boxes, image, 3, 4)
    for n, box in enumerate(boxes.tolist()):
        expected = pooled_by_definition(maps[int(image[n])], box, 3, 4)
        torch.testing.assert_close(found[n], expected, rtol=1e-4, atol=1e-4)


def test_no_region() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    for pool in ("pool", "align"):
        assert position_sensitive_read(torch.randn(1, 8, 4, 4), torch.zeros(0, 4), none, 2, 4, pool).shape == (
            0,
            2,
            2,
            2,
        )


def test_class_and_mask_logits_by_hand() -> None:
    """One region, one class, 2 × 2 cells: the larger scores are 3, 2, 1 and 0, and their mean is 1.5."""
    inside = torch.tensor([[3.0, 0], [1, -1]])
    outside = torch.tensor([[1.0, 2], [1, 0]])
    classes, masks = class_and_mask_logits(torch.stack((inside, outside))[None, None])
    assert classes.tolist() == [[1.5]]
    assert masks.tolist() == [[[[2, -2], [0, -1]]]]
    softmax = torch.stack((inside, outside)).softmax(0)[0]
    torch.testing.assert_close(masks[0, 0].sigmoid(), softmax)


def test_a_mask_through_its_own_grid_is_itself() -> None:
    masks, boxes = torch.rand(3, 5, 5), torch.tensor([[0.0, 0, 10, 20]]).expand(3, 4)
    torch.testing.assert_close(stretched_masks(masks, boxes, boxes, 5), masks)
    finer = stretched_masks(torch.ones(1, 5, 5), boxes[:1], boxes[:1], 28)
    torch.testing.assert_close(finer, torch.ones(1, 28, 28))  # no fading at the edges of the box


def test_a_mask_in_a_larger_box_by_hand() -> None:
    """The left half of a box of 8 pixels has a mask of ones: of four columns the first two see it."""
    found = stretched_masks(torch.ones(1, 3, 3), torch.tensor([[0.0, 0, 4, 8]]), torch.tensor([[0.0, 0, 8, 8]]), 4)
    assert found[0].tolist() == [[1, 1, 0, 0]] * 4


def test_masks_vote_by_hand() -> None:
    """Two regions over one object with scores 0.9 and 0.3: (0.9 · 1 + 0.3 · 0) / 1.2 = 0.75. A third one, far away, a
    fourth one on another image, and one of another class's score have no vote.
    """
    box = torch.tensor([[0.0, 0, 10, 10]])
    voters = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 3, 3], [0, 0, 10, 10]])
    images = torch.tensor([0, 0, 0, 1])
    scores = torch.tensor([[0.5, 0.9], [0.5, 0.3], [0.5, 0.9], [0.5, 0.9]])
    masks = torch.zeros(4, 2, 4, 4)
    masks[0, 1] = 1
    masks[2:, 1] = 1
    masks[:, 0] = 1
    one, zero = torch.tensor([1]), torch.tensor([0])
    found = voted_masks(box, zero, one, voters, images, scores, masks, 4)
    # the second region ends at 9: its zeros and what lies below it alike add nothing
    torch.testing.assert_close(found, torch.full((1, 4, 4), 0.75))


def test_the_vote_is_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr("pansight.ops.regions.position_sensitive.PAIRS_AT_ONCE", 7)
    corner = torch.rand(30, 2) * 6
    voters = torch.cat((corner, corner + 10 + torch.rand(30, 2) * 6), dim=1)
    images, scores, masks = torch.arange(30) % 2, torch.rand(30, 3), torch.rand(30, 3, 4, 4)
    chosen = torch.tensor([0, 3, 8, 17])
    classes = torch.tensor([2, 0, 1, 1])
    found = voted_masks(voters[chosen], images[chosen], classes, voters, images, scores, masks, 6)
    iou = box_iou_matrix(voters, voters)
    for n, (k, c) in enumerate(zip(chosen.tolist(), classes.tolist())):
        total, weight = torch.zeros(6, 6), 0.0
        for r in range(30):
            if iou[k, r] > 0.5 and images[r] == images[k]:
                seen = stretched_masks(masks[r, c][None], voters[r][None], voters[k][None], 6)[0]
                total += scores[r, c] * seen
                weight += float(scores[r, c])
        torch.testing.assert_close(found[n], total / weight)


def test_nobody_votes() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    found = voted_masks(
        torch.zeros(0, 4), none, none, torch.zeros(0, 4), none, torch.zeros(0, 2), torch.zeros(0, 2, 3, 3), 5
    )
    assert found.shape == (0, 5, 5)
    alone = voted_masks(torch.tensor([[0.0, 0, 4, 4]]), none.new_zeros(1), none.new_zeros(1), torch.zeros(0, 4), none,
                        torch.zeros(0, 2), torch.zeros(0, 2, 3, 3), 5)  # fmt: skip
    assert not alone.any()


@pytest.mark.parametrize("pool", POOLS)
def test_an_exported_graph_reads_by_weights_what_the_kernel_reads(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions of two images, some of them at the border, outside, or smaller than a cell."""
    draw = torch.Generator().manual_seed(3)
    maps = torch.randn(2, 2 * 9, 11, 17, generator=draw)
    corner = torch.rand(60, 2, generator=draw) * torch.tensor([17.0, 11.0]) * 16
    side = torch.rand(60, 2, generator=draw) ** 3 * 200
    boxes = torch.cat((corner, (corner + side).minimum(torch.tensor([17.0, 11.0]) * 16)), dim=1)
    boxes[0], boxes[1] = torch.tensor([0.0, 0.0, 272.0, 176.0]), torch.tensor([271.0, 175.0, 272.0, 176.0])
    image = torch.randint(0, 2, (60,), generator=draw)
    expected = position_sensitive_read(maps, boxes, image, 3, 16, pool)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(position_sensitive_read(maps, boxes, image, 3, 16, pool), expected)
