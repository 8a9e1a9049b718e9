"""Losses of a map of classes. Pixels whose class is IGNORE cost nothing and have no gradient.

The plain ones give a loss for each pixel, which the caller sums and divides; the others look at a pool of pixels
together (an image, or a whole batch: the caller decides) and give its one number. A pool without a labelled pixel
costs a zero that has a gradient, so that a step of such images alone is finite.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.types import IGNORE


def pixel_cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """w_y · −log softmax(z)_y of each pixel, 0 where the class is unknown.

    logits float (B, C, H, W), target int64 (B, H, W), class_weights float (C,) → float32 (B, H, W).
    """
    return F.cross_entropy(logits.float(), target, class_weights, ignore_index=IGNORE, reduction="none")


def pixel_focal(logits: Tensor, target: Tensor, class_weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """w_y · (1 − p_y)^γ · −log p_y of each pixel with p = softmax(z), 0 where the class is unknown.

    Lin, Goyal, Girshick, He, Dollár: Focal Loss for Dense Object Detection, ICCV 2017, equation 5, for a softmax: the
    weights of the classes take the place of α. Shapes as in `pixel_cross_entropy`.
    """
    plain = pixel_cross_entropy(logits, target)
    others = (-torch.expm1(-plain)).clamp(min=0)  # 1 − p_y
    return weights_of(target, class_weights) * others**gamma * plain


def weights_of(target: Tensor, class_weights: Tensor | None) -> Tensor:
    """The weight of the class of each pixel, 0 where it is unknown. target int64 (…), class_weights float (C,).

    → float32 (…); without weights every labelled pixel has 1.
    """
    labelled = target != IGNORE
    if class_weights is None:
        return labelled.float()
    return class_weights.float()[target.clamp(min=0)] * labelled


def hard_pixels(losses: Tensor, share: float, rounded_up: bool = False) -> Tensor:
    """The mean of the largest losses, as many as `share` (0 … 1) of all pixels, rounded down, but at least one.

    losses float (…) of one pool, 0 at ignored pixels, which count as pixels. So a share of 1 divides by all of them.
    rounded_up: their number is rounded up instead.
    Source: DeepLabCE of detectron2's projects/DeepLab and of bowenc0221/panoptic-deeplab, whose pool is the batch;
    mapillary/seamseg, which rounds up and whose pool is an image.
    """
    losses = losses.flatten()
    if share >= 1:
        return losses.sum() / max(1, losses.numel())
    wanted = share * losses.numel()
    kept = min(losses.numel(), max(1, math.ceil(wanted) if rounded_up else int(wanted)))
    return losses.topk(kept).values.sum() / max(1, kept)


def ohem(losses: Tensor, probabilities: Tensor, kept: int, threshold: float = 0.7) -> Tensor:
    """Online hard example mining: the mean loss of the pixels whose true class has too small a probability.

    losses, probabilities float (P,) of the labelled pixels of one pool, the latter of their true classes. "Too small"
    is below `threshold`, or below the probability number `kept` (from 0, the smallest first) where that is larger.
    Source: HRNet/HRNet-Semantic-Segmentation, OhemCrossEntropy, which keeps what is strictly below.
    """
    if not losses.numel():
        return losses.sum()
    ranked = probabilities.detach().float().flatten().sort().values
    limit = ranked[min(kept, ranked.numel() - 1)].clamp(min=threshold)
    hard = probabilities.detach() < limit
    return (losses * hard).sum() / hard.sum().clamp(min=1)


def dice(probabilities: Tensor, target: Tensor) -> Tensor:
    """1 − 2 Σpt / (Σp² + Σt²), the mean over the classes that occur.

    probabilities float (P, C), target int64 (P,) of the labelled pixels of one pool.
    Milletari, Navab, Ahmadi: V-Net, 3DV 2016, equation 1.
    """
    present = target.unique()
    if not target.numel():
        return probabilities.sum()
    truth = (target[:, None] == present).float()  # (P, K)
    found = probabilities.float()[:, present]
    overlap = (found * truth).sum(0)
    return (1 - 2 * overlap / (found.square().sum(0) + truth.sum(0))).mean()


def lovasz_softmax(probabilities: Tensor, target: Tensor, every_class: bool = False) -> Tensor:
    """The Lovász extension of 1 − IoU, the mean over the classes that occur, or over every class.

    probabilities float (P, C), target int64 (P,) of the labelled pixels of one pool. Of a class that does not occur the
    loss is its largest probability.
    Berman, Rannen Triki, Blaschko: The Lovász-Softmax loss, CVPR 2018, algorithm 1.
    """
    if not target.numel():
        return probabilities.sum()
    classes = torch.arange(probabilities.shape[1], device=target.device) if every_class else target.unique()
    truth = target == classes[:, None]  # (K, P)
    errors = (truth.float() - probabilities.float()[:, classes].T).abs()
    return _lovasz(errors, errors, truth).mean()


def lovasz_hinge(logits: Tensor, target: Tensor) -> Tensor:
    """The same for two classes: one logit a pixel, float (P,), target bool (P,) of the labelled pixels of a pool."""
    if not target.numel():
        return logits.sum()
    errors = 1 - logits.float() * (2.0 * target - 1)
    return _lovasz(errors[None], errors.relu()[None], target[None]).mean()


def _lovasz(errors: Tensor, costs: Tensor, truth: Tensor) -> Tensor:
    """(K,): Σ costs · gradient with the pixels of each of K rows by falling error. All (K, P), truth bool."""
    order = errors.detach().sort(dim=1, descending=True, stable=True).indices
    return (costs.gather(1, order) * lovasz_gradient(truth.gather(1, order))).sum(1)


def lovasz_gradient(truth: Tensor) -> Tensor:
    """How much the Jaccard loss of the first k pixels exceeds that of the first k − 1, for each k.

    truth bool (K, P), by falling error → float32 (K, P). With one more pixel of the class the intersection loses one,
    with one more of others the union gains one. In this form, no difference of two large numbers is taken.
    """
    total = truth.sum(1, keepdim=True)
    missed = total - truth.cumsum(1)
    union = total + (~truth).cumsum(1)
    gained = missed / (union.float() * (union - 1).clamp(min=1).float())
    gradient = torch.where(truth, 1 / union.float(), gained)
    gradient[:, :1] = torch.where(total == 0, 1.0, gradient[:, :1])  # the first false pixel of an absent class
    return gradient
