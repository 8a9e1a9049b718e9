"""Objects from a semantic map: one segment for each connected component of a class of things."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch

from pansight.ops.fusion.components import connected_components, decided, objects_of
from pansight.types import IGNORE, LabelSpace, PanopticSegmentation

LABELS = LabelSpace.from_names(["cell", "cat"], ["floor"])


def semantic(*rows: str) -> torch.Tensor:
    """Digits are classes, a dot is unknown."""
    return torch.tensor([[IGNORE if c == "." else int(c) for c in row] for row in rows])


def found(panoptic: PanopticSegmentation) -> list[tuple[int, int]]:
    return [(s.id, s.category) for s in panoptic.segments]


def test_things_are_parted_and_stuff_is_not() -> None:
    panoptic = connected_components(semantic("20200", "22211", ".1222"), LABELS)
    assert panoptic.ids.tolist() == [[5, 1, 5, 2, 2], [5, 5, 5, 3, 3], [0, 4, 5, 5, 5]]
    assert found(panoptic) == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)]
    assert all(s.score == 1 for s in panoptic.segments)


def test_corners_connect() -> None:
    assert found(connected_components(semantic("02", "20"), LABELS)) == [(1, 0), (2, 2)]


def test_small_things_become_void_and_small_stuff_stays() -> None:
    panoptic = connected_components(semantic("002.1", "00..1", "....."), LABELS, min_area=3)
    assert panoptic.ids.tolist() == [[1, 1, 2, 0, 0], [1, 1, 0, 0, 0], [0] * 5]
    assert found(panoptic) == [(1, 0), (2, 2)]


def test_scores_are_the_mean_of_the_pixels() -> None:
    sure = torch.tensor([[0.5, 0.7, 0.9, 1.0]])
    panoptic = connected_components(semantic("0020"), LABELS, scores=sure)
    assert [s.score for s in panoptic.segments] == pytest.approx([0.6, 1.0, 0.9])


@pytest.mark.parametrize("size", [(1, 1), (0, 4), (3, 0), (5, 1)])
def test_any_size(size: tuple[int, int]) -> None:
    panoptic = connected_components(torch.zeros(size, dtype=torch.int64), LABELS)
    assert panoptic.size == size
    assert len(panoptic.segments) == (1 if size[0] * size[1] else 0)
    unknown = connected_components(torch.full(size, IGNORE), LABELS)
    assert not unknown.segments
    assert not unknown.ids.any()
    assert len(objects_of(unknown, LABELS)) == 0


@pytest.mark.parametrize("seed", range(3))
def test_components_are_those_of_scipy(seed: int) -> None:
    classes = np.random.default_rng(seed).integers(-1, 3, (40, 33))
    panoptic = connected_components(torch.from_numpy(classes), LABELS)
    ids = panoptic.ids.numpy()
    assert sorted(s.id for s in panoptic.segments) == sorted(set(ids.ravel().tolist()) - {0})
    assert ((ids == 0) == (classes == -1)).all()
    for category in (0, 1):
        expected, count = scipy.ndimage.label(classes == category, np.ones((3, 3)))
        own = [s.id for s in panoptic.segments if s.category == category]
        assert len(own) == count
        pairs = set(zip(ids[classes == category].tolist(), expected[classes == category].tolist()))
        assert len(pairs) == count  # one to one
        firsts = [int(np.flatnonzero(ids.ravel() == n)[0]) for n in own]
        assert firsts == sorted(firsts)
    assert len([s for s in panoptic.segments if s.category == 2]) == 1


def test_objects_have_masks_and_boxes() -> None:
    sure = torch.tensor([[0.5, 0.5, 0.9, 1.0]])
    objects = objects_of(connected_components(semantic("0020"), LABELS, scores=sure), LABELS)
    assert objects.scores.tolist() == [1.0, 0.5]
    assert objects.labels.tolist() == [0, 0]
    assert objects.boxes_xyxy.tolist() == [[3, 0, 4, 1], [0, 0, 2, 1]]
    assert objects.masks is not None
    assert objects.masks.tolist() == [[[False, False, False, True]], [[True, True, False, False]]]


def test_unsure_pixels_have_no_class_and_are_void() -> None:
    classes, sure = torch.tensor([[0, 0, 1], [1, 1, 1]]), torch.tensor([[0.9, 0.4, 0.6], [0.5, 0.8, 1.0]])
    labels = LabelSpace.from_names(["cell"], ["rest"])
    alone = decided(classes, sure, labels, certainty=0.5)
    assert alone.panoptic is None
    assert alone.semantic is not None
    assert alone.semantic.tolist() == [[0, IGNORE, 1], [1, 1, 1]]
    found = decided(classes, sure, labels, components=True, certainty=0.9).panoptic
    assert found is not None
    assert found.ids.tolist() == [[1, 0, 0], [0, 0, 2]]
    assert [(s.category, round(s.score, 6)) for s in found.segments] == [(0, 0.9), (1, 1.0)]
    assert decided(classes, sure, labels).semantic is classes
