"""The matching of segment tables against the rules of docs/metrics.md, written a second time; in both modes."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from drawing import CAT, DOG, LABELS, SKY, overlaps
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pansight.errors import PansightError
from pansight.metrics.panoptic.errors import ERRORS, classify_errors
from pansight.metrics.panoptic.matching import IGNORED, MATCHED, PHANTOM, ImageMatch, SegmentTable, match_tables
from pansight.metrics.scores import IOU_UNIT, ClassCounts, group_means, image_rows
from pansight.ops.maps.overlap import Overlaps

Row = tuple[int, int, bool, float]  # id, category, crowd, area as stated


def table(rows: list[Row]) -> SegmentTable:
    ids, categories, crowd, _ = zip(*rows) if rows else ((), (), (), ())
    return SegmentTable(
        np.array(ids, np.int64), np.array(categories, np.int64), np.array(crowd, bool), np.ones(len(rows))
    )


def matched(truth_ids, truth: list[Row], prediction_ids, prediction: list[Row], strict: bool) -> ImageMatch:
    stated = np.array([area for *_, area in truth], np.float64) if strict else None
    return match_tables(table(truth), table(prediction), overlaps(truth_ids, prediction_ids), stated)


def test_what_lies_on_background_counts_in_full():
    """Void excuses what is predicted on it; beside objects there is background, which excuses nothing."""
    truth, prediction = np.array([[1, 1, 0, 0, 0, 0, 2, 0]]), np.array([[7, 7, 7, 7, 7, 0, 2, 3]])
    sides = table([(1, CAT, False, 2), (2, CAT, True, 1)]), table([(n, CAT, False, 1) for n in (7, 2, 3)])
    on_void, on_background = (match_tables(*sides, overlaps(truth, prediction), background=b) for b in (False, True))
    assert on_void.iou.tolist() == [1, 0]
    assert on_void.state.tolist() == [MATCHED, IGNORED, IGNORED]
    assert on_void.visible_area.tolist() == [2, 1, 0]
    assert on_background.iou.tolist() == [0, 0]  # 2 / 5
    assert on_background.state.tolist() == [PHANTOM, IGNORED, PHANTOM]  # crowds still excuse
    assert on_background.visible_area.tolist() == [5, 1, 1]
    errors = classify_errors(on_background, np.array([category.is_thing for category in LABELS]))
    assert errors.truth_iou.tolist() == [0.4, 0]
    assert [ERRORS[code] for code in errors.prediction] == ["poor_boundary", "ignored", "phantom"]


def by_the_rules(truth_ids, truth: list[Row], prediction_ids, prediction: list[Row], strict: bool):
    """category → [TP, FP, FN, ΣIoU], segment by segment, from sets of pixels."""

    def pixels(ids: np.ndarray, number: int) -> set[int]:
        return set(np.flatnonzero(ids == number).tolist())

    result: dict[int, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0])
    void = pixels(truth_ids, 0)
    of_truth = {number: pixels(truth_ids, number) for number, *_ in truth}
    of_prediction = {number: pixels(prediction_ids, number) for number, *_ in prediction}
    matched_truth, matched_prediction = set(), set()
    for t, category, crowd, stated in truth:
        for p, predicted_category, *_ in prediction:
            both = len(of_truth[t] & of_prediction[p])
            if crowd or category != predicted_category or not both:
                continue
            area = stated if strict else len(of_truth[t])
            union = len(of_prediction[p]) + area - both - len(of_prediction[p] & void)
            if both / union > 0.5:
                result[category][0] += 1
                result[category][3] += both / union
                matched_truth.add(t)
                matched_prediction.add(p)
    for t, category, crowd, _ in truth:
        if not crowd and t not in matched_truth:
            result[category][2] += 1
    for p, category, *_ in prediction:
        crowds = [t for t, c, crowd, _ in truth if crowd and c == category]
        excuse = set(void)
        for t in crowds[-1:] if strict else crowds:
            excuse |= of_truth[t]
        if p not in matched_prediction and not len(of_prediction[p] & excuse) / len(of_prediction[p]) > 0.5:
            result[category][1] += 1
    return {c: counts for c, counts in result.items() if any(counts)}


def counts(match: ImageMatch):
    totals = ClassCounts(LABELS)
    totals.add_rows(image_rows(match, len(LABELS)))
    rows = zip(totals.tp, totals.fp, totals.fn, totals.iou)
    return {c: [tp, fp, fn, iou / IOU_UNIT] for c, (tp, fp, fn, iou) in enumerate(rows) if tp or fp or fn}


def random_case(rng: np.random.Generator, strict: bool):
    """Patches upon patches; the prediction is the truth with errors; now and then tables lie about it."""
    height, width = rng.integers(1, 15, 2)
    truth_ids = np.zeros((height, width), np.int32)
    numbers = rng.choice(2**24 - 1, 8, replace=False) + 1
    for number in numbers[: rng.integers(0, 7)]:
        y, x = rng.integers(0, height), rng.integers(0, width)
        truth_ids[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = number
    prediction_ids = np.roll(truth_ids, rng.integers(-1, 2, 2), (0, 1))
    prediction_ids[: rng.integers(0, 4), : rng.integers(0, 9)] = numbers[6]
    prediction_ids[rng.random((height, width)) < rng.choice([0, 0.05, 0.4])] = rng.choice([0, int(numbers[7])])
    category = {int(n): int(rng.integers(0, 3)) for n in numbers}

    truth: list[Row] = []
    areas = Counter(truth_ids[truth_ids > 0].tolist())
    for number, area in areas.items():
        if strict and rng.random() < 0.15:
            continue  # pixels whose id the table lacks
        lie = rng.choice([1, 1, 1, 0.5, 0.2, 0, 2]) if strict else 1
        stated = float(area * lie) if rng.random() < 0.5 else float(round(area * lie))
        truth.append((number, category[number], bool(rng.random() < 0.3), stated))
    if rng.random() < 0.1 and int(numbers[7]) not in areas:
        truth.append((int(numbers[7]), 0, False, 3.0))  # without a pixel
    truth = [truth[k] for k in rng.permutation(len(truth))]
    prediction: list[Row] = []
    for number in np.unique(prediction_ids[prediction_ids > 0]).tolist():
        right = rng.random() < 0.8
        prediction.append((number, category[number] if right else int(rng.integers(0, 3)), rng.random() < 0.1, 0.0))
    return truth_ids, truth, prediction_ids, prediction


@pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])
def test_equals_the_rules(strict):
    rng = np.random.default_rng(int(strict))
    seen: Counter[str] = Counter()
    for _ in range(1200):
        case = random_case(rng, strict)
        try:
            expected = by_the_rules(*case, strict)
        except ZeroDivisionError:
            with pytest.raises(PansightError, match="expected an area near its"):
                matched(*case, strict)
            seen["absurd"] += 1
            continue
        match = matched(*case, strict)
        found = counts(match)
        assert found.keys() == expected.keys()
        for category, (*numbers, iou) in expected.items():
            assert found[category][:3] == numbers
            assert found[category][3] == pytest.approx(iou, rel=1e-14, abs=0)
        seen["again"] += len(match.again) > 0
        seen["ignored"] += bool((match.state == IGNORED).any())
        seen["matched"] += bool((match.state == MATCHED).any())
        seen["above 1"] += bool((match.iou > 1).any())
        crowds = Counter(match.truth.categories[match.truth.crowd].tolist())
        seen["crowds of one class"] += max(crowds.values(), default=0) > 1
    assert seen["ignored"] > 50
    assert seen["matched"] > 300
    assert seen["crowds of one class"] > 50
    assert (seen["again"] > 5, seen["above 1"] > 20, seen["absurd"] > 0) == (strict, strict, strict), seen


# --- the vectors of the spec, drawn ----------------------------------------------------------------------------------


def row(*pieces: tuple[int, int]) -> np.ndarray:
    """(id, pixels) one after the other."""
    return np.array([[number for number, count in pieces for _ in range(count)]], np.int32)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),
    [
        (row((1, 100), (3, 33)), row((3, 33), (2, 100)), {CAT: [1, 0, 0, 67 / 133]}),  # two objects of 100 px share 67
        (row((1, 100), (3, 34)), row((3, 34), (2, 100)), {CAT: [0, 1, 1, 0.0]}),  # 66 of 134
        (row((1, 100)), row((2, 51), (0, 49)), {CAT: [1, 0, 0, 0.51]}),
        (row((1, 100)), row((2, 50), (0, 50)), {CAT: [0, 1, 1, 0.0]}),  # exactly one half is no match
        (row((0, 51), (3, 49)), row((2, 100)), {}),  # more than half on void: ignored
        (row((0, 50), (3, 50)), row((2, 100)), {CAT: [0, 1, 0, 0.0]}),  # exactly half: a phantom
        (row((1, 60), (0, 40)), row((2, 100)), {CAT: [1, 0, 0, 1.0]}),  # the union leaves out void
    ],
)
def test_vectors(truth, prediction, expected, strict):
    """1: a cat, 2: a predicted cat, 3: neither (a crowd of dogs in the truth, a predicted one there)."""
    truth_rows = [(1, CAT, False, float((truth == 1).sum())), (3, DOG, True, float((truth == 3).sum()))]
    truth_rows = [r for r in truth_rows if (truth == r[0]).any()]
    rows = [(2, CAT, False, 0.0)]
    prediction = np.where(prediction == 3, 0, prediction)
    assert counts(matched(truth, truth_rows, prediction, rows, strict)) == expected


def test_every_crowd_of_a_class_excuses_by_default_and_the_last_one_as_the_reference():
    truth, prediction = row((1, 40), (2, 40), (3, 20)), row((9, 100))
    rows = [(1, CAT, True, 40.0), (2, CAT, True, 40.0), (3, SKY, False, 20.0)]
    found = [(9, CAT, False, 0.0)]
    assert counts(matched(truth, rows, prediction, found, False)) == {SKY: [0, 0, 1, 0.0]}
    assert counts(matched(truth, rows, prediction, found, True)) == {CAT: [0, 1, 0, 0.0], SKY: [0, 0, 1, 0.0]}


def test_an_undeclared_id_of_the_truth():
    truth, prediction = row((1, 30), (7, 60)), row((9, 90))
    rows, found = [(1, CAT, False, 30.0)], [(9, CAT, False, 0.0)]
    with pytest.raises(PansightError, match="truth: expected only ids of its segment table, found 7 in the map"):
        matched(truth, rows, prediction, found, False)
    assert counts(matched(truth, rows, prediction, found, True)) == {CAT: [0, 1, 1, 0.0]}  # neither segment nor void


def test_an_undeclared_id_of_the_prediction():
    for strict in (False, True):
        with pytest.raises(PansightError, match="prediction: expected only ids of its segment table, found 9"):
            matched(row((1, 3)), [(1, CAT, False, 3.0)], row((9, 3)), [], strict)


def test_a_prediction_without_a_pixel():
    for strict in (False, True):
        with pytest.raises(PansightError, match="prediction: segment 8: expected at least one pixel, found none"):
            matched(
                row((1, 3)), [(1, CAT, False, 3.0)], row((9, 3)), [(9, CAT, False, 0.0), (8, CAT, False, 0)], strict
            )


def test_stated_areas_far_too_small():
    """Both halves match the object twice as panopticapi counts; an area of 0 would make the IoU infinite."""
    truth, prediction = row((1, 100)), row((8, 60), (9, 40))
    found = [(8, CAT, False, 0.0), (9, CAT, False, 0.0)]
    match = matched(truth, [(1, CAT, False, 10.0)], prediction, found, True)
    assert counts(match) == {CAT: [2, 0, 0, 60 / 10 + 40 / 10]}
    assert match.truth_area.tolist() == [100]
    with pytest.raises(PansightError, match="truth: segment 1: expected an area near its 100 pixels, found 0;"):
        matched(truth, [(1, CAT, False, 0.0)], prediction, found, True)


def test_empty_tables():
    nothing = row((0, 5))
    match = matched(nothing, [], nothing, [], False)
    assert counts(match) == {}
    assert match.pixels.tolist() == [5]
    match = match_tables(table([]), table([]), Overlaps(*(np.zeros(0, np.int64) for _ in range(3))))
    assert counts(match) == {}


# --- properties ------------------------------------------------------------------------------------------------------

SEEDS = st.integers(0, 2**32)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans())
def test_ids_and_the_order_of_rows_mean_nothing(seed, strict):
    """Strict compatibility goes by the order of crowds; the rest does not."""
    rng = np.random.default_rng(seed)
    case = random_case(rng, False)
    assume(not strict or one_crowd_each(case[1]))
    before = counts(matched(*case, strict))
    sides = []
    for ids, rows in (case[:2], case[2:]):
        old = np.array([0, *sorted({*np.unique(ids).tolist(), *(r[0] for r in rows)} - {0})])
        new = np.concatenate([[0], rng.choice(2**24 - 1, len(old) - 1, replace=False) + 1])
        lookup = dict(zip(old.tolist(), new.tolist()))
        changed = [(lookup[n], *rest) for n, *rest in rows]
        sides += [new[np.searchsorted(old, ids)].astype(np.int32), [changed[k] for k in rng.permutation(len(changed))]]
    assert counts(matched(*sides, strict)) == before


def one_crowd_each(rows: list[Row]) -> bool:
    crowds = [category for _, category, crowd, _ in rows if crowd]
    return len(crowds) == len(set(crowds))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_perfect_prediction_scores_exactly_one(seed):
    """The truth against itself, void left void; crowds cost nothing."""
    truth_ids, truth, *_ = random_case(np.random.default_rng(seed), False)
    truth = [r for r in truth if (truth_ids == r[0]).any()]
    totals = ClassCounts(LABELS)
    totals.add_rows(image_rows(matched(truth_ids, truth, truth_ids, truth, False), len(LABELS)))
    for group in group_means(totals.rows().values()).values():
        assert [group[k] for k in ("pq", "sq", "rq")] == [float(group["n"] > 0)] * 3


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_no_score_above_one(seed):
    case = random_case(np.random.default_rng(seed), False)
    match = matched(*case, False)
    assert ((match.iou == 0) | ((match.iou > 0.5) & (match.iou <= 1))).all()
    assert not len(match.again)
    hit = match.match[match.match >= 0]
    assert len(set(hit.tolist())) == len(hit)  # no prediction matches twice
    assert sorted(hit.tolist()) == np.flatnonzero(match.state == MATCHED).tolist()
    assert match.pixels.sum() == case[0].size
    assert set(np.unique(match.state).tolist()) <= {PHANTOM, MATCHED, IGNORED}
    totals = ClassCounts(LABELS)
    totals.add_rows(image_rows(match, len(LABELS)))
    for scores in (*totals.rows().values(), *group_means(totals.rows().values()).values()):
        assert all(0 <= scores[k] <= 1 for k in ("pq", "sq", "rq"))
