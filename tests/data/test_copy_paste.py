"""Things pasted from one image onto another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pansight.config import AugmentConfig
from pansight.data.formats.shapes import Shapes
from pansight.data.loader import train_stream
from pansight.data.transforms import Compose, CopyPaste, HorizontalFlip, RandomCrop, paste_objects
from pansight.data.transforms.copy_paste import objects_of
from pansight.engine.assemble import with_copy_paste
from pansight.errors import PansightError
from pansight.types import Batch, Category, Instances, LabelSpace, PanopticSegmentation, Sample, Segment

LABELS = LabelSpace([Category(0, "cell", True, (1, 2, 3), 1), Category(1, "sky", False, (4, 5, 6), 2)])


def plain(level: int, ids: torch.Tensor, segments: tuple[Segment, ...], instances: Instances | None = None) -> Sample:
    height, width = ids.shape
    image = torch.full((3, height, width), level, dtype=torch.uint8)
    return Sample(image, PanopticSegmentation(ids, segments), level, (height, width), instances)


def square(size: int, *corners: tuple[int, int, int, int]) -> torch.Tensor:
    """An id map with rectangle n (top, left, bottom, right) numbered n + 1."""
    ids = torch.zeros((size, size), dtype=torch.int32)
    for number, (top, left, bottom, right) in enumerate(corners):
        ids[top:bottom, left:right] = number + 1
    return ids


def with_instances(sample: Sample) -> Sample:
    return replace(sample, instances=objects_of(sample, LABELS))


def test_pasted_pixels_image_and_ids_are_exact() -> None:
    target = plain(10, square(20, (0, 0, 20, 20)), (Segment(1, 1),))
    other = plain(200, square(20, (2, 3, 6, 8)), (Segment(1, 0),))
    pasted = paste_objects(target, other, objects_of(other, LABELS), (0, 0), LABELS)
    inside = other.truth.ids == 1
    assert pasted.truth.segments == (Segment(1, 1), Segment(2, 0))
    assert torch.equal(pasted.truth.ids == 2, inside)
    assert torch.equal(pasted.image, torch.where(inside, other.image, target.image))
    assert (target.truth.ids == 1).all()
    assert (target.image == 10).all()


def test_covered_segments_go_and_nearly_covered_ones_become_void() -> None:
    corners = (0, 0, 4, 4), (4, 4, 14, 14), (16, 16, 20, 20)
    target = plain(10, square(20, *corners), tuple(Segment(n, 0) for n in (1, 2, 3)))
    other = plain(200, square(20, (0, 0, 14, 13)), (Segment(1, 0),))
    target.truth.ids[4:14, 4:14] = 2
    pasted = paste_objects(target, other, objects_of(other, LABELS), (0, 0), LABELS)
    # of segment 2 one column of ten is left, which is a tenth: it stays; of segment 1 nothing is
    assert [s.id for s in pasted.truth.segments] == [2, 3, 4]
    wider = plain(200, square(20, (0, 0, 13, 14)), (Segment(1, 0),))
    wider.truth.ids[13, 4:6] = 1
    less = paste_objects(target, wider, objects_of(wider, LABELS), (0, 0), LABELS)
    assert [s.id for s in less.truth.segments] == [3, 4]
    assert not (less.truth.ids == 2).any()
    assert (less.truth.ids[13, 6:14] == 0).all()


def test_overlapping_instances_are_cut_and_joined() -> None:
    masks = torch.zeros((2, 20, 20), dtype=torch.bool)
    masks[0, 0:10, 0:10], masks[1, 5:15, 5:15] = True, True
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 15, 15]])
    own = Instances(boxes, torch.zeros(2, dtype=torch.int64), torch.ones(2), masks)
    target = plain(10, square(20, (0, 0, 10, 10), (5, 5, 15, 15)), (Segment(1, 0), Segment(2, 0)), own)
    other = with_instances(plain(200, square(20, (0, 0, 20, 6)), (Segment(1, 0),)))
    pasted = paste_objects(target, other, objects_of(other, LABELS), (0, 0), LABELS).instances
    assert pasted is not None
    assert pasted.masks is not None
    assert pasted.is_crowd is not None
    assert pasted.boxes_xyxy.tolist() == [[6, 0, 10, 10], [6, 5, 15, 15], [0, 0, 6, 20]]
    assert pasted.masks[0].sum() == 40
    assert pasted.masks[1].sum() == 90
    assert pasted.masks[2].sum() == 120
    assert (masks[0].sum(), len(pasted.labels), pasted.is_crowd.any()) == (100, 3, False)


def test_ids_of_any_size_stay_unique() -> None:
    ids = square(20, (0, 0, 5, 5))
    ids[ids == 1] = 2**31 - 1
    target = plain(10, ids, (Segment(2**31 - 1, 0),))
    other = plain(200, square(20, (6, 6, 9, 9), (12, 12, 15, 15)), (Segment(1, 0), Segment(2, 0)))
    pasted = paste_objects(target, other, objects_of(other, LABELS), (0, 0), LABELS).truth
    assert sorted(s.id for s in pasted.segments) == [1, 2, 2**31 - 1]


def test_crowds_and_stuff_are_not_pasted() -> None:
    sample = plain(10, square(20, (0, 0, 5, 5), (6, 6, 9, 9), (10, 0, 12, 2)), ())
    segments = (Segment(1, 0, is_crowd=True), Segment(2, 1), Segment(3, 0))
    sample = replace(sample, truth=PanopticSegmentation(sample.truth.ids, segments))
    found = objects_of(sample, LABELS)
    assert found.masks is not None
    assert len(found) == 1
    assert torch.equal(found.masks[0], sample.truth.ids == 3)


def test_images_of_other_sizes_are_placed_anywhere_over_each_other() -> None:
    class Two:
        labels = LABELS

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            return plain(200, square(8, (0, 0, 8, 8)), (Segment(1, 0),))

    paste = CopyPaste(Two(), Compose(()), 1.0)  # pyright: ignore[reportArgumentType]
    places: set[tuple[int, int]] = set()
    for seed in range(12):
        found = paste(plain(10, square(30), ()), np.random.default_rng(seed))
        rows, columns = torch.nonzero(found.truth.ids == 1).T
        assert len(rows) == 64
        assert found.image[0, rows[0], columns[0]] == 200
        places.add((int(rows[0]), int(columns[0])))
    assert len(places) > 6
    small = paste(plain(10, square(4), ()), np.random.default_rng(0))  # a larger image over a smaller one
    assert small.truth.size == (4, 4)
    assert small.truth.segments in ((Segment(1, 0),), ())


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_resumption_change_nothing(workers: int) -> None:
    dataset = Shapes(6, 48, 64, seed=2)
    flip_and_crop = Compose([HorizontalFlip(), RandomCrop(40, 40)])
    transform = with_copy_paste(flip_and_crop, dataset, AugmentConfig(copy_paste=0.8))

    def batches(first: int, count: int) -> list[Batch]:
        return list(train_stream(dataset, transform, 2, 8, 4, 7, first, count))

    whole, resumed = batches(0, 0), batches(2, workers)
    for one, other in zip(whole[2:], resumed, strict=True):
        assert torch.equal(one.images, other.images)
        for left, right in zip(one.truths, other.truths, strict=True):
            assert torch.equal(left.ids, right.ids)
            assert left.segments == right.segments


@pytest.mark.parametrize("seed", range(8))
def test_the_table_always_fits_the_map(seed: int) -> None:
    dataset = Shapes(5, 48, 64, seed=seed)
    paste = CopyPaste(dataset, HorizontalFlip(), 1.0)
    sample = dataset[0]
    found = paste(sample, np.random.default_rng(seed)).truth
    assert {s.id for s in found.segments} == set(found.ids.unique().tolist()) - {0}


def test_data_without_things_is_refused() -> None:
    dataset = Shapes(1, 32, 32)
    assert with_copy_paste(HorizontalFlip(), dataset, AugmentConfig()).__class__ is HorizontalFlip
    stuff: Any = type("Stuff", (), {"labels": LabelSpace([Category(0, "sky", False, (4, 5, 6), 2)])})()
    with pytest.raises(PansightError, match=r"augment\.copy_paste"):
        with_copy_paste(HorizontalFlip(), stuff, AugmentConfig(copy_paste=0.5))
