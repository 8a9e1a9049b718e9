"""Published comparisons repeated at small scale, by `pansight study` itself → results/studies.json.

    python benchmarks/studies.py kernel_fusion upsnet_head [--folder runs/studies] [--seeds 1]

Each study trains for its own time, on generated shapes; kept is what its table says, ours beside the published rows. A
second call goes on in the folder. With benchmarks/processor_clock on PYTHONPATH and one thread the minutes are those of
the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from camvid import pansight
from common import merge_rows
from pansight.apps.sweeping.plan import read_plan


def measure(study: str, folder: Path, seeds: int, threads: int) -> dict[str, Any]:
    """The study's table, from its comparison.json: figures are shares of 1."""
    words = ["--seeds", str(seeds), "--jobs", "1", "--data.workers", "0", "--train.trackers", "", "--out", str(folder)]
    pansight("study", study, *words, threads=threads)
    comparison = json.loads((folder / "comparison.json").read_text())
    told, minutes = comparison["study"], read_plan(folder)[0].settings["train.max_minutes"]
    rows = [
        {
            "name": row["name"],
            "ours": {
                key: value and {"mean": value["mean"], "spread": value["spread"]} for key, value in row["ours"].items()
            },
            "published": row["published"],
        }
        for row in told["rows"]
    ]
    facts = {"study": study, "title": told["title"], "columns": told["columns"], "minutes": minutes, "seeds": seeds}
    return {**facts, "images": comparison["images"], "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+")
    parser.add_argument("--folder", type=Path, default=Path("runs/studies"))
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    for study in args.studies:
        merge_rows(
            "studies", {"threads": threads}, [measure(study, args.folder / study, args.seeds, threads)], ("study",)
        )


if __name__ == "__main__":
    main()
