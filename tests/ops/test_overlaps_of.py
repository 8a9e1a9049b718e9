"""Counting pairs of values: against np.unique, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from pansight.ops.maps.overlap import overlaps_of

pytestmark = pytest.mark.usefixtures("both_ways")

SIZES = st_numpy.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)


@given(st.data(), SIZES, st.sampled_from([1, 3, 2**31 - 1]), st.sampled_from([np.int32, np.int64, np.uint32]))
def test_equals_unique(data, size, top, dtype):
    values = st.integers(0, top)
    first, second = (data.draw(st_numpy.arrays(dtype, size, elements=values)) for _ in range(2))
    found = overlaps_of(first, second)
    pairs = np.stack([first.ravel(), second.ravel()], 1).astype(np.int64)  # (H·W, 2)
    unique, pixels = np.unique(pairs, axis=0, return_counts=True)
    assert (found.first == unique[:, 0]).all()
    assert (found.second == unique[:, 1]).all()
    assert (found.pixels == pixels).all()
    assert all(each.dtype == np.int64 for each in found)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_nothing(size):
    empty = np.zeros(size, np.int32)
    assert [len(each) for each in overlaps_of(empty, empty)] == [0, 0, 0]


def test_views_that_are_not_contiguous_and_stay_as_they_are():
    first, second = np.arange(24, dtype=np.int32).reshape(4, 6) // 3, np.arange(24, dtype=np.int32).reshape(6, 4).T
    copies = first.copy(), second.copy()
    found = overlaps_of(first[:, ::-1], second)
    assert found.pixels.sum() == 24
    assert (found.first == np.unique(np.stack([first[:, ::-1].ravel(), second.ravel()]), axis=1)[0]).all()
    assert (first == copies[0]).all()
    assert (second == copies[1]).all()
