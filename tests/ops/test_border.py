"""U-Net's weight map: the values of its formula, and the fast form against the plain one."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from pansight.ops.fast import plain
from pansight.ops.semantic.border import border_weights, touching


def row(text: str) -> np.ndarray:
    return np.array([[int(c) for c in text]], np.int32)


def test_the_published_formula_on_a_row() -> None:
    """Cells at columns 0–2 and 6–8: between them the sum of both distances is 4 everywhere."""
    found = border_weights(row("111000222000"), [1, 2], 10.0, 5.0)[0]
    np.testing.assert_allclose(found[3:6], 7.2615, atol=1e-4)
    np.testing.assert_allclose(found[9:], [2.7804, 1.3534, 0.5613], atol=1e-4)
    assert (found[[0, 1, 2, 6, 7, 8]] == 0).all()
    assert found.dtype == np.float32


@pytest.mark.parametrize("objects", [[], [1], [1, 7]])
def test_fewer_than_two_cells_have_no_border(objects: list[int]) -> None:
    assert (border_weights(row("111000222000"), objects, 10.0, 5.0) == 0).all()


def test_only_things_are_cells_and_all_else_is_background() -> None:
    """The segment 3 is stuff: weighted as void is."""
    found = border_weights(row("111330222300"), [1, 2], 10.0, 5.0)
    np.testing.assert_array_equal(found, border_weights(row("111000222000"), [1, 2], 10.0, 5.0))


def scattered(seed: int, side: int = 60, cells: int = 12) -> np.ndarray:
    """Discs of random places and sizes, some over others, some in two pieces."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((side, side + 7), np.int32)
    y, x = np.indices(ids.shape)
    for number in range(1, cells + 1):
        cy, cx, radius = rng.integers(0, side), rng.integers(0, side + 7), rng.integers(1, 6)
        ids[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = 1000 * number
    return ids


@pytest.mark.parametrize(("seed", "sigma"), [(0, 5.0), (1, 1.0), (2, 2.5), (3, 0.7)])
def test_boxes_change_nothing(seed: int, sigma: float) -> None:
    """Distances that the grown boxes leave out have no weight."""
    ids = scattered(seed)
    objects = np.unique(ids[ids > 0]).tolist()
    fast = border_weights(ids, objects, 10.0, sigma)
    with plain(True):
        slow = border_weights(ids, objects, 10.0, sigma)
    np.testing.assert_allclose(fast, slow, atol=1e-4)
    assert (fast > 0).any()


def test_distances_are_those_of_scipy() -> None:
    ids = scattered(4)
    objects = np.unique(ids[ids > 0]).tolist()
    distances = np.sort([scipy.ndimage.distance_transform_edt(ids != n) for n in objects], axis=0)
    expected = np.where(ids > 0, 0, 10 * np.exp(-((distances[0] + distances[1]) ** 2) / 50))
    np.testing.assert_allclose(border_weights(ids, objects, 10.0, 5.0), expected, atol=1e-4)


def test_touching_cells_are_separated() -> None:
    ids = np.array([[1, 1, 2, 2], [1, 1, 2, 0], [3, 0, 0, 4]], np.int32)
    found = touching(ids, [1, 2, 3])  # 4 is stuff
    assert found.tolist() == [[False, True, False, False], [True, True, False, False], [False] * 4]
    apart = np.where(found, 0, ids)
    assert not touching(apart, [1, 2, 3]).any()


def test_nothing_touches_alone() -> None:
    assert not touching(scattered(0), []).any()
    assert not touching(np.ones((3, 3), np.int32), [1]).any()


def test_ids_are_exact_up_to_the_largest() -> None:
    ids = np.array([[256**3 - 2, 256**3 - 1]], np.int32)
    assert touching(ids, ids[0].tolist()).tolist() == [[True, False]]
