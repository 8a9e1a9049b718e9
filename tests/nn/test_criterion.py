"""The loss that every semantic head is trained by: its sums, its parts, its options."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.data.formats.shapes import Shapes
from pansight.data.loader import collate
from pansight.engine.train import split
from pansight.errors import PansightError
from pansight.nn.semantic.criterion import LOSSES, OF_PIXELS, Criterion
from pansight.ops.semantic.losses import hard_pixels
from pansight.ops.targets import semantic_targets
from pansight.types import IGNORE, Batch

CLASSES = len(Shapes().labels)
WEIGHTS = tuple(0.5 + k for k in range(CLASSES))
EVERY_LOSS = pytest.mark.parametrize("loss", [*LOSSES, "+".join(LOSSES)])


def weighted(loss: str) -> Criterion:
    """With class weights, where a term of the loss can use them."""
    return Criterion(loss, WEIGHTS if set(loss.split("+")) & set(OF_PIXELS) else ())


def drawn(seed: int = 0) -> tuple[Batch, Tensor, Tensor]:
    """A batch of three sizes, its target, and random logits for it."""
    samples = [Shapes(1, height, width, seed=seed)[0] for height, width in ((24, 20), (17, 33), (16, 19))]
    batch = collate(samples, 1)
    target = semantic_targets(batch, range(CLASSES))
    logits = torch.randn(3, CLASSES, *target.shape[1:], generator=torch.Generator().manual_seed(seed))
    return batch, target, logits


@EVERY_LOSS
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_add_up_to_the_whole(loss: str, parts: int) -> None:
    batch, target, logits = drawn()
    criterion = weighted(loss)
    pieces = list(split(batch, parts))
    ends = [0, *torch.tensor([len(piece.sizes) for piece in pieces]).cumsum(0).tolist()]
    places = [slice(a, b) for a, b in pairwise(ends)]
    counts = [criterion.counts(piece, target[place]) for piece, place in zip(pieces, places)]
    totals = {key: sum(float(count[key]) for count in counts) for key in counts[0]}
    found = [criterion(logits[place], target[place], totals, piece) for piece, place in zip(pieces, places)]
    torch.testing.assert_close(torch.stack(found).sum(), criterion(logits, target, None, batch))


@EVERY_LOSS
def test_nothing_labelled_costs_a_zero_with_a_gradient(loss: str) -> None:
    batch, target, logits = drawn()
    logits.requires_grad_()
    value = Criterion(loss)(logits, torch.full_like(target, IGNORE), None, batch)
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@EVERY_LOSS
def test_unknown_pixels_have_no_gradient(loss: str) -> None:
    batch, target, logits = drawn()
    target[:, 3:7, 2:6] = IGNORE
    logits.requires_grad_()
    weighted(loss)(logits, target, None, batch).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad.permute(0, 2, 3, 1)[target == IGNORE].any()
    assert logits.grad.any()


@pytest.mark.parametrize("loss", OF_PIXELS)
def test_weights_of_one_change_nothing(loss: str) -> None:
    batch, target, logits = drawn()
    ones, none = Criterion(loss, (1.0,) * CLASSES), Criterion(loss)
    torch.testing.assert_close(ones(logits, target, None, batch), none(logits, target, None, batch))


def test_cross_entropy_is_torchs_mean() -> None:
    batch, target, logits = drawn()
    expected = F.cross_entropy(logits, target, torch.tensor(WEIGHTS), ignore_index=IGNORE)
    torch.testing.assert_close(Criterion(class_weights=WEIGHTS)(logits, target, None, batch), expected)


def test_terms_add_up() -> None:
    batch, target, logits = drawn()
    for first, second in combinations(LOSSES, 2):
        both = Criterion(f"{first} + {second}")(logits, target, None, batch)
        alone = [Criterion(term)(logits, target, None, batch) for term in (first, second)]
        torch.testing.assert_close(both, alone[0] + alone[1])


def test_padding_does_not_count_among_the_pixels_of_an_image() -> None:
    batch, target, logits = drawn()
    losses = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    sizes = [truth.size for truth in batch.truths]
    expected = sum(hard_pixels(each[:h, :w], 0.2) for each, (h, w) in zip(losses, sizes)) / 3
    torch.testing.assert_close(Criterion("hard_pixels")(logits, target, None, batch), expected)


def test_it_has_no_place_in_a_state_dict() -> None:
    criterion = Criterion("cross_entropy", WEIGHTS)
    assert not criterion.state_dict()
    assert not list(criterion.parameters())
    assert criterion.double().class_weights is not None


def test_weights_of_zero_alone() -> None:
    batch, target, logits = drawn()
    assert Criterion(class_weights=(0.0,) * CLASSES)(logits, target, None, batch).item() == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"loss": "hinge"}, "unknown loss 'hinge'; known: cross_entropy"),
        ({"loss": "cross_entropy+"}, "unknown loss ''"),
        ({"loss": "dice+dice"}, "each of its terms once"),
        ({"class_weights": (1.0, 2.0), "classes": 3}, "one weight for each of 3 classes.* 2"),
        ({"loss": "dice", "class_weights": (1.0, 2.0)}, "one of the losses cross_entropy"),
    ],
)
def test_what_cannot_be_meant(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(PansightError, match=told):
        Criterion(**arguments)  # pyright: ignore[reportArgumentType]
