"""A photo that fits into memory, predicted in tiles: the stitchers of large images at work without a disk."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pansight.ops.fusion.components import objects_of
from pansight.ops.tiling.maps import MapStitcher, joined_map
from pansight.ops.tiling.objects import ObjectStitcher, Whole, joined_objects
from pansight.ops.tiling.stitchers import Arrays, Grid, Photo, Rows, Stitcher
from pansight.ops.tiling.stitching import Tile
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Prediction, Segment

SEAM_IOU = 0.5
"""Two halves of an object agree in the strip that both tiles see by at least this IoU."""


def predicted_in_tiles(
    photo: Photo, grid: Grid, predict: Callable[[Photo], Prediction], labels: LabelSpace
) -> Prediction:
    """The prediction of a photo (H, W, 3), the size of the grid, from those of its tiles.

    Panoptic maps are joined where tiles give them, and the objects are then the things of the joined map; else objects
    are joined, which may overlap. So it is with a photo of a single tile, too, so that all photos are told alike.
    """
    tiles = [[grid.tile(row, column) for column in range(len(grid.xs))] for row in range(len(grid.ys))]
    found = [predict(_part(photo, tile)) for row in tiles for tile in row]
    remaining = iter(found)
    if found[0].panoptic is not None:
        stitcher = MapStitcher(lambda _: next(remaining), labels, grid, SEAM_IOU, panoptic=True)
        segments, ids, parts = joined_map(_rows(tiles, stitcher, photo), labels, panoptic=True, void=0)
        table = zip(ids.tolist(), segments.category.tolist(), segments.score.tolist())
        whole = torch.from_numpy(np.concatenate(list(parts)).astype(np.int32))  # (H, W)
        panoptic = PanopticSegmentation(whole, tuple(Segment(*row) for row in table))
        return Prediction(panoptic, None, objects_of(panoptic, labels))

    def objects(_: Photo) -> Instances:
        each = next(remaining).instances
        assert each is not None
        return each

    rows = _rows(tiles, ObjectStitcher(objects, labels, grid, SEAM_IOU), photo)
    return Prediction(instances=_instances(list(joined_objects(rows, labels)[1]), grid.size))


def _part(photo: Photo, tile: Tile) -> Photo:
    return photo[tile.y.start : tile.y.stop, tile.x.start : tile.x.stop]


def _rows(tiles: Sequence[Sequence[Tile]], stitcher: Stitcher, photo: Photo) -> Rows:
    """What all rows of tiles leave behind."""
    kept: list[dict[str, Any]] = []
    number, above = 0, dict[int, Arrays]()
    for row, of_row in enumerate(tiles):
        stitcher.begin_row(number)
        below: dict[int, Arrays] = {}
        for column, tile in enumerate(of_row):
            valid = np.ones(tile.size, bool)
            below[column] = stitcher.add(tile, _part(photo, tile), valid, above.get(column, {}) if row else {})
        kept.append(stitcher.end_row())
        number += len(kept[-1]["area"])
        above = below

    def load(row: int, names: Sequence[str]) -> Arrays:
        return {name: kept[row][name] for name in names}

    return Rows(len(kept), load)


def _instances(objects: Sequence[Whole], size: tuple[int, int]) -> Instances:
    """By falling score; masks are None where the detector gives boxes alone."""
    order = sorted(objects, key=lambda each: -each.score)
    boxes = torch.tensor([each.box_xyxy for each in order], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([each.category for each in order], dtype=torch.int64)
    scores = torch.tensor([each.score for each in order], dtype=torch.float32)
    if any(each.mask is None for each in order):
        return Instances(boxes, labels, scores, None)
    masks = torch.zeros((len(order), *size), dtype=torch.bool)
    for mask, each in zip(masks, order, strict=True):
        left, top, right, bottom = each.box_xyxy
        assert each.mask is not None
        mask[top:bottom, left:right] = torch.from_numpy(each.mask)
    return Instances(boxes, labels, scores, masks)


def resized_prediction(found: Prediction, size: tuple[int, int]) -> Prediction:
    """A map and its objects, or objects alone, at another size (H, W); each pixel takes the nearest value."""
    panoptic, objects = found.panoptic, found.instances
    if panoptic is not None and tuple(panoptic.ids.shape) != size:
        ids = _nearest(panoptic.ids, size)
        seen = set(ids.unique().tolist())
        panoptic = PanopticSegmentation(ids, tuple(segment for segment in panoptic.segments if segment.id in seen))
    if objects is not None and objects.masks is not None and tuple(objects.masks.shape[1:]) != size:
        height, width = objects.masks.shape[1:]
        factors = objects.boxes_xyxy.new_tensor([size[1] / width, size[0] / height] * 2)
        boxes, masks = objects.boxes_xyxy * factors, _nearest(objects.masks, size)
        kept = masks.flatten(1).any(1)
        objects = Instances(boxes[kept], objects.labels[kept], objects.scores[kept], masks[kept])
    return Prediction(panoptic, None, objects)


def _nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(…, h, w) → (…, H, W)."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for old, new in zip(maps.shape[-2:], size, strict=True)
    )
    return maps[..., rows[:, None], columns]
