"""What two processes do together, as a script under torchrun: ``torchrun … tests/engine/pair.py <file>``.

The first process writes what it found as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
import toy
from accelerate import Accelerator

from pansight.config import EvaluateConfig, TrainConfig
from pansight.data import open_dataset
from pansight.data.loader import train_stream
from pansight.engine import distributed
from pansight.engine.checkpoint import last_checkpoint, read_training_state
from pansight.engine.evaluate import evaluate as measure
from pansight.engine.train import gradients, train
from pansight.errors import Interrupted, PansightError

toy.register()
machine = Accelerator(cpu=True)
rank, folder = machine.process_index, Path(sys.argv[1])
found = {}

shapes = open_dataset("shapes", count=8, height=32, width=32)
stream = partial(train_stream, shapes, None, 4, 8, 2, 0, rank=rank, world=2)
config = TrainConfig(steps=2, batch_size=4, lr=0.01, evaluate_every=1, precision="fp32", trackers=(), ema_decay=0.5)
torch.manual_seed(0)
model = toy.build_toy(shapes.labels, batch_norm=True)
seen = []


def evaluate(candidate):
    seen.append({name: buffer.tolist() for name, buffer in model.named_buffers()})
    return {"All": {"pq": 0.5}}


train(model, lambda first: stream(first), config, folder, machine, lambda path: None, evaluate)
everyone = distributed.gather(seen, machine)
found["evaluations"] = len(seen)
found["moved"] = seen[0]["backbone.norm.running_mean"] != seen[1]["backbone.norm.running_mean"]
found["equal buffers"] = everyone[0] == everyone[1]

# memory that runs out on one process, while counting and while learning: each is told, none waits
batch = next(stream(0))
count, loss = toy.Toy.counts, toy.Toy.loss


def out_of_memory(self, batch, totals=None):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


for name in ("counts", "loss"):
    with_failure = type("Failing", (toy.Toy,), {name: out_of_memory} if rank == 1 else {})
    failing = with_failure(shapes.labels, 4, 0, "", True)
    shares = gradients(failing, batch, 1, (0, 0), "fp32", machine)
    found[f"{name} fails"] = distributed.gather(shares is None, machine)

try:
    distributed.synchronise_batch_norm(model, machine)
except PansightError as error:
    found["sync_bn"] = str(error)

# one process is told to stop at its third image of 20: both leave together, and the state is saved


class Stopped(toy.Toy):
    """Sends the process a SIGTERM while it predicts its third image."""

    predicted = 0

    def decode(self, outputs, sizes, min_area=1, panoptic=True):
        self.predicted += 1
        if self.predicted == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().decode(outputs, sizes, min_area, panoptic)


many = open_dataset("shapes", count=40, height=32, width=32)
stopped = (Stopped if rank == 1 else toy.Toy)(shapes.labels, 4, 0, "", True)
run = folder / "stopped"
try:
    train(
        stopped,
        lambda first: stream(first),
        config,
        run,
        machine,
        lambda path: None,
        lambda candidate: measure(stopped, many, EvaluateConfig(), machine, candidate),
    )
except Interrupted as error:
    found["stopped"] = distributed.gather((str(error), error.number), machine)
    found["due"] = read_training_state(last_checkpoint(run))["due"]
    found["left"] = sorted(path.name for path in run.iterdir())

if machine.is_main_process:
    (folder / "found.json").write_text(json.dumps(found))
machine.end_training()
