"""The same predictions reach the tracker at every evaluation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pansight.apps.measuring.pictures import LONGEST, predicted_pictures
from pansight.config import Config, override
from pansight.data.formats.shapes import Shapes
from pansight.engine.distributed import make_accelerator, shows_pictures, track_pictures
from pansight.models import build

TINY = {"backbone": "resnet10t", "fpn_channels": 16, "box_features": 16, "mask_channels": 8}


def test_pictures_are_of_the_first_images_and_no_larger_than_needed() -> None:
    data = Shapes(3, 48, LONGEST + 100, seed=1)
    model = build("panoptic_fpn", data.labels, **TINY)
    config = override(Config(), {"train.tracker_images": 2})
    one = predicted_pictures(model, data, config, torch.device("cpu"))
    again = predicted_pictures(model, data, config, torch.device("cpu"))
    assert [picture.shape[2] for picture in one] == [LONGEST, LONGEST]
    assert all(torch.equal(a, b) and a.dtype == torch.uint8 for a, b in zip(one, again, strict=True))


def test_event_files_hold_every_picture_of_every_evaluation(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accelerator = make_accelerator("fp32", tmp_path, ["tensorboard"])
    accelerator.init_trackers("tensorboard")
    assert shows_pictures(accelerator)
    pictures = [torch.full((3, 8 + n, 12), 40 * n, dtype=torch.uint8) for n in range(3)]
    for step in (5, 10):
        track_pictures(pictures, step, accelerator)
    accelerator.end_training()
    (file,) = tmp_path.rglob("events.*")
    events = accumulator.EventAccumulator(str(file), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()["images"]
    assert sorted(tags) == [f"evaluation/image {n}" for n in range(3)]
    for number, tag in enumerate(sorted(tags)):
        found = events.Images(tag)
        assert [image.step for image in found] == [5, 10]
        assert (found[0].height, found[0].width) == (8 + number, 12)


def test_without_a_tracker_nothing_is_drawn(tmp_path: Path) -> None:
    assert not shows_pictures(make_accelerator("fp32", tmp_path))


class Recorder:
    """A tracker as Accelerate has them, of which only the calls are kept."""

    def __init__(self, name: str):
        self.name = name
        self.calls: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def log_images(self, values: dict[str, Any], **options: Any) -> None:
        self.calls.append((values, options))


def test_each_tracker_gets_pictures_in_its_own_form() -> None:
    """wandb makes one picture of each array of a list, tensorboard takes a stack of them; the others take none."""
    trackers = [Recorder("wandb"), Recorder("tensorboard"), Recorder("mlflow")]
    accelerator: Any = SimpleNamespace(trackers=trackers, is_main_process=True)
    assert shows_pictures(accelerator)
    picture = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)
    track_pictures([picture], 7, accelerator)
    ((to_wandb, options),), ((to_tensorboard, _),), none = (tracker.calls for tracker in trackers)
    assert options == {"step": 7}
    assert to_wandb.keys() == to_tensorboard.keys() == {"evaluation/image 0"}
    (array,) = to_wandb["evaluation/image 0"]
    assert array.tolist() == picture.permute(1, 2, 0).tolist()
    assert to_tensorboard["evaluation/image 0"].shape == (1, 4, 5, 3)
    assert none == []


@pytest.mark.parametrize(("names", "first", "expected"), [(["mlflow"], True, False), (["wandb"], False, False)])
def test_who_shows_no_pictures(names: list[str], first: bool, expected: bool) -> None:
    accelerator: Any = SimpleNamespace(trackers=[Recorder(name) for name in names], is_main_process=first)
    assert shows_pictures(accelerator) == expected
