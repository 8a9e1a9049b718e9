"""Panoptic FPN as it is chosen for a CPU beside its published widths → results/cpu_defaults.json.

Both train for --minutes with everything else chosen alike, once for each seed, and are measured on images never seen.
With --steps they train for as many steps instead, whatever these take: the published widths need hours for thousands.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import save
from pansight.models import builder_options, entry

MODEL, IMAGES, SIDE = "panoptic_fpn", 48, 64


def variants() -> dict[str, dict[str, Any]]:
    """Options of the model: none, so that the small ones are chosen; or the defaults of all that would be chosen."""
    known = builder_options(MODEL)
    return {"chosen": {}, "published widths": {name: known[name] for name in entry(MODEL).small}}


def train(name: str, options: dict[str, Any], seed: int, length: dict[str, Any], unseen: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        settings: dict[str, Any] = {"data.options.count": IMAGES, "train.seed": seed, **length}
        settings |= {"data.options.height": SIDE, "data.options.width": SIDE, "data.validation_options.count": unseen}
        settings |= {"train.evaluate_every": 0, "train.trackers": "", "train.log_every": 1}
        settings |= {f"model.options.{key}": value for key, value in options.items()}
        flags = [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", str(value))]
        command = [sys.executable, "-m", "pansight.apps.cli", "train", "--model", MODEL, "--data", "shapes"]
        subprocess.run([*command, "--out", str(out), *flags], check=True)
        record = json.loads((out / "evaluation.json").read_text())
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [line for line in lines if line["kind"] == "train"]
    rate = statistics.median(row["images_per_second"] for row in rows)
    figures = {f"pq_{group.lower()}": 100 * record[group]["pq"] for group in ("All", "Things", "Stuff")}
    return {"what": name, "seed": seed, "steps": rows[-1]["step"], "images_per_second": rate, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--unseen", type=int, default=200, help="images to measure on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    length = {"train.steps": args.steps} if args.steps else {"train.max_minutes": args.minutes}
    runs = [
        train(name, options, seed, length, args.unseen) for seed in args.seeds for name, options in variants().items()
    ]
    what = f"{MODEL}, {IMAGES} generated shapes of {SIDE}×{SIDE}, {args.unseen} images never seen"
    save("cpu_defaults", {"what": what, "length": length, "runs": runs})


if __name__ == "__main__":
    main()
