"""What helps a rare class: the studies of rare classes → results/rare_classes.json.

    python benchmarks/rare_classes.py [--study rare_shapes rare_camvid] [--folder runs/rare] [--seeds 3] [--minutes M]

The sweep itself trains all variants, each with several seeds (`pansight sweep studies/NAME`); a folder that is given
stays, and a second call goes on in it. Told are the IoU of each rare class and mIoU, mean and standard deviation over
the seeds, and the gain of each variant over none, seed by seed. CamVid is converted as in camvid.py. Images are read in
the process that trains, so that beside other work the minutes can be counted by the processor (see processor_clock).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from camvid import convert, pansight
from common import merge_rows
from pansight.apps.sweeping.plan import read_plan

RARE = {"rare_shapes": ("triangle",), "rare_camvid": ("pole", "sign", "pedestrian", "bicyclist")}


def figures(run: Path, rare: Sequence[str]) -> dict[str, float]:
    """mIoU, the mean of the rare classes and the IoU of each, in percent. A class that is never predicted has 0."""
    semantic = json.loads((run / "evaluation.json").read_text())["semantic"]
    iou = {row["name"]: 100 * row["iou"] for row in semantic["per_class"].values() if row["name"] in rare}
    return {"miou": 100 * semantic["miou"], "rare": statistics.mean(iou.values()), **iou}


def rows(study: str, folder: Path) -> list[dict[str, Any]]:
    """A row for each variant: figure → {mean, deviation, gain over none: one for each seed}."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    minutes = read_plan(folder)[0].settings["train.max_minutes"]
    for run in json.loads((folder / "runs.json").read_text()):
        found.setdefault(run["variant"], {})[run["seed"]] = figures(folder / "runs" / run["name"], RARE[study])
    none = next(seeds for variant, seeds in found.items() if variant.endswith("none"))
    made = []
    for variant, seeds in found.items():
        row: dict[str, Any] = {"study": study, "variant": variant, "minutes": minutes, "seeds": sorted(seeds)}
        for key in ("rare", "miou", *RARE[study]):
            values = [seeds[seed][key] for seed in sorted(seeds)]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            gains = [seeds[seed][key] - none[seed][key] for seed in sorted(seeds)]
            row[key] = {"mean": statistics.mean(values), "deviation": deviation, "gains": gains}
        made.append(row)
    return made


def run_study(study: str, folder: Path, seeds: int, minutes: float, data: Sequence[str]) -> None:
    words = ["--seeds", str(seeds), "--jobs", "1", "--data.workers", "0", "--train.trackers", "", *data]
    words += ["--train.max-minutes", f"{minutes:g}"] if minutes else []
    pansight("sweep", f"studies/{study}", "--out", str(folder), *words)
    merge_rows("rare_classes", {}, rows(study, folder), key=("study", "variant"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", nargs="+", choices=RARE, default=list(RARE))
    parser.add_argument("--folder", type=Path, help="keep the sweeps there; default: a temporary folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0.0, help="of each training; default: those of the study")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for study in args.study:
            data: list[str] = []
            if study == "rare_camvid":
                if not (folder / "camvid").exists():
                    convert(folder / "camvid")
                data = ["--data", str(folder / "camvid")]
            run_study(study, folder / study, args.seeds, args.minutes, data)


if __name__ == "__main__":
    main()
