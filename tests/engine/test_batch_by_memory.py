"""The batch size that fills the memory of an accelerator, with a memory that is pretended."""

from __future__ import annotations

import pytest
import torch

from pansight.config import Config, TrainConfig, override
from pansight.data.formats.shapes import Shapes
from pansight.engine import automatic
from pansight.engine.automatic.memory import choose_batch_by_memory, largest_batch, memory_probe
from pansight.errors import PansightError

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("room", "most", "expected"), [(0, 64, 1), (1, 64, 1), (7, 64, 4), (8, 64, 8), (99, 12, 12), (9, 1, 1)]
)
def test_doubles_while_it_fits(room: int, most: int, expected: int) -> None:
    tried: list[int] = []

    def fits(images: int) -> bool:
        tried.append(images)
        return images <= room

    assert largest_batch(fits, most) == expected
    assert tried == sorted(set(tried))
    assert max(tried) <= most


def test_the_choice_says_why_and_refuses_several_processes() -> None:
    (choice,) = choose_batch_by_memory(lambda images: images <= 6, 100, CUDA, 1)
    assert (choice.key, choice.value) == ("train.batch_size", 4)
    assert "memory" in choice.reason
    with pytest.raises(PansightError, match="one process"):
        choose_batch_by_memory(lambda images: True, 100, CUDA, 2)


def test_a_cpu_says_that_it_goes_by_the_image_size() -> None:
    config = override(Config(), {"train.batch_size": -1, "model.pretrained": "none"})
    chosen, choices = automatic.choose(config, Shapes(8, 64, 64), CPU)
    (choice,) = [c for c in choices if c.key == "train.batch_size"]
    assert "image size" in choice.reason
    assert chosen.train.batch_size == choice.value > 0


def test_the_probe_runs_a_step_and_tells_memory_from_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {f"model.options.{k}": v for k, v in {"fpn_channels": 16, "box_features": 16}.items()}
    given = {"model.backbone": "resnet10t", "model.options.frozen_bn": False, "augment.crop": 64, **options}
    config, _ = automatic.choose(override(Config(), given), Shapes(4, 64, 64), CPU)
    fits = memory_probe(config, Shapes(4, 64, 64), CPU)
    assert fits(2)

    def fails(*_: object) -> bool:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("pansight.engine.automatic.memory._step", fails)
    assert not fits(2)


@pytest.mark.parametrize(
    ("used", "free", "own", "expected"), [(80, 60, 40, True), (91, 60, 40, False), (91, 80, 40, True)]
)
def test_on_an_accelerator_a_share_of_what_others_leave_counts(
    monkeypatch: pytest.MonkeyPatch, used: int, free: int, own: int, expected: bool
) -> None:
    """Nine tenths of what is free and of what this process has reserved, which the peak of the step may not exceed."""
    cleared: list[str] = []
    answers = {
        "max_memory_reserved": lambda device: used,
        "memory_reserved": lambda device: own,
        "mem_get_info": lambda device: (free, 200),
        "empty_cache": lambda: cleared.append("cache"),
        "reset_peak_memory_stats": lambda device: cleared.append("peak"),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr("pansight.engine.automatic.memory._step", lambda *_: True)
    fits = memory_probe(Config(), Shapes(4, 64, 64), CUDA)
    assert fits(2) == expected
    assert cleared == ["cache", "peak"]  # so that the next try begins from nothing


def test_sizes_below_minus_1_are_refused() -> None:
    with pytest.raises(PansightError, match=r"train\.batch_size"):
        TrainConfig(batch_size=-2)
