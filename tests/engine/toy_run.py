"""Trainings of the toy network by a clock that the test turns, and signals at a chosen image."""

from __future__ import annotations

import json
import os
import sys
from functools import partial, wraps
from pathlib import Path

import torch
from accelerate import Accelerator

from pansight import models
from pansight.config import TrainConfig
from pansight.data.loader import train_stream
from pansight.engine.checkpoint import last_checkpoint
from pansight.engine.train import train
from pansight.weights import load_model
from pansight.weights.native import write_model

sys.path.insert(0, str(Path(__file__).parent))
import toy

BASE = TrainConfig(batch_size=4, lr=0.01, checkpoint_every=0, log_every=1, precision="fp32", trackers=())


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def turn(monkeypatch, seconds: float = 1.0) -> Clock:
    """A clock that each pass of the toy through a batch takes so many seconds of."""
    clock, loss = Clock(), toy.Toy.loss

    def timed(self, batch, totals=None):
        clock.seconds += seconds
        return loss(self, batch, totals)

    monkeypatch.setattr(toy.Toy, "loss", timed)
    return clock


def run(folder: Path, dataset, now, evaluate=None, images: int = 0, resume: bool = False, **settings):
    """Train the toy network; returns (model, result)."""
    config = TrainConfig(**{**vars(BASE), **settings})
    torch.manual_seed(config.seed)
    model = load_model(last_checkpoint(folder))[0] if resume else models.build("toy", dataset.labels)
    folder.mkdir(exist_ok=True)
    save = partial(write_model, model=model, name="toy", options={})

    def batches(first):
        return train_stream(dataset, None, config.batch_size, 8, config.steps, config.seed, first)

    machine = Accelerator(cpu=True)
    facts = {"evaluation_images": images, "now": now}
    return model, train(model, batches, config, folder, machine, save, evaluate, resume, **facts)


def rows(folder: Path, kind: str = "train") -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in lines if row["kind"] == kind]


def send_at_image(monkeypatch, number: int, image: int, times: int = 1) -> None:
    """The signal `number` comes while the toy predicts the `image`-th image from now on, `times` in a row."""
    decode, seen = toy.Toy.decode, []

    @wraps(decode)  # the options of decode are read from its signature
    def interrupted(self, outputs, sizes, **options):
        seen.append(len(sizes))
        if len(seen) == image:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return decode(self, outputs, sizes, **options)

    monkeypatch.setattr(toy.Toy, "decode", interrupted)
