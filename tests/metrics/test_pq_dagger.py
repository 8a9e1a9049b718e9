"""PQ† on drawn cases and against its definition on sets of pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from drawing import DOG, GRASS, LABELS, SKY, match_drawing, match_maps, random_maps

from pansight.errors import PansightError
from pansight.metrics.panoptic.dagger import PanopticQualityDagger
from pansight.metrics.scores import ClassCounts, image_rows
from pansight.types import LabelSpace


def score(*images) -> dict:
    metric = PanopticQualityDagger(LABELS)
    for image in images:
        metric.update(image)
    return metric.compute()


def test_stuff_needs_no_match():
    """sky: IoU 3/10, below the threshold of PQ, and 10/10 in the other image: their mean. Things as in PQ."""
    result = score(
        match_drawing("ssssssssssaaaa", "sss.......aaa.", s=SKY),
        match_drawing("ssssssssssaaaa", "ssssssssss.aaa", s=SKY),
    )
    assert result["per_class"]["187"] == {
        "name": "sky",
        "isthing": False,
        "pq_dagger": pytest.approx(0.65),
        "images": 2,
    }
    assert result["per_class"]["17"] == {"name": "cat", "isthing": True, "pq_dagger": 0.75, "images": 2}
    assert result["per_class"]["18"] == {"name": "dog", "isthing": True, "pq_dagger": None, "images": 0}
    assert result["Stuff"] == {"pq_dagger": pytest.approx(0.65), "n": 1}
    assert result["Things"] == {"pq_dagger": 0.75, "n": 1}
    assert result["All"] == {"pq_dagger": pytest.approx(0.7), "n": 2}


def test_stuff_missed_counts_and_stuff_imagined_does_not():
    """Grass is predicted where there is none: no image with grass, so no class; sky is missed once."""
    result = score(
        match_drawing("ssssss", "ggssss", s=SKY, g=GRASS),
        match_drawing("ssssss", "......", s=SKY),
    )
    assert result["per_class"]["187"]["pq_dagger"] == pytest.approx(4 / 6 / 2)
    assert result["per_class"]["193"] == {"name": "grass", "isthing": False, "pq_dagger": None, "images": 0}
    assert result["All"]["n"] == 1


def test_void_is_left_out_and_crowds_are_no_truth():
    result = score(match_drawing("ssss....gg", "ssssss..gg", s=SKY, g=GRASS, crowds="g"))
    assert result["per_class"]["187"]["pq_dagger"] == 1.0
    assert result["per_class"]["193"]["pq_dagger"] is None


def test_stuff_in_several_segments_is_one_region():
    result = score(match_drawing("sssstttt", "ss..SSS.", s=SKY, t=SKY, S=SKY))
    assert result["per_class"]["187"] == {"name": "sky", "isthing": False, "pq_dagger": 5 / 8, "images": 1}


def test_equals_the_definition_on_random_maps():
    rng = np.random.default_rng(0)
    pairs = [random_maps(rng) for _ in range(150)]
    result = score(*(match_maps(*pair) for pair in pairs))
    counts = ClassCounts(LABELS)
    for pair in pairs:
        counts.add_rows(image_rows(match_maps(*pair), len(LABELS)))
    for c in LABELS.things:
        assert result["per_class"][str(c.source_id)]["pq_dagger"] == counts.rows()[str(c.source_id)]["pq"]
    for c in LABELS.stuff:
        ious = []
        for truth, prediction, truth_class, prediction_class, crowds in pairs:
            mine = np.isin(truth, [i for i, k in truth_class.items() if k == c.id and i not in crowds])
            crowd = np.isin(truth, [i for i in crowds if truth_class[i] == c.id])
            found = np.isin(prediction, [i for i, k in prediction_class.items() if k == c.id]) & (truth != 0) & ~crowd
            if mine.any():
                ious.append((mine & found).sum() / (mine | found).sum())
        row = result["per_class"][str(c.source_id)]
        assert row["images"] == len(ious) > 20
        assert row["pq_dagger"] == pytest.approx(np.mean(ious), abs=1e-12)


def test_a_perfect_prediction_scores_one_where_stuff_has_crowds():
    rng = np.random.default_rng(2)
    for _ in range(20):
        truth, _, classes, _, crowds = random_maps(rng)
        whole = score(match_maps(truth, truth, classes, classes, crowds))
        for row in whole["per_class"].values():
            assert row["pq_dagger"] in (None, 1.0)


def test_shards_merge_to_the_whole_through_json():
    rng = np.random.default_rng(1)
    images = [match_maps(*random_maps(rng)) for _ in range(30)]
    whole, merged = PanopticQualityDagger(LABELS), PanopticQualityDagger(LABELS)
    shards = [PanopticQualityDagger(LABELS) for _ in range(3)]
    for number, image in enumerate(images):
        whole.update(image)
        shards[number % 3].update(image)
    for shard in reversed(shards):
        read = PanopticQualityDagger(LABELS)
        read.load_state_dict(json.loads(json.dumps(shard.state_dict())))
        merged.merge(read)
    assert merged.state_dict() == whole.state_dict()
    assert merged.compute() == whole.compute()


def test_empty_and_foreign():
    metric = PanopticQualityDagger(LABELS)
    assert metric.compute() == {}
    with pytest.raises(PansightError, match="same label space"):
        metric.merge(PanopticQualityDagger(LabelSpace.from_names(["cat"])))
    with pytest.raises(PansightError, match="expected 4 classes, found 1"):
        metric.load_state_dict(PanopticQualityDagger(LabelSpace.from_names(["cat"])).state_dict())
    assert score(match_drawing("....", "aaaa", a=DOG))["All"] == {"pq_dagger": 0.0, "n": 0}
