"""The semantic networks on CamVid, one budget for all → results/camvid.json: mIoU and the IoU of each class.

    python benchmarks/camvid.py [--models fcn unet] [--minutes 15] [--threads 1] [--seeds 0] [--dry]

Photos and masks (PANSIGHT_DATA/camvid, 11 classes, value 11 is void) are converted once. Each training follows its
recipe ``camvid/NAME`` and stops after --minutes of wall-clock time, of --threads threads: with one thread these are
minutes of the processor. The figures are those of the validation part.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import DATA, merge_rows
from pansight.config import recipes

CLASSES = "sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist"
MODELS = [name.removeprefix("camvid/") for name in recipes() if name.startswith("camvid/")]


def pansight(*words: str, threads: int = 0) -> None:
    """Run a command; threads: of the libraries that compute, 0 as they choose."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    subprocess.run([sys.executable, "-m", "pansight.apps.cli", *words], check=True, env=environment)


def convert(to: Path) -> None:
    options = ("--option.ignore", "11", "--option.classes", CLASSES)
    pansight("convert", str(DATA / "camvid"), "--to", str(to), "--from", "semantic_png", "--things", "none", *options)


def train(model: str, data: Path, minutes: float, threads: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = ("--recipe", f"camvid/{model}", "--data", str(data), "--out", str(out), "--train.trackers", "")
        pansight("train", *words, "--max-minutes", f"{minutes:g}", "--train.seed", str(seed), threads=threads)
        record = json.loads((out / "evaluation.json").read_text())
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    semantic = record["semantic"]
    return {
        "model": model,
        "seed": seed,
        "minutes": minutes,
        "threads": threads,
        "steps": max(line["step"] for line in lines if line["kind"] == "train"),
        "miou": 100 * semantic["miou"],
        "iou": {row["name"]: 100 * row["iou"] for row in semantic["per_class"].values()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--dry", action="store_true", help="print only, write no file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "camvid"
        convert(data)
        for model in args.models:
            for seed in args.seeds:
                row = train(model, data, args.minutes, args.threads, seed)
                print(f"{model:16s} seed {seed}: mIoU {row['miou']:.1f} after {row['steps']} steps", flush=True)
                if not args.dry:
                    merge_rows("camvid", {"what": "CamVid, 367 images → 101"}, [row], ("model", "seed"))


if __name__ == "__main__":
    main()
