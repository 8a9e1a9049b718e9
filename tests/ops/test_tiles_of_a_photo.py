"""A photo in memory that is predicted in tiles: what is joined equals what is drawn, at its size and at another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pansight.ops.fusion.components import objects_of
from pansight.ops.tiling.stitchers import Grid, Photo
from pansight.ops.tiling.stitching import tile_spans
from pansight.ops.tiling.whole import predicted_in_tiles, resized_prediction
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Prediction, Segment

LABELS = LabelSpace.from_names(["cell", "dot"], ["ground"])
COLOURS = 40
"""A segment is painted in the colour of its id; ids up to this are cells, up to twice as much dots, 0 is ground."""


def scene(height: int = 90, width: int = 130) -> Photo:
    """Bars, squares and dots, many of which lie on the seams."""
    ids = np.zeros((height, width), np.uint8)
    ids[10:14, 5:120] = 1  # through all columns of tiles
    ids[20:85, 60:66] = 2
    ids[30:50, 20:45] = 3
    ids[70:75, 100:130] = 4
    ids[52:57, 30:35], ids[60:68, 90:98] = 41, 42
    return np.repeat(ids[..., None], 3, 2)


def panoptic_of(photo: Photo) -> PanopticSegmentation:
    """What a network without fault says of a photo: ids of its own, from 1 in the order of the colours."""
    colours = torch.from_numpy(photo[..., 0].astype(np.int32))
    ids, segments = torch.zeros_like(colours), []
    for number, colour in enumerate(colours.unique().tolist(), 1):
        ids[colours == colour] = number
        category = 2 if colour == 0 else int(colour > COLOURS)
        segments.append(Segment(number, category, 0.5))
    return PanopticSegmentation(ids, tuple(segments))


def grid_of(photo: Photo, side: int, overlap: int) -> Grid:
    height, width = photo.shape[:2]
    return Grid((height, width), tile_spans(height, side, overlap), tile_spans(width, side, overlap))


def parts_of(found: PanopticSegmentation) -> set[tuple[int, bytes]]:
    """Category and mask of every segment, whatever its id."""
    return {(each.category, (found.ids == each.id).numpy().tobytes()) for each in found.segments}


@pytest.mark.parametrize(("side", "overlap"), [(32, 8), (48, 24), (64, 20), (200, 10)])
def test_a_panoptic_map_is_that_of_the_whole_photo(side: int, overlap: int) -> None:
    photo = scene()
    seen: list[tuple[int, ...]] = []

    def predict(part: Photo) -> Prediction:
        seen.append(part.shape[:2])
        return Prediction(panoptic_of(part))

    found = predicted_in_tiles(photo, grid_of(photo, side, overlap), predict, LABELS)
    assert found.panoptic is not None
    assert parts_of(found.panoptic) == parts_of(panoptic_of(photo))
    assert all(segment.score == 0.5 for segment in found.panoptic.segments)
    assert max(max(size) for size in seen) <= side or len(seen) == 1
    assert found.instances is not None
    assert torch.equal(found.instances.boxes_xyxy, objects_of(found.panoptic, LABELS).boxes_xyxy)
    assert len(found.instances) == 6


@pytest.mark.parametrize("with_masks", [True, False])
def test_objects_are_joined_and_stay_apart_where_they_overlap(with_masks: bool) -> None:
    photo = scene()

    def predict(part: Photo) -> Prediction:
        """Every object twice, the second time as a dot that lies on it."""
        cells = objects_of(panoptic_of(part), LABELS)
        boxes, masks = cells.boxes_xyxy.repeat(2, 1), cells.masks
        assert masks is not None
        labels = torch.cat([torch.zeros_like(cells.labels), torch.ones_like(cells.labels)])
        scores = torch.cat([torch.full_like(cells.scores, 0.9), torch.full_like(cells.scores, 0.4)])
        return Prediction(instances=Instances(boxes, labels, scores, masks.repeat(2, 1, 1) if with_masks else None))

    found = predicted_in_tiles(photo, grid_of(photo, 48, 24), predict, LABELS).instances
    assert found is not None
    whole = objects_of(panoptic_of(photo), LABELS)
    assert len(found) == 2 * len(whole)
    assert found.scores.tolist() == pytest.approx([0.9] * len(whole) + [0.4] * len(whole))
    assert found.labels.tolist() == [0] * len(whole) + [1] * len(whole)
    for part in (slice(0, len(whole)), slice(len(whole), None)):
        assert sorted(found.boxes_xyxy[part].tolist()) == sorted(whole.boxes_xyxy.tolist())
    assert (found.masks is not None) == with_masks
    if found.masks is not None and whole.masks is not None:
        masks = {mask.numpy().tobytes() for mask in found.masks}
        assert masks == {mask.numpy().tobytes() for mask in whole.masks}


def test_another_size_takes_the_nearest_value() -> None:
    panoptic = panoptic_of(scene())
    found = Prediction(panoptic, None, objects_of(panoptic, LABELS))
    assert resized_prediction(found, (90, 130)).panoptic is panoptic
    twice = resized_prediction(found, (180, 260))
    assert twice.panoptic is not None
    assert torch.equal(twice.panoptic.ids, panoptic.ids.repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert twice.instances is not None
    assert found.instances is not None
    assert torch.equal(twice.instances.boxes_xyxy, 2 * found.instances.boxes_xyxy)
    assert twice.instances.masks is not None
    assert tuple(twice.instances.masks.shape[1:]) == (180, 260)
    tiny = resized_prediction(found, (3, 4))
    assert tiny.panoptic is not None
    assert tiny.instances is not None
    assert {each.id for each in tiny.panoptic.segments} == set(tiny.panoptic.ids.unique().tolist())
    assert len(tiny.instances) < len(found.instances)


def test_an_empty_photo_has_no_objects() -> None:
    photo = np.zeros((80, 80, 3), np.uint8)
    found = predicted_in_tiles(photo, grid_of(photo, 48, 8), lambda part: Prediction(panoptic_of(part)), LABELS)
    assert found.panoptic is not None
    assert [segment.category for segment in found.panoptic.segments] == [2]
    assert found.instances is not None
    assert len(found.instances) == 0
    objects = predicted_in_tiles(
        photo, grid_of(photo, 48, 8), lambda part: Prediction(instances=Instances(*none_of(part))), LABELS
    )
    assert objects.instances is not None
    assert len(objects.instances) == 0


def none_of(part: Photo) -> tuple[torch.Tensor, ...]:
    height, width = part.shape[:2]
    masks = torch.zeros(0, height, width, dtype=torch.bool)
    return torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), masks
