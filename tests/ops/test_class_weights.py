"""Class weights and repeat factors, by the published formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pansight.errors import PansightError
from pansight.ops.semantic.class_weights import WORDS, class_weights, enet, inverse, median_frequency, repeat_factors


def counts(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_median_frequency_counts_the_images_in_which_a_class_occurs() -> None:
    """Image A: 8 and 2 pixels of two classes; image B: 10 of the first. f = .9 and .2, their median .55."""
    weights = median_frequency(counts(18, 2), counts(20, 10))
    np.testing.assert_allclose(weights, [0.55 / 0.9, 0.55 / 0.2], rtol=1e-12)
    np.testing.assert_allclose(weights, [0.6111, 2.75], atol=1e-4)


def test_the_median_is_that_of_the_classes_that_occur() -> None:
    weights = median_frequency(counts(18, 2, 0), counts(20, 10, 0))
    np.testing.assert_allclose(weights, [0.55 / 0.9, 2.75, 0])


def test_enet() -> None:
    np.testing.assert_allclose(enet(counts(90, 10)), [1.533, 8.824], atol=1e-3)
    assert enet(counts(1, 0)).tolist() == [1 / math.log(2.02), 0]
    assert enet(counts(10**12, 1))[1] == pytest.approx(50.5, abs=0.01)


def test_inverse_has_the_mean_of_one_over_the_classes_that_occur() -> None:
    np.testing.assert_allclose(inverse(counts(90, 10, 0)), [0.2, 1.8, 0])


@pytest.mark.parametrize("rule", WORDS)
def test_every_rule_by_its_name(rule: str) -> None:
    weights = class_weights(rule, counts(900, 90, 10, 0), counts(1000, 500, 100, 0))
    assert weights.shape == (4,)
    assert weights[3] == 0
    assert 0 < weights[0] < weights[1] or rule == "median_frequency"
    assert np.isfinite(weights).all()
    with pytest.raises(PansightError, match="expected pixels of a known class, found none"):
        class_weights(rule, counts(0, 0), counts(0, 0))


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(PansightError, match=r"unknown rule of class weights.*median_frequncy.*median_frequency"):
        class_weights("median_frequncy", counts(1), counts(1))


def test_repeat_factors_are_those_of_the_rarest_class() -> None:
    """Classes in all of 100 images, in 4 and in 1, at a threshold of 0.16."""
    present = np.zeros((100, 4), bool)
    present[:, 0] = present[:4, 1] = present[0, 2] = True  # the last class never occurs
    factors = repeat_factors(present, 0.16)
    assert factors[:5].tolist() == pytest.approx([4, 2, 2, 2, 1])
    assert (factors[4:] == 1).all()


def test_without_rare_classes_every_image_counts_once() -> None:
    present = np.ones((5, 2), bool)
    assert repeat_factors(present, 1.0).tolist() == [1] * 5
    assert repeat_factors(np.zeros((3, 2), bool), 0.5).tolist() == [1] * 3
    assert repeat_factors(np.zeros((2, 0), bool), 0.5).tolist() == [1] * 2
    assert repeat_factors(np.zeros((0, 2), bool), 0.5).tolist() == []
