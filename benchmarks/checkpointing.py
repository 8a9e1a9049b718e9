"""Memory and time of a step of training with and without gradient checkpointing → results/checkpointing.json.

Each case runs in a process of its own, since the peak of a process is not reset on a CPU: there it is the largest
resident size, with what the libraries take; on an accelerator it is what torch allocated.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch

from common import save
from pansight.data.formats.shapes import Shapes
from pansight.data.loader import collate
from pansight.engine import distributed
from pansight.models import build
from pansight.nn.checkpointing import set_checkpointing


def measure(name: str, side: int, batch_size: int, on: bool, steps: int) -> dict[str, Any]:
    """Peak memory in MiB and seconds of the fastest of `steps` steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = Shapes(batch_size, side, side, seed=0)
    model: Any = build(name, data.labels)
    model.to(device).train()
    set_checkpointing(model, on)
    batch = distributed.to_device(collate([data[index] for index in range(batch_size)]), device)
    seconds: list[float] = []
    for _ in range(steps):
        start = time.perf_counter()
        torch.stack(list(model.loss(batch, None).values())).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        model.zero_grad()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {"model": name, "side": side, "batch": batch_size, "on": on, "peak_mib": peak, "seconds": min(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="mask_rcnn,detr_panoptic,maskformer_swin_tiny,mask2former_swin_tiny")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--one", choices=("on", "off"), help="measure the first model alone, in this process")
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    if arguments.one:
        row = measure(names[0], arguments.side, arguments.batch_size, arguments.one == "on", arguments.steps)
        print(json.dumps(row))
        return
    rows: list[dict[str, Any]] = []
    for name in names:
        for switch in ("off", "on"):
            command = [sys.executable, __file__, "--models", name, "--one", switch, "--side", str(arguments.side)]
            command += ["--batch-size", str(arguments.batch_size), "--steps", str(arguments.steps)]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(rows[-1])
    save("checkpointing", {"rows": rows})


if __name__ == "__main__":
    main()
