"""convert, check and split with one job and with two, and how soon they start → results/preparing_speed.json.

    .venv/bin/python benchmarks/preparing_speed.py [--images 300] [--repeats 3] [--jobs 2] [--dry]

The set is drawn: photos of 640×480 (JPEG, their noise makes them as large as a camera's), COCO instances with polygons
and COCO panoptic with PNGs. convert reads the instances and writes COCO panoptic, once with the photos copied and once
hard-linked; check and split read the panoptic set. Every run is the whole command in a process of its own, its output
going nowhere; runs with one and with more jobs take turns, one processor core for each job. Images a second are of the
whole command, start included, and the ratio is that of its seconds.

Start-up: seconds of the clock and of the processor until `import pansight` is done, and until convert and check are at
the first line of work, which here is a folder that does not exist.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from common import save
from pq_sets import SETS, Side, regions_pair

CLI = ("-m", "pansight.apps.cli")
CLASSES, THINGS = 133, 80
STARTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "import pansight": (0, ("-c", "import pansight")),
    "convert": (2, (*CLI, "convert", "no such folder", "--to", "nowhere")),
    "check": (2, (*CLI, "check", "no such folder")),
}
"""What starts → its exit code, its words."""


# --- the set ----------------------------------------------------------------------------------------------------------


def draw(folder: Path, count: int) -> None:
    """folder/train with photos, annotations/instances_train.json (polygons) and the panoptic set beside it."""
    rng = np.random.default_rng(0)
    _, height, width, segments = SETS["hard"]
    (folder / "train").mkdir(parents=True)
    (folder / "annotations" / "panoptic_train").mkdir(parents=True)
    categories = [{"id": c + 1, "name": f"c{c}", "isthing": int(c < THINGS)} for c in range(CLASSES)]
    content: dict[str, list[Any]] = {"images": [], "instances": [], "panoptic": []}
    for number in range(count):
        side, _ = regions_pair(rng, height, width, segments)
        photo = np.stack([side.ids * k % 251 for k in (3, 7, 11)], -1) + rng.integers(0, 24, (height, width, 3))
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(folder / f"train/{number:06d}.jpg", quality=92)
        content["images"].append({"id": number, "file_name": f"{number:06d}.jpg", "height": height, "width": width})
        rgb = np.stack([side.ids % 256, side.ids // 256 % 256, side.ids // 65536], -1).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"annotations/panoptic_train/{number:06d}.png")
        rows = rows_of(side)
        content["panoptic"].append({"image_id": number, "file_name": f"{number:06d}.png", "segments_info": rows})
        things = [row for row in rows if row["category_id"] <= THINGS and not row["iscrowd"]]
        content["instances"] += [
            polygons(side, row, number, len(content["instances"]) + k) for k, row in enumerate(things)
        ]
    for name in ("instances", "panoptic"):
        kept = [c for c in categories if name == "panoptic" or c["isthing"]]
        record = {"images": content["images"], "annotations": content[name], "categories": kept}
        (folder / f"annotations/{name}_train.json").write_text(json.dumps(record))


def rows_of(side: Side) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, kind, crowd in zip(side.table.tolist(), side.classes.tolist(), side.crowd.tolist(), strict=True):
        y, x = np.nonzero(side.ids == number)
        if number and len(x):
            box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
            rows.append({"id": number, "category_id": kind, "area": len(x), "bbox": box, "iscrowd": int(crowd)})
    return rows


def polygons(side: Side, row: dict[str, Any], image: int, number: int) -> dict[str, Any]:
    """The outlines of a segment, as COCO instances have them."""
    mask = (side.ids == row["id"]).astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corners = [outline.ravel().tolist() for outline in outlines if len(outline) >= 3]
    if not corners:
        x, y, w, h = row["bbox"]
        corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {**row, "id": number + 1, "image_id": image, "segmentation": corners}


# --- the runs ---------------------------------------------------------------------------------------------------------


def commands(data: Path, out: Path) -> dict[str, list[str]]:
    """The command lines; each writes to a folder that is removed before it."""
    instances = str(data / "annotations" / "instances_train.json")
    return {
        "convert, photos copied": ["convert", instances, "--to", str(out)],
        "convert, photos linked": ["convert", instances, "--to", str(out), "--images", "hardlink"],
        "check": ["check", str(data)],
        "split": ["split", str(data), "--out", str(out)],
    }


def seconds(command: list[str], cores: int, code: int = 0) -> tuple[float, float]:
    """Of the clock and of the processor, for a command on so many cores that ends with the exit code `code`."""
    bound = ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([*bound, *command], capture_output=True, text=True)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != code:
        raise SystemExit(f"exit code {done.returncode} of {' '.join(command)}: {done.stdout}{done.stderr}")
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(folder: Path, images: int, repeats: int, jobs: int) -> list[dict[str, Any]]:
    data, out, rows = folder / "data", folder / "out", []
    for what, words in commands(data, out).items():
        times: dict[int, list[float]] = {1: [], jobs: []}
        for _ in range(repeats):
            for count, values in times.items():
                subprocess.run(["rm", "-rf", out], check=True)
                values.append(seconds([sys.executable, *CLI, *words, "--jobs", str(count)], count)[0])
        one, many = (statistics.median(values) for values in times.values())
        rows.append({"what": what, "one": images / one, "many": images / many, "ratio": one / many})
        print(rows[-1], flush=True)
    return rows


def started(repeats: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for what, (code, words) in STARTS.items():
        runs = [seconds([sys.executable, *words], 1, code) for _ in range(repeats + 1)][1:]  # the first fills the cache
        clock, processor = (statistics.median(values) for values in zip(*runs))
        rows.append({"what": what, "seconds": clock, "processor_seconds": processor})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="write no result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "data", arguments.images)
        starts = started(arguments.repeats)
        rows = measured(folder, arguments.images, arguments.repeats, arguments.jobs)
    if not arguments.dry:
        facts = {"images": arguments.images, "repeats": arguments.repeats, "jobs": arguments.jobs}
        save("preparing_speed", {**facts, "starts": starts, "rows": rows})


if __name__ == "__main__":
    main()
