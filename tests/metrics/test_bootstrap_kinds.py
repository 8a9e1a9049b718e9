"""Resampled mIoU and AP: equal to the metrics themselves, run anew on the drawn images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pansight.metrics import AveragePrecision, SemanticIoU
from pansight.metrics.bootstrap import bootstrap, paired_test
from pansight.metrics.bootstrap.detections import DetectionFigures
from pansight.metrics.bootstrap.pixels import pixel_figures
from pansight.metrics.bootstrap.records import detection_counts, pixel_counts, with_intervals
from pansight.types import IGNORE, Instances, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment

LABELS = LabelSpace.from_names(["cat", "dog", "bird"], ["sky"])
INDEX = {c.source_id: c.id for c in LABELS}
THING_INDEX = {c.source_id: c.id for c in LABELS.things}
THINGS = np.array([c.is_thing for c in LABELS])
SIZE = (40, 50)
IMAGES = 12


def drawn_images(seed: int, unique: bool = False) -> list[tuple[Prediction, Sample]]:
    """Random maps and boxes; the truth is the same for every seed, dogs are rare, some objects are crowds.

    unique: no two detections have one score.
    """
    truth_rng, rng = np.random.default_rng(99), np.random.default_rng(seed)
    images = []
    for number in range(IMAGES):
        ids = truth_rng.choice([0, 1, 3, 4], SIZE).astype(np.int32)
        if number < 2:
            ids[:5] = 2
        classes = np.where(rng.random(SIZE) < 0.6, ids - 1, rng.integers(0, 4, SIZE))
        classes[rng.random(SIZE) < 0.05] = IGNORE
        segments = tuple(Segment(int(i), int(i) - 1) for i in np.unique(ids) if i)
        count = int(truth_rng.integers(1, 6))
        corners, sides = truth_rng.integers(0, 25, (count, 2)), truth_rng.integers(5, 20, (count, 2))
        boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
        labels = truth_rng.choice([0, 0, 0, 1], count)
        crowd = truth_rng.random(count) < 0.2
        found = np.concatenate([boxes + rng.integers(-2, 3, boxes.shape), rng.permutation(boxes) + 3]).astype(
            np.float32
        )
        scores = (
            rng.permutation(len(found)) / 16 + (number + 1) / 1000 if unique else rng.integers(1, 10, len(found)) / 10
        )
        order = np.argsort(-scores, kind="stable")
        guess = np.where(rng.random(len(found)) < 0.8, np.tile(labels, 2), rng.integers(0, 3, len(found)))
        truth = Instances(tensor(boxes), tensor(labels), torch.ones(count), None, tensor(crowd))
        instances = Instances(tensor(found[order]), tensor(guess[order]), tensor(scores[order].astype(np.float32)))
        panoptic = PanopticSegmentation(tensor(ids), segments)
        sample = Sample(torch.zeros(3, *SIZE, dtype=torch.uint8), panoptic, number, SIZE, truth)
        images.append((Prediction(None, tensor(classes.astype(np.int64)), instances), sample))
    return images


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def measured(metric, images: list[tuple[Prediction, Sample]]):
    """The metric on images, each as often as it is listed, under ids of their own."""
    for number, (prediction, sample) in enumerate(images):
        metric.update(prediction, Sample(sample.image, sample.truth, number, sample.size, sample.instances))
    return json.loads(json.dumps(metric.compute(), allow_nan=False))


def draws(rng: np.random.Generator, count: int) -> tuple[list[list[int]], np.ndarray]:
    lists = [sorted(rng.integers(0, IMAGES, IMAGES).tolist()) for _ in range(count)]
    return lists, np.stack([np.bincount(each, minlength=IMAGES) for each in lists]).astype(np.float32)


def semantic_figures(seed: int, convention: str = "cityscapes"):
    part = measured(SemanticIoU(LABELS, convention), drawn_images(seed))
    return pixel_figures(pixel_counts(part["counts"], INDEX), THINGS, convention)


def box_figures(seed: int, unique: bool = False):
    part = measured(AveragePrecision(LABELS), drawn_images(seed, unique))
    return DetectionFigures(detection_counts(part["counts"], "box", THING_INDEX), len(THING_INDEX), IMAGES)


@pytest.mark.parametrize("convention", ["cityscapes", "detectron2", "semseg"])
def test_miou_of_a_resample_is_that_of_the_metric(convention):
    images = drawn_images(1)
    lists, weights = draws(np.random.default_rng(0), 6)
    found = semantic_figures(1, convention).drawn(weights)  # (3 + C, 2, R)
    for r, chosen in enumerate(lists):
        part = measured(SemanticIoU(LABELS, convention), [images[i] for i in chosen])
        assert found[0, 0, r] == pytest.approx(part["miou"], abs=1e-6)
        assert found[0, 1, r] == pytest.approx(part["mean_accuracy"], abs=1e-6)
        for c in LABELS:
            iou = part["per_class"][str(c.source_id)]["iou"]
            assert found[3 + c.id, 0, r] == pytest.approx(np.nan if iou is None else iou, abs=1e-6, nan_ok=True)
    assert semantic_figures(1, convention).value()[0, 0] == pytest.approx(
        measured(SemanticIoU(LABELS, convention), images)["miou"], abs=1e-12
    )


def test_ap_of_a_resample_is_that_of_the_metric():
    """Crowds, a rare class, and images that are drawn several times."""
    images = drawn_images(1, unique=True)
    lists, weights = draws(np.random.default_rng(0), 12)
    found = box_figures(1, unique=True).drawn(weights)  # (1 + C, 3, R)
    for r, chosen in enumerate(lists):
        part = measured(AveragePrecision(LABELS), [images[i] for i in chosen])
        assert found[0, :, r] == pytest.approx([part["box"][k] for k in ("ap", "ap50", "ap75")], abs=1e-6)
        for c in LABELS.things:
            ap = part["per_class"][str(c.source_id)]["box"]
            assert found[1 + c.id, 0, r] == pytest.approx(np.nan if ap is None else ap, abs=1e-6, nan_ok=True)
    whole = measured(AveragePrecision(LABELS), drawn_images(1))  # here with ties
    assert box_figures(1).value()[0] == pytest.approx([whole["box"][k] for k in ("ap", "ap50", "ap75")], abs=1e-12)
    assert np.isnan(box_figures(1).value()[3]).all()  # no bird anywhere in the truth


@pytest.mark.parametrize(
    ("make", "metric", "kind"), [(semantic_figures, SemanticIoU, 0), (box_figures, AveragePrecision, 1)]
)
def test_swapped_sides_are_those_of_mixed_predictions(make, metric, kind):
    first, second = drawn_images(1), drawn_images(2)
    bits = np.random.default_rng(4).integers(0, 2, (5, IMAGES))
    apart = make(1).swapped(make(2))((bits - 0.5).astype(np.float32))
    for r, row in enumerate(bits.tolist()):
        sides = [[pair[bit ^ side] for pair, bit in zip(zip(first, second), row)] for side in (0, 1)]
        one, two = (measured(metric(LABELS), side) for side in sides)
        expected = abs(one["box"]["ap"] - two["box"]["ap"]) if kind else abs(one["miou"] - two["miou"])
        assert apart[0, 0, r] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("make", [semantic_figures, box_figures])
def test_equal_evaluations_and_better_ones(make):
    figures = make(1)
    assert np.nanmin(paired_test(figures, make(1), IMAGES, 200)) == 1
    result = bootstrap([figures, make(1), make(2)], IMAGES, 200)
    assert (result.difference_low[1, 0, 0], result.difference_high[1, 0, 0]) == (0, 0)
    assert result.difference_low[2, 0, 0] < result.difference[2, 0, 0] < result.difference_high[2, 0, 0]


def test_a_record_gets_the_intervals_of_each_kind():
    images = drawn_images(1)
    record = {
        name: measured(m(LABELS), images) for name, m in (("semantic", SemanticIoU), ("instances", AveragePrecision))
    }
    found = with_intervals(record, 200)
    low, high = found["semantic"]["intervals"]["All"]["iou"]
    assert low < record["semantic"]["miou"] < high
    low, high = found["instances"]["intervals"]["box"]["All"]["ap"]
    assert low < record["instances"]["box"]["ap"] < high
    assert set(found["instances"]["intervals"]["box"]["per_class"]) == {"1", "2"}  # nothing to be found of the third
    assert "intervals" not in found
    assert "intervals" not in record["semantic"]  # the input is left alone
