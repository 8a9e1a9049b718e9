"""Weights of classes in a loss over pixels, and how often images of rare classes are shown, from counts of the data.

Counts leave out pixels without a known class. A class that never occurs has weight 0: it cannot be in the loss.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError, choice_error

Counts = NDArray[np.int64]
Numbers = NDArray[np.float64]

WORDS = ("median_frequency", "enet", "inverse")
"""The rules by name, as the option `class_weights` of a model takes them."""


def class_weights(rule: str, pixels: Counts, beside: Counts) -> Numbers:
    """The weights float64 (C,) by the rule of that name.

    pixels int64 (C,): of each class in all images. beside int64 (C,): the labelled pixels of the images in which the
    class occurs. Raises PansightError for an unknown rule, and where no pixel has a class.
    """
    if not pixels.sum():
        raise PansightError(where=f"class weights by {rule}", expected="pixels of a known class", found="none")
    match rule:
        case "median_frequency":
            return median_frequency(pixels, beside)
        case "enet":
            return enet(pixels)
        case "inverse":
            return inverse(pixels)
        case _:
            raise choice_error("rule of class weights", rule, WORDS)


def median_frequency(pixels: Counts, beside: Counts) -> Numbers:
    """median(f) / f_c, where f_c is the share of the class in the images in which it occurs.

    The median is that of the classes that occur. Source: Badrinarayanan, Kendall, Cipolla: SegNet, PAMI 2017, section
    3.1, after Eigen and Fergus, ICCV 2015.
    """
    frequency = _divided(pixels, beside)
    return _divided(np.full(len(pixels), np.median(frequency[pixels > 0])), frequency)


def enet(pixels: Counts) -> Numbers:
    """1 / ln(1.02 + p_c), where p_c is the share of the class among all labelled pixels: from 1.4 to 50.5.

    Source: Paszke, Chaurasia, Kim, Culurciello: ENet, 2016 (arXiv 1606.02147), section 5.2.
    """
    return np.where(pixels > 0, 1 / np.log(1.02 + pixels / pixels.sum()), 0.0)


def inverse(pixels: Counts) -> Numbers:
    """1 / p_c, divided by the mean over the classes that occur, which leaves the scale of the loss as it is."""
    weights = _divided(np.full(len(pixels), float(pixels.sum())), pixels)
    return weights / weights[pixels > 0].mean()


def repeat_factors(present: NDArray[np.bool_], threshold: float) -> Numbers:
    """How often each image is shown in an epoch, on average: float64 (N,), at least 1.

    A class that occurs in the share f_c of the images has r_c = max(1, √(threshold / f_c)), and an image the largest
    r_c of its classes. Source: Gupta, Dollár, Girshick: LVIS, CVPR 2019, appendix B.2, which takes threshold 0.001.
    present bool (N, C): which class occurs in which image.
    """
    shares = present.mean(0) if len(present) else np.zeros(present.shape[1])
    of_classes = np.sqrt(np.maximum(1.0, _divided(np.full(len(shares), threshold), shares)))  # (C,)
    return np.where(present, of_classes, 1.0).max(1, initial=1.0)


def _divided(numerator: NDArray[np.float64] | Counts, denominator: NDArray[np.float64] | Counts) -> Numbers:
    """numerator / denominator, 0 where the denominator is 0."""
    nothing = np.zeros(len(denominator), np.float64)
    return np.divide(numerator, denominator, out=nothing, where=np.asarray(denominator) > 0)
