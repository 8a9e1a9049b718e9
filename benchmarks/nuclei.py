"""Nuclei (dsb2018): Mask R-CNN and Panoptic FPN, trained by their recipes, measured on `val`.

Writes results/nuclei_MODEL.json. Each training stops after --minutes of wall-clock time, loading included; the final
evaluation of the 81 whole images comes on top and is reported apart. `--suffix _gpu --minutes 8 --set …` makes a
longer run on an accelerator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import DATA, save


def train_and_measure(model: str, data: Path, minutes: float, seed: int, extra: list[str]) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / model
        command = [
            sys.executable,
            "-m",
            "pansight.apps.cli",
            "train",
            "--recipe",
            f"nuclei/{model}",
            "--data",
            str(data),
        ]
        command += ["--out", str(out), "--train.max-minutes", str(minutes), "--train.seed", str(seed), *extra]
        subprocess.run(command, check=True)
        record = json.loads((out / "evaluation.json").read_text())
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    per_class = {row["name"]: row for row in record["per_class"].values()}
    nucleus, mask = per_class["nucleus"], record["instances"]["mask"]
    return {
        "model": model,
        "seed": seed,
        "steps": max(line["step"] for line in training),
        "training_seconds": max(line["time"] for line in training),
        "evaluation_seconds": record["seconds"],
        "pq_nucleus": 100 * nucleus["pq"],
        "sq_nucleus": 100 * nucleus["sq"],
        "rq_nucleus": 100 * nucleus["rq"],
        "pq_background": 100 * per_class["background"]["pq"],
        "pq": 100 * record["All"]["pq"],
        **{key: 100 * mask[key] for key in ("ap", "ap50", "ap75")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["mask_rcnn", "panoptic_fpn"])
    parser.add_argument("--data", type=Path, default=DATA / "dsb2018")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--suffix", default="", help="of the name of the result, e.g. _gpu")
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[], help="further options of pansight train")
    args = parser.parse_args()
    for model in args.models:
        runs = [train_and_measure(model, args.data, args.minutes, seed, args.set) for seed in args.seeds]
        what = "dsb2018 train (473) -> val (81 whole images)"
        save(f"nuclei_{model}{args.suffix}", {"what": what, "minutes": args.minutes, "runs": runs})


if __name__ == "__main__":
    main()
