"""The fast functions under whole models: outputs, predictions, losses and gradients are those of the plain twins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import SMALL, assert_close, core_first, flat, shapes_batch, small, thresholds
from torch import Tensor

from pansight.ops.fast import plain

EVERY_SMALL = pytest.mark.parametrize("name", SMALL)
CORE_FIRST = pytest.mark.parametrize("name", core_first(SMALL))


def masks_of(model: Any, outputs: Any) -> list[Tensor]:
    """Of the models that keep mask logits for the decoder; padding and thresholds play no part in them."""
    return [model.mask_logits(outputs, image) for image in range(2)] if has_masks(model) else []


def shaken(name: str) -> Any:
    """A model off the values it starts from, where sampling points lie on pixels and gradients jump."""
    model = small(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def has_masks(model: Any) -> bool:
    return type(model).__name__ in ("MaskFormer", "Mask2Former", "EoMT") or (
        type(model).__name__ == "DETR" and model.mask_head is not None
    )


@EVERY_SMALL
def test_outputs_and_predictions(name: str) -> None:
    model, batch = shaken(name).eval(), shapes_batch()
    results: list[tuple[list[Tensor], list[Any]]] = []
    for active in (False, True):
        with plain(active), torch.inference_mode():
            outputs = model(batch.images, batch.valid)
            results.append(
                (flat(outputs) + masks_of(model, outputs), model.decode(outputs, batch.sizes, **thresholds(model)))
            )
    (fast, found), (slow, expected) = results
    assert_close([x for x in fast if x.is_floating_point()], [x for x in slow if x.is_floating_point()], 1e-4)
    for a, b in zip(found, expected, strict=True):
        for ours, theirs in ((a.panoptic and a.panoptic.ids, b.panoptic and b.panoptic.ids), (a.semantic, b.semantic)):
            assert (ours is None) == (theirs is None)
            if ours is not None:  # a pixel on which two classes or queries are equal to rounding may flip
                assert (ours != theirs).float().mean() < 1e-3
        if a.instances is not None:
            assert_close(flat(a.instances)[:3], flat(b.instances)[:3], 1e-3)
            for ours, theirs in zip(flat(a.instances)[3:], flat(b.instances)[3:], strict=True):
                assert (ours != theirs).float().mean() < 1e-3


@pytest.mark.slow
@CORE_FIRST
def test_losses_and_gradients(name: str) -> None:
    batch = shapes_batch()
    results: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for active in (False, True):
        model = shaken(name).train()
        with plain(active):
            torch.manual_seed(5)
            losses = model.loss(batch)
            sum(losses.values()).backward()
        results.append((losses, {key: p.grad for key, p in model.named_parameters() if p.grad is not None}))
    (fast, gradients), (slow, expected) = results
    assert list(fast) == list(slow)
    assert_close(list(fast.values()), list(slow.values()), 1e-4)
    assert list(gradients) == list(expected)
    assert len(gradients) > 20
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for key, gradient in gradients.items():
        assert (gradient - expected[key]).norm() <= 1e-3 * expected[key].norm() + 1e-5 * largest, key
