"""Mask annealing: numbers by hand, and that they travel with the weights. Takes under 1 s."""

from __future__ import annotations

import pytest
import torch

from pansight.nn.queries.annealing import MaskAnnealing


def at(progress: float, power: float = 0.9) -> list[float]:
    module = MaskAnnealing([0.25, 0.5], [0.5, 0.75], power)
    module.set_progress(progress)
    return module.shares()


def test_a_new_model_looks_through_all_masks() -> None:
    assert MaskAnnealing([0.25, 0.5], [0.5, 0.75]).shares() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, [1.0, 1.0]),
        (0.25, [1.0, 1.0]),
        (0.375, [0.5**0.9, 1.0]),  # half way of the first
        (0.4375, [0.25**0.9, 1.0]),
        (0.5, [0.0, 1.0]),
        (0.625, [0.0, 0.5**0.9]),
        (0.75, [0.0, 0.0]),
        (1.0, [0.0, 0.0]),
    ],
)
def test_shares_by_hand(progress: float, expected: list[float]) -> None:
    assert at(progress) == pytest.approx(expected, abs=1e-7)


def test_the_power_is_the_curve() -> None:
    assert at(0.3125, power=1.0)[0] == pytest.approx(0.75)
    assert at(0.3125, power=2.0)[0] == pytest.approx(0.5625)


def test_start_and_end_at_one_point_is_a_step() -> None:
    module = MaskAnnealing([0.5], [0.5])
    module.set_progress(0.499)
    assert module.shares() == [1.0]
    module.set_progress(0.5)
    assert module.shares() == [0.0]


def test_progress_may_go_back() -> None:
    """A resumed run sets the place it is at: nothing of the past is remembered."""
    module = MaskAnnealing([0.25], [0.5])
    module.set_progress(1.0)
    module.set_progress(0.1)
    assert module.shares() == [1.0]


def test_the_shares_are_saved_and_no_parameter() -> None:
    module, other = MaskAnnealing([0.25], [0.5]), MaskAnnealing([0.25], [0.5])
    module.set_progress(0.375)
    assert list(module.state_dict()) == ["probs"]
    assert list(module.parameters()) == []
    other.load_state_dict(module.state_dict())
    assert other.shares() == module.shares() == pytest.approx([0.5**0.9])


def test_the_buffer_stays_where_it_is() -> None:
    """Optimizers, averages and wrappers hold the tensor itself."""
    module = MaskAnnealing([0.0], [1.0])
    before = module.probs
    module.set_progress(0.5)
    assert module.probs is before
    assert torch.equal(before, torch.tensor([0.5**0.9]))


def test_as_many_ends_as_starts() -> None:
    module = MaskAnnealing([0.0, 0.5], [1.0])
    with pytest.raises(ValueError, match="shorter"):
        module.set_progress(0.1)
