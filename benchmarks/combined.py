"""Mask R-CNN and PSPNet, trained apart and put together → results/combined.json: the rows of the original study.

    python benchmarks/combined.py [--minutes 5] [--seeds 0]

Each is trained on generated shapes by its recipe for --minutes of wall-clock time, `pansight combine` puts them
together, and `pansight evaluate` measures both rows on 200 images never seen: of the two networks each on its own
("machine-separate"), and of what the heuristic merge makes of them ("machine-panoptic").
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from camvid import pansight
from common import merge_rows

PARTS = {"instances": "mask_rcnn", "semantic": "pspnet"}


def measure(folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    for model in PARTS.values():
        words = ("--recipe", f"shapes/{model}", "--out", str(folder / model), "--train.trackers", "")
        pansight("train", *words, "--max-minutes", f"{minutes:g}", "--train.seed", str(seed))
    both, figures = folder / "both", folder / "figures"
    runs = (word for side, model in PARTS.items() for word in (f"--{side}", str(folder / model)))
    pansight("combine", *runs, "--out", str(both))
    unseen = ("--data.options.count", "200", "--data.options.seed", "1", "--part", "val")
    pansight("evaluate", str(both), "--data", "shapes", *unseen, "--out", str(figures))
    record = json.loads((figures / "evaluation.json").read_text())
    rows = {
        f"{row}_{key}": None if value is None else 100 * value
        for row, figures_of_row in record["machine"].items()
        for key, value in figures_of_row.items()
    }
    return {"seed": seed, "minutes": minutes, **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each of the two trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(Path(folder), args.minutes, seed)
        merge_rows("combined", {"what": "Mask R-CNN + PSPNet, 200 generated shapes"}, [row], ("seed", "minutes"))


if __name__ == "__main__":
    main()
