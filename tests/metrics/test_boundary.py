"""Boundaries against one erosion per segment, Boundary PQ against the published rules written as plain loops."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest
from drawing import CAT, DOG, LABELS, coco_sample, ids_of, match_drawing, match_maps, random_maps

from pansight.errors import PansightError
from pansight.metrics.panoptic import boundary
from pansight.metrics.panoptic.boundary import BoundaryQuality, boundary_distance, boundary_ids, boundary_iou
from pansight.types import LabelSpace


def eroded_boundary(mask: np.ndarray, ratio: float) -> np.ndarray:
    """bool (H, W): the pixels that d erosions by a 3×3 square take away, the outside counting as other."""
    height, width = mask.shape
    distance = max(1, round(ratio * math.sqrt(height**2 + width**2)))
    padded = np.pad(mask.astype(np.uint8), 1)
    kept = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return mask & ~kept.astype(bool)


def test_distance_is_two_percent_of_the_diagonal():
    assert boundary_distance((480, 640)) == 16
    assert boundary_distance((1, 1)) == 1
    assert boundary_distance((30, 40), 0.05) == 2  # 2.5 rounds to even, as Python does
    assert boundary_distance((30, 40), 0.07) == 4


def test_boundary_of_a_drawing():
    """One pixel wide: the border of the image and void end a segment like another one does."""
    drawing = """
        aaaaaaab
        aaaaaaab
        aaaa.aab
        aaaaaaab
        aaaaaaab
        aaaaaaab
    """
    expected = """
        aaaaaaab
        a..aaaab
        a..a.aab
        a..aaaab
        a.....ab
        aaaaaaab
    """
    assert np.array_equal(boundary_ids(ids_of(drawing)), ids_of(expected))


@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.05, 0.3])
def test_equals_one_erosion_per_segment(ratio):
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(1, 70, 2)
        ids = np.zeros((height, width), np.int32)
        for _ in range(6):
            y, x = rng.integers(0, height), rng.integers(0, width)
            shape = (slice(y, y + rng.integers(1, 60)), slice(x, x + rng.integers(1, 60)))
            ids[shape][rng.random(ids[shape].shape) < rng.choice([1.0, 0.97])] = rng.integers(0, 2**31 - 1)
        expected = np.zeros_like(ids)
        for number in np.unique(ids[ids > 0]):
            expected[eroded_boundary(ids == number, ratio)] = number
        found = boundary_ids(ids, ratio)
        assert found.dtype == np.int32
        assert np.array_equal(found, expected)


def test_real_maps(data_root):
    """Of all segments of a photo, and what a shift of three pixels costs."""
    labels, images = coco_sample(data_root)
    metric = BoundaryQuality(labels)
    for ids, classes, crowds in images:
        found = boundary_ids(ids)
        for number in classes:
            assert np.array_equal(found == number, eroded_boundary(ids == number, 0.02))
        metric.update(ids, ids, match_maps(ids, ids, classes, classes, crowds))
    assert metric.compute()["All"]["pq"] == metric.compute()["boundary_iou"] == 1.0
    shifted = BoundaryQuality(labels)
    for ids, classes, crowds in images:
        moved = np.roll(ids, 3, axis=1)
        shifted.update(ids, moved, match_maps(ids, moved, classes, classes, crowds))
    assert 0.2 < shifted.compute()["All"]["pq"] < 0.9


def reference(pairs: list[tuple], ratio: float) -> tuple[dict[int, dict], list[float]]:
    """The public evaluation as it reads, every crowd honoured. Counts of each class; Boundary IoU of what PQ found."""
    counts = {c.id: {"tp": 0, "fp": 0, "fn": 0, "iou": 0.0} for c in LABELS}
    of_found = []
    for truth, prediction, truth_class, prediction_class, crowds in pairs:
        void = truth == 0
        masks = {i: truth == i for i in np.unique(truth[truth > 0]).tolist()}
        predicted = {i: prediction == i for i in np.unique(prediction[prediction > 0]).tolist()}
        matched: set[tuple[int, int]] = set()
        for t, mask in masks.items():
            for p, other in predicted.items():
                if t in crowds or truth_class[t] != prediction_class[p]:
                    continue
                iou = (mask & other).sum() / ((mask | other) & ~(other & void)).sum()
                a, b = eroded_boundary(mask, ratio), eroded_boundary(other, ratio)
                rim = (a & b).sum() / (a.sum() + b.sum() - (a & b).sum() - (b & void).sum())
                if iou > 0.5:
                    of_found.append(rim)
                if min(iou, rim) > 0.5:
                    matched.add((t, p))
                    counts[truth_class[t]]["tp"] += 1
                    counts[truth_class[t]]["iou"] += min(iou, rim)
        for t in masks.keys() - {t for t, _ in matched} - crowds:
            counts[truth_class[t]]["fn"] += 1
        for p in predicted.keys() - {p for _, p in matched}:
            excuse = void.copy()
            for t in crowds & masks.keys():
                excuse |= masks[t] & (truth_class[t] == prediction_class[p])
            if (predicted[p] & excuse).sum() / predicted[p].sum() <= 0.5:
                counts[prediction_class[p]]["fp"] += 1
    return counts, of_found


@pytest.mark.parametrize(("ratio", "strip"), [(0.02, 2**18), (0.05, 2**18), (0.02, 100), (0.02, 1)])
def test_equals_the_published_rules(ratio, strip, monkeypatch):
    monkeypatch.setattr(boundary, "_STRIP_PIXELS", strip)
    rng = np.random.default_rng(1)
    pairs = [random_maps(rng, 40) for _ in range(150)]
    counts, of_found = reference(pairs, ratio)
    metric = BoundaryQuality(LABELS, ratio)
    for pair in pairs:
        metric.update(pair[0], pair[1], match_maps(*pair))
    result = metric.compute()
    assert sum(c["tp"] for c in counts.values()) > 50  # the case means something
    assert sum(value <= 0.5 for value in of_found) > 20
    for c in LABELS:
        mine = result["per_class"][str(c.source_id)]
        assert {k: mine[k] for k in ("tp", "fp", "fn")} == {k: counts[c.id][k] for k in ("tp", "fp", "fn")}
        assert mine["iou"] == pytest.approx(counts[c.id]["iou"], abs=1e-12)
    pq = [c["iou"] / (c["tp"] + c["fp"] / 2 + c["fn"] / 2) for c in counts.values()]
    assert result["All"]["pq"] == pytest.approx(sum(pq) / 4, abs=1e-12)
    assert result["Things"]["pq"] == pytest.approx(sum(pq[:2]) / 2, abs=1e-12)
    assert result["Stuff"]["pq"] == pytest.approx(sum(pq[2:]) / 2, abs=1e-12)
    assert result["boundary_iou"] == pytest.approx(np.mean(of_found), abs=1e-12)
    assert (result["ratio"], result["All"]["n"]) == (ratio, 4)


def square(size: int, top: int, left: int, side: int, number: int) -> np.ndarray:
    ids = np.zeros((size, size), np.int32)
    ids[top : top + side, left : left + side] = number
    return ids


def test_figures_of_a_drawn_case():
    """20×20 on grass, shifted by 2: IoU 360/440; d = 1: the rims have 76 pixels each and share 36."""
    ground = np.full((50, 50), 9, np.int32)
    truth = np.where(square(50, 10, 10, 20, 1) > 0, 1, ground).astype(np.int32)
    prediction = np.where(square(50, 10, 12, 20, 1) > 0, 1, ground).astype(np.int32)
    classes = {1: CAT, 9: 3}
    image = match_maps(truth, prediction, classes, classes)
    iou = boundary_iou(truth, prediction, image)
    assert boundary_distance((50, 50)) == 1
    assert iou[0] == 36 / (76 + 76 - 36)
    metric = BoundaryQuality(LABELS)
    assert np.array_equal(metric.update(truth, prediction, image), iou)
    result = metric.compute()
    cat = result["per_class"]["17"]
    assert (cat["tp"], cat["fp"], cat["fn"]) == (0, 1, 1)
    assert cat["boundary_iou"] == pytest.approx(36 / 116, abs=1e-15)
    assert result["per_class"]["18"]["boundary_iou"] is None
    assert result["per_class"]["193"]["pq"] > 0.5


def test_the_boundary_on_void_costs_nothing():
    """Half of the prediction's rim lies on void, where it cannot be judged."""
    truth = ids_of("\n".join(["aaaaaaaa........"] * 8))
    prediction = ids_of("\n".join(["aaaaaaaaaaaaaaaa"] * 8))
    image = match_maps(truth, prediction, {97: CAT}, {97: CAT})
    # rim of the truth: 28 of 64 pixels. Rim of the prediction off void: 8 + 8 + 6, all of it in the truth's
    assert boundary_iou(truth, prediction, image).tolist() == [22 / 28]


