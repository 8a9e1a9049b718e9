"""Panoptic FCN and Panoptic-DeepLab: ours beside their published code → results/detectron2_speed.json.

    python benchmarks/detectron2_speed.py <detectron2's folder> <PanopticFCN's folder> [--repeats 5] [--threads 1]

Inference in float32 on the CPU, same weights and image, in turns, from pixels to objects and panoptic map: Panoptic FCN
R50 from 800×1216 to 480×730, Panoptic-DeepLab R52 (plain and with separable convolutions) at 512×1024. Checkouts and
packages are those that tests/golden/panoptic_fcn/make_panoptic_fcn.py needs; detectron2's deformable convolution, which
has no code for the CPU, is torchvision's. Weights are the ones of the golden numbers, with which both find the same
objects. Ours runs as `pansight predict` runs it, with BatchNorm folded into convolutions. "ours fast" is the same in
bfloat16 autocast; the share of pixels that stay with the same segment as in float32 is told, and is low where random
weights give many classes nearly equal chances. On one thread its time on the processor is counted. Peak memory is that
of a process for each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common import ROOT, alternate, peak_resident_mib, save
from pansight.engine.infer import Inference, prepare
from pansight.nn.backbones.folding import folded
from pansight.weights.official.panoptic import panoptic_deeplab, panoptic_fcn

GOLDEN = ROOT / "tests" / "golden"
sys.path += [str(GOLDEN), str(GOLDEN / "panoptic_fcn")]
import fixed_panoptic_deeplab  # noqa: E402
import make_panoptic_deeplab  # noqa: E402
import make_panoptic_fcn  # noqa: E402
from fixed import detectron2_weights, photo, twice  # noqa: E402


class Case(NamedTuple):
    """input, output: (H, W) of the network and of what is decoded. kind: by which weights and photo are drawn."""

    input: tuple[int, int]
    output: tuple[int, int]
    kind: str


CASES = {
    "Panoptic FCN R50": Case((800, 1216), (480, 730), "panoptic_fcn_r50"),
    "Panoptic-DeepLab R52": Case((512, 1024), (512, 1024), "plain"),
    "Panoptic-DeepLab R52, separable": Case((512, 1024), (512, 1024), "separable"),
}
CONTENDERS = ("published", "ours", "ours fast")


def image(case: Case) -> Tensor:
    """uint8 (3, H, W) RGB."""
    small = twice(photo(0, case.kind))[None].float()
    return torch.nn.functional.interpolate(small, case.input, mode="bilinear")[0].round().to(torch.uint8)


def state_of(case: Case) -> dict[str, Tensor]:
    """The weights of the golden numbers."""
    if case.kind == "panoptic_fcn_r50":
        with np.load(GOLDEN / "panoptic_fcn" / "r50.npz") as file:
            return detectron2_weights(case.kind, dict(file))
    with np.load(GOLDEN / "detectron2_panoptic_deeplab.npz") as file:
        return fixed_panoptic_deeplab.weights(case.kind, dict(file))


def contender(name: str, case: Case, folders: tuple[Path, Path]) -> Callable[[], Any]:
    state, pixels = state_of(case), image(case)
    if name == "published":
        make_panoptic_fcn.use(*folders)
        is_fcn = case.kind == "panoptic_fcn_r50"
        theirs = make_panoptic_fcn.network(folders[1], "r50") if is_fcn else deeplab_of_detectron2(case, folders[0])
        theirs.eval().load_state_dict(state)
        # Panoptic FCN's configuration takes BGR, Panoptic-DeepLab's RGB
        row = {"image": pixels.flip(0) if is_fcn else pixels, "height": case.output[0], "width": case.output[1]}
        return torch.inference_mode()(lambda: theirs([row])[0])
    load = panoptic_fcn.load if case.kind == "panoptic_fcn_r50" else panoptic_deeplab.load
    ours: Any = folded(prepare(load(state, case.kind)[0], Inference(torch.device("cpu"), batch_size=1)))
    valid = torch.ones((1, *case.input), dtype=torch.bool)

    @torch.inference_mode()
    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "ours fast"):
            return ours.decode(ours(pixels[None], valid), [case.output])[0]

    return run


def deeplab_of_detectron2(case: Case, checkout: Path) -> Any:
    """With the pooling of the crops that it is trained on, which are as large as the image here."""
    reader = types.ModuleType("panopticapi.utils")  # imported by its data loader, never called here
    reader.__dict__["rgb2id"] = None
    sys.modules |= {"panopticapi": types.ModuleType("panopticapi"), reader.__name__: reader}
    make_panoptic_deeplab.CASES[case.kind] = make_panoptic_deeplab.CASES[case.kind]._replace(crop=case.input)
    return make_panoptic_deeplab.network(checkout, case.kind)[0]


def assert_same(theirs: Any, ours: Any) -> None:
    """Objects and map, but for pixels of equal chances."""
    assert len(theirs["instances"]) == len(ours.instances)
    ids, segments = theirs["panoptic_seg"]
    void = 0 if segments is not None else -1  # Panoptic-DeepLab's ids are 1000 times the class, which may be 0
    assert len(ids[ids != void].unique()) == len(ours.panoptic.segments)
    assert kept(ids, ours.panoptic.ids) >= 0.995  # with random weights, many pixels have nearly equal chances


def kept(ids: Tensor, others: Tensor) -> float:
    """Share of the pixels that belong, of their segment in `ids`, to its largest piece in `others`."""
    pairs = torch.stack((ids.flatten().long(), others.flatten().long())).unique(dim=1, return_counts=True)
    most: dict[int, int] = {}  # pixels of each segment in the one of `others` that has most of them
    for (segment, _), pixels in zip(pairs[0].T.tolist(), pairs[1].tolist(), strict=True):
        most[segment] = max(most.get(segment, 0), pixels)
    return sum(most.values()) / ids.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectron2", type=Path)
    parser.add_argument("panoptic_fcn", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="write no file")
    parser.add_argument(
        "--memory-of", nargs=2, metavar=("CONTENDER", "CASE"), help="run this one alone, print its peak"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folders = (given.detectron2, given.panoptic_fcn)
    if given.memory_of:
        contender(given.memory_of[0], CASES[given.memory_of[1]], folders)()
        print(peak_resident_mib())
        return
    clock = time.process_time if given.threads == 1 else time.perf_counter
    rows: list[dict[str, Any]] = []
    for name, case in CASES.items():
        runs = {each: contender(each, case, folders) for each in CONTENDERS}
        theirs, ours, fast = (runs[each]() for each in CONTENDERS)
        assert_same(theirs, ours)
        seconds = alternate(runs, given.repeats, warmup=0, clock=clock)
        memory = {
            each: float(
                subprocess.check_output([sys.executable, *sys.argv, "--memory-of", each, name], text=True).split()[-1]
            )
            for each in CONTENDERS
        }
        ratio = {
            each: {"time": seconds[each] / seconds["published"], "memory": memory[each] / memory["published"]}
            for each in CONTENDERS[1:]
        }
        row = {"case": name, "input": case.input, "seconds": seconds, "peak_mib": memory, "ratio": ratio}
        rows.append(row | {"kept_fast": kept(ours.panoptic.ids, fast.panoptic.ids)})
        print(rows[-1], flush=True)
    if not given.dry:
        save("detectron2_speed", {"threads": given.threads, "rows": rows})


if __name__ == "__main__":
    main()
