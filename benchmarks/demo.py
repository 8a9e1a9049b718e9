"""The newcomer's demo, timed as a user would: `pansight demo`, several seeds → results/demo.json."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import save


def run(seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        start = time.perf_counter()
        command = [sys.executable, "-m", "pansight.apps.cli", "demo", "--out", str(out), "--seed", str(seed)]
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        record = json.loads((out / "evaluation.json").read_text())
        steps = max(json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines())
    per_class = {row["name"]: 100 * row["pq"] for row in record["per_class"].values()}
    row = {"seed": seed, "seconds": seconds, "steps": steps, **{k: 100 * record["All"][k] for k in ("pq", "sq", "rq")}}
    return {**row, **per_class}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    save(
        "demo",
        {"what": "pansight demo: 200 held-out shapes images, 2 threads, all told", "runs": [run(s) for s in seeds]},
    )


if __name__ == "__main__":
    main()
