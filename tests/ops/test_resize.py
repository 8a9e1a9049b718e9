"""Sizes and pixels of resized photos beside the official codes: rounding, filters, and every form of a rule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.models.detection.transform import _resize_image_and_masks
from torchvision.transforms.v2 import functional as theirs
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import get_image_size_for_max_height_width

from pansight.errors import PansightError
from pansight.ops.resize import FILTERS, ROUNDINGS, TORCHVISION, ResizeRule, resize_photo

GOLDEN: list[list[int]] = json.loads((Path(__file__).parent / "golden" / "input_sizes.json").read_text())


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise over a ramp, with a white and a black edge, so that sums reach both ends of the levels."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, width)[None, :, None] + rng.normal(0, 40, (height, width, 3))
    pixels = np.clip(ramp, 0, 255).astype(np.uint8)
    pixels[: height // 4], pixels[height // 4 : height // 3] = 255, 0
    return pixels


def random_sizes(count: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(0)
    usual = [(480, 640), (640, 427), (800, 1333), (1333, 800), (1, 1), (1, 9000), (100, 1000)]
    return usual + [(int(h), int(w)) for h, w in rng.integers(1, 2500, (count, 2))]


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((400, 1333), (400, 1333)), ((100, 1000), (133, 1333)), ((1, 10_000), (1, 1333))],
)
def test_short_side_unless_the_long_one_passes_its_limit(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert ResizeRule(800, 1333).target(*size) == expected


@pytest.mark.parametrize(
    ("rule", "first"),
    [
        (ResizeRule(800, 1333), 2),
        (ResizeRule(800, 1333, 1, "detr"), 4),
        (ResizeRule(640, 640, 640, "eomt"), 6),
        (ResizeRule(512, 10**9, 16, "eomt"), 8),
    ],
    ids=["detectron2", "detr", "eomt", "eomt windows"],
)
def test_sizes_of_official_code(rule: ResizeRule, first: int) -> None:
    """golden/make_input_sizes.py ran their functions."""
    assert len(GOLDEN) > 300
    for row in GOLDEN:
        expected = (max(1, row[first]), max(1, row[first + 1]))  # theirs may vanish
        assert rule.target(*row[:2]) == expected, row[:2]


def test_the_roundings_are_told_apart_by_the_sizes_above() -> None:
    found = {tuple(ResizeRule(800, 1333, 1, name).target(*row[:2]) for row in GOLDEN) for name in ROUNDINGS}
    assert len(found) == len(ROUNDINGS)


def test_sizes_of_transformers() -> None:
    for short, long in [(800, 1333), (640, 640), (512, 2048)]:
        rule = ResizeRule(short, long, 1, "transformers")
        for size in random_sizes(3000):
            height, width = get_size_with_aspect_ratio(size, short, long)
            assert rule.target(*size) == (max(1, height), max(1, width)), size


@pytest.mark.slow
def test_sizes_of_torchvision() -> None:
    for height, width in random_sizes(500):  # torchvision takes 10 ms each
        if 1333 * min(height, width) < max(height, width):
            continue  # theirs vanishes
        resized = _resize_image_and_masks(torch.empty((3, height, width), device="meta"), 800, 1333)[0]
        assert TORCHVISION.target(height, width) == tuple(resized.shape[1:]), (height, width)


def test_a_box_to_fit_into_a_stretched_size_and_multiples() -> None:
    box = ResizeRule(0, 0, height=333, width=500)
    for size in random_sizes(2000):
        height, width = get_image_size_for_max_height_width(size, 333, 500)
        assert box.target(*size) == (max(1, height), max(1, width))
        assert box._replace(stretched=True).target(*size) == (333, 500)
        assert box._replace(stretched=True, multiple=32).target(*size) == (352, 512)
    assert ResizeRule(480, 640, multiple=32).target(427, 640) == (448, 640)
    assert ResizeRule(0, 0, multiple=32).target(427, 640) == (427, 640)  # no resizing, no stretching


def test_zero_keeps_the_size_and_padding_reaches_the_divisor() -> None:
    rule = ResizeRule(0, 0, 32)
    assert rule.target(333, 500) == (333, 500)
    assert rule.padded(333, 512) == (352, 512)


def test_rules_that_cannot_be() -> None:
    assert TORCHVISION.checked() is TORCHVISION
    with pytest.raises(PansightError, match=r"filter of a resize rule: 'sharp'; known: antialias, pillow, plain"):
        ResizeRule(8, 8, filter="sharp").checked()
    with pytest.raises(PansightError, match=r"rounding of a resize rule: 'up'; known: detectron2, detr, eomt"):
        ResizeRule(8, 8, rounding="up").checked()
    for rule in (ResizeRule(-1, 8), ResizeRule(8, 0), ResizeRule(8, 8, 0), ResizeRule(0, 0, height=8)):
        with pytest.raises(ValueError, match="not ResizeRule"):
            rule.checked()


# --- filters ---------------------------------------------------------------------------------------------------------

CHANGES = [(60, 80, 30, 40), (60, 80, 90, 120), (60, 80, 60, 33), (60, 80, 91, 80), (9, 70, 3, 20), (1, 5, 2, 9)]


def by_pillow(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """One axis at a time, columns first: the order of all versions but 13, which may take rows first."""
    wide = Image.fromarray(pixels).resize((width, pixels.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(wide.resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_pillow_is_pillow(change: tuple[int, int, int, int]) -> None:
    pixels = photo(*change[:2])
    expected = np.asarray(Image.fromarray(pixels).resize(change[:1:-1], Image.Resampling.BILINEAR))
    assert np.array_equal(resize_photo(pixels, *change[2:], "pillow"), expected)


def test_pillow_is_pillow_at_any_size() -> None:
    rng = np.random.default_rng(1)
    for seed in range(300):
        height, width, new_height, new_width = (int(side) for side in np.exp(rng.uniform(0, 5, 4)))
        pixels = photo(height, width, seed)
        found = resize_photo(pixels, new_height, new_width, "pillow")
        assert np.array_equal(found, by_pillow(pixels, new_height, new_width)), (height, width, new_height, new_width)
    extremes = rng.choice(np.array([0, 255], np.uint8), (40, 50, 3))
    assert np.array_equal(resize_photo(extremes, 17, 23, "pillow"), by_pillow(extremes, 17, 23))


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_antialias_is_torchvisions(change: tuple[int, int, int, int]) -> None:
    pixels = photo(*change[:2])
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    expected = theirs.resize(tensor, list(change[2:]), antialias=True)
    found = resize_photo(pixels, *change[2:], "antialias")
    assert torch.equal(torch.from_numpy(found).permute(2, 0, 1), expected)
    assert np.abs(found.astype(int) - resize_photo(pixels, *change[2:], "pillow")).max() <= 2


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_plain_is_bilinear_between_four_pixels(change: tuple[int, int, int, int]) -> None:
    pixels = photo(*change[:2])
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(tensor, change[2:], mode="bilinear", align_corners=False)[0]
    found = resize_photo(pixels, *change[2:], "plain")
    assert found.dtype == np.float32
    assert torch.allclose(torch.from_numpy(found).permute(2, 0, 1), expected, atol=1e-4)


@pytest.mark.parametrize("filter", FILTERS)
def test_input_is_left_alone_and_views_are_taken(filter: str) -> None:
    pixels = photo(40, 50)
    before = pixels.copy()
    crop = pixels[3:33, 5:45]  # not contiguous
    found = resize_photo(crop, 15, 20, filter)
    assert np.array_equal(found, resize_photo(crop.copy(), 15, 20, filter))
    assert found.flags.c_contiguous
    assert np.array_equal(pixels, before)
    same = resize_photo(pixels, 40, 50, filter)
    assert np.array_equal(same, pixels)
    assert same.dtype == (np.float32 if filter == "plain" else np.uint8)


def test_a_float_photo_may_be_resized_once_more() -> None:
    once = resize_photo(photo(40, 50), 30, 40, "plain")
    assert resize_photo(once, 30, 40, "plain") is once
    twice = resize_photo(once, 15, 20, "plain")
    assert twice.dtype == np.float32
    assert np.allclose(twice, once.reshape(15, 2, 20, 2, 3).mean((1, 3)), atol=1e-3)
