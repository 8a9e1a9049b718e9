"""The losses of a map of classes: the values of their definitions, worked out by hand, and what must not matter."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.semantic.losses import (
    dice,
    hard_pixels,
    lovasz_gradient,
    lovasz_hinge,
    lovasz_softmax,
    ohem,
    pixel_cross_entropy,
    pixel_focal,
    weights_of,
)
from pansight.types import IGNORE

POOLED: list[Callable[[Tensor, Tensor], Tensor]] = [dice, lovasz_softmax]


def maps(seed: int = 0, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Logits (2, C, 5, 7) and a target in which a fifth is unknown."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 5, 7, generator=generator)
    target = torch.randint(0, classes, (2, 5, 7), generator=generator)
    target[torch.rand(2, 5, 7, generator=generator) < 0.2] = IGNORE
    return logits, target


def pool(seed: int = 0, classes: int = 4) -> tuple[Tensor, Tensor]:
    logits, target = maps(seed, classes)
    labelled = target != IGNORE
    return logits.softmax(1).permute(0, 2, 3, 1)[labelled], target[labelled]


def test_cross_entropy_is_torchs() -> None:
    logits, target = maps()
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0])
    for given in (None, weights):
        mean = pixel_cross_entropy(logits, target, given).sum() / weights_of(target, given).sum()
        torch.testing.assert_close(mean, F.cross_entropy(logits, target, given, ignore_index=IGNORE))
    assert bool((pixel_cross_entropy(logits, target)[target == IGNORE] == 0).all())


def test_focal_by_hand() -> None:
    p = torch.tensor([0.9, 0.25])
    logits = torch.stack((p.log(), (1 - p).log()))[None, :, None]  # (1, 2, 1, 2)
    target = torch.zeros(1, 1, 2, dtype=torch.int64)
    expected = torch.tensor([0.01 * -math.log(0.9), 0.5625 * -math.log(0.25)])
    torch.testing.assert_close(pixel_focal(logits, target)[0, 0], expected)
    torch.testing.assert_close(pixel_focal(logits, target, gamma=0), pixel_cross_entropy(logits, target))
    logits, target = maps()
    weights = torch.tensor([0.0, 2.0, 1.0, 3.0])
    weighted = pixel_focal(logits, target, weights)
    torch.testing.assert_close(weighted, pixel_focal(logits, target) * weights_of(target, weights))


def test_focal_of_a_certain_pixel_has_a_gradient() -> None:
    logits = torch.tensor([200.0, 0.0]).reshape(1, 2, 1, 1).requires_grad_()
    pixel_focal(logits, torch.zeros(1, 1, 1, dtype=torch.int64)).sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_hard_pixels_by_hand() -> None:
    losses = torch.tensor([3, 2, 1, 0.5, 0.4, 0.3, 0.2, 0, 0, 0])
    assert hard_pixels(losses, 0.2).item() == 2.5
    assert hard_pixels(losses, 1.0).item() == pytest.approx(0.74)  # zeros of ignored pixels count
    assert hard_pixels(losses, 0.01).item() == 3  # at least one
    assert hard_pixels(losses.flip(0).reshape(2, 5), 0.2).item() == 2.5


def test_ohem_by_hand() -> None:
    p = torch.tensor([0.9, 0.8, 0.6, 0.3, 0.95])
    assert ohem(-p.log(), p, kept=2, threshold=0.7).item() == pytest.approx(0.8574, abs=5e-5)
    assert ohem(-p.log(), p, kept=2, threshold=1.1).item() == pytest.approx(-p.log().mean().item())
    assert ohem(-p.log(), p, kept=9, threshold=0.1).item() == pytest.approx(-p[:4].log().mean().item())


def test_lovasz_by_hand() -> None:
    of_one = torch.tensor([0.9, 0.4, 0.2])
    probabilities, target = torch.stack((1 - of_one, of_one), 1), torch.tensor([1, 1, 0])
    assert lovasz_softmax(probabilities, target).item() == pytest.approx(0.38333, abs=5e-6)
    alone = lovasz_softmax(torch.stack((torch.zeros(3), of_one), 1)[:2], target[:2])  # both pixels of class 1 only
    assert alone.item() == pytest.approx((0.6 + 0.1) / 2)
    hinge = lovasz_hinge(torch.tensor([2, -0.5, 0.3]), torch.tensor([True, True, False]))
    assert hinge.item() == pytest.approx(0.96667, abs=5e-6)


def test_lovasz_of_hard_predictions_is_one_minus_iou() -> None:
    target, found = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0, 2])
    expected = 1 - (1 / 3 + 2 / 4 + 1) / 3
    assert lovasz_softmax(F.one_hot(found).float(), target).item() == pytest.approx(expected)
    assert lovasz_softmax(F.one_hot(target).float(), target).item() == 0


def test_lovasz_of_absent_classes() -> None:
    """They count only where every class is asked for: their largest probability."""
    probabilities, target = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.2, 0.3]]), torch.tensor([0, 0])
    present = lovasz_softmax(probabilities, target).item()
    assert present == pytest.approx((0.5 + 0.1) / 2)
    every = lovasz_softmax(probabilities, target, every_class=True).item()
    assert every == pytest.approx((present + 0.2 + 0.3) / 3)


def test_the_gradient_of_lovasz_is_the_difference_of_jaccard_losses() -> None:
    truth = (
        torch.rand(6, 40, generator=torch.Generator().manual_seed(1))
        < torch.tensor([0.5, 0.1, 0.9, 0, 1, 0.5])[:, None]
    )
    total = truth.sum(1, keepdim=True)
    jaccard = 1 - (total - truth.cumsum(1)) / (total + (~truth).cumsum(1))
    differences = torch.cat((jaccard[:, :1], jaccard.diff(dim=1)), 1)
    torch.testing.assert_close(lovasz_gradient(truth), differences, rtol=0, atol=1e-6)


def test_a_single_pixel() -> None:
    probabilities = torch.tensor([[0.25, 0.75]])
    assert lovasz_softmax(probabilities, torch.tensor([1])).item() == 0.25
    assert dice(probabilities, torch.tensor([1])).item() == pytest.approx(1 - 1.5 / (0.5625 + 1))
    assert lovasz_hinge(torch.tensor([0.5]), torch.tensor([True])).item() == 0.5


def test_dice_by_hand() -> None:
    probabilities = torch.tensor([[0.8, 0.2, 0.0], [0.4, 0.6, 0.0]])
    first, second = 1 - 1.6 / (0.64 + 0.16 + 1), 1 - 1.2 / (0.04 + 0.36 + 1)
    assert dice(probabilities, torch.tensor([0, 1])).item() == pytest.approx((first + second) / 2)
    assert dice(torch.eye(3), torch.arange(3)).item() == 0


@pytest.mark.parametrize("loss", POOLED)
def test_the_order_of_pixels_does_not_matter(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    probabilities, target = pool()
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(loss(probabilities, target), loss(probabilities[order], target[order]))


@pytest.mark.parametrize("loss", POOLED)
def test_no_pixel_costs_a_zero_with_a_gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = torch.randn(3, 4).requires_grad_()
    none = loss(logits.softmax(1)[:0], torch.zeros(0, dtype=torch.int64))
    none.backward()
    assert none.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_no_pixel_of_the_others() -> None:
    nothing = torch.zeros(0)
    assert ohem(nothing, nothing, 3).item() == 0
    assert hard_pixels(nothing, 0.2).item() == 0
    assert lovasz_hinge(nothing, nothing.bool()).item() == 0


@pytest.mark.parametrize("loss", POOLED)
def test_gradients_are_those_of_small_steps(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(3)).requires_grad_()
    target = torch.tensor([0, 1, 2, 1, 0, 0])
    loss(logits.softmax(1), target).backward()
    step = torch.randn(6, 3, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        up, down = (loss((logits + sign * 1e-3 * step).softmax(1), target) for sign in (1, -1))
    assert logits.grad is not None
    assert ((up - down) / 2e-3).item() == pytest.approx((logits.grad * step).sum().item(), rel=0.02)
