"""Bootstrap and paired test: equal to plain loops, right in the corner cases, calibrated on simulated models."""

from __future__ import annotations

import numpy as np
import pytest

from pansight.errors import PansightError
from pansight.metrics import bootstrap as module
from pansight.metrics.bootstrap import adjust, sums
from pansight.metrics.bootstrap.segments import ImageCounts, segment_figures
from pansight.metrics.bootstrap.sums import FloatArray

THINGS = np.array([True, True, False])


def figures(evaluation: ImageCounts, things: np.ndarray) -> FloatArray:
    return segment_figures(evaluation, things).value()


def bootstrap(evaluations: list[ImageCounts], things: np.ndarray, *arguments, **keywords) -> module.Bootstrap:
    return module.bootstrap([segment_figures(e, things) for e in evaluations], *arguments, **keywords)


def paired_test(first: ImageCounts, second: ImageCounts, things: np.ndarray, *arguments, **keywords) -> FloatArray:
    sides = (segment_figures(e, things) for e in (first, second))
    return module.paired_test(*sides, *arguments, **keywords)


def counts(*rows: tuple[int, int, int, int, int, float]) -> ImageCounts:
    """Rows of (image, category, tp, fp, fn, iou)."""
    columns = np.array(rows, np.float64).T
    return ImageCounts(columns[0].astype(np.int64), columns[1].astype(np.int64), *columns[2:])


def simulate(
    rng: np.random.Generator, images: int, classes: int, skill: float = 0.7, truth: np.random.Generator | None = None
) -> ImageCounts:
    """A model on images of differing difficulty; `truth` draws what the images hold, the same for equal states."""
    truth = truth or np.random.default_rng(rng.integers(2**32))
    holds = truth.random((images, classes)) < np.linspace(0.9, 0.3, classes)
    image, category = np.nonzero(holds)
    segments = 1 + truth.poisson(1.5, len(image))
    ease = np.clip(skill + 0.2 * truth.standard_normal(images)[image], 0.02, 0.98)
    tp = rng.binomial(segments, ease).astype(np.float64)
    iou = tp * np.clip(0.6 + 0.2 * ease + 0.03 * rng.standard_normal(len(image)), 0.51, 1)
    return ImageCounts(image, category, tp, rng.poisson(0.4, len(image)).astype(np.float64), segments - tp, iou)


def plain(evaluation: ImageCounts, things: np.ndarray, images: list[int]) -> np.ndarray:
    """panopticapi's averaging in a loop over the given images, each as often as it is listed: (3 + C, 3)."""
    sums = {c: [0.0, 0.0, 0.0, 0.0] for c in range(len(things))}
    for image in images:
        for row in range(len(evaluation.image)):
            if evaluation.image[row] == image:
                values = (evaluation.tp, evaluation.fp, evaluation.fn, evaluation.iou)
                for k, column in enumerate(values):
                    sums[int(evaluation.category[row])][k] += float(column[row])
    scores = {}
    for c, (tp, fp, fn, iou) in sums.items():
        if tp + fp + fn:
            weight = tp + fp / 2 + fn / 2
            scores[c] = (iou / weight, iou / tp if tp else 0.0, tp / weight)
    rows = []
    for members in (range(len(things)), np.flatnonzero(things), np.flatnonzero(~things)):
        group = [scores[c] for c in members if c in scores]
        rows.append(np.mean(group, axis=0) if group else [np.nan] * 3)
    return np.array(rows + [scores.get(c, [np.nan] * 3) for c in range(len(things))])


def test_figures_of_a_hand_made_case():
    evaluation = counts((0, 0, 1, 0, 0, 0.8), (0, 2, 0, 1, 0, 0.0), (1, 0, 1, 1, 1, 0.6))
    found = figures(evaluation, THINGS)
    assert found[3] == pytest.approx([1.4 / 3, 0.7, 2 / 3])  # class 0: TP 2, FP 1, FN 1
    assert np.isnan(found[4]).all()  # class 1 occurs nowhere, so it is in no mean
    assert found[5] == pytest.approx([0, 0, 0])  # class 2: one phantom
    assert found[0] == pytest.approx([0.7 / 3, 0.35, 1 / 3])
    assert found[1] == pytest.approx(found[3])
    assert found[2] == pytest.approx([0, 0, 0])


