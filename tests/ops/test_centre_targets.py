"""What Panoptic-DeepLab learns from: centres, ways to them, and what counts where."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pansight.ops.centres.heatmaps import CentreSettings, batched_targets, centre_targets, draw_gaussians
from pansight.types import LabelSpace, PanopticSegmentation, Segment

LABELS = LabelSpace.from_names(["a", "b"], ["s"])


def truth(rows: list[str], *segments: Segment) -> PanopticSegmentation:
    return PanopticSegmentation(torch.tensor([[int(c) for c in row] for row in rows], dtype=torch.int32), segments)


# 1: a thing; 2: a crowd; 3: stuff; 0: void
DRAWN = truth(["110333", "110333", "100322", "000322"], Segment(1, 0), Segment(2, 1, is_crowd=True), Segment(3, 2))


def test_a_drawn_case() -> None:
    """The five pixels of segment 1 lie at rows 0, 0, 1, 1, 2 and columns 0, 1, 0, 1, 0: the mean is (0.8, 0.4)."""
    found = centre_targets(DRAWN, LABELS, CentreSettings(sigma=1.0, small_area=5, small_weight=3.0))
    torch.testing.assert_close(found.offsets_yx[:, 0, 0], torch.tensor([0.8, 0.4]))
    torch.testing.assert_close(found.offsets_yx[:, 2, 0], torch.tensor([-1.2, 0.4]))
    torch.testing.assert_close(found.offsets_yx[:, 2, 5], torch.tensor([0.5, -0.5]))  # the crowd's centre: (2.5, 4.5)
    assert not found.offsets_yx[:, DRAWN.ids == 3].any()
    assert float(found.heat[1, 0]) == 1  # the nearest whole pixel
    assert float(found.heat[1, 1]) == pytest.approx(math.exp(-0.5))
    assert float(found.heat[2, 4]) == 1  # the crowd's, halves go to the even pixel
    assert torch.equal(found.has_heat, (DRAWN.ids == 1) | (DRAWN.ids == 3))
    assert torch.equal(found.has_offset, DRAWN.ids == 1)
    # four pixels of the crowd are fewer than five, five of the thing are not
    assert torch.equal(found.class_weight, torch.where(DRAWN.ids == 2, 3.0, 1.0))


def loop(image: PanopticSegmentation, settings: CentreSettings) -> tuple[Tensor, Tensor, Tensor]:
    height, width = image.size
    heat, offsets = torch.zeros(height, width), torch.zeros(2, height, width)
    weight = torch.ones(height, width)
    for segment in image.segments:
        if not LABELS[segment.category].is_thing:
            continue
        pixels = (image.ids == segment.id).nonzero().tolist()
        cy, cx = (sum(p[axis] for p in pixels) / len(pixels) for axis in range(2))
        reach = int(3 * settings.sigma) + 1
        for y in range(round(cy) - reach, round(cy) + reach + 1):
            for x in range(round(cx) - reach, round(cx) + reach + 1):
                if 0 <= y < height and 0 <= x < width:
                    value = math.exp(-((y - round(cy)) ** 2 + (x - round(cx)) ** 2) / (2 * settings.sigma**2))
                    heat[y, x] = max(float(heat[y, x]), value)
        for y, x in pixels:
            offsets[:, y, x] = torch.tensor([cy - y, cx - x])
            if len(pixels) < settings.small_area:
                weight[y, x] = settings.small_weight
    return heat, offsets, weight


@pytest.mark.parametrize("seed", range(4))
def test_random_maps_as_loop_by_loop(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 7, (9 + seed, 13), generator=draw, dtype=torch.int32)
    segments = [Segment(n, n % 3, is_crowd=n == 4) for n in range(1, 7) if (ids == n).any()]
    image = PanopticSegmentation(ids, tuple(segments))
    settings = CentreSettings(sigma=1.5, small_area=16)
    found, expected = centre_targets(image, LABELS, settings), loop(image, settings)
    for ours, theirs in zip((found.heat, found.offsets_yx, found.class_weight), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_nothing_is_annotated() -> None:
    found = centre_targets(truth(["000", "000"]), LABELS, CentreSettings())
    assert not found.heat.any()
    assert not found.has_heat.any()
    assert not found.offsets_yx.any()


def test_centres_outside_of_the_map_are_seen_at_its_edge() -> None:
    one = torch.ones(1, dtype=torch.int64)
    heat = draw_gaussians(torch.tensor([[-1, 2]]), 2 * one, one.float(), 0 * one, (1, 3, 4))
    assert float(heat[0, 0, 2]) == pytest.approx(math.exp(-0.5))
    assert float(heat[0, 1, 2]) == pytest.approx(math.exp(-2))
    assert float(heat[0, 2].sum()) == 0  # three rows away, beyond its reach


def test_a_batch_learns_nothing_beyond_its_images() -> None:
    small = centre_targets(truth(["11", "11"], Segment(1, 0)), LABELS, CentreSettings(sigma=1.0))
    both = batched_targets(
        [small, centre_targets(DRAWN, LABELS, CentreSettings(sigma=1.0))], (5, 6), torch.device("cpu")
    )
    assert both.offsets_yx.shape == (2, 2, 5, 6)
    assert torch.equal(both.heat[0, :2, :2], small.heat)
    assert int(both.has_heat[0].sum()) == int(both.has_offset[0].sum()) == 4
