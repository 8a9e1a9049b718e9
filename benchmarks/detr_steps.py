"""DETR-panoptic in two steps on generated shapes by its recipe, measured after each → results/detr_steps.json.

`pansight train --recipe shapes/detr_step2` runs both: boxes first, then masks beside the frozen detector. Each step
stops after --minutes. Measured on 200 images never seen: box AP of things after the first, PQ after the second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import save

RECIPE = "shapes/detr_step2"


def figures(step: int, out: Path) -> dict[str, Any]:
    """Of the run in the folder `out`."""
    record = json.loads((out / "evaluation.json").read_text())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    row = {
        "step": step,
        "optimizer_steps": max(line["step"] for line in training),
        "training_seconds": max(line["time"] for line in training),
    }
    if "instances" in record:
        row |= {f"box_{key}": 100 * record["instances"]["box"][key] for key in ("ap", "ap50", "ap75")}
    for group in ("All", "Things", "Stuff"):
        if group in record:
            row |= {f"{key}_{group.lower()}": 100 * record[group][key] for key in ("pq", "sq", "rq")}
    return row


def train_and_measure(minutes: float, seed: int, extra: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "two"
        command = [sys.executable, "-m", "pansight.apps.cli", "train", "--recipe", RECIPE, "--out", str(out)]
        command += ["--max-minutes", str(minutes), "--train.seed", str(seed), *extra]
        subprocess.run(command, check=True)
        return {"seed": seed, "steps": [figures(1, out / "first"), figures(2, out)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12.0, help="of each step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[], help="further options of pansight train")
    args = parser.parse_args()
    runs = [train_and_measure(args.minutes, seed, args.set) for seed in args.seeds]
    what = "generated shapes 96×96, 200 images never seen"
    save("detr_steps", {"what": what, "minutes_per_step": args.minutes, "runs": runs})


if __name__ == "__main__":
    main()