def test_resamples_equal_a_plain_loop(monkeypatch):
    """The very draws, scored in float64 one by one; blocks and slabs smaller than the data."""
    monkeypatch.setattr(module, "_WEIGHTS", 70)
    monkeypatch.setattr(sums, "_SLAB", 4)
    images, resamples = 10, 40
    rng = np.random.default_rng(3)
    pair = [simulate(rng, images, 3, truth=np.random.default_rng(1)) for _ in range(2)]
    pair[0] = ImageCounts(*(column[pair[0].category != 1] for column in pair[0]))  # one side lacks a class
    result = bootstrap(pair, THINGS, images, resamples, seed=5, confidence=0.8)
    draw = np.random.default_rng(5)
    drawn = [draw.integers(0, images, images).tolist() for _ in range(resamples)]
    reference = np.stack([[plain(e, THINGS, some) for some in drawn] for e in pair])  # (2, R, 6, 3)
    difference = reference[1] - reference[0]
    known = ~np.isnan(result.low)
    assert (known == ~np.isnan(reference).all(axis=1)).all()
    low, middle, high = np.nanquantile(reference.swapaxes(0, 1)[:, known], (0.1, 0.5, 0.9), axis=0)
    np.testing.assert_allclose(result.low[known], (result.value[known] + low - middle).clip(0, 1), atol=1e-6)
    np.testing.assert_allclose(result.high[known], (result.value[known] + high - middle).clip(0, 1), atol=1e-6)
    shown = ~np.isnan(difference).any(axis=0)
    low, middle, high = np.quantile(difference[:, shown], (0.1, 0.5, 0.9), axis=0)
    real = result.difference[1][shown]
    np.testing.assert_allclose(result.difference_low[1][shown], real + low - middle, atol=1e-6)
    np.testing.assert_allclose(result.difference_high[1][shown], real + high - middle, atol=1e-6)
    np.testing.assert_allclose(result.value[1], plain(pair[1], THINGS, list(range(images))), atol=1e-12)


def test_the_interval_holds_the_figure_where_every_draw_is_worse():
    """Twelve classes, each found in one image and a phantom in another: a draw without the first has SQ 0 for it."""
    rows = [(c, c, 1, 0, 0, 0.9) for c in range(12)] + [(12 + c, c, 0, 1, 0, 0.0) for c in range(12)]
    result = bootstrap([counts(*rows)], np.ones(12, bool), 24, 2000)
    assert result.value[0, 0, 1] == pytest.approx(0.9)
    assert result.low[0, 0, 1] <= 0.9 <= result.high[0, 0, 1]
    assert (result.low[0, 0] <= result.value[0, 0]).all()
    assert (result.value[0, 0] <= result.high[0, 0]).all()


def test_a_class_that_few_images_hold_is_left_out_where_it_is_not_drawn():
    """Class 2 is in one of 4 images with PQ 0: All is ½ with it and 1 without it, never in between."""
    rows = [(i, 0, 1, 0, 0, 1.0) for i in range(4)] + [(0, 2, 0, 0, 1, 0.0)]
    result = bootstrap([counts(*rows)], THINGS, 4, 2000)
    assert result.value[0, :, 0] == pytest.approx([0.5, 1, 0, 1, np.nan, 0], nan_ok=True)
    assert (result.low[0, 0, 0], result.high[0, 0, 0]) == (0.5, 1.0)
    assert (result.low[0, 5, 0], result.high[0, 5, 0]) == (0.0, 0.0)
    half = bootstrap([counts(*rows)], THINGS, 4, 2000, confidence=0.3)  # 32 % of the draws lack image 0
    assert (half.low[0, 0, 0], half.high[0, 0, 0]) == (0.5, 0.5)


def test_float32_sums_are_exact_enough():
    """5,000 images against float64, on the resamples' own weights."""
    rng = np.random.default_rng(0)
    evaluation = simulate(rng, 5000, 6)
    weights = rng.poisson(1.0, (3, 5000)).astype(np.float32)
    whole = segment_figures(evaluation, np.ones(6, bool))
    fast = whole.sums(weights)  # (3, C, 3)
    often = weights[:, evaluation.image].astype(np.float64)  # (3, N)
    exact = np.stack(
        [[np.bincount(evaluation.category, row * column, 6) for column in whole.columns] for row in often], axis=-1
    )  # (3, C, 3)
    assert (fast[:2] == exact[:2]).all()
    assert np.abs(fast[2] - exact[2]).max() < 1e-2
    single, double = (sums.members(whole.things, kind) for kind in (np.float32, np.float64))
    error = whole.from_sums(fast, single) - whole.from_sums(exact, double)
    assert np.nanmax(np.abs(error)) < 1e-6


def test_the_seed_decides():
    evaluation = simulate(np.random.default_rng(0), 60, 3)
    first, again, other = (bootstrap([evaluation], THINGS, 60, 300, seed=s) for s in (1, 1, 2))
    assert (first.low == again.low).all()
    assert (first.low != other.low).any()
    assert (first.value == other.value).all()


def test_equal_evaluations_do_not_differ():
    evaluation = simulate(np.random.default_rng(0), 50, 3)
    result = bootstrap([evaluation, evaluation], THINGS, 50, 500)
    for part in (result.difference, result.difference_low, result.difference_high):
        assert (part == 0).all()
    assert (paired_test(evaluation, evaluation, THINGS, 50, 500) == 1).all()
    order = np.random.default_rng(1).permutation(len(evaluation.image))
    shuffled = ImageCounts(*(column[order] for column in evaluation))
    assert (paired_test(evaluation, shuffled, THINGS, 50, 500) == 1).all()


