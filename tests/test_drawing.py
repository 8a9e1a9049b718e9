"""Overlays of objects: colours, plates and what is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pansight.drawing.objects import draw_objects
from pansight.drawing.prediction import draw_prediction
from pansight.drawing.segments import overlay
from pansight.errors import PansightError
from pansight.ops.maps.regions import surer_than
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Prediction, Segment

LABELS = LabelSpace.from_names(["cell", "dog"], ["background", "sky"])


def objects(boxes: list[list[float]], scores: list[float], masks: torch.Tensor | None = None) -> Instances:
    count = len(boxes)
    return Instances(
        torch.tensor(boxes).reshape(count, 4), torch.zeros(count, dtype=torch.int64), torch.tensor(scores), masks
    )


def black(height: int, width: int) -> torch.Tensor:
    return torch.zeros((3, height, width), dtype=torch.uint8)


def test_names_stand_on_plates_inside_the_picture() -> None:
    found = objects([[0.0, 0.0, 200.0, 150.0], [150.0, 250.0, 299.0, 299.0]], [0.9, 0.8])
    bare, named = (draw_objects(black(300, 300), found, LABELS, names=names) for names in (False, True))
    changed = (bare != named).any(dim=0)
    assert changed.sum() > 300  # two plates
    assert torch.equal(named, draw_objects(black(300, 300), found, LABELS))


def test_plates_of_two_objects_do_not_cover_each_other() -> None:
    """Twice the same box: the second plate stands at another corner."""
    once = draw_objects(black(300, 300), objects([[40.0, 60.0, 280.0, 200.0]], [0.9]), LABELS)
    twice = draw_objects(black(300, 300), objects([[40.0, 60.0, 280.0, 200.0]] * 2, [0.9, 0.8]), LABELS)
    first = once[:, 30:60, 40:120]
    assert (first.sum(dim=0) > 0).sum() > 300  # the plate of the surer one, above its box
    assert torch.equal(twice[:, 30:60, 40:120] > 0, first > 0)
    assert ((twice != once).any(dim=0)[60:]).sum() > 300


def test_many_small_objects_stay_visible() -> None:
    """Plates may cover a fifth of the picture; further names are left out, and every box is there."""
    boxes = [[x, y, x + 10.0, y + 10.0] for y in np.arange(2.0, 240.0, 14) for x in np.arange(2.0, 240.0, 14)]
    found = objects(boxes, np.linspace(0.99, 0.5, len(boxes)).tolist())
    bare, named = (draw_objects(black(256, 256), found, LABELS, names=names) for names in (False, True))
    assert (bare != named).any(dim=0).float().mean() < 0.3


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (2, 300), (64, 64)])
def test_any_size_is_drawn(size: tuple[int, int]) -> None:
    found = objects([[-5.0, -5.0, 400.0, 400.0], [0.2, 0.2, 0.4, 0.4]], [0.9, 0.7])
    assert draw_objects(black(*size), found, LABELS).shape == (3, *size)
    assert draw_objects(black(*size), objects([], []), LABELS).sum() == 0


def test_mask_box_and_plate_have_one_colour() -> None:
    masks = torch.zeros((2, 120, 120), dtype=torch.bool)
    masks[0, 10:50, 10:50] = True
    masks[1, 60:110, 60:110] = True
    found = objects([[10.0, 10.0, 50.0, 50.0], [60.0, 60.0, 110.0, 110.0]], [0.9, 0.6], masks)
    picture = draw_objects(black(120, 120), found, LABELS, opacity=1.0, names=False)
    for place in (slice(10, 50), slice(60, 110)):
        colors = picture[:, place, place].reshape(3, -1).T.unique(dim=0)
        assert len(colors) == 1
    assert picture[:, :, 55].sum() == 0
    assert (picture[:, 30, 30] != picture[:, 80, 80]).any()
    alone = draw_objects(black(120, 120), found, LABELS, 0.7, opacity=1.0, names=False)
    assert torch.equal(alone[:, :55], picture[:, :55])
    assert alone[:, 55:].sum() == 0


def test_the_input_is_not_changed() -> None:
    image, found = black(50, 50), objects([[5.0, 5.0, 40.0, 40.0]], [0.9])
    draw_objects(image, found, LABELS)
    assert image.sum() == 0


def test_surer_than_sorts_and_keeps_pairs_together() -> None:
    boxes = [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 3.0, 3.0]]
    found = surer_than(objects(boxes, [0.2, 0.9, 0.5]), 0.4)
    assert found.boxes_xyxy[:, 2].tolist() == [2.0, 3.0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])


def panoptic() -> PanopticSegmentation:
    ids = torch.zeros((100, 200), dtype=torch.int32)
    ids[:50], ids[50:, :100], ids[50:, 100:] = 1, 2, 3
    return PanopticSegmentation(ids, (Segment(1, 2), Segment(2, 3), Segment(3, 0, 0.83)))


def test_background_stays_unpainted_unless_asked_for() -> None:
    image = torch.full((3, 100, 200), 90, dtype=torch.uint8)
    picture = overlay(image, panoptic(), LABELS)
    assert torch.equal(picture[:, :45], image[:, :45])
    assert (picture[:, 60:, :90] != 90).any(dim=0).float().mean() > 0.9  # the name may have pixels of that grey
    assert (overlay(image, panoptic(), LABELS, background=True)[:, :45] != 90).any(dim=0).float().mean() > 0.9


def test_scores_are_written_where_there_are_any() -> None:
    image = torch.full((3, 100, 200), 90, dtype=torch.uint8)
    with_scores, without = (overlay(image, panoptic(), LABELS, scores=scores) for scores in (True, False))
    changed = (with_scores != without).any(dim=0)
    assert changed[50:, 100:].any()
    assert not changed[:, :100].any()  # stuff of score 1 has none
    assert torch.equal(draw_prediction(image, Prediction(panoptic=panoptic()), LABELS), with_scores)


def test_each_kind_of_prediction_is_drawn_and_none_is_refused() -> None:
    image = torch.full((3, 100, 200), 90, dtype=torch.uint8)
    semantic = Prediction(semantic=torch.full((100, 200), 3, dtype=torch.int64))
    boxes = Prediction(instances=objects([[5.0, 5.0, 90.0, 90.0]], [0.4]))
    assert (draw_prediction(image, semantic, LABELS) != image).any()
    assert torch.equal(draw_prediction(image, boxes, LABELS), image)  # under the score
    assert (draw_prediction(image, boxes, LABELS, score=0.3) != image).any()
    with pytest.raises(PansightError, match="prediction: expected segments, objects or classes, found none of them"):
        draw_prediction(image, Prediction(), LABELS)
