"""The contest of queries: the quick way gives what the plain rule gives, pixel by pixel."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pansight.ops.fast.memory import canvas_rows
from pansight.ops.fusion.contest import (
    Canvas,
    contest,
    nearest_source,
    painted,
    plain_contest,
    resized,
)

RULES = [  # sigmoid, threshold, weighted: DETR; transformers' DETR and Mask2Former; the official ones and EoMT
    ("never", -torch.inf, False),
    ("between", 0.5, True),
    ("last", 0.5, False),
    ("last", 0.3, True),
]


def smooth(count, height, width, draw, cells=5, gain=6.0):
    """Maps that change little from pixel to pixel, and are above and below 0."""
    small = torch.randn((1, count, min(height, cells), min(width, cells)), generator=draw) * gain
    return F.interpolate(small, size=(height, width), mode="bilinear")[0].contiguous()


def assert_same(found, expected):
    assert torch.equal(found.code, expected.code)
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("sigmoid", "threshold", "weighted"), RULES)
def test_equals_the_plain_rule_at_any_size(sigmoid, threshold, weighted):
    """Sizes from 1 pixel on, up and down. Where two values differ in the last bits only, 1 in 10⁵ pixels may flip."""
    different = pixels = 0
    for seed in range(50):
        draw = torch.Generator().manual_seed(seed)
        numbers = torch.randint(1, 10**6, (9,), generator=draw).tolist()
        count, height, width = 1 + numbers[0] % 9, 1 + numbers[1] % 30, 1 + numbers[2] % 30
        padded = (height, width) if seed % 3 == 0 else (1 + numbers[3] % 100, 1 + numbers[4] % 100)
        extent = (1 + numbers[5] % padded[0], 1 + numbers[6] % padded[1])
        size = extent if seed % 4 == 0 else (1 + numbers[7] % 150, 1 + numbers[8] % 150)
        masks = smooth(count, height, width, draw, cells=2 + seed % 9)
        arguments = (
            masks,
            torch.rand(count, generator=draw),
            Canvas(padded, extent, size),
            sigmoid,
            threshold,
            weighted,
        )
        found, expected = contest(*arguments), plain_contest(*arguments)
        wrong = int((found.code != expected.code).sum())
        different, pixels = different + wrong, pixels + found.code.numel()
        if not wrong:
            assert_same(found, expected)
    assert pixels > 200_000
    assert different <= pixels * 1e-5


def test_common_sizes_in_threads():
    draw = torch.Generator().manual_seed(0)
    masks, scores = smooth(12, 60, 80, draw, cells=9), torch.rand(12, generator=draw) * 0.5 + 0.5
    canvas = Canvas((240, 320), (236, 320), (480, 640))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = contest(masks, scores, canvas, "last", 0.5)
    finally:
        torch.set_num_threads(before)
    expected = plain_contest(masks, scores, canvas, "last", 0.5)
    assert int((found.code != expected.code).sum()) <= 3
    assert int(found.won.sum()) == 480 * 640
    assert (found.won > 0).sum() > 9
    assert (found.mask - expected.mask).abs().max() <= 3


@pytest.mark.parametrize(("sigmoid", "threshold", "weighted"), RULES)
def test_of_equal_values_the_first_wins(sigmoid, threshold, weighted):
    draw = torch.Generator().manual_seed(3)
    masks = smooth(2, 9, 11, draw)[[1, 0, 1, 0, 0]]
    scores = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.9])
    arguments = (masks, scores, Canvas((36, 44), (33, 40), (70, 50)), sigmoid, threshold, weighted)
    found = contest(*arguments)
    assert_same(found, plain_contest(*arguments))
    assert found.won[2:].tolist() == [0, 0, 0]
    assert found.won[:2].min() > 0


def test_flat_and_extreme_maps():
    """0 where the sigmoid underflows for all, 1 where it saturates for several, and a threshold that is met exactly."""
    scores = torch.tensor([0.55, 0.8, 0.8])  # 0.5 times a saturated sigmoid would be a threshold met by rounding alone
    for values in ([-300.0, -300, -400], [300, 40, 60], [0, 0, 0], [-1, 0, 1]):
        masks = torch.tensor(values).float()[:, None, None].expand(3, 4, 5)
        for sigmoid, threshold, weighted in RULES:
            arguments = (masks, scores, Canvas((64, 80), (64, 80), (73, 97)), sigmoid, threshold, weighted)
            assert_same(contest(*arguments), plain_contest(*arguments))


def test_a_peak_between_the_corners_of_a_tile_is_seen():
    masks = torch.full((2, 40, 40), 1.0)
    masks[1] = -1
    masks[1, 17, 23] = 5
    found = contest(masks, torch.ones(2), Canvas((40, 40), (40, 40), (40, 40)), "last", 0.5)
    assert (found.code >> 1).nonzero().tolist() == [[17, 23]]
    assert found.won.tolist() == [1599, 1]
    assert found.mask.tolist() == [1600, 1]


def test_nothing_takes_part():
    found = contest(torch.zeros(0, 4, 5), torch.zeros(0), Canvas((4, 5), (4, 5), (8, 9)), "last", 0.5)
    assert found.code.shape == (8, 9)
    assert found.won.shape == (0,)


def test_half_precision_counts_as_float32():
    masks = smooth(3, 8, 9, torch.Generator().manual_seed(0)).bfloat16()
    arguments = (torch.ones(3), Canvas((32, 36), (30, 36), (50, 70)), "last", 0.5)
    assert_same(contest(masks, *arguments), plain_contest(masks.float(), *arguments))


def test_inputs_stay_as_they_are():
    masks, scores = smooth(3, 8, 9, torch.Generator().manual_seed(0)), torch.rand(3)
    before = masks.clone()
    for sigmoid, threshold, weighted in RULES:
        contest(masks, scores, Canvas((8, 9), (8, 9), (20, 20)), sigmoid, threshold, weighted)
    assert torch.equal(masks, before)


def test_painted():
    code = torch.tensor([[0, 3], [2, 1]], dtype=torch.int16)
    assert painted(code, torch.tensor([7, 8, 0, 9], dtype=torch.int32)).tolist() == [[7, 9], [0, 8]]


@pytest.mark.parametrize("size", [(37, 52), (60, 41), (20, 24), (7, 200)])
def test_rows_of_a_canvas(size):
    maps = torch.randn((2, 9, 11), generator=torch.Generator().manual_seed(0))
    canvas = Canvas((36, 44), (20, 24), size)
    expected = resized(resized(maps, canvas.padded)[:, :20, :24], size)
    for start in range(0, size[0], 6):
        rows = range(start, min(start + 6, size[0]))
        torch.testing.assert_close(
            canvas_rows(maps, canvas, rows), expected[:, rows.start : rows.stop], atol=2e-5, rtol=1e-5
        )


def test_nearest_pixels_are_those_of_pil():
    from PIL import Image

    for source, target in [(a, b) for a in (1, 2, 7, 97, 480, 800, 1333) for b in (1, 3, 49, 427, 640, 801, 2000)]:
        picture = Image.fromarray(np.arange(source, dtype=np.int32)[None])
        expected = np.asarray(picture.resize((target, 1), Image.Resampling.NEAREST))[0]
        assert np.array_equal(nearest_source(source, target).numpy(), expected), (source, target)
