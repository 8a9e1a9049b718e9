"""Label Studio's regions: what a machine learning backend answers and what a pre-annotation holds."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from pansight.interop.pieces import Piece, pieces, required, size_of
from pansight.interop.polygons import polygons
from pansight.types import LabelSpace, Prediction


def brushes() -> Any:
    """Label Studio's own module of run lengths."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its use of pydantic
        from label_studio_sdk.converter import brush
    return brush


def to_label_studio(
    prediction: Prediction,
    labels: LabelSpace,
    from_name: str = "tag",
    to_name: str = "image",
    score: float = 0.5,
    as_polygons: bool = False,
) -> list[dict[str, Any]]:
    """The "result" of a prediction: a region for each piece.

    from_name, to_name: of the BrushLabels or PolygonLabels tag and of the Image in the labelling configuration.
    as_polygons: one region for each part of a piece, as polygons of Label Studio have no holes; else masks.
    Raises PansightError where masks are asked for and the package label-studio-sdk is missing.
    """
    height, width = size_of(prediction)
    common = {"from_name": from_name, "to_name": to_name, "image_rotation": 0}
    common |= {"original_width": width, "original_height": height}
    found: list[dict[str, Any]] = []
    for piece in pieces(prediction, labels, score):
        values = _polygon_values(piece, height, width) if as_polygons else [_brush_value(piece, (height, width))]
        kind = "polygonlabels" if as_polygons else "brushlabels"
        for part, value in enumerate(values):
            region = {"id": f"{piece.id}-{part}", "type": kind, "score": piece.score}
            found.append({**region, **common, "value": {**value, kind: [piece.category.name]}})
    return found


def _brush_value(piece: Piece, size: tuple[int, int]) -> dict[str, Any]:
    brush = required(brushes, "label-studio-sdk", "interop")
    mask = piece.whole_mask(size).astype(np.uint8) * 255
    return {"format": "rle", "rle": brush.mask2rle(mask)}


def _polygon_values(piece: Piece, height: int, width: int) -> list[dict[str, Any]]:
    """Points in percent of the photo."""
    whole = piece.whole_mask((height, width))
    percent = np.array([100 / width, 100 / height])
    return [{"points": (each.exterior * percent).tolist(), "closed": True} for each in polygons(whole)]
