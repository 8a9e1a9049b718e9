"""Panoptic quality against its rules (docs/metrics.md), written a second time as plain loops over pixels."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pansight.data import open_dataset
from pansight.errors import PansightError
from pansight.metrics import PanopticQuality
from pansight.metrics.overlap import count_overlaps
from pansight.metrics.panoptic.quality import match_segments
from pansight.types import Category, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment

LABELS = LabelSpace(
    [
        Category(0, "cat", True, (200, 0, 0), 17),
        Category(1, "dog", True, (0, 200, 0), 18),
        Category(2, "sky", False, (0, 0, 200), 187),
        Category(3, "grass", False, (90, 90, 90), 193),
    ]
)


def segmentation(ids, *segments: Segment) -> PanopticSegmentation:
    return PanopticSegmentation(torch.as_tensor(np.asarray(ids), dtype=torch.int32), tuple(segments))


def sample(truth: PanopticSegmentation, image_id: str | int = 1) -> Sample:
    height, width = truth.size
    return Sample(torch.zeros(3, height, width, dtype=torch.uint8), truth, image_id, truth.size)


def score(*pairs: tuple[PanopticSegmentation, PanopticSegmentation]) -> dict:
    metric = PanopticQuality(LABELS)
    for image_id, (truth, prediction) in enumerate(pairs):
        metric.update(Prediction(panoptic=prediction), sample(truth, image_id))
    return metric.compute()


def row(*pieces: tuple[int, int]) -> list[list[int]]:
    """One row of pixels: row((7, 100), (0, 20)) is 100 pixels of id 7, then 20 of id 0."""
    return [[value for value, count in pieces for _ in range(count)]]


def reference(pairs) -> tuple[dict, dict]:
    """The rules of docs/metrics.md, pixel by pixel, with every crowd of a class honoured. → counts, groups."""
    counts = {c.id: {"tp": 0, "fp": 0, "fn": 0, "iou": 0.0} for c in LABELS}
    for truth, prediction in pairs:
        truth_of = {s.id: s for s in truth.segments}
        predicted_of = {s.id: s for s in prediction.segments}
        inter: dict[tuple[int, int], int] = {}
        truth_area: dict[int, int] = dict.fromkeys(truth_of, 0)
        predicted_area: dict[int, int] = dict.fromkeys(predicted_of, 0)
        for g, p in zip(truth.ids.flatten().tolist(), prediction.ids.flatten().tolist()):
            inter[g, p] = inter.get((g, p), 0) + 1
            if g:
                truth_area[g] += 1
            if p:
                predicted_area[p] += 1
        found_truth, found_predicted = set(), set()
        for (g, p), pixels in sorted(inter.items()):
            if g == 0 or p == 0 or truth_of[g].is_crowd or truth_of[g].category != predicted_of[p].category:
                continue
            union = predicted_area[p] + truth_area[g] - pixels - inter.get((0, p), 0)
            if pixels / union > 0.5:
                counts[truth_of[g].category]["tp"] += 1
                counts[truth_of[g].category]["iou"] += pixels / union
                found_truth.add(g)
                found_predicted.add(p)
        for g, segment in truth_of.items():
            if g not in found_truth and not segment.is_crowd:
                counts[segment.category]["fn"] += 1
        for p, segment in predicted_of.items():
            if p in found_predicted:
                continue
            excused = inter.get((0, p), 0)
            for g, other in truth_of.items():
                if other.is_crowd and other.category == segment.category:
                    excused += inter.get((g, p), 0)
            if excused / predicted_area[p] > 0.5:
                continue
            counts[segment.category]["fp"] += 1
    groups = {}
    for name, members in (("All", LABELS), ("Things", LABELS.things), ("Stuff", LABELS.stuff)):
        pq, sq, rq, n = 0.0, 0.0, 0.0, 0
        for category in members:
            c = counts[category.id]
            weight = c["tp"] + 0.5 * c["fp"] + 0.5 * c["fn"]
            if weight == 0:
                continue
            n += 1
            pq += c["iou"] / weight
            sq += c["iou"] / c["tp"] if c["tp"] else 0
            rq += c["tp"] / weight
        groups[name] = {"pq": pq / n, "sq": sq / n, "rq": rq / n, "n": n} if n else {"pq": 0, "sq": 0, "rq": 0, "n": 0}
    return counts, groups


def random_map(rng: np.random.Generator, crowds: bool) -> PanopticSegmentation:
    """Rectangles on top of each other with large ids, void left between, now and then a crowd."""
    ids = np.zeros((rng.integers(1, 24), rng.integers(1, 24)), np.int32)
    known = rng.choice(2**24 - 1, 8, replace=False) + 1
    for i in known:
        y, x = rng.integers(0, ids.shape[0]), rng.integers(0, ids.shape[1])
        ids[y : y + rng.integers(1, 14), x : x + rng.integers(1, 14)] = i
    present = [int(i) for i in known if (ids == i).any()]
    segments = [
        Segment(i, int(rng.integers(0, 4)), is_crowd=bool(crowds and rng.random() < 0.35)) for i in reversed(present)
    ]
    return segmentation(ids, *segments)


def disturbed(truth: PanopticSegmentation, rng: np.random.Generator) -> PanopticSegmentation:
    """A prediction near the truth: shifted by a pixel, a few segments dropped, classes changed, a phantom painted."""
    ids = np.roll(truth.ids.numpy(), rng.integers(-1, 2, 2), axis=(0, 1)).copy()
    for segment in truth.segments:
        if rng.random() < 0.15:
            ids[ids == segment.id] = 0
    ids[: rng.integers(0, 4), : rng.integers(0, 6)] = 5
    kept = [s for s in truth.segments if (ids == s.id).any() and s.id != 5]
    segments = [Segment(s.id, s.category if rng.random() < 0.8 else int(rng.integers(0, 4))) for s in kept]
    return segmentation(ids, *segments, *([Segment(5, int(rng.integers(0, 4)))] if (ids == 5).any() else []))


def random_pairs(seed: int, count: int):
    rng = np.random.default_rng(seed)
    truths = [random_map(rng, crowds=True) for _ in range(count)]
    return [(truth, disturbed(truth, rng)) for truth in truths]


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_rules_written_as_loops(seed):
    pairs = random_pairs(seed, 25)
    counts, groups = reference(pairs)
    result = score(*pairs)
    assert sum(c["tp"] for c in counts.values()) > 10  # the case means something
    assert sum(c["fp"] for c in counts.values()) > 10
    for category in LABELS:
        mine = result["per_class"][str(category.source_id)]
        assert {k: mine[k] for k in ("tp", "fp", "fn")} == {k: counts[category.id][k] for k in ("tp", "fp", "fn")}
        assert mine["iou"] == pytest.approx(counts[category.id]["iou"], abs=1e-12)
    for name, figures in groups.items():
        assert result[name] == pytest.approx(figures, abs=1e-12)


def test_four_by_four_drawn_by_hand():
    truth = segmentation(
        [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 3, 3], [3, 3, 0, 0]],
        Segment(1, 0),  # cat, 4 pixels
        Segment(2, 1),  # dog, 4 pixels
        Segment(3, 2),  # sky, 6 pixels; 2 pixels of void
    )
    prediction = segmentation(
        [[9, 9, 8, 8], [9, 7, 8, 8], [7, 7, 7, 7], [7, 7, 7, 7]],
        Segment(9, 0),  # 3 of the cat's 4 pixels: 3 / 4
        Segment(8, 0),  # the dog taken for a cat
        Segment(7, 2),  # the sky, 1 pixel of the cat, 2 of void: 6 / (9 + 6 − 6 − 2) = 6 / 7
    )
    result = score((truth, prediction))
    assert result["per_class"]["17"] == {
        "name": "cat", "isthing": True, "pq": 0.5, "sq": 0.75, "rq": 2 / 3, "tp": 1, "fp": 1, "fn": 0, "iou": 0.75
    }  # fmt: skip
    assert result["per_class"]["18"] == {
        "name": "dog", "isthing": True, "pq": 0.0, "sq": 0.0, "rq": 0.0, "tp": 0, "fp": 0, "fn": 1, "iou": 0.0
    }  # fmt: skip
    assert result["Things"] == {"pq": 0.25, "sq": 0.375, "rq": 1 / 3, "n": 2}
    assert result["Stuff"] == {"pq": 6 / 7, "sq": 6 / 7, "rq": 1.0, "n": 1}
    assert result["All"]["pq"] == pytest.approx((0.5 + 0 + 6 / 7) / 3)
    assert result["All"]["n"] == 3  # grass is absent
    assert result["images"] == [{"image_id": 0, "pq": pytest.approx((0.5 + 0 + 6 / 7) / 3)}]


@pytest.mark.parametrize(
    ("truth", "prediction", "tp", "fp", "fn", "iou"),
    [
        # 100 truth, 100 predicted, 67 shared: 67 / 133 = 0.504
        (row((3, 133), (1, 100)), row((3, 100), (2, 100), (3, 33)), 1, 0, 0, 67 / 133),
        # 66 shared: 66 / 134 = 0.4925
        (row((3, 134), (1, 100)), row((3, 100), (2, 100), (3, 34)), 0, 1, 1, 0.0),
        # exactly one half does not match: 2 / 4
        (row((3, 1), (1, 3)), row((2, 3), (3, 1)), 0, 1, 1, 0.0),
        # 51 of a phantom's 100 pixels on void: ignored
        (row((0, 51), (3, 149)), row((2, 100), (3, 100)), 0, 0, 0, 0.0),
        # 50 on void: a phantom
        (row((0, 50), (3, 150)), row((2, 100), (3, 100)), 0, 1, 0, 0.0),
        # 60 truth; the prediction covers it and 40 pixels of void: IoU 1
        (row((1, 60), (0, 40), (3, 10)), row((2, 100), (3, 10)), 1, 0, 0, 1.0),
        # the truth the model left void is lost, not excused (unlike torchmetrics): 40 / 100
        (row((1, 100), (3, 10)), row((2, 40), (0, 60), (3, 10)), 0, 1, 1, 0.0),
    ],
)
def test_vectors_of_the_specification(truth, prediction, tp, fp, fn, iou):
    truth = np.array(truth)
    segments = [Segment(i, 0 if i == 1 else 3) for i in (1, 3) if (truth == i).any()]
    result = score((segmentation(truth, *segments), segmentation(prediction, Segment(2, 0), Segment(3, 3))))
    cat = result["per_class"]["17"]
    assert (cat["tp"], cat["fp"], cat["fn"]) == (tp, fp, fn)
    assert cat["iou"] == pytest.approx(iou, abs=1e-15)


def test_every_crowd_of_a_class_excuses_and_none_counts():
    truth = segmentation(
        row((1, 30), (2, 30), (3, 40)), Segment(1, 0, is_crowd=True), Segment(2, 0, is_crowd=True), Segment(3, 3)
    )
    over_both = segmentation(row((7, 80), (8, 20)), Segment(7, 0), Segment(8, 3))  # 60 of 80 on two crowds of cats
    result = score((truth, over_both))
    assert (result["per_class"]["17"]["fp"], result["per_class"]["17"]["fn"]) == (0, 0)
    other_class = segmentation(row((7, 80), (8, 20)), Segment(7, 1), Segment(8, 3))
    assert score((truth, other_class))["per_class"]["18"]["fp"] == 1
    exact = segmentation(row((7, 30), (8, 70)), Segment(7, 0), Segment(8, 3))
    assert score((truth, exact))["per_class"]["17"]["tp"] == 0


def test_match_segments_tells_what_became_of_each_segment():
    truth = segmentation(row((1, 10), (2, 10), (0, 10)), Segment(1, 0), Segment(2, 1))
    prediction = segmentation(
        row((4, 10), (5, 10), (6, 10)), Segment(4, 0, 0.9), Segment(5, 0, 0.8), Segment(6, 1, 0.7)
    )
    result = match_segments(truth, prediction)
    assert [(m.truth.id, m.prediction.id, m.iou) for m in result.matches] == [(1, 4, 1.0)]
    assert [s.id for s in result.missed] == [2]
    assert [s.id for s in result.phantom] == [5]
    assert [s.id for s in result.ignored] == [6]


def test_nothing_there_is_no_division_by_zero():
    empty = segmentation(np.zeros((3, 5)))
    result = score((empty, empty))
    assert result["All"] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 0}
    assert result["images"] == []
    assert score((segmentation(np.zeros((0, 0))), segmentation(np.zeros((0, 0)))))["All"]["n"] == 0
    stuff_only = segmentation([[1]], Segment(1, 2))
    result = score((stuff_only, stuff_only))
    assert result["Things"]["n"] == 0
    assert result["All"]["pq"] == result["Stuff"]["pq"] == 1.0


def test_a_truth_segment_without_pixels_is_missed():
    truth = segmentation([[1, 1]], Segment(1, 0), Segment(2, 1))
    prediction = segmentation([[1, 1]], Segment(1, 0))
    assert score((truth, prediction))["per_class"]["18"]["fn"] == 1


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (segmentation([[1, 1]], Segment(1, 0)), segmentation([[1]], Segment(1, 0)), "size of the truth 1×2, found 1×1"),
        (segmentation([[1, 4]], Segment(1, 0)), segmentation([[1, 1]], Segment(1, 0)), "truth: .* found 4"),
        (segmentation([[1, 1]], Segment(1, 0)), segmentation([[1, 4]], Segment(1, 0)), "prediction: .* found 4"),
        (
            segmentation([[1]], Segment(1, 0)),
            segmentation([[1]], Segment(1, 0), Segment(2, 0)),
            "segment 2: expected at least one pixel",
        ),
        (segmentation([[1]], Segment(1, 9)), segmentation([[1]], Segment(1, 9)), "index below 4"),
    ],
)
def test_bad_maps_are_named(truth, prediction, message):
    metric = PanopticQuality(LABELS)
    with pytest.raises(PansightError, match=r"image a\.png: .*" + message):
        metric.update(Prediction(panoptic=prediction), sample(truth, "a.png"))


def test_models_without_a_panoptic_map_leave_it_empty():
    metric = PanopticQuality(LABELS)
    truth = segmentation([[1]], Segment(1, 0))
    assert metric.update(Prediction(), sample(truth)) is None
    assert metric.compute() == {}
    metric.update(Prediction(panoptic=truth), sample(truth))
    with pytest.raises(PansightError, match="none for 1 images"):
        metric.compute()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 12), max_size=3))
def test_shards_merge_to_the_whole_exactly_and_through_json(seed, cuts):
    pairs = random_pairs(seed, 12)
    whole = PanopticQuality(LABELS)
    for number, (truth, prediction) in enumerate(pairs):
        whole.update(Prediction(panoptic=prediction), sample(truth, number))
    edges = [0, *sorted(cuts), 12]
    merged = PanopticQuality(LABELS)
    for start, end in reversed(list(itertools.pairwise(edges))):  # in another order too
        shard = PanopticQuality(LABELS)
        for number in range(start, end):
            shard.update(Prediction(panoptic=pairs[number][1]), sample(pairs[number][0], number))
        received = PanopticQuality(LABELS)
        received.load_state_dict(json.loads(json.dumps(shard.state_dict())))
        merged.merge(received)
    assert merged.compute() == whole.compute()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_relabelling_ids_changes_nothing(seed):
    rng = np.random.default_rng(seed)

    def relabelled(old: PanopticSegmentation) -> PanopticSegmentation:
        new_ids = rng.choice(2**24 - 1, len(old.segments), replace=False) + 1
        ids = np.zeros(old.size, np.int32)
        for segment, new in zip(old.segments, new_ids):
            ids[old.ids.numpy() == segment.id] = new
        segments = [s._replace(id=int(new)) for s, new in zip(old.segments, new_ids)]
        return segmentation(ids, *[segments[i] for i in rng.permutation(len(segments))])

    pairs = random_pairs(seed, 4)
    assert score(*[(relabelled(t), relabelled(p)) for t, p in pairs]) == score(*pairs)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_perfect_prediction_scores_one_and_nothing_more(seed):
    rng = np.random.default_rng(seed)
    truths = [random_map(rng, crowds=False) for _ in range(3)]
    result = score(*[(t, t) for t in truths])
    assert result["All"]["pq"] == result["All"]["sq"] == result["All"]["rq"] == 1.0
    assert all(image["pq"] == 1.0 for image in result["images"])
    worse = score(*[(t, disturbed(t, rng)) for t in truths])
    assert 0.0 <= worse["All"]["pq"] <= 1.0


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (40, 1), (17, 23)])
def test_count_overlaps_counts_pixels(shape):
    rng = np.random.default_rng(0)
    first, second = (rng.choice([0, 1, 7, 2**24 - 1], shape) for _ in range(2))
    overlaps = count_overlaps(torch.as_tensor(first, dtype=torch.int32), torch.as_tensor(second, dtype=torch.int32))
    pairs, counts = np.unique(np.stack([first.ravel(), second.ravel()]), axis=1, return_counts=True)
    assert overlaps.first.tolist() == pairs[0].tolist()
    assert overlaps.second.tolist() == pairs[1].tolist()
    assert overlaps.pixels.tolist() == counts.tolist()


def test_real_truth_against_itself(data_root):
    """The truth against itself: PQ = SQ = RQ = 1, n = the number of classes that occur outside crowds."""
    dataset = open_dataset(data_root / "coco_panoptic_sample")
    metric = PanopticQuality(dataset.labels)
    for index in range(len(dataset)):
        metric.update(Prediction(panoptic=dataset[index].truth), dataset[index])
    segments = [s for i in range(len(dataset)) for s in dataset[i].truth.segments if not s.is_crowd]
    result = metric.compute()
    assert result["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": len({s.category for s in segments})}
    assert sum(row["tp"] for row in result["per_class"].values()) == len(segments)
