"""Which segments of a prediction become annotations, on maps of a few pixels; and how classes are joined by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pansight.apps.photos.labelling.classes import joined_classes, own_classes
from pansight.apps.photos.labelling.filling import NOTHING, OTHER, SMALL, TAKEN, UNSURE, Added, Rule, labelled
from pansight.errors import PansightError
from pansight.types import LabelSpace, PanopticSegmentation, Segment

LABELS = LabelSpace.from_names(["car"], ["road", "sky"])
CAR, ROAD, SKY = 0, 1, 2
SAME = {CAR: CAR, ROAD: ROAD, SKY: SKY}


def panoptic(rows: list[list[int]], *segments: Segment) -> PanopticSegmentation:
    return PanopticSegmentation(torch.tensor(rows, dtype=torch.int32), segments)


def test_what_is_below_the_confidence_is_void():
    found = panoptic([[1, 1, 2, 2], [3, 3, 0, 2]], Segment(1, CAR, 0.9), Segment(2, CAR, 0.6), Segment(3, ROAD, 0.7))
    result = labelled(found, Rule(LABELS, SAME, 0.7))
    assert result.map.ids.tolist() == [[1, 1, 0, 0], [2, 2, 0, 0]]
    assert result.map.segments == (Segment(1, CAR, 0.9), Segment(2, ROAD, 0.7))
    assert result.added == (Added(CAR, 2, 0.9), Added(ROAD, 2, 0.7))
    assert result.void == {UNSURE: 3, NOTHING: 1}
    assert result.kept == 0


def test_a_score_that_is_no_number_is_not_sure():
    found = panoptic([[1, 1]], Segment(1, CAR, float("nan")))
    assert labelled(found, Rule(LABELS, SAME, 0.0)).void == {UNSURE: 2}


def test_small_objects_and_classes_that_are_not_asked_for_are_void():
    found = panoptic([[1, 2, 2, 3]], Segment(1, CAR), Segment(2, ROAD), Segment(3, SKY))
    result = labelled(found, Rule(LABELS, {CAR: CAR, SKY: SKY}, 0.5, min_area=2))
    assert result.map.ids.tolist() == [[0, 0, 0, 1]]  # stuff of any size
    assert result.void == {SMALL: 1, OTHER: 2}


def test_only_void_is_filled_and_everything_else_stays():
    kept = panoptic([[7, 7, 0, 0], [0, 2, 2, 0]], Segment(7, CAR, is_crowd=True), Segment(2, ROAD))
    found = panoptic([[1, 1, 1, 1], [2, 2, 3, 3]], Segment(1, SKY, 0.9), Segment(2, ROAD, 0.8), Segment(3, CAR, 0.9))
    result = labelled(found, Rule(LABELS, SAME, 0.5), kept)
    # the road joins that of the annotations; of the car half is annotated as road, which is not too much
    assert result.map.ids.tolist() == [[7, 7, 1, 1], [2, 2, 2, 3]]
    assert result.map.segments[:2] == kept.segments
    assert result.map.segments[2:] == (Segment(1, SKY, 0.9), Segment(3, CAR, 0.9))
    assert result.added == (Added(SKY, 2, 0.9), Added(ROAD, 1, 0.8), Added(CAR, 1, 0.9))
    assert result.part(kept=True).ids.tolist() == kept.ids.tolist()
    assert result.part(kept=False).ids.tolist() == [[0, 0, 1, 1], [2, 0, 0, 3]]
    assert kept.ids.tolist() == [[7, 7, 0, 0], [0, 2, 2, 0]]


def test_an_object_that_is_annotated_already_leaves_no_rim():
    kept = panoptic([[0, 5, 5, 0]], Segment(5, CAR))
    found = panoptic([[1, 1, 1, 0]], Segment(1, CAR, 0.99))
    result = labelled(found, Rule(LABELS, SAME, 0.5), kept)
    assert result.map.ids.tolist() == kept.ids.tolist()
    assert result.void == {TAKEN: 1, NOTHING: 1}


def test_stuff_does_not_join_a_crowd_of_its_class():
    kept = panoptic([[5, 0]], Segment(5, ROAD, is_crowd=True))
    result = labelled(panoptic([[1, 1]], Segment(1, ROAD, 0.9)), Rule(LABELS, SAME, 0.5), kept)
    assert result.map.ids.tolist() == [[5, 1]]


def test_every_annotated_pixel_is_kept_whatever_is_found():
    rng = np.random.default_rng(0)
    for _ in range(100):
        kept_ids, found_ids = (rng.integers(0, 5, (6, 7)).astype(np.int32) for _ in range(2))
        maps = [
            PanopticSegmentation(
                torch.from_numpy(ids),
                tuple(Segment(n, int(rng.integers(3)), float(rng.random())) for n in np.unique(ids).tolist() if n),
            )
            for ids in (kept_ids, found_ids)
        ]
        result = labelled(maps[1], Rule(LABELS, SAME, 0.4, min_area=2), maps[0])
        ids = result.map.ids.numpy()
        assert (ids[kept_ids > 0] == kept_ids[kept_ids > 0]).all()
        assert result.map.segments[: len(maps[0].segments)] == maps[0].segments
        assert set(np.unique(ids).tolist()) - {0} == {segment.id for segment in result.map.segments}
        assert (ids == 0).sum() == sum(result.void.values())
        assert ids.size == result.kept + sum(row.pixels for row in result.added) + (ids == 0).sum()


def test_classes_join_by_name_and_new_ones_come_last():
    annotated = LabelSpace.from_names(["person", "car"], ["road"])
    model = LabelSpace.from_names(["car", "dog"], ["sky", "road"])
    joined = joined_classes(annotated, model)  # the stuff
    assert joined.labels.names == ("person", "car", "road", "sky")
    assert joined.of_model == {2: 3, 3: 2}
    assert joined.new == ("sky",)
    assert [c.source_id for c in joined.labels] == [1, 2, 3, 4]  # sky has 3 in the model, which the road has here
    assert joined_classes(annotated, model, ["car,sky"]).of_model == {0: 1, 2: 3}
    assert set(joined_classes(annotated, model, ["all"]).of_model) == {0, 1, 2, 3}
    assert joined_classes(annotated, model, ["things"]).new == ("dog",)


def test_own_classes_are_those_that_are_asked_for():
    model = LabelSpace.from_names(["car", "dog"], ["sky"])
    assert own_classes(model).labels == model
    joined = own_classes(model, ["sky", "dog"])
    assert [(c.id, c.name, c.source_id) for c in joined.labels] == [(0, "dog", 2), (1, "sky", 3)]
    assert joined.of_model == {1: 0, 2: 1}
    with pytest.raises(PansightError, match=r"unknown class of the model 'cat'.*known: all, car, dog, sky"):
        own_classes(model, ["cat"])
    with pytest.raises(PansightError, match="expected stuff of the model, found none"):
        own_classes(LabelSpace.from_names(["car"]), ["stuff"])


def test_label_spaces_that_disagree_are_refused():
    annotated = LabelSpace.from_names(["car"], ["wall"])
    with pytest.raises(PansightError) as caught:
        joined_classes(annotated, LabelSpace.from_names(["wall"], ["sky"]))
    expected = "expected a thing in both or stuff in both, found stuff of the annotations and a thing of the model"
    assert str(caught.value) == f"class 'wall': {expected}"
    with pytest.raises(PansightError, match=r"expected a class of the annotations, found none of car, wall among sky"):
        joined_classes(annotated, LabelSpace.from_names([], ["sky"]))
    assert joined_classes(annotated, LabelSpace.from_names([], ["sky"]), ["sky"]).new == ("sky",)
