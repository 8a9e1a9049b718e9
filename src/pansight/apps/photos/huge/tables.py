"""What was found in a huge image, as files: the table of segments in Parquet, objects as COCO results or GeoJSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import mask as rle

from pansight.data.formats.rasters import Georeference
from pansight.ops.maps.rle import code_text
from pansight.ops.tiling.objects import Masks, Whole
from pansight.ops.tiling.stitching import IntArray, Pieces
from pansight.types import LabelSpace

ROWS_AT_ONCE = 2**16


def write_segments(path: Path, segments: Pieces, ids: IntArray, labels: LabelSpace, scored: bool) -> None:
    """Parquet, a row for each segment: id (as in the map), category_id (the data set's own), name, isthing, score, area
    in pixels, and bbox [x, y, width, height] in pixels. scored: else the score is left open.
    """
    import pyarrow
    import pyarrow.parquet

    fields: list[Any] = [
        ("id", pyarrow.int64()),
        ("category_id", pyarrow.int64()),
        ("name", pyarrow.string()),
        ("isthing", pyarrow.bool_()),
        ("score", pyarrow.float64()),
        ("area", pyarrow.int64()),
        ("bbox", pyarrow.list_(pyarrow.int64(), 4)),
    ]
    schema = pyarrow.schema(fields)
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, max(1, len(ids)), ROWS_AT_ONCE):
            part = segments.part(start, start + ROWS_AT_ONCE)
            categories = [labels[category] for category in part.category.tolist()]
            boxes = part.boxes_xyxy - np.pad(part.boxes_xyxy[:, :2], ((0, 0), (2, 0)))  # x, y, x2 − x, y2 − y
            columns = {
                "id": ids[start : start + ROWS_AT_ONCE],
                "category_id": [category.source_id for category in categories],
                "name": [category.name for category in categories],
                "isthing": [category.is_thing for category in categories],
                "score": part.score if scored else [None] * len(categories),
                "area": part.area,
                "bbox": boxes.tolist(),
            }
            writer.write_table(pyarrow.table(columns, schema=schema))


def write_coco(path: Path, objects: Iterable[Whole], size: tuple[int, int], file_name: str, labels: LabelSpace) -> None:
    """COCO annotations with one image of id 1: box [x, y, w, h], score, area, mask as run lengths; object by object."""
    head = {"images": [{"id": 1, "file_name": file_name, "height": size[0], "width": size[1]}]}
    head |= {"categories": labels.to_json()}
    _write_listed(path, f'{json.dumps(head)[:-1]}, "annotations": [', (_coco_row(one, size, labels) for one in objects))


def _coco_row(one: Whole, size: tuple[int, int], labels: LabelSpace) -> dict[str, Any]:
    left, top, right, bottom = one.box_xyxy
    row: dict[str, Any] = {"id": one.id, "image_id": 1, "category_id": labels[one.category].source_id}
    row |= {"score": one.score, "bbox": [left, top, right - left, bottom - top], "iscrowd": 0}
    if one.mask is None:
        return row | {"area": (right - left) * (bottom - top)}
    code = {"size": list(size), "counts": run_lengths(one.mask, top, left, size)}
    return row | {"area": int(one.mask.sum()), "segmentation": code}


def run_lengths(mask: Masks, top: int, left: int, size: tuple[int, int]) -> str:
    """COCO's compressed run lengths of an image of `size` (H, W) whose only pixels are those of `mask`, (h, w), at
    (top, left): the image itself is never made.
    """
    edges = np.diff(np.pad(mask, ((1, 1), (0, 0))).astype(np.int8), axis=0).T  # (w, h + 1): 1 begins a run, −1 ends it
    column, row = np.nonzero(edges == 1)
    starts = (column + left) * size[0] + row + top
    column, row = np.nonzero(edges == -1)
    stops = (column + left) * size[0] + row + top
    apart = starts[1:] > stops[:-1]  # a run that reaches the bottom goes on at the top of the next column
    starts, stops = starts[np.append(True, apart)], stops[np.append(apart, True)]
    borders = np.stack([starts, stops], 1).ravel()
    counts = np.diff(borders, prepend=0, append=size[0] * size[1])
    code: Any = rle.frPyObjects({"counts": counts.tolist(), "size": list(size)}, *size)
    return code_text(code["counts"])


def write_geojson(path: Path, objects: Iterable[Whole], place: Georeference | None, labels: LabelSpace) -> None:
    """A feature for each object: its outline along the edges of pixels, in the image's coordinate system where it has
    one, which is named as GDAL and QGIS read it; else in pixels, x to the right and y down.
    """
    head: dict[str, Any] = {"type": "FeatureCollection"}
    if name := _name_of_crs(place):
        head["crs"] = {"type": "name", "properties": {"name": name}}
    _write_listed(path, f'{json.dumps(head)[:-1]}, "features": [', (_feature(one, place, labels) for one in objects))


def _feature(one: Whole, place: Georeference | None, labels: LabelSpace) -> dict[str, Any]:
    from rasterio.features import shapes
    from rasterio.transform import Affine

    left, top, right, bottom = one.box_xyxy
    mask = np.ones((bottom - top, right - left), bool) if one.mask is None else one.mask
    whole = Affine(*place.transform) if place is not None else Affine.identity()
    found = shapes(mask.astype(np.uint8), mask=mask, transform=whole @ Affine.translation(left, top))
    parts = [shape["coordinates"] for shape, _ in found]
    geometry = {"type": "MultiPolygon", "coordinates": parts}
    if len(parts) == 1:
        geometry = {"type": "Polygon", "coordinates": parts[0]}
    category = labels[one.category]
    properties = {"category_id": category.source_id, "name": category.name, "score": one.score}
    return {"type": "Feature", "id": one.id, "properties": properties | {"area": int(mask.sum())}, "geometry": geometry}


def _name_of_crs(place: Georeference | None) -> str:
    if place is None or not place.crs:
        return ""
    from rasterio.crs import CRS

    authority = CRS.from_wkt(place.crs).to_authority()
    return "" if authority is None else f"urn:ogc:def:crs:{authority[0]}::{authority[1]}"


def _write_listed(path: Path, head: str, rows: Iterator[dict[str, Any]]) -> None:
    """A JSON object that ends with a list, which is written row by row."""
    with path.open("w", encoding="utf-8") as file:
        file.write(head)
        for number, row in enumerate(rows):
            file.write((",\n" if number else "\n") + json.dumps(row, allow_nan=False))
        file.write("\n]}\n")
