"""Semantic networks: ours beside torchvision's and segmentation_models_pytorch's → results/semantic_speed.json.

    python benchmarks/semantic_speed.py [--only fcn_r50 unet] [--settings float32] [--repeats 5] [--threads 2] [--dry]

The same weights from the same file, one image of 640×640, from uint8 pixels to the map of classes, in turns; the class
maps are equal. float32 is each library as it comes, and ours as `pansight predict` runs it (BatchNorm folded,
channels_last); fast is bfloat16 autocast with channels_last weights and inputs,
for both. Peak memory is that of a process of its own. Networks of segmentation_models_pytorch are passed over where it
is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import PAIRS, alternate, merge_rows, peak_resident_mib, ratio_row
from pansight.engine.infer import Inference, prepare
from pansight.nn.backbones.folding import folded
from pansight.weights import load_model

SIDE, CLASSES = 640, 21
SETTINGS = ("float32", "fast")
TORCHVISION = {"fcn_r50": "fcn_resnet50", "deeplabv3_r50": "deeplabv3_resnet50"}
SMP = {"unet": "Unet", "pspnet": "PSPNet", "deeplabv3plus": "DeepLabV3Plus"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo() -> Tensor:
    """uint8 (3, SIDE, SIDE), smooth under some noise."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, 3, 12, 12), generator=draw) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bicubic")[0]
    return (smooth + 10 * torch.randn((3, SIDE, SIDE), generator=draw)).clamp(0, 255).to(torch.uint8)


def their_model(name: str) -> Any:
    """The other library's network with weights drawn from a seed, in eval mode."""
    torch.manual_seed(0)
    if name in TORCHVISION:
        from torchvision.models import segmentation

        make = getattr(segmentation, TORCHVISION[name])
        return make(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True).eval()
    import segmentation_models_pytorch as smp

    return getattr(smp, SMP[name])("resnet50", encoder_weights=None, classes=CLASSES).eval()


def contender(who: str, name: str, setting: str, weights: Path) -> Callable[[], Tensor]:
    """What is timed: from the photo to its map of classes, int64 (SIDE, SIDE)."""
    image = photo()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    if who == "ours":
        # as `pansight predict` and `evaluate` run it: folded, and its weights channels_last in any setting
        model: Any = folded(prepare(load_model(weights)[0], Inference(torch.device("cpu"))))
    else:
        model = their_model(name)
        model.load_state_dict(torch.load(weights, weights_only=True))
    if setting == "fast":
        model.to(memory_format=torch.channels_last)
        image = image[None].contiguous(memory_format=torch.channels_last)[0]

    @torch.inference_mode()
    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if setting == "fast" else contextlib.nullcontext():
            if who == "ours":
                return model.decode(model(image[None]), [(SIDE, SIDE)])[0].semantic
            outputs = model((image[None].float() / 255 - mean) / std)
            return (outputs["out"] if name in TORCHVISION else outputs)[0].argmax(0)

    return run


def peak_mib(*job: str) -> float:
    """Peak resident memory of a process that does this job three times and nothing else."""
    command = [sys.executable, __file__, "--memory", *job]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure_memory(who: str, name: str, setting: str, weights: str) -> None:
    run = contender(who, name, setting, Path(weights))
    for _ in range(3):
        run()
    print(peak_resident_mib())


def rows_of(name: str, settings: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        torch.save(their_model(name).state_dict(), weights)
        runs = {
            (who, setting): contender(who, name, setting, weights) for setting in settings for who in ("theirs", "ours")
        }
        equal = {}
        for setting in settings:
            equal[setting] = float((runs["theirs", setting]() == runs["ours", setting]()).float().mean())
            assert setting == "fast" or equal[setting] > 0.999, f"{name}: {equal[setting]:.4f} of the pixels are equal"
        seconds = alternate(runs, repeats)
        mib = {job: peak_mib(job[0], name, job[1], str(weights)) for job in runs}
        beside = "torchvision" if name in TORCHVISION else "segmentation_models_pytorch"
        for pair in PAIRS:
            if set(pair) <= set(settings):
                ours, theirs = ("ours", pair[0]), ("theirs", pair[1])
                row = ratio_row(name, beside, pair, (seconds[ours], seconds[theirs]), (mib[ours], mib[theirs]))
                rows.append(row | {"equal_pixels": equal[pair[0]]})
    return rows


def main() -> None:
    there = importlib.util.find_spec("segmentation_models_pytorch") is not None
    names = [*TORCHVISION, *(SMP if there else ())]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="print only, write no file")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        measure_memory(*args.memory)
        return
    torch.set_num_threads(args.threads)
    for name in args.only:
        rows = rows_of(name, args.settings, args.repeats)
        for row in rows:
            print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}), flush=True)
        if not args.dry:
            merge_rows("semantic_speed", {"side": SIDE, "threads": args.threads}, rows)


if __name__ == "__main__":
    main()
