"""Panoptic FPN's variants: a pyramid whose channels the branches share out, and branches that learn by turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from contract import LABELS, SMALL, shapes_batch
from steps import fixed_draws, step, uneven_batch, without_chance

from pansight.errors import PansightError
from pansight.models import build

TINY = SMALL["panoptic_fpn"]
OF_INSTANCES = {"rpn_objectness", "rpn_box", "box_class", "box_regression", "mask"}


def variant(**options: Any) -> Any:
    torch.manual_seed(0)
    return build("panoptic_fpn", LABELS, **{**TINY, **options}).train()


def gradient_of(parameter: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, parameter, retain_graph=True)[0]


def test_each_branch_of_a_grouped_pyramid_reads_its_half() -> None:
    """The loss of a branch moves the rows of its half of the 3×3 convolutions, and no others."""
    model = variant(grouped=True)
    losses = model.loss(shapes_batch())
    weight = model.fpn.output[0].weight
    assert weight.shape == (16, 8, 3, 3)
    of_instances = gradient_of(weight, losses["rpn_objectness"] + losses["mask"])
    of_semantic = gradient_of(weight, losses["semantic"])
    assert of_instances[:8].abs().sum() > 0
    assert not of_instances[8:].any()
    assert of_semantic[8:].abs().sum() > 0
    assert not of_semantic[:8].any()


def test_a_grouped_pyramid_is_two_pyramids_on_the_same_laterals() -> None:
    """The first half of each level is the convolution of the first half of the sums, by hand for the coarsest."""
    model = variant(grouped=True).eval()
    maps = model.backbone(model.input(shapes_batch().images))
    level = model.fpn(maps)[3]
    lateral, output = model.fpn.lateral[3](maps[3]), model.fpn.output[3]
    for half in (slice(0, 8), slice(8, 16)):
        alone = torch.nn.functional.conv2d(lateral[:, half], output.weight[half], output.bias[half], padding=1)
        torch.testing.assert_close(level[:, half], alone)


def test_a_grouped_pyramid_predicts_and_needs_even_channels() -> None:
    model, batch = variant(grouped=True).eval(), shapes_batch()
    with torch.inference_mode():
        outputs = model(batch.images, batch.valid)
        assert len(model.decode(outputs, batch.sizes)) == 2
    with pytest.raises(PansightError, match=r"fpn_channels of model panoptic_fpn: expected an even number.*found 15"):
        variant(grouped=True, fpn_channels=15)


@pytest.mark.parametrize("name", [f"{name}_{parts}" for name in ("steps", "thirds") for parts in (1, 2)])
def test_whose_turn_it_is_follows_from_the_share_alone(name: str) -> None:
    """Of 6 steps in 6 turns each branch has every other one; in 3 turns instances have four, in order 0 0 1 1 0 0."""
    kind, repeats = name.split("_")
    turns, expected = (6, "isisis") if kind == "steps" else (3, "iissii")
    model, batch, found = variant(turns=turns), shapes_batch(1), ""
    for number in range(6):
        for _ in range(int(repeats)):  # a step that is repeated is the same step
            model.set_progress(number / 6)
            names = set(model.loss(batch))
        found += "s" if "semantic" in names else "i"
        assert names == ({"semantic", "idle"} if found[-1] == "s" else {*OF_INSTANCES, "idle"})
    assert found == expected
    model.set_progress(1.0)  # as the last evaluation sees it
    model.loss(batch)


def test_the_shares_of_all_steps_count_as_whole_turns() -> None:
    """step / steps · steps is not always the step again in floating point."""
    model = variant(turns=997)
    for number in range(997):
        model.set_progress(number / 997)
        assert model._resting() == ("semantic", "instances")[number % 2], number


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_step_of_one_branch_in_parts_is_the_whole_step(share: float) -> None:
    """The resting branch has gradients of zero, so that every process adds up the same parameters."""
    model = variant(turns=2)
    model.set_progress(share)
    machine, batch = Accelerator(cpu=True), uneven_batch()
    whole, terms = step(model, batch, 1, machine)
    parts, terms_of_parts = step(model, batch, 4, machine)
    assert terms_of_parts == pytest.approx(terms, rel=1e-5)
    assert terms["idle"] == 0
    resting = "rcnn." if share else "semantic_head."
    for key, gradient in whole.items():
        torch.testing.assert_close(parts[key], gradient, rtol=1e-4, atol=1e-6)
        assert not (key.startswith(resting) and gradient.any()), key
    assert any(key.startswith(resting) for key in whole)
    assert any(gradient.any() for gradient in whole.values())


def test_both_branches_are_measured_where_nothing_is_learnt() -> None:
    model, batch = variant(turns=4), shapes_batch()
    with torch.no_grad(), fixed_draws():
        assert set(model.loss(batch)) == {*OF_INSTANCES, "semantic"}
    assert set(without_chance("panoptic_fpn").loss(batch)) == {*OF_INSTANCES, "semantic"}
