"""U-Net's weights of borders in the loss: which pixels are background, and what their weights do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pansight.data.loader import collate
from pansight.engine.train import split
from pansight.errors import PansightError
from pansight.nn.semantic.borders import Borders
from pansight.nn.semantic.criterion import Criterion, criterion_of
from pansight.ops.semantic.border import border_weights
from pansight.ops.targets import semantic_targets
from pansight.types import IGNORE, Batch, LabelSpace, PanopticSegmentation, Sample, Segment

LABELS = LabelSpace.from_names(["cell", "cat"], ["floor", "wall"])


def batch_of(*maps: tuple[list[str], tuple[Segment, ...]]) -> Batch:
    """Rows of digits, which are segment ids, with their tables."""
    samples: list[Sample] = []
    for number, (rows, segments) in enumerate(maps):
        ids = torch.tensor([[int(c) for c in row] for row in rows], dtype=torch.int32)
        size = ids.shape[0], ids.shape[1]
        image = torch.zeros((3, *size), dtype=torch.uint8)
        samples.append(Sample(image, PanopticSegmentation(ids, segments), number, size))
    return collate(samples, 1)


CELLS = (Segment(1, 0), Segment(2, 0), Segment(3, 1), Segment(4, 2), Segment(5, 3))
ROW = (["111444222444"], CELLS[:2] + CELLS[3:4])
VOID = (["111000222000"], CELLS[:2])


def target_of(batch: Batch) -> torch.Tensor:
    return semantic_targets(batch, range(len(LABELS)))


def borders(weight: float = 10.0) -> Borders:
    return Borders(weight, 5.0, (0, 1), (2, 3))


def test_stuff_and_void_around_things_are_background() -> None:
    batch = batch_of(ROW, VOID)
    found = borders().weights(batch, target_of(batch))
    torch.testing.assert_close(found[0, 0, 3:6], torch.full((3,), 7.2615), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[0, 0, 9:], torch.tensor([2.7804, 1.3534, 0.5613]), atol=1e-4, rtol=0)
    assert torch.equal(found[0], found[1])


def test_crowds_have_no_border_and_are_no_background() -> None:
    crowd = (Segment(1, 0), Segment(2, 0), Segment(3, 0, is_crowd=True), Segment(4, 2))
    batch = batch_of((["111434222443"], crowd))
    found = borders().weights(batch, target_of(batch))[0, 0]
    assert found[4] == found[11] == 0
    torch.testing.assert_close(found[3], torch.tensor(7.2615), atol=1e-4, rtol=0)


def test_things_of_a_class_that_touch_are_separated_by_the_largest_stuff() -> None:
    batch = batch_of((["1122", "1133", "5444"], CELLS), (["1122"], CELLS[:2]), (["1133"], (CELLS[0], CELLS[2])))
    target = target_of(batch)
    before = target.clone()
    found = borders().separated(batch, target)
    assert torch.equal(target, before)
    assert found[0].tolist() == [[0, 2, 0, 0], [0, 2, 1, 1], [3, 2, 2, 2]]
    assert found[1, 0].tolist() == [0, IGNORE, 0, 0]  # no stuff to take
    assert torch.equal(found[2], target[2])  # another class: it is another component anyway
    weights = borders().weights(batch, found)
    assert weights[0, 0, 1] == pytest.approx(float(border_weights(*_apart(), 10.0, 5.0)[0, 1]))


def _apart() -> tuple[object, list[int]]:
    ids = torch.tensor([[1, 0, 2, 2], [1, 0, 3, 3], [0, 0, 0, 0]], dtype=torch.int32)
    return ids.numpy(), [1, 2, 3]


def test_the_loss_is_the_weighted_sum_over_the_number_of_pixels() -> None:
    batch = batch_of(ROW)
    target = target_of(batch)
    logits = torch.randn(1, 4, 1, 12, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([2.0, 1.0, 0.5, 1.0])
    criterion = criterion_of(LABELS, "cross_entropy", weights.tolist(), border_weight=10.0)
    of_pixels = F.cross_entropy(logits, target, reduction="none")
    expected = ((weights[target] + borders().weights(batch, target)) * of_pixels).sum() / 12
    torch.testing.assert_close(criterion(logits, target, None, batch), expected)


def many() -> Batch:
    rows = (["11220", "11233", "44444"], CELLS[:4])
    return batch_of(rows, ROW, (["00"], ()), (["1133"], (CELLS[0], CELLS[2])))


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "ohem", "hard_pixels", "cross_entropy+dice"])
def test_parts_add_up_to_the_whole(loss: str) -> None:
    batch = many()
    target = target_of(batch)
    logits = torch.randn(4, 4, *target.shape[1:], generator=torch.Generator().manual_seed(0))
    criterion = criterion_of(LABELS, loss, (1.0, 2.0, 3.0, 4.0), 10.0, 2.0)
    whole = criterion(logits, target, None, batch)
    counts = criterion.counts(batch, target)
    totals = {key: float(value) for key, value in counts.items()}
    pieces = list(split(batch, 4))
    found = [criterion(logits[k : k + 1], target[k : k + 1], totals, piece) for k, piece in enumerate(pieces)]
    torch.testing.assert_close(torch.stack(found).sum(), whole)
    plain = Criterion(loss, (1.0, 2.0, 3.0, 4.0))
    assert whole > plain(logits, target, None, batch) * 0.9
    of_parts = [criterion.counts(piece, target[k : k + 1]) for k, piece in enumerate(pieces)]
    for key, value in totals.items():
        assert sum(float(part[key]) for part in of_parts) == pytest.approx(value)


def test_a_sigma_and_a_weight_change_it() -> None:
    batch = many()
    target = target_of(batch)
    logits = torch.zeros(4, 4, *target.shape[1:])
    options = [(0.0, 5.0), (1.0, 1.0), (1.0, 5.0), (10.0, 5.0)]
    values = [criterion_of(LABELS, "cross_entropy", (), *each)(logits, target, None, batch).item() for each in options]
    assert values == sorted(values)
    assert len(set(values)) == len(values)


def test_losses_of_regions_alone_cannot_use_them() -> None:
    with pytest.raises(PansightError, match=r"border_weight: expected one of the losses .*found loss dice"):
        criterion_of(LABELS, "dice", (), 10.0)
