"""All systems on the same images, with the same backbone and budget → results/systems.json.

    python benchmarks/systems.py [--data shapes nuclei] [--only panoptic_fpn unet] [--minutes 8] [--threads 1]
                                 [--seeds 0] [--limit 0] [--photos 20] [--again] [--dry]

Each system is trained for --minutes by the clock, evaluations not counted, on generated shapes or on nuclei
(PANSIGHT_DATA/dsb2018), by its recipe for that data. A system without one gets the backbone, size, crops and batch of
the others, and chooses the rest from the data. Where a system needs two trainings, each has half of the time: a
proposer for Fast R-CNN, boxes before masks for DETR on shapes, two networks for the combined one.

Told are PQ of all, things and stuff, SQ, RQ, mIoU and AP as far as the system has them, its parameters, the median
seconds of a training step, the most memory of the training, and, in a process of its own, the median milliseconds from
a photo to its prediction and the memory of that process. Rows that stand in the file already are skipped unless
--again is given, so that a run that was cut short goes on. A system that fails is told, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from camvid import pansight
from common import DATA, RESULTS, merge_rows, peak_resident_mib
from pansight.apps.sweeping.grid import Run
from pansight.apps.sweeping.measures import put_together
from pansight.apps.sweeping.runs import COMBINED
from pansight.apps.sweeping.study import figure
from pansight.config import read_config, recipes
from pansight.models import MODELS, builder_options, decode_options
from systems_page import FIGURES

SYSTEMS = [name for name, entry in MODELS.items() if not entry.variant_of]
ORIGINAL = ("fcn_vgg16", "unet_original")
"""The first forms of two networks, whose backbones have no weights here: measured only where --only names them."""
RECIPES = {"detr": "detr_step1", "detr_panoptic": "detr_step2"}
"""Recipes on shapes that are not called like their system."""
TWO_STEPS = {("shapes", "detr_panoptic")}
"""Recipes that train twice by themselves, for the given time each."""
BACKBONE = "tf_efficientnet_lite0"
KEY = ("data", "system", "seed")
PARTS = ("mask_rcnn", "semantic_fpn")
"""The networks of the combined system."""


def sources(data: str) -> list[str]:
    """The images, the same for every system."""
    if data == "nuclei":
        return ["--data", str(DATA / "dsb2018"), "--data.options.thing", "nucleus"]
    size = [word for part in ("options", "validation_options") for word in _sized(part)]
    return ["--data", "shapes", *size, "--data.options.count", "20000", "--data.validation_options.seed", "1"]


def _sized(part: str) -> list[str]:
    count = ["--data.validation_options.count", "200"] if part == "validation_options" else []
    return [*count, f"--data.{part}.height", "128", f"--data.{part}.width", "128"]


def settings(data: str, system: str) -> list[str]:
    """The recipe of the system for this data; else its backbone and size, and the crops and batch of the recipes."""
    name = RECIPES.get(system, system) if data == "shapes" else system
    if f"{data}/{name}" in recipes():
        return ["--recipe", f"{data}/{name}"]
    words, known = ["--model", system], builder_options(system)
    if "backbone" in known and MODELS[system].backbone == "pyramid":
        words += ["--model.backbone", BACKBONE, "--model.pretrained", "packaged"]
    words += [word for key in ("short", "long") if key in known for word in (f"--model.options.{key}", "0")]
    if data == "nuclei":
        words += ["--augment.crop", "256", "--augment.scale", "0.7", "1.5", "--augment.hflip", "0.5"]
        words += ["--augment.vflip", "0.5", "--augment.rot90", "--evaluate.max-detections", "400"]
    return [*words, "--train.batch-size", "4" if data == "nuclei" else "8", "--train.evaluate-every", "0"]


class Training:
    """How the trainings of one row are run: everything but the system, the folder and the time."""

    def __init__(self, data: str, seed: int, threads: int, limit: int, photos: int):
        self.data, self.threads, self.photos = data, threads, photos
        self.given = [*sources(data), "--train.seed", str(seed), "--train.trackers", "", "--data.workers", "0"]
        self.given += ["--evaluate.limit", str(limit)]

    def train(self, system: str, out: Path, minutes: float, *more: str) -> None:
        task = decode_options(system).get("task")
        if task is not None and "all" in task.choices:  # objects, for AP, besides the panoptic map
            more = ("--evaluate.decode.task", "all", *more)
        words = (*settings(self.data, system), *self.given, "--max-minutes", f"{minutes:g}", "--out", str(out), *more)
        pansight("train", *words, threads=self.threads)


def train(run: Training, system: str, folder: Path, minutes: float) -> tuple[Path, Path, Path]:
    """(the run folder that tells of the training, the folder of the model, that of its evaluation)."""
    out, half = folder / "runs" / system, minutes / 2
    if system == "combined":
        for part in PARTS:
            run.train(part, folder / "runs" / part, half)
        put_together(folder, Run(system, system, 0, {}, PARTS))
        model = folder / COMBINED / system
        area = ("--evaluate.decode.min_stuff_area", "64")
        pansight("evaluate", str(model), "--out", str(out), *area, threads=run.threads)
        return folder / "runs" / PARTS[0], model, out
    if system == "fast_rcnn":
        run.train("faster_rcnn", folder / "proposer", half)
        run.train(system, out, half, "--model.options.proposer-weights", str(folder / "proposer"))
    else:
        run.train(system, out, half if (run.data, system) in TWO_STEPS else minutes)
    return out, out, out


def measure(run: Training, system: str, minutes: float) -> dict[str, Any]:
    """The row of one system, without what it is called by."""
    with tempfile.TemporaryDirectory() as temporary:
        trained, model, evaluated = train(run, system, Path(temporary), minutes)
        record = json.loads((evaluated / "evaluation.json").read_text())
        rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["kind"] == "train"]
        facts = json.loads((trained / "run.json").read_text())
        batch = read_config(trained / "config.toml").train.batch_size
        speeds = [row["images_per_second"] for row in rows if row.get("images_per_second")]
        found = {name: figure(record, name) for name in FIGURES}
        return {
            "steps": max(row["step"] for row in rows),
            "step_seconds": batch / statistics.median(speeds) if speeds else None,
            "training_mib": facts["memory_bytes"] / 2**20,
            "figures": {name: None if value is None else 100 * value for name, value in found.items()},
            **timed(model, run),
        }


def timed(model: Path, run: Training) -> dict[str, Any]:
    """Parameters, time of a prediction and memory, from a process of its own."""
    words = [sys.executable, __file__, "--time-model", str(model), "--data", run.data, "--threads", str(run.threads)]
    words += ["--photos", str(run.photos)]
    found = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(found.splitlines()[-1])


def time_model(model: Path, data: str, threads: int, count: int) -> dict[str, Any]:
    """Predict photos one by one, as a user does; the median leaves out the first, which prepares what is kept."""
    import torch

    import pansight as package
    from pansight.data import Shapes, open_dataset

    torch.set_num_threads(threads)
    predictor = package.load(model)
    photos = (
        Shapes(1 + count, 128, 128, split="val")
        if data == "shapes"
        else open_dataset(DATA / "dsb2018", split="val", thing="nucleus")
    )
    seconds: list[float] = []
    for index in range(1 + count):
        photo = photos[index].image
        start = time.perf_counter()
        predictor.predict(photo)
        seconds.append(time.perf_counter() - start)
    parameters = sum(parameter.numel() for parameter in predictor.model.parameters())
    return {
        "parameters": parameters,
        "inference_ms": 1000 * statistics.median(seconds[1:]),
        "inference_mib": peak_resident_mib(),
    }


def standing(facts: dict[str, Any]) -> bool:
    """Whether the file has this row already, of the same budget."""
    path = RESULTS / "systems.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return any(all(row.get(key) == value for key, value in facts.items()) for row in rows)


def run_all(data: Sequence[str], systems: Sequence[str], args: argparse.Namespace) -> list[str]:
    """Every system on every data; returns what failed."""
    failed: list[str] = []
    wanted = [(source, system, seed) for source in data for seed in args.seeds for system in systems]
    for source, system, seed in wanted:
        facts = {"data": source, "system": system, "seed": seed, "minutes": args.minutes, "threads": args.threads}
        facts |= {"limit": args.limit}
        if standing(facts) and not args.again:
            print(f"{source}: {system} stands already", flush=True)
            continue
        try:
            row = facts | measure(Training(source, seed, args.threads, args.limit, args.photos), system, args.minutes)
        except subprocess.CalledProcessError as error:
            failed.append(f"{source}: {system} ({error})")
            continue
        print(f"{source}: {json.dumps(row)}", flush=True)
        if not args.dry:
            merge_rows("systems", {"what": "all systems, one budget"}, [row], KEY)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=("shapes", "nuclei"), default=["shapes", "nuclei"])
    usual = [name for name in SYSTEMS if name not in ORIGINAL]
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=usual)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=int, default=0, help="measure on only so many images; 0: all")
    parser.add_argument("--photos", type=int, default=20, help="predicted for the time of one, after a first")
    parser.add_argument("--again", action="store_true", help="replace rows that stand in the file")
    parser.add_argument("--dry", action="store_true", help="print only, write no file")
    parser.add_argument("--time-model", type=Path, help="for the process that measures the time of a prediction")
    args = parser.parse_args()
    if args.time_model:
        print(json.dumps(time_model(args.time_model, args.data[0], args.threads, args.photos)))
        return 0
    failed = run_all(args.data, args.only, args)
    for line in failed:
        print(f"FAILED {line}", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
