"""Polygons of masks: valid ones, and exactly the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from rasterio.features import rasterize
from shapely.geometry import Polygon as Shape
from shapely.geometry import mapping

from pansight.interop.polygons import polygons, signed_area


def shapes(mask: np.ndarray) -> list[Shape]:
    return [Shape(each.exterior, each.holes) for each in polygons(mask)]


def test_a_square_with_a_hole_by_hand() -> None:
    mask = np.zeros((5, 6), bool)
    mask[1:4, 1:5] = True
    mask[2, 2] = False
    (found,) = polygons(mask, corner_xy=(10, 20))
    assert sorted(map(tuple, found.exterior.tolist())) == [(11, 21), (11, 24), (15, 21), (15, 24)]
    (hole,) = found.holes
    assert sorted(map(tuple, hole.tolist())) == [(12, 22), (12, 23), (13, 22), (13, 23)]
    assert abs(signed_area(found.exterior)) == 12


def test_parts_that_touch_at_a_corner_are_two() -> None:
    assert len(polygons(np.eye(3, dtype=bool))) == 3


def test_holes_that_touch_at_corners_are_simple_rings() -> None:
    """Two holes at one corner, and a hole at the corner of the outside: what makes rings cross themselves."""
    mask = np.ones((6, 6), bool)
    mask[2, 2] = mask[3, 3] = False
    mask[0, 0] = mask[1, 1] = False
    (shape,) = shapes(mask)
    assert shape.is_valid
    assert shape.area == mask.sum()
    assert len(shape.interiors) == 3


@pytest.mark.parametrize("seed", range(20))
def test_noise_gives_valid_polygons_of_the_same_pixels(seed: int) -> None:
    draw = np.random.default_rng(seed)
    mask = draw.random((17, 23)) < draw.choice([0.3, 0.5, 0.7, 0.9])
    found = shapes(mask)
    assert all(shape.is_valid for shape in found)
    assert sum(shape.area for shape in found) == mask.sum()
    painted = rasterize([(mapping(shape), 1) for shape in found], mask.shape)
    assert np.array_equal(painted == 1, mask)


def test_nothing_has_no_polygon() -> None:
    assert polygons(np.zeros((3, 4), bool)) == []