def test_a_difference_on_one_image_is_no_evidence():
    """Swapping that image gives the same difference again, so every swap is a hit."""
    base = [(i, 0, 1, 0, 0, 0.9) for i in range(20)]
    p = paired_test(counts(*base), counts(*base[:-1], (19, 0, 0, 1, 1, 0.0)), THINGS, 20, 1000)
    assert p[0, 0] == p[3, 0] == 1
    assert np.isnan(p[[2, 4, 5]]).all()  # nothing of these classes, nothing to test


def test_a_perfect_and_an_imperfect_model():
    perfect = counts(*((i, c, 2, 0, 0, 2.0) for i in range(40) for c in range(3)))
    worse = counts(*((i, c, 1 + (i + c) % 2, 1, (i + c + 1) % 2, 0.8) for i in range(40) for c in range(3)))
    result = bootstrap([perfect, worse], THINGS, 40, 1000)
    assert (result.value[0] == 1).all()
    assert (result.low[0] == 1).all()
    assert (result.high[0] == 1).all()
    assert (result.difference_high[1, :, 0] < 0).all()
    assert (result.difference_low[1] <= result.difference[1] + 1e-6).all()
    assert (paired_test(perfect, worse, THINGS, 40, 999)[:, 0] == 1 / 1000).all()  # no swap is as far apart


def test_p_of_a_tiny_case_by_all_swaps():
    """3 images, one class: of 8 swaps those of all images and of none are as far apart as the truth: p = ¼."""
    first = counts(*((i, 0, 1, 0, 0, 1.0) for i in range(3)))
    second = counts(*((i, 0, 0, 0, 1, 0.0) for i in range(3)))
    p = paired_test(first, second, THINGS, 3, 20_000)
    assert p[3, 0] == pytest.approx(0.25, abs=0.012)


def test_p_is_calibrated_for_equal_models():
    """Two models of the same skill on the same images: p < α in about α of 400 experiments."""
    rng = np.random.default_rng(11)
    p = []
    for trial in range(400):
        pair = [simulate(rng, 60, 3, truth=np.random.default_rng(trial)) for _ in range(2)]
        p.append(paired_test(*pair, THINGS, 60, 199, seed=trial)[:, 0])  # (6,) PQ of groups and classes
    for alpha in (0.05, 0.2, 0.5):
        share = (np.array(p) < alpha + 1e-9).mean(axis=0)
        assert np.abs(share - alpha).max() < 3.5 * np.sqrt(alpha * (1 - alpha) / 400), (alpha, share)


def test_a_better_model_is_found():
    rng = np.random.default_rng(12)
    hits = 0
    for trial in range(20):
        a = simulate(rng, 200, 3, 0.65, np.random.default_rng(trial))
        b = simulate(rng, 200, 3, 0.72, np.random.default_rng(trial))
        hits += paired_test(a, b, THINGS, 200, 199)[0, 0] < 0.05
    assert hits >= 18


@pytest.mark.slow
def test_intervals_cover():
    """The figures of 100,000 images lie in the 95 % intervals of about 95 % of 300 sets of 150 images."""
    rng = np.random.default_rng(14)
    true = figures(simulate(rng, 100_000, 3), THINGS)
    low, high = [], []
    for trial in range(300):
        result = bootstrap([simulate(rng, 150, 3)], THINGS, 150, 400, seed=trial)
        low.append(result.low[0])
        high.append(result.high[0])
    share = ((np.array(low) <= true) & (true <= np.array(high))).mean(axis=0)
    assert 0.90 < share.min() <= share.max() < 0.985, share
    assert 0.925 < share.mean() < 0.965, share


def test_the_interval_of_a_difference_is_paired():
    """On the same images the difference is known better than the intervals of the two suggest."""
    rng = np.random.default_rng(14)
    pair = [simulate(rng, 300, 3, skill, np.random.default_rng(0)) for skill in (0.6, 0.7)]
    result = bootstrap(pair, THINGS, 300, 1000)
    width = result.high[:, 0, 0] - result.low[:, 0, 0]
    assert result.difference_high[1, 0, 0] - result.difference_low[1, 0, 0] < 0.9 * np.hypot(*width)
    assert (result.difference_low[1, 0, 0], result.difference_high[1, 0, 0]) != (0, 0)
    assert (result.difference[0] == 0).all()


def test_many_tests_are_adjusted():
    """The example of Benjamini and Hochberg's step-up rule by hand."""
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    assert adjust(p) == pytest.approx([0.04, np.nan, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5], nan_ok=True)
    assert np.isnan(adjust(np.array([np.nan]))).all()
    assert adjust(np.array([1.0, 1.0])).tolist() == [1, 1]


def test_bad_input_is_named():
    evaluation = counts((0, 0, 1, 0, 0, 1.0))
    for arguments, message in (
        (([], THINGS, 1), "at least one evaluation, found 0"),
        (([evaluation], THINGS, 0), "at least one image, found 0"),
        (([evaluation], THINGS[:0], 1), "at least one class, found 0"),
        (([evaluation], THINGS, 1, 0), "at least one resample, found 0"),
        (([evaluation], THINGS, 1, 10, 0, 1.0), "confidence between 0 and 1, found 1.0"),
    ):
        with pytest.raises(PansightError, match=message):
            bootstrap(*arguments)
