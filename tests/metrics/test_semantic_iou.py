"""Mean IoU: a hand-drawn case with exact numbers, the named conventions, and a loop over pixels beside it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pansight.errors import PansightError
from pansight.metrics import SemanticIoU
from pansight.types import IGNORE, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment

LABELS = LabelSpace.from_names(["cat", "dog"], ["sky", "grass"])


def sample(ids, *segments: Segment, image_id: str | int = 1) -> Sample:
    truth = PanopticSegmentation(torch.as_tensor(np.asarray(ids), dtype=torch.int32), tuple(segments))
    return Sample(torch.zeros(3, *truth.size, dtype=torch.uint8), truth, image_id, truth.size)


def semantic(classes) -> Prediction:
    return Prediction(semantic=torch.as_tensor(np.asarray(classes), dtype=torch.int64))


# two cats (one of them a crowd) and sky; the last row is void
TRUTH = sample(
    [[4, 4, 5, 5], [4, 4, 5, 5], [9, 9, 9, 9], [0, 0, 0, 0]], Segment(4, 0), Segment(5, 0, is_crowd=True), Segment(9, 2)
)
FOUND = semantic([[0, 0, 0, 0], [0, 0, 1, 1], [2, 2, 2, IGNORE], [3, 3, 3, 3]])
# cat: 6 / 8; dog: 0 / 2 (absent in the truth, 2 pixels predicted); sky: 3 / 4; grass only on void


@pytest.mark.parametrize(
    ("convention", "miou", "n"),
    [
        ("cityscapes", (0.75 + 0.0 + 0.75) / 3, 3),
        ("detectron2", (0.75 + 0.75) / 2, 2),
        ("semseg", (0.75 + 0.0 + 0.75 + 0.0) / 4, 4),
    ],
)
def test_four_by_four_drawn_by_hand(convention, miou, n):
    metric = SemanticIoU(LABELS, convention)
    metric.update(FOUND, TRUTH)
    result = metric.compute()
    assert result["miou"] == pytest.approx(miou)
    assert (result["n"], result["convention"]) == (n, convention)
    assert result["pixel_accuracy"] == pytest.approx(9 / 12)
    assert result["fwiou"] == pytest.approx(0.75)
    assert result["mean_accuracy"] == pytest.approx(0.75)
    cat = {"name": "cat", "isthing": True, "iou": 0.75, "accuracy": 0.75, "pixels": 8, "predicted": 6}
    assert result["per_class"]["1"] == cat
    assert (result["image_ids"], result["counts"]["category"]) == ([1], [1, 2, 3])
    assert [result["counts"][key] for key in ("hits", "truth", "predicted")] == [[6, 0, 3], [8, 0, 4], [6, 2, 3]]
    assert result["per_class"]["2"]["accuracy"] is None
    json.dumps(result, allow_nan=False)


def test_cityscapes_is_the_default():
    assert SemanticIoU(LABELS).convention == "cityscapes"
    with pytest.raises(PansightError, match="unknown mIoU convention 'voc'; known: cityscapes, detectron2, semseg"):
        SemanticIoU(LABELS, "voc")


def test_classes_of_the_panoptic_map_serve_where_there_is_no_semantic_one():
    panoptic = PanopticSegmentation(
        torch.tensor([[1, 1, 2, 2], [1, 1, 3, 3], [4, 4, 4, 0], [5, 5, 5, 5]], dtype=torch.int32),
        (Segment(1, 0), Segment(2, 0), Segment(3, 1), Segment(4, 2), Segment(5, 3)),
    )
    derived, direct = SemanticIoU(LABELS), SemanticIoU(LABELS)
    derived.update(Prediction(panoptic=panoptic), TRUTH)
    direct.update(FOUND, TRUTH)
    assert derived.compute() == direct.compute()


def test_equals_a_loop_over_pixels_and_shards_merge():
    rng = np.random.default_rng(3)
    whole, shards = SemanticIoU(LABELS), [SemanticIoU(LABELS), SemanticIoU(LABELS)]
    hits, truth_pixels, predicted_pixels = np.zeros(4), np.zeros(4), np.zeros(4)
    for number in range(10):
        ids = rng.integers(0, 6, (9, 13))
        class_of = [None, 0, 1, 1, 2, 3]
        segments = [Segment(i, class_of[i]) for i in range(1, 6) if (ids == i).any()]
        classes = rng.choice([0, 1, 2, 3, IGNORE], (9, 13))
        image = sample(ids, *segments, image_id=number)
        whole.update(semantic(classes), image)
        shards[number % 2].update(semantic(classes), image)
        for i, predicted in zip(ids.ravel(), classes.ravel()):
            if i == 0:
                continue
            truth_pixels[class_of[i]] += 1
            if predicted != IGNORE:
                predicted_pixels[predicted] += 1
                hits[predicted] += predicted == class_of[i]
    expected = hits / (truth_pixels + predicted_pixels - hits)
    result = whole.compute()
    assert [row["iou"] for row in result["per_class"].values()] == pytest.approx(expected, abs=1e-15)
    received = SemanticIoU(LABELS)
    received.load_state_dict(json.loads(json.dumps(shards[0].state_dict())))
    received.merge(shards[1])
    assert received.compute() == result


def test_nothing_to_score():
    metric = SemanticIoU(LABELS)
    metric.update(Prediction(), TRUTH)
    assert metric.compute() == {}
    metric = SemanticIoU(LABELS)
    metric.update(semantic([[0, 1]]), sample([[0, 0]]))
    assert metric.compute()["miou"] == 0.0
    assert metric.compute()["n"] == 0


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (semantic([[0, 1]]), "expected the size of the truth 4×4, found 1×2"),
        (semantic(np.full((4, 4), 7)), "found the value 7, which stands for no class"),
    ],
)
def test_bad_maps_are_named(prediction, message):
    with pytest.raises(PansightError, match=f"image 1: .*{message}"):
        SemanticIoU(LABELS).update(prediction, TRUTH)
