"""Panoptic FCN R50: ours beside its published code, same weights and image, in turns → results/panoptic_fcn_speed.json.

    python benchmarks/panoptic_fcn_speed.py <detectron2's folder> <PanopticFCN's folder> [--repeats 5] [--threads 1]

Inference in float32 on the CPU from pixels (800×1216) to objects and panoptic map (480×730). Checkouts and packages are
those that tests/golden/panoptic_fcn/make_panoptic_fcn.py needs; detectron2's deformable convolution, which has no code
for the CPU, is torchvision's. Weights are the ones of the golden numbers, with which both give the same objects. Ours
runs as `pansight predict` runs it, with BatchNorm folded into convolutions. Peak memory is that of a process for each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import ROOT, alternate, peak_resident_mib, save
from pansight.engine.infer import Inference, prepare
from pansight.weights.official.panoptic.panoptic_fcn import load

GOLDEN = ROOT / "tests" / "golden"
sys.path += [str(GOLDEN), str(GOLDEN / "panoptic_fcn")]
import make_panoptic_fcn as published  # noqa: E402
from fixed import detectron2_weights, photo, twice  # noqa: E402

SALT, INPUT, OUTPUT = "panoptic_fcn_r50", (800, 1216), (480, 730)
CONTENDERS = ("published", "ours")


def image() -> Tensor:
    small = twice(photo(0, SALT))[None].float()
    return torch.nn.functional.interpolate(small, INPUT, mode="bilinear")[0].round().to(torch.uint8)


def contender(name: str, folders: tuple[Path, Path]) -> Callable[[], Any]:
    with np.load(GOLDEN / "panoptic_fcn" / "r50.npz") as file:
        state = detectron2_weights(SALT, dict(file))
    pixels = image()
    if name == "published":
        published.use(*folders)
        theirs = published.network(folders[1], "r50").eval()
        theirs.load_state_dict(state)
        row = {"image": pixels.flip(0), "height": OUTPUT[0], "width": OUTPUT[1]}
        return torch.inference_mode()(lambda: theirs([row])[0])
    ours = prepare(load(state, SALT)[0], Inference(torch.device("cpu"), batch_size=1))
    valid = torch.ones((1, *INPUT), dtype=torch.bool)
    return torch.inference_mode()(lambda: ours.decode(ours(pixels[None], valid), [OUTPUT])[0])


def assert_same(theirs: Any, ours: Any) -> None:
    assert len(theirs["instances"]) == len(ours.instances)
    ids, segments = theirs["panoptic_seg"]
    assert len(segments) == len(ours.panoptic.segments)
    assert int((ids != ours.panoptic.ids).sum()) <= 1e-3 * ids.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detectron2", type=Path)
    parser.add_argument("panoptic_fcn", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="write no file")
    parser.add_argument("--memory-of", choices=CONTENDERS, help="run this one alone and print its peak memory")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folders = (given.detectron2, given.panoptic_fcn)
    if given.memory_of:
        contender(given.memory_of, folders)()
        print(peak_resident_mib())
        return
    runs = {name: contender(name, folders) for name in CONTENDERS}
    assert_same(*(runs[name]() for name in CONTENDERS))
    seconds = alternate(runs, given.repeats, warmup=0)
    memory = {
        name: float(subprocess.check_output([sys.executable, *sys.argv, "--memory-of", name], text=True).split()[-1])
        for name in CONTENDERS
    }
    print(f"{seconds} s, {memory} MiB")
    ratios = {"time": seconds["ours"] / seconds["published"], "memory": memory["ours"] / memory["published"]}
    print(ratios)
    if not given.dry:
        facts = {"threads": given.threads, "input": INPUT, "output": OUTPUT}
        save("panoptic_fcn_speed", {**facts, "seconds": seconds, "peak_mib": memory, "ratio": ratios})


if __name__ == "__main__":
    main()
