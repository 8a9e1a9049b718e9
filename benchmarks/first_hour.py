"""A new user's first hour, command by command → results/first_hour.json: seconds, exit code, and the figure it gave.

    python benchmarks/first_hour.py [--only clock two_steps] [--minutes 2] [--keep FOLDER]

All data is generated (`first_hour_data.py`); no network is used. What is compared is said in a row's `expected`:
trainings that are given minutes reach at least 0.9 × the figure of as many steps in the same time; the default Panoptic
FPN trains at 10 images/s or more on 48 images of 64×64; everything else ends with the exit code that it should.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import merge_rows

Row = dict[str, Any]
THREADS = "2"


def pansight(place: Path, *words: str, code: int = 0) -> Row:
    """Run a command in `place`; its words, seconds and exit code, and the last line that it printed."""
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": THREADS, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pansight.apps.cli", *words], cwd=place, env=environment, capture_output=True, text=True
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    row = {"command": " ".join(["pansight", *words]), "seconds": round(time.perf_counter() - start, 1)}
    row |= {"code": done.returncode, "ok": done.returncode == code, "said": lines[-1][:300] if lines else ""}
    return row


def train(place: Path, *words: str) -> Row:
    return pansight(place, "train", *words, "--overwrite", "--train.trackers", "")


def figure(run: Path) -> float:
    """PQ, else mask AP, else box AP of a run, in percent."""
    record = json.loads((run / "evaluation.json").read_text())
    if "All" in record:
        return 100 * record["All"]["pq"]
    kinds = record["instances"]
    return 100 * (kinds.get("mask") or kinds["box"])["ap"]


def log(run: Path, kind: str) -> list[Row]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


# --- the steps -------------------------------------------------------------------------------------------------------


def look(place: Path, minutes: float) -> Iterator[Row]:
    """Checking, splitting and converting what a user has."""
    yield pansight(place, "models", "panoptic_fpn")
    yield pansight(place, "check", "blobs")
    yield pansight(place, "split", "blobs", "--out", "parts")
    yield pansight(place, "convert", "own", "--to", "own_panoptic", "--things", "all")
    yield pansight(place, "check", "own_panoptic")


def clock(place: Path, minutes: float) -> Iterator[Row]:
    """Trainings by the clock beside as many steps in the same time."""
    for model in ("faster_rcnn", "mask_rcnn"):
        words = ("--model", model, "--data", "blobs", "--train.evaluate-every", "0")
        row = train(place, *words, "--max-minutes", f"{minutes:g}", "--out", f"{model}_clock")
        by_clock = figure(place / f"{model}_clock")
        yield row | {"figure": by_clock, "name": "AP"}
        steps = log(place / f"{model}_clock", "train")[-1]["step"]
        row = train(place, *words, "--train.steps", f"{steps}", "--out", f"{model}_steps")
        by_steps = figure(place / f"{model}_steps")
        yield row | {"figure": by_steps, "name": "AP"}
        ratio = by_clock / by_steps if by_steps else 0.0
        yield {
            "command": f"{model}: {minutes:g} minutes by the clock / as many steps",
            "figure": ratio,
            "name": "ratio of AP",
            "expected": "≥ 0.9",
            "ok": ratio >= 0.9,
        }


def small(place: Path, minutes: float) -> Iterator[Row]:
    """The default model on few small images."""
    row = train(
        place, "--model", "panoptic_fpn", "--data", "small", "--max-minutes", f"{minutes:g}", "--out", "small_run"
    )
    speed = max(row["images_per_second"] for row in log(place / "small_run", "train"))
    yield row | {"figure": figure(place / "small_run"), "name": "PQ"}
    yield {
        "command": "its speed",
        "figure": speed,
        "name": "images/s",
        "expected": "≥ 10",
        "ok": speed >= 10,
    }


def two_steps(place: Path, minutes: float) -> Iterator[Row]:
    """DETR in two steps on data whose objects overlap, with 65 classes."""
    half = f"{minutes / 2:g}"
    row = train(place, "--recipe", "custom/detr_step2", "--data", "own", "--max-minutes", half, "--out", "detr_two")
    yield row | {"figure": figure(place / "detr_two"), "name": "PQ"}


def cityscapes(place: Path, minutes: float) -> Iterator[Row]:
    """The layout of Cityscapes as students train on it: one rate for all, a long side of 400, hidden layers."""
    words = ["--model", "detr_panoptic", "--data", "city", "--max-minutes", f"{minutes / 2:g}", "--out", "city_run"]
    words += ["--train.lr", "1e-4", "--train.backbone-lr-factor", "1", "--train.weight-decay", "1e-4"]
    words += ["--train.clip-norm", "0.1", "--train.batch-size", "4", "--model.options.long", "400"]
    words += ["--model.options.short", "200", "--model.options.class-hidden", "128,64", "--augment.crop", "0"]
    row = train(place, *words)
    yield row | {"figure": figure(place / "city_run"), "name": "PQ"}


def backbones(place: Path, minutes: float) -> Iterator[Row]:
    """The homework: three backbones, one comparison."""
    runs = ("resnet18", "mobilenetv3_small_100", "tf_efficientnet_lite0")
    for backbone in runs:
        words = ("--data", "small", "--backbone", backbone, "--max-minutes", f"{minutes / 4:g}", "--out", backbone)
        row = train(place, *words)
        yield row | {"figure": figure(place / backbone), "name": "PQ"}
    yield pansight(place, "compare", *runs, "--out", "backbones.html")


def use(place: Path, minutes: float) -> Iterator[Row]:
    """Predicting, measuring again, and mistakes; with the run of `small`."""
    if not (place / "small_run").is_dir():
        yield from small(place, min(minutes, 0.25))
    yield pansight(place, "predict", "small_run", "photos_nested", "--out", "p1")
    yield pansight(place, "predict", "small_run", "photos_hidden", "--out", "p2")
    yield pansight(place, "predict", "small_run", "photos_cut", "--out", "p3", code=1)
    yield pansight(place, "evaluate", "small_run", "--data", "small", "--out", "again", "--report", "again.html")
    yield pansight(place, "evaluate", "small_run", "--threshold", "0.9", code=2)  # would replace the run's own figures
    yield pansight(place, "train", "--data", "small", "--model.options.short", "abc", code=2)
    yield pansight(place, "train", "--data", "small", "--model", "maskfromer", code=2)


def line(row: Row) -> str:
    """For people: the command, its seconds and figure; where it went wrong, what was said or expected."""
    value = f"{row['name']} {row['figure']:.3g}" if "figure" in row else ""
    failed = "" if row["ok"] else f"  FAILED: {row.get('said', row.get('expected'))}"
    return f"{row['command']}  {row.get('seconds', '')}  {value}{failed}"


STEPS: dict[str, Callable[[Path, float], Iterator[Row]]] = {
    step.__name__: step for step in (look, clock, small, two_steps, cityscapes, backbones, use)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--minutes", type=float, default=2.0, help="of each training by the clock")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it")
    parser.add_argument("--dry", action="store_true", help="print only, write no file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = args.keep or Path(temporary)
        if not (place / "small").is_dir():
            from first_hour_data import generate

            generate(place)
        for name in args.only:
            rows = []
            for number, row in enumerate(STEPS[name](place, args.minutes)):
                rows.append({"step": name, "number": number, **row})
                print(line(row), flush=True)
            if not args.dry:
                merge_rows("first_hour", {"minutes": args.minutes}, rows, ("step", "number"))


if __name__ == "__main__":
    main()
