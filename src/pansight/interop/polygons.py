"""Masks as polygons with holes, along the edges of their pixels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pansight.data.convert.targets.outlines import Outline, outlines

Points = NDArray[np.int64]


class Polygon(NamedTuple):
    """A ring around a part of a mask, and rings around its holes, none of which crosses or touches itself.

    Rings are int64 (N, 2) x, y of corners of pixels, the first of which is not repeated at the end.
    """

    exterior: Points
    holes: list[Points]


def polygons(mask: NDArray[np.bool_], corner_xy: tuple[int, int] = (0, 0)) -> list[Polygon]:
    """One polygon for each part of a bool (h, w) mask whose pixels have sides in common, in reading order.

    corner_xy: what lies left of the mask and above it, and is added to all points.
    """
    labelled: Any = ndimage.label(mask)  # neighbours have a side in common, not a corner
    parts = labelled[0]
    found: list[Polygon] = []
    for number, place in enumerate(ndimage.find_objects(parts), 1):
        shift = np.array([place[1].start + corner_xy[0], place[0].start + corner_xy[1]])
        rings = [ring for line in outlines(parts[place] == number) for ring in _simple_rings(line)]
        rings.sort(key=lambda ring: -abs(signed_area(ring)))
        exterior, *holes = (ring + shift for ring in rings)
        found.append(Polygon(exterior, holes))
    return found


def _simple_rings(line: Outline) -> list[Points]:
    """A closed line, cut into two wherever it comes to a corner for the second time."""
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    rings: list[Points] = []
    for point in (*map(tuple, line.tolist()), tuple(line[0].tolist())):
        if point in place:
            start = place[point]
            if len(path) - start > 2:
                rings.append(np.array(path[start:], np.int64))
            for passed in path[start + 1 :]:
                del place[passed]
            del path[start + 1 :]
        else:
            place[point] = len(path)
            path.append(point)
    return rings


def signed_area(ring: NDArray[Any]) -> float:
    """Half of what the shoelace formula gives: positive where the ring (N, 2) turns from the x to the y axis."""
    x, y = ring[:, 0], ring[:, 1]
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
