"""Id maps: the coding in RGB, and the counting of ids."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pansight.errors import PansightError
from pansight.ops.idmap import MAX_ID, areas, boxes_xyxy, ids_to_rgb, paint_in_order, present_ids, relabel, rgb_to_ids

maps = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**32 - 1), st.sampled_from([1, 3, MAX_ID]))


def draw(case: tuple[int, int, int, int]) -> np.ndarray:
    height, width, seed, top = case
    return np.random.default_rng(seed).integers(0, top, (height, width), endpoint=True).astype(np.int32)


@given(maps)
def test_coding_round_trips(case):
    ids = draw(case)
    rgb = ids_to_rgb(ids)
    assert rgb.dtype == np.uint8
    assert np.array_equal(rgb_to_ids(rgb), ids)
    wide = rgb.astype(np.int64)
    assert np.array_equal(wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2], ids)


def test_coding_puts_red_first():
    assert ids_to_rgb(np.array([[1 + 256 * 2 + 65536 * 3]], np.int32)).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("bad", [-1, MAX_ID + 1])
def test_ids_that_no_png_can_hold_are_refused(bad):
    with pytest.raises(PansightError, match=f"found {bad}"):
        ids_to_rgb(np.array([[0, bad]], np.int32))


def test_rgb_of_another_type_is_refused():
    with pytest.raises(PansightError, match="expected uint8"):
        rgb_to_ids(np.zeros((2, 2), np.uint8))


@given(maps)
def test_counts_equal_those_of_numpy(case):
    ids = draw(case)
    values, counts = np.unique(ids, return_counts=True)
    assert present_ids(ids).tolist() == values.tolist()
    assert areas(ids) == dict(zip(values.tolist(), counts.tolist()))
    for number, (x1, y1, x2, y2) in boxes_xyxy(ids).items():
        y, x = np.nonzero(ids == number)
        assert (x1, y1, x2, y2) == (x.min(), y.min(), x.max() + 1, y.max() + 1)
    assert set(boxes_xyxy(ids)) == set(values.tolist()) - {0}


def test_a_view_that_is_not_contiguous_counts_the_same():
    ids = np.arange(12, dtype=np.int32).reshape(3, 4).T[:, ::2]
    assert present_ids(ids).tolist() == np.unique(ids).tolist()
    assert np.array_equal(rgb_to_ids(ids_to_rgb(ids)), ids)


def test_relabel_replaces_and_clears():
    ids = np.array([[5, 5, 7], [0, 9, 5]], np.int32)
    assert relabel(ids, {5: 1, 7: 2}).tolist() == [[1, 1, 2], [0, 0, 1]]
    assert ids[0, 0] == 5


def test_painting_order_decides_overlaps():
    masks = np.array([[[1, 1, 0]], [[0, 1, 1]]], bool)
    assert paint_in_order(masks, [4, 6], [0, 1]).tolist() == [[4, 6, 6]]
    assert paint_in_order(masks, [4, 6], [1, 0]).tolist() == [[4, 4, 6]]
