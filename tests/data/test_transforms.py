"""Augmentations: image, id map and instances change together, and the input is left unchanged."""

import colorsys

import numpy as np
import pytest
import torch

from pansight.data.dataset import ids_tensor, image_tensor
from pansight.data.formats.coco_instances import make_instances
from pansight.data.formats.shapes import Shapes
from pansight.data.loader import collate
from pansight.data.transforms import (
    Compose,
    ElasticDeformation,
    FixedSizeCrop,
    HorizontalFlip,
    PhotometricDistortion,
    RandomCrop,
    Resize,
    ResizeShortestEdge,
    Rot90,
    ScaleJitter,
    VerticalFlip,
    crop_sample,
    resize_image,
    resize_sample,
)
from pansight.engine.infer import views_of
from pansight.errors import PansightError
from pansight.ops.idmap import present_ids
from pansight.ops.resize import FILTERS, ResizeRule
from pansight.types import PanopticSegmentation, Sample, Segment

GEOMETRY = [
    Resize(ResizeRule(50, 90)),
    ResizeShortestEdge([40, 60, 100], 120, ResizeRule(0, 0)),
    HorizontalFlip(1.0),
    VerticalFlip(1.0),
    Rot90(),
    RandomCrop(30, 44),
    Compose([ScaleJitter(64), FixedSizeCrop(64)]),
    Compose([ScaleJitter(64), FixedSizeCrop(64, fill=128)]),
    ElasticDeformation(4.0, 24, p=1.0),
    ElasticDeformation(6.0, p=1.0, grid=3),
]
EVERYTHING = [*GEOMETRY, PhotometricDistortion(p=1.0)]


def with_instances(index: int = 0) -> Sample:
    """A shapes sample whose objects are given as masks besides, and whose image is its id map in grey."""
    sample = Shapes(index + 1, 60, 80, seed=5)[index]
    ids = sample.truth.ids.numpy()
    masks = np.stack([ids == s.id for s in sample.truth.segments])
    labels = [s.category for s in sample.truth.segments]
    image = np.repeat((ids * 50).astype(np.uint8)[..., None], 3, 2)
    instances = make_instances(masks, labels, [False] * len(labels))
    return Sample(image_tensor(image), sample.truth, "x", (60, 80), instances)


def name(transform) -> str:
    return type(transform).__name__


