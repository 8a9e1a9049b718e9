"""A step means what it says: in one piece, in parts and on several processes, its gradient is the same.

Images with nine objects, with one, and with none meet in one batch: every part then counts something else.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import steps
import torch
from accelerate import Accelerator
from contract import CORE, LABELS, SMALL, clone, core_first, void_batch
from steps import crowded_sample, empty_sample, fixed_draws, step, uneven_batch, without_chance
from torch import Tensor

from pansight.data.loader import collate
from pansight.engine.train import gradients, split
from pansight.models import build
from pansight.types import Batch

CORE_FIRST = pytest.mark.parametrize("name", core_first(SMALL))

Step = tuple[dict[str, Tensor], dict[str, float]]


@cache
def whole(name: str) -> Step:
    return step(without_chance(name), uneven_batch(), 1, Accelerator(cpu=True))


def assert_same_step(found: Step, expected: Step) -> None:
    gradient, terms = found
    assert gradient.keys() == expected[0].keys()
    a, b = (torch.cat([g.flatten() for g in each.values()]) for each in (gradient, expected[0]))
    assert b.norm() > 0 or not any(expected[1].values())  # nothing is learned where nothing is labelled
    assert (a - b).norm() <= 1e-5 * b.norm()
    for key, value in gradient.items():  # small ones too; those below the last term are rounding alone
        assert (value - expected[0][key]).norm() <= 1e-4 * expected[0][key].norm() + 1e-6 * b.norm(), key
    assert terms == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.parametrize("name", [n if n in CORE else pytest.param(n, marks=pytest.mark.slow) for n in SMALL])
def test_parts_add_up_to_the_whole(name: str) -> None:
    """Also where one of them has no object at all."""
    model, batch = without_chance(name), uneven_batch()
    counted = [len(piece.truths[0].segments) for piece in split(batch, 4)]
    assert counted == [10, 1, 0, 1]
    assert not batch.valid[1:].all()
    for parts in (2, 4):
        assert_same_step(step(model, batch, parts, Accelerator(cpu=True)), whole(name))


@pytest.mark.slow
@CORE_FIRST
def test_an_empty_part_beside_a_full_one_and_beside_another(name: str) -> None:
    model, machine = without_chance(name), Accelerator(cpu=True)
    for batch in (collate([empty_sample(96, 96), crowded_sample()]), void_batch()):
        assert_same_step(step(model, batch, 2, machine), step(model, batch, 1, machine))


@pytest.mark.slow
@pytest.mark.long  # of a real model; that of the toy in engine/test_distributed.py is part of `make test-all`
def test_two_processes_add_up_to_the_whole(tmp_path: Path) -> None:
    """Each computes its half of the batch in two parts, once for every entry."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, steps.__file__, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert list(found) == list(SMALL)
    for name, each in found.items():
        assert_same_step(each, whole(name))


@pytest.mark.slow
@CORE_FIRST
def test_counts_of_the_whole_change_nothing(name: str) -> None:
    """What a loss counts on its way is what `counts` says."""
    model, batch = without_chance(name), uneven_batch()
    kept = clone(batch)
    with fixed_draws():
        counts = {key: float(value) for key, value in model.counts(batch).items()}
        by_itself, told = model.loss(batch), model.loss(batch, counts)
        of_parts = [model.counts(piece) for piece in split(batch, 4)]
    assert counts
    assert list(by_itself) == list(told)
    for key, value in by_itself.items():
        torch.testing.assert_close(value, told[key], rtol=1e-6, atol=0, msg=key)
    for key, value in counts.items():
        assert sum(float(part[key]) for part in of_parts) == pytest.approx(value), key
    assert all(torch.equal(a, b) for a, b in zip(kept.images, batch.images, strict=True))


@pytest.mark.slow
@CORE_FIRST
def test_counting_leaves_no_trace(name: str) -> None:
    """With BatchNorm that is trained, too, where an entry has any."""
    model: torch.nn.Module = without_chance(name)
    has_resnet = "resnet" in SMALL[name].get("backbone", "")
    if has_resnet:
        model = trained_norms(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    counts = model.counts(uneven_batch())
    assert all(not isinstance(value, Tensor) or not value.requires_grad for value in counts.values())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    model.loss(uneven_batch())  # which does leave one
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert bool(moved) == has_resnet


def trained_norms(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(name, LABELS, **{**SMALL[name], "frozen_bn": False}).train()


def test_one_part_of_one_process_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual case costs what it did: the network of a detector does not run twice."""
    model, batch = without_chance("faster_rcnn"), uneven_batch()
    calls: list[int] = []
    count = type(model).counts

    def watched(self: torch.nn.Module, piece: Batch) -> dict[str, float]:
        calls.append(len(piece.sizes))
        return count(self, piece)

    monkeypatch.setattr(type(model), "counts", watched)
    for parts, expected in ((1, []), (2, [2, 2])):
        calls.clear()
        assert gradients(model, batch, parts, (0, 0), "fp32", Accelerator(cpu=True)) is not None
        assert calls == expected
