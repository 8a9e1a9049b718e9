"""GeoJSON (RFC 7946): the pieces of a prediction as polygons, in pixels or on a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.interop.pieces import Piece, pieces
from pansight.interop.polygons import polygons, signed_area
from pansight.types import LabelSpace, Prediction


def to_geojson(
    prediction: Prediction, labels: LabelSpace, score: float = 0.5, transform: Sequence[float] | None = None
) -> dict[str, Any]:
    """A FeatureCollection with a feature for each piece, along the edges of its pixels.

    transform: a, b, c, d, e, f as rasterio and affine have them, from a corner of pixels (x, y) to the place on the map
    (a·x + b·y + c, d·x + e·y + f), for GeoJSON in longitude and latitude; None: pixels, y downwards.
    Properties: id, class, category_id (that of the data set), is_thing, score, area (pixels).
    """
    features = [_feature(piece, transform) for piece in pieces(prediction, labels, score)]
    return {"type": "FeatureCollection", "features": features}


def _feature(piece: Piece, transform: Sequence[float] | None) -> dict[str, Any]:
    if piece.mask is None:
        x1, y1, x2, y2 = piece.box_xyxy
        parts = [[np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])]]
        area = (x2 - x1) * (y2 - y1)
    else:
        corner = int(piece.box_xyxy[0]), int(piece.box_xyxy[1])
        parts = [[each.exterior, *each.holes] for each in polygons(piece.mask, corner)]
        area = int(piece.mask.sum())
    shapes = [[_ring(ring, transform, index > 0) for index, ring in enumerate(rings)] for rings in parts]
    kind, coordinates = ("Polygon", shapes[0]) if len(shapes) == 1 else ("MultiPolygon", shapes)
    properties = {
        "id": piece.id,
        "class": piece.category.name,
        "category_id": piece.category.source_id,
        "is_thing": piece.category.is_thing,
        "score": piece.score,
        "area": area,
    }
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


def _ring(ring: NDArray[Any], transform: Sequence[float] | None, is_hole: bool) -> list[list[float]]:
    """Closed, and counter-clockwise where y points up, holes the other way round, as the standard asks for."""
    if transform is not None:
        a, b, c, d, e, f = list(transform)[:6]
        x, y = ring[:, 0], ring[:, 1]
        ring = np.stack([a * x + b * y + c, d * x + e * y + f], 1)
    if (signed_area(ring) < 0) != is_hole:
        ring = ring[::-1]
    return [*ring.tolist(), ring[0].tolist()]