@pytest.mark.parametrize("transform", EVERYTHING, ids=name)
@pytest.mark.parametrize("seed", range(4))
def test_image_ids_and_instances_stay_together(transform, seed):
    sample = with_instances(seed)
    before = sample.image.clone(), sample.truth.ids.clone(), sample.instances.masks.clone()
    moved = transform(sample, np.random.default_rng(seed))
    again = transform(sample, np.random.default_rng(seed))
    assert torch.equal(moved.image, again.image)  # the same generator gives the same sample
    assert torch.equal(moved.truth.ids, again.truth.ids)
    for old, now in zip(before, (sample.image, sample.truth.ids, sample.instances.masks)):
        assert torch.equal(old, now)  # the input is left alone
    ids = moved.truth.ids
    assert ids.dtype == torch.int32
    assert moved.image.dtype == torch.uint8
    assert moved.image.shape == (3, *ids.shape)
    assert moved.image.permute(1, 2, 0).is_contiguous()
    assert moved.size == (60, 80)
    assert set(present_ids(ids.numpy()).tolist()) - {0} == {s.id for s in moved.truth.segments}
    assert set(moved.truth.segments) <= set(sample.truth.segments)
    assert [s.category for s in moved.truth.segments] == moved.instances.labels.tolist()
    assert len(moved.instances.is_crowd) == len(moved.instances.masks) == len(moved.truth.segments)
    for segment, mask, box in zip(moved.truth.segments, moved.instances.masks, moved.instances.boxes_xyxy.tolist()):
        assert torch.equal(ids == segment.id, mask)
        y, x = mask.nonzero(as_tuple=True)
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize("transform", GEOMETRY, ids=name)
def test_image_and_map_agree_pixel_by_pixel(transform):
    """The image is the map in grey, so away from borders every pixel must still say its id."""
    for seed in range(4):
        moved = transform(with_instances(seed), np.random.default_rng(seed))
        ids, grey = moved.truth.ids.numpy(), moved.image[0].numpy()
        agree = np.abs(ids * 50 - grey.astype(int)) <= 25
        assert agree[ids > 0].mean() > 0.97


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(("old", "new"), [(16, 32), (32, 16), (20, 50), (50, 20), (31, 17)])
def test_resizing_shifts_neither_image_nor_map(old, new, filter):
    """A ramp keeps its centre of mass, and so does a centred block; half a pixel off would show."""
    ramp = np.broadcast_to(np.arange(old, dtype=np.float64)[None, :, None] * 4, (old, old, 3)).astype(np.uint8)
    ids = np.ones((old, old), np.int32)
    ids[:, old // 2 :] = 2  # the border lies at old / 2 (rounded down)
    truth = PanopticSegmentation(ids_tensor(ids), (Segment(1, 0), Segment(2, 0)))
    moved = resize_sample(Sample(image_tensor(ramp), truth, 0, (old, old)), new, new, filter)
    expected = ((np.arange(new) + 0.5) * old / new - 0.5) * 4  # half-pixel centres
    inside = slice(2, -2)
    assert np.abs(moved.image[0, 3].numpy().astype(float) - expected)[inside].max() <= 1.0
    source = np.floor((np.arange(new) + 0.5) * old / new).astype(int)
    assert moved.truth.ids[3].tolist() == ids[0][source].tolist()


def test_flips_and_turns_are_exact():
    sample = with_instances(2)
    rng = np.random.default_rng(0)
    assert torch.equal(HorizontalFlip(1.0)(sample, rng).truth.ids, sample.truth.ids.flip(1))
    assert torch.equal(HorizontalFlip(1.0)(sample, rng).image, sample.image.flip(2))
    assert torch.equal(VerticalFlip(1.0)(sample, rng).truth.ids, sample.truth.ids.flip(0))
    assert HorizontalFlip(0.0)(sample, rng) is sample
    seen = set()
    for seed in range(20):
        moved = Rot90()(sample, np.random.default_rng(seed))
        turns = [k for k in range(4) if torch.equal(moved.truth.ids, sample.truth.ids.rot90(k))]
        assert len(turns) == 1
        assert torch.equal(moved.image, sample.image.rot90(turns[0], (1, 2)))
        seen.add(turns[0])
    assert seen == {0, 1, 2, 3}


def test_a_sample_may_lose_all_its_segments():
    ids = np.zeros((10, 10), np.int32)
    ids[9, 9] = 7
    truth = PanopticSegmentation(ids_tensor(ids), (Segment(7, 0),))
    instances = make_instances((ids == 7)[None], [0], [False])
    sample = Sample(image_tensor(np.zeros((10, 10, 3), np.uint8)), truth, 0, (10, 10), instances)
    cropped = crop_sample(sample, 0, 0, 5, 5)
    assert cropped.truth.segments == ()
    assert len(cropped.instances) == 0
    assert cropped.instances.boxes_xyxy.shape == (0, 4)
    assert cropped.instances.masks.shape == (0, 5, 5)
    again = Compose(EVERYTHING)(cropped, np.random.default_rng(0))
    assert again.truth.segments == ()


def test_crops_are_windows_and_reach_every_place():
    sample = with_instances(1)
    cropped = crop_sample(sample, 5, 7, 20, 30)
    assert torch.equal(cropped.truth.ids, sample.truth.ids[5:25, 7:37])
    assert torch.equal(cropped.image, sample.image[:, 5:25, 7:37])
    column = np.arange(80, dtype=np.int32)[None].repeat(60, 0) + 1
    truth = PanopticSegmentation(ids_tensor(column), tuple(Segment(n, 0) for n in range(1, 81)))
    wide = Sample(sample.image, truth, 0, (60, 80))
    lefts = {RandomCrop(60, 77)(wide, np.random.default_rng(s)).truth.ids[0, 0].item() for s in range(60)}
    assert lefts == {1, 2, 3, 4}


def test_lsj_covers_its_range_and_pads():
    widths = [ScaleJitter(64, 0.5, 1.5)(with_instances(), np.random.default_rng(s)).image.shape[2] for s in range(80)]
    assert min(widths) < 40
    assert max(widths) > 88
    small = FixedSizeCrop(100, fill=9)(with_instances(), np.random.default_rng(0))
    assert small.image.shape == (3, 100, 100)
    assert (small.image[:, 60:] == 9).all()
    assert (small.truth.ids[60:] == 0).all()
    assert FixedSizeCrop(100)(with_instances(), np.random.default_rng(0)).image.shape == (3, 60, 80)


@pytest.mark.parametrize("filter", FILTERS)
def test_training_evaluation_and_prediction_see_the_same_pixels(filter):
    sample = with_instances()
    rule = ResizeRule(33, 50, filter=filter)
    (view,) = views_of([sample.image], rule)
    height, width = rule.target(*sample.truth.size)
    evaluated = view.images[0, :, :height, :width]
    trained = Resize(rule)(sample, np.random.default_rng(0))
    assert trained.truth.size == rule.target(*sample.truth.size) == tuple(evaluated.shape[1:])
    multiscale = ResizeShortestEdge([33], 50, rule._replace(short=0))(sample, np.random.default_rng(0))
    alone = resize_image(sample.image, *rule.target(*sample.truth.size), filter)
    for image in (trained.image, multiscale.image, alone):
        assert image.dtype == evaluated.dtype == (torch.float32 if filter == "plain" else torch.uint8)
        assert torch.equal(image, evaluated)


def test_jitter_takes_the_filter_of_the_rule():
    sample, rng = with_instances(), np.random.default_rng
    for filter in FILTERS:
        jittered = ScaleJitter(32, 1.0, 1.0, filter)(sample, rng(0)).image
        assert torch.equal(jittered, resize_image(sample.image, *jittered.shape[1:], filter))


def test_float_photos_pass_every_transform_and_the_loader():
    """The filter "plain" gives float32: what follows keeps it, but for colours, which are whole levels."""
    sample = Resize(ResizeRule(33, 50, filter="plain"))(with_instances(), np.random.default_rng(0))
    for transform in (HorizontalFlip(1.0), Rot90(), RandomCrop(20, 20), FixedSizeCrop(64, fill=9)):
        assert transform(sample, np.random.default_rng(1)).image.dtype == torch.float32
    bent = ElasticDeformation(0.0, p=1.0)(sample, np.random.default_rng(0))
    assert torch.allclose(bent.image, sample.image, atol=1e-3)
    colours = PhotometricDistortion(p=0.0)(sample, np.random.default_rng(0)).image
    assert torch.equal(colours, sample.image.round().byte())
    batch = collate([sample, with_instances()], 16)  # one float photo makes a float batch
    assert batch.images.dtype == torch.float32
    assert torch.equal(batch.images[0, :, : sample.image.shape[1], : sample.image.shape[2]], sample.image)


def test_a_photo_alone_is_resized():
    sample = with_instances()
    assert resize_image(sample.image, 30, 40, "pillow").shape == (3, 30, 40)
    assert resize_image(sample.image, *sample.truth.size, "pillow").equal(sample.image)


def test_photometric_distortion_keeps_the_truth_and_hits_each_knob():
    sample = with_instances()
    grey = Sample(image_tensor(np.full((4, 4, 3), 100, np.uint8)), sample.truth, 0, (4, 4))
    only_bright = PhotometricDistortion(contrast=(1, 1), saturation=(1, 1), hue=0, p=1.0)
    values = [int(only_bright(grey, np.random.default_rng(s)).image.max()) for s in range(100)]
    assert 68 <= min(values) < 75
    assert 125 < max(values) <= 132
    only_contrast = PhotometricDistortion(brightness=0, saturation=(1, 1), hue=0, p=1.0)
    values = [int(only_contrast(grey, np.random.default_rng(s)).image.max()) for s in range(100)]
    assert 50 <= min(values) < 56
    assert 144 < max(values) <= 150
    assert torch.equal(PhotometricDistortion(p=0.0)(sample, np.random.default_rng(0)).image, sample.image)
    red = Sample(image_tensor(np.full((4, 4, 3), (200, 50, 50), np.uint8)), sample.truth, 0, (4, 4))
    only_hue = PhotometricDistortion(brightness=0, contrast=(1, 1), saturation=(1, 1), hue=18, p=1.0)
    hues = []
    for seed in range(60):
        r, g, b = (only_hue(red, np.random.default_rng(seed)).image[:, 0, 0] / 255).tolist()
        hues.append((colorsys.rgb_to_hsv(r, g, b)[0] * 360 + 180) % 360 - 180)
    assert -21 < min(hues) < -12
    assert 12 < max(hues) < 21
    assert PhotometricDistortion(p=1.0)(sample, np.random.default_rng(0)).truth is sample.truth


def test_elastic_deformation_moves_by_about_its_magnitude():
    sample = with_instances()
    still = ElasticDeformation(0.0, 16, p=1.0)(sample, np.random.default_rng(0))
    assert torch.equal(still.image, sample.image)
    assert torch.equal(still.truth.ids, sample.truth.ids)
    bent = ElasticDeformation(5.0, 16, p=1.0)(sample, np.random.default_rng(0))
    assert 0.01 < (bent.truth.ids != sample.truth.ids).float().mean() < 0.5


def test_elastic_deformation_on_a_grid_of_three_by_three():
    """As in U-Net: nine displacements of 10 pixels' deviation, the outer ones at the corners, bicubic between them."""
    bend = ElasticDeformation(10.0, grid=3, p=1.0)
    draws = np.stack([bend.displacements(65, 97, np.random.default_rng(seed)) for seed in range(300)])
    assert draws.shape == (300, 65, 97, 2)
    points = np.random.default_rng(0).normal(0, 10, (2, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(draws[0, ::32, ::48], points.transpose(1, 2, 0), atol=1e-4)
    assert draws[:, ::32, ::48].std() == pytest.approx(10, rel=0.05)
    steps = np.abs(np.diff(draws[0], axis=0)).max(), np.abs(np.diff(draws[0], axis=1)).max()
    assert max(steps) < 2  # smooth: no stairs between the points
    bent = bend(with_instances(), np.random.default_rng(0))
    assert bent.image.shape[1:] == bent.truth.ids.shape


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1)])
def test_extreme_sizes_pass_through_everything(size):
    ids = np.ones(size, np.int32)
    truth = PanopticSegmentation(ids_tensor(ids), (Segment(1, 0),))
    sample = Sample(image_tensor(np.zeros((*size, 3), np.uint8)), truth, 0, size)
    for transform in EVERYTHING:
        moved = transform(sample, np.random.default_rng(1))
        assert moved.image.shape[1:] == moved.truth.ids.shape
        assert moved.truth.segments == (Segment(1, 0),)


def test_large_ids_survive():
    ids = np.full((8, 8), 256**3 - 1, np.int32)
    truth = PanopticSegmentation(ids_tensor(ids), (Segment(256**3 - 1, 0),))
    sample = Sample(image_tensor(np.zeros((8, 8, 3), np.uint8)), truth, 0, (8, 8))
    for transform in GEOMETRY:
        moved = transform(sample, np.random.default_rng(0))
        assert set(moved.truth.ids.unique().tolist()) - {0} == {256**3 - 1}


@pytest.mark.parametrize(
    "build",
    [
        lambda: RandomCrop(0, 4),
        lambda: ScaleJitter(0),
        lambda: ScaleJitter(8, 2.0, 1.0),
        lambda: ResizeShortestEdge([], 8, ResizeRule(0, 0)),
        lambda: ElasticDeformation(spacing=0),
        lambda: ElasticDeformation(grid=1),
    ],
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(PansightError, match="expected"):
        build()
