"""The losses of the R-CNN family, against torch and by hand."""

import math

import torch

from pansight.ops.regions import losses as ops


def test_box_loss_by_hand():
    deltas, targets = torch.tensor([[0.0, 0, 0, 0]]), torch.tensor([[0.05, -2.0, 0, 0]])
    assert math.isclose(float(ops.box_loss(deltas, targets, 0.0)), 2.05, rel_tol=1e-6)
    beta = 1 / 9  # quadratic below, linear above
    assert math.isclose(float(ops.box_loss(deltas, targets, beta)), 0.05**2 / 2 * 9 + 2 - 1 / 18, rel_tol=1e-6)


def test_nothing_to_learn_from_costs_nothing_and_has_a_gradient():
    logits = torch.zeros(0, 3, requires_grad=True)
    masks = torch.zeros(0, 28, 28, requires_grad=True)
    deltas = torch.zeros(0, 4, requires_grad=True)
    total = (
        ops.class_loss(logits, torch.zeros(0, dtype=torch.int64))
        + ops.mask_loss(masks, torch.zeros(0, 28, 28))
        + ops.box_loss(deltas, torch.zeros(0, 4), 0.0)
        + ops.objectness_loss(deltas[:, 0], torch.zeros(0), 256)
    )
    total.backward()
    assert float(total.detach()) == 0
    assert all(t.grad is not None for t in (logits, masks, deltas))


def test_class_and_mask_losses_are_means():
    assert math.isclose(
        float(ops.class_loss(torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64))), math.log(4), rel_tol=1e-6
    )
    masks = torch.zeros(3, 28, 28)
    assert math.isclose(float(ops.mask_loss(masks, masks)), math.log(2), rel_tol=1e-6)


def test_objectness_is_divided_by_what_it_is_told():
    logits, targets = torch.zeros(10), torch.ones(10)
    assert math.isclose(float(ops.objectness_loss(logits, targets, 256)), 10 * math.log(2) / 256, rel_tol=1e-6)


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(64, 5).bfloat16()
    classes = torch.randint(0, 5, (64,))
    assert ops.class_loss(logits, classes).dtype == torch.float32
    torch.testing.assert_close(ops.class_loss(logits, classes), ops.class_loss(logits.float(), classes))
