"""Batches: padding, order, and the same content for any number of workers."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from pansight.data import open_dataset
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.data.formats.shapes import Shapes
from pansight.data.loader import Repeats, View, collate, evaluation_loader, pad_images, stream_indices, train_stream
from pansight.data.transforms import Compose, HorizontalFlip, PhotometricDistortion, RandomCrop, ResizeShortestEdge
from pansight.errors import PansightError
from pansight.ops.resize import ResizeRule
from pansight.types import Batch, Sample

RESIZE = ResizeShortestEdge([40, 48, 56], 90, ResizeRule(0, 0))
AUGMENT = Compose([RESIZE, RandomCrop(44, 44), HorizontalFlip(), PhotometricDistortion()])


def same(a: Batch, b: Batch) -> bool:
    tensors = [(a.images, b.images), (a.valid, b.valid), *((x.ids, y.ids) for x, y in zip(a.truths, b.truths))]
    rows = [x.segments for x in a.truths] == [y.segments for y in b.truths]
    return rows and a.image_ids == b.image_ids and a.sizes == b.sizes and all(torch.equal(x, y) for x, y in tensors)


def stream(**options) -> list[Batch]:
    settings = {"batch_size": 4, "divisor": 32, "steps": 5, "seed": 7} | options
    return list(train_stream(Shapes(10, 48, 64), AUGMENT, **settings))


def test_collate_pads_and_says_where():
    samples = [Shapes(1, 40, 60)[0], Shapes(1, 64, 32)[0]]
    batch = collate(samples, 32)
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.valid.sum((1, 2)).tolist() == [40 * 60, 64 * 32]
    for b, sample in enumerate(samples):
        h, w = sample.truth.size
        assert torch.equal(batch.images[b, :, :h, :w], sample.image)
        assert batch.valid[b, :h, :w].all()
        assert batch.truths[b] is sample.truth
    assert batch.images[0, :, 40:].sum() == batch.images[1, :, :, 32:].sum() == 0
    assert batch.sizes == ((40, 60), (64, 32))
    assert collate(samples[:1], 1).images.shape == (1, 3, 40, 60)
    with pytest.raises(PansightError, match="at least one sample"):
        collate([])


def test_a_step_is_a_function_of_seed_step_and_rank():
    whole = stream()
    assert len(whole) == 5
    for step, batch in enumerate(stream(start_step=3), 3):
        assert same(batch, whole[step])
    assert same(stream()[2], whole[2])
    assert not same(stream(seed=8)[0], whole[0])
    assert not torch.equal(whole[0].images, whole[1].images)


def test_ranks_share_out_the_global_batch():
    whole, parts = stream(), [stream(rank=rank, world=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        pieces = [part[step] for part in parts]
        assert batch.image_ids == pieces[0].image_ids + pieces[1].image_ids
        for b in range(4):
            piece, k = pieces[b // 2], b % 2
            h, w = batch.truths[b].size
            assert torch.equal(batch.truths[b].ids, piece.truths[k].ids)
            assert torch.equal(batch.images[b, :, :h, :w], piece.images[k, :, :h, :w])


def test_every_epoch_shows_every_image_once_in_a_new_order():
    order = stream_indices(10, range(30), seed=1)
    epochs = [order[i : i + 10] for i in range(0, 30, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert stream_indices(10, [25, 3], seed=1) == [order[25], order[3]]


FACTORS = [1.0, 2.5, 1.0, 1.25, 3.0, 1.0, 1.0, 1.75, 1.0, 1.0]


def test_rare_images_are_shown_as_often_as_their_factor_says():
    """In every epoch rounded up or down, on average exactly; every image at least once."""
    repeats = Repeats(FACTORS)
    assert repeats.length == 15  # 14.5, rounded up
    epochs = np.array(stream_indices(10, range(15 * 400), 3, repeats)).reshape(400, 15)
    shown = np.stack([np.bincount(epoch, minlength=10) for epoch in epochs])  # (epochs, images)
    slack = 0.5 / 10  # half an image more than the factors say, spread over ten
    assert (shown >= np.floor(FACTORS)).all()
    assert (shown <= np.ceil(np.array(FACTORS) + slack)).all()
    np.testing.assert_allclose(shown.mean(0), np.array(FACTORS) + slack, atol=0.08)
    assert not np.array_equal(epochs[0], np.sort(epochs[0]))  # shuffled
    assert not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize("factors", [[1.0] * 10, [1.0 + 1e-9] * 10])
def test_factors_of_one_show_every_image_once(factors):
    repeats = Repeats(factors)
    assert repeats.length == 10
    assert sorted(stream_indices(10, range(10, 20), 1, repeats)) == list(range(10))


def test_repeats_of_many_images_add_up():
    """No rounding of sums moves a border between two epochs."""
    factors = np.random.default_rng(0).uniform(1, 30, 20_000)
    repeats = Repeats(factors)
    assert 0 <= repeats.length - factors.sum() < 1.1
    for seed in range(3):
        drawn = repeats.draw(np.random.default_rng(seed))
        assert len(drawn) == repeats.length
        assert (np.diff(drawn) >= 0).all()
        assert len(np.unique(drawn)) == len(factors)


def test_a_stream_with_repeats_resumes_and_is_shared_out():
    """Any step is a function of (seed, step, rank) as without, also far into the run, with workers and on ranks."""
    whole = stream(repeats=FACTORS, steps=9)
    assert not same(whole[0], stream()[0])
    for step, batch in enumerate(stream(repeats=FACTORS, steps=9, start_step=5, workers=1), 5):
        assert same(batch, whole[step])
    parts = [stream(repeats=FACTORS, steps=9, rank=rank, world=2) for rank in range(2)]
    for batch, one, two in zip(whole, *parts, strict=True):
        assert batch.image_ids == one.image_ids + two.image_ids
    late = train_stream(Shapes(10, 48, 64), None, 4, 32, 0, 7, start_step=10**9, repeats=FACTORS)
    assert len(next(late).image_ids) == 4


def test_repeats_of_other_images_are_refused():
    with pytest.raises(PansightError, match="repeat factors: expected one for each of 10 images, found 3"):
        stream(repeats=[1.0, 2.0, 3.0])
    for bad in (0.5, float("nan"), float("inf"), -1.0):
        with pytest.raises(PansightError, match="repeat factors: expected numbers of at least 1"):
            Repeats([1.0, bad])


def halved_and_mirrored(images):
    """What the engine makes of photos, in miniature."""
    small = [image[:, ::2, ::2] for image in images]
    return View(*pad_images(small, 16)), View(*pad_images([image.flip(2) for image in small], 16), mirrored=True)


def test_workers_change_nothing(tmp_path):
    for one, two in zip(stream(), stream(workers=2), strict=True):
        assert same(one, two)
        assert two.images.is_contiguous(memory_format=torch.channels_last)
    data = Shapes(5, 48, 64)
    plain, parallel = (list(evaluation_loader(data, halved_and_mirrored, 2, workers)) for workers in (0, 2))
    for (one, samples), (two, others) in zip(plain, parallel, strict=True):
        assert [view.mirrored for view in one] == [view.mirrored for view in two] == [False, True]
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.valid, b.valid)
            assert b.images.is_contiguous(memory_format=torch.channels_last)
        for a, b in zip(samples, others, strict=True):
            assert torch.equal(a.image, b.image)
            assert torch.equal(a.truth.ids, b.truth.ids)
            assert a.image_id == b.image_id


def test_workers_carry_overlapping_instances(data_root):
    data = open_dataset(data_root / "coco_tiny", split="val")
    one, two = (next(iter(train_stream(data, AUGMENT, 4, 32, 1, 0, workers=w))) for w in (0, 2))
    assert same(one, two)
    for a, b in zip(one.instances, two.instances, strict=True):
        assert torch.equal(a.masks, b.masks)
        assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.is_crowd, b.is_crowd)


def test_evaluation_leaves_the_samples_as_they_are_on_disk():
    data = Shapes(5, 48, 64)
    seen = []
    for (view, _), samples in evaluation_loader(data, halved_and_mirrored, batch_size=2, indices=[4, 0, 2]):
        assert view.images.shape[2:] == (32, 32)
        assert view.valid[0].sum() == 24 * 32
        for sample in samples:
            assert sample.truth.size == sample.size == (48, 64)
            assert torch.equal(sample.image, data[sample.image_id - 1].image)
        seen += [sample.image_id for sample in samples]
    assert seen == [5, 1, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_the_same_line_with_workers(tmp_path, workers):
    export_coco_panoptic(Shapes(4, 32, 32), tmp_path)
    (tmp_path / "train" / "000002.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    data = open_dataset(tmp_path)
    with pytest.raises(PansightError, match=r"000002\.png: expected an image, found a truncated header$") as caught:
        list(train_stream(data, None, 2, 32, 4, 0, workers=workers))
    assert "\n" not in str(caught.value)
    expected = str(tmp_path / "train" / "000002.png"), "an image", "a truncated header"
    assert (caught.value.where, caught.value.expected, caught.value.found) == expected
    with pytest.raises(PansightError, match=r"000002\.png"):
        list(evaluation_loader(data, halved_and_mirrored, 2, workers))


def test_samples_without_segments_are_batched():
    def emptied(sample: Sample, rng: np.random.Generator) -> Sample:
        truth = replace(sample.truth, ids=torch.zeros_like(sample.truth.ids), segments=())
        return replace(sample, truth=truth)

    batch = next(iter(train_stream(Shapes(2, 32, 32), emptied, 2, 32, 1, 0)))
    assert [t.segments for t in batch.truths] == [(), ()]


@pytest.mark.parametrize(
    "options", [{"batch_size": 3, "world": 2}, {"batch_size": 0}, {"rank": 2, "world": 2}, {"seed": -1}]
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(PansightError, match="expected"):
        stream(**options)


def test_workers_start_after_opencv_has_used_its_threads():
    """A pool of threads does not survive a fork: a worker that touched it would hang."""
    cv2.setNumThreads(4)
    cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (3000, 3000))
    assert cv2.getNumThreads() == 4
    batches = list(stream(workers=1))
    assert len(batches) == len(list(stream()))
    assert cv2.getNumThreads() == 4