def test_a_lost_match_that_lies_mostly_on_void_is_ignored():
    """Found by PQ, but its outline is wrong by half: missed, and as a prediction mostly on void no phantom."""
    truth = ids_of("\n".join(["aaaaaa........"] * 6))
    prediction = ids_of("\n".join(["....aaaaaaaaaa"] * 6))
    inside = truth.copy()
    inside[1:5, 1:5] = 97
    prediction[1:5, 1:5] = 97
    image = match_maps(truth, prediction, {97: CAT}, {97: CAT})
    assert image.iou[0] > 0.5
    metric = BoundaryQuality(LABELS)
    assert metric.update(truth, prediction, image)[0] <= 0.5
    row = metric.compute()["per_class"]["17"]
    assert (row["tp"], row["fp"], row["fn"]) == (0, 0, 1)


def test_a_perfect_prediction_scores_one_and_nothing_scores_nothing():
    metric = BoundaryQuality(LABELS)
    assert metric.compute() == {}
    ids = ids_of("aaabb..\naaabb..")
    metric.update(ids, ids, match_drawing("aaabb..\naaabb..", "aaabb..\naaabb..", b=DOG))
    assert metric.compute()["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 2}
    empty = BoundaryQuality(LABELS)
    empty.update(ids, np.zeros_like(ids), match_maps(ids, np.zeros_like(ids), {97: CAT, 98: DOG}, {}))
    assert empty.compute()["All"]["pq"] == 0.0
    assert empty.compute()["boundary_iou"] is None


def test_shards_merge_to_the_whole_through_json():
    rng = np.random.default_rng(3)
    pairs = [random_maps(rng, 30) for _ in range(30)]
    whole, merged = BoundaryQuality(LABELS), BoundaryQuality(LABELS)
    shards = [BoundaryQuality(LABELS) for _ in range(3)]
    for number, pair in enumerate(pairs):
        for metric in (whole, shards[number % 3]):
            metric.update(pair[0], pair[1], match_maps(*pair))
    for shard in reversed(shards):
        read = BoundaryQuality(LABELS)
        read.load_state_dict(json.loads(json.dumps(shard.state_dict())))
        merged.merge(read)
    assert merged.state_dict() == whole.state_dict()
    assert merged.compute() == whole.compute()


def test_what_does_not_belong_together_is_refused():
    ids = ids_of("aab")
    image = match_maps(ids, ids, {97: CAT, 98: CAT}, {97: CAT, 98: CAT})
    with pytest.raises(PansightError, match="expected the size of the truth 1×3, found 1×2"):
        boundary_iou(ids, ids[:, :2], image)
    with pytest.raises(PansightError, match="expected the maps that the match was made of, found the id 99"):
        boundary_iou(ids, ids_of("aac"), image)
    metric = BoundaryQuality(LABELS)
    with pytest.raises(PansightError, match="same label space and ratio"):
        metric.merge(BoundaryQuality(LABELS, 0.01))
    with pytest.raises(PansightError, match="same label space and ratio"):
        metric.merge(BoundaryQuality(LabelSpace.from_names(["cat"])))
    with pytest.raises(PansightError, match=r"expected the ratio 0\.02, found 0\.01"):
        metric.load_state_dict(BoundaryQuality(LABELS, 0.01).state_dict())
