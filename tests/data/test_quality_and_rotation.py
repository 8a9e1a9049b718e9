"""Image quality, ranges of colour, rotation and zoom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pansight.config import AugmentConfig
from pansight.data.dataset import image_tensor
from pansight.data.formats.shapes import Shapes
from pansight.data.transforms import ImageQuality, PhotometricDistortion, RotateAndZoom
from pansight.data.transforms.geometry import Transform
from pansight.engine.assemble import make_transform
from pansight.errors import PansightError
from pansight.ops.resize import ResizeRule
from pansight.types import Instances, PanopticSegmentation, Sample, Segment

QUALITIES = [ImageQuality(blur=1.0), ImageQuality(noise=1.0), ImageQuality(jpeg=1.0), ImageQuality(1.0, 1.0, 1.0)]


def apply(transform: Transform, sample: Sample, seed: int = 0) -> Sample:
    return transform(sample, np.random.default_rng(seed))


def overlapping(size: int = 40) -> Sample:
    """Two overlapping squares, one above the other in the id map, both whole as instances."""
    masks = torch.zeros((2, size, size), dtype=torch.bool)
    masks[0, 8:24, 8:24] = True
    masks[1, 16:32, 16:32] = True
    ids = torch.zeros((size, size), dtype=torch.int32)
    ids[masks[0]], ids[masks[1]] = 3, 9
    pixels = np.random.default_rng(1).integers(0, 256, (size, size, 3), np.uint8)
    boxes = torch.tensor([[8.0, 8, 24, 24], [16, 16, 32, 32]])
    instances = Instances(boxes, torch.tensor([0, 1]), torch.ones(2), masks, torch.zeros(2, dtype=torch.bool))
    truth = PanopticSegmentation(ids, (Segment(3, 0), Segment(9, 1)))
    return Sample(image_tensor(pixels), truth, "two", (size, size), instances)


@pytest.mark.parametrize("quality", QUALITIES)
def test_quality_changes_the_photo_alone_and_repeats(quality: ImageQuality) -> None:
    sample = Shapes(1, 48, 64, seed=3)[0]
    before = sample.image.clone()
    one, again, other = apply(quality, sample), apply(quality, sample), apply(quality, sample, 5)
    assert one.image.dtype == torch.uint8
    assert one.image.shape == sample.image.shape
    assert torch.equal(sample.image, before)
    assert not torch.equal(one.image, before)
    assert torch.equal(one.image, again.image)
    assert not torch.equal(one.image, other.image)
    assert one.truth is sample.truth
    assert one.instances is sample.instances


def test_quality_of_probability_0_leaves_the_sample() -> None:
    sample = Shapes(1, 48, 64, seed=3)[0]
    assert apply(ImageQuality(), sample) is sample


def test_blur_smooths_noise_spreads_and_jpeg_keeps_the_colours_in_place() -> None:
    plain = torch.zeros((3, 32, 32), dtype=torch.uint8)
    plain[0] = 200
    sample = Sample(plain, PanopticSegmentation(torch.zeros((32, 32), dtype=torch.int32), ()), 0, (32, 32))
    noisy = apply(ImageQuality(noise=1.0, noise_sigma=(10, 10)), sample).image[0].float()
    assert 8 < noisy.std() < 12
    assert abs(noisy.mean() - 200) < 2
    again = apply(ImageQuality(jpeg=1.0, jpeg_quality=(90, 90)), sample).image.float()
    assert (again - plain.float()).abs().max() < 6  # red stays red
    rough = replace(sample, image=torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8))
    blurred = apply(ImageQuality(blur=1.0, blur_sigma=(2, 2)), rough).image.float()
    assert blurred.std() < 0.5 * rough.image.float().std()


def test_float_photos_become_whole_levels() -> None:
    sample = Shapes(1, 32, 32, seed=3)[0]
    found = apply(ImageQuality(jpeg=1.0), replace(sample, image=sample.image.float() + 0.3)).image
    assert found.dtype == torch.uint8


def test_contrast_and_saturation_stay_within_unequal_limits() -> None:
    grey = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    sample = Sample(grey, PanopticSegmentation(torch.zeros((8, 8), dtype=torch.int32), ()), 0, (8, 8))
    only = PhotometricDistortion(0, (0.6, 1.0), (1.0, 1.0), 0, 1.0)
    levels = [int(apply(only, sample, seed).image[0, 0, 0]) for seed in range(40)]
    assert 60 <= min(levels) < 70
    assert 92 < max(levels) <= 100


@pytest.mark.parametrize("seed", range(5))
def test_rotated_masks_boxes_and_ids_agree(seed: int) -> None:
    sample = overlapping()
    turned = apply(RotateAndZoom((-90, 90), (0.6, 1.5)), sample, seed)
    instances = turned.instances
    assert instances is not None
    assert instances.masks is not None
    assert turned.truth.size == sample.truth.size
    assert turned.image.dtype == torch.uint8
    assert torch.equal(turned.truth.ids == 9, instances.masks[1])  # the upper one is seen whole
    assert torch.equal(turned.truth.ids == 3, instances.masks[0] & ~instances.masks[1])
    for mask, box in zip(instances.masks, instances.boxes_xyxy.tolist(), strict=True):
        rows, columns = torch.nonzero(mask.any(1))[:, 0], torch.nonzero(mask.any(0))[:, 0]
        assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize(("height", "width"), [(40, 40), (30, 44), (1, 1)])
def test_turns_by_90_and_180_degrees_are_exact(height: int, width: int) -> None:
    sample = Shapes(1, 48, 48, seed=4)[0]
    cut = replace(
        sample,
        image=sample.image[:, :height, :width],
        truth=PanopticSegmentation(sample.truth.ids[:height, :width].contiguous(), sample.truth.segments),
    )
    half = apply(RotateAndZoom((180, 180)), cut)
    assert torch.equal(half.truth.ids, cut.truth.ids.flip(0, 1))
    assert torch.equal(half.image, cut.image.flip(1, 2))
    if height == width:
        quarter = apply(RotateAndZoom((90, 90)), cut)
        assert torch.equal(quarter.truth.ids, cut.truth.ids.rot90(1))  # counter-clockwise
        assert torch.equal(quarter.image, cut.image.rot90(1, (1, 2)))


def test_what_comes_from_outside_is_void_and_has_the_fill() -> None:
    sample = overlapping()
    ids = torch.where(sample.truth.ids == 0, 5, sample.truth.ids)
    sample = replace(sample, truth=PanopticSegmentation(ids, (*sample.truth.segments, Segment(5, 1))))
    black = apply(RotateAndZoom(zoom=(0.5, 0.5)), sample)
    mean = apply(RotateAndZoom(zoom=(0.5, 0.5), fill="mean"), sample)
    assert black.truth.ids[0, 0] == 0
    assert (black.image[:, 0, 0] == 0).all()
    expected = sample.image.float().mean((1, 2))
    assert (mean.image[:, 0, 0].float() - expected).abs().max() <= 1
    assert (black.truth.ids > 0).float().mean() == pytest.approx(0.25, abs=0.03)


def test_objects_that_leave_the_image_leave_the_truth() -> None:
    sample = overlapping()
    ids = torch.zeros((40, 40), dtype=torch.int32)
    ids[:2, :2] = 4
    corner = replace(sample, truth=PanopticSegmentation(ids, (Segment(4, 0),)), instances=None)
    assert apply(RotateAndZoom(zoom=(2, 2)), corner).truth.segments == ()


def test_settings_reach_the_transforms() -> None:
    config = AugmentConfig(crop=0, hflip=0, rotate=(-30, 30), zoom=(0.5, 2), blur=1, noise=1, jpeg=1, photometric=1)
    transform, _ = make_transform(config, ResizeRule(0, 0))
    names = [type(step).__name__ for step in transform.transforms]  # pyright: ignore[reportAttributeAccessIssue]
    assert names == ["Resize", "RotateAndZoom", "PhotometricDistortion", "ImageQuality"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rotate": (10.0, -10.0)},
        {"zoom": (0.0, 1.0)},
        {"fill": "red"},
        {"jpeg_quality": (0, 50)},
        {"blur": 1.5},
        {"noise_sigma": (3.0,)},
        {"contrast": (-1.0, 1.0)},
        {"hue": 500.0},
        {"copy_paste": -0.1},
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(PansightError, match=f"augment.{next(iter(wrong))}"):
        AugmentConfig(**wrong)  # pyright: ignore[reportArgumentType]
