"""Seconds and memory of the bootstrap: 10,000 resamples of 5,000 images with 133 classes, as large as COCO val2017.

    .venv/bin/python benchmarks/bootstrap.py

Every figure counts the whole call: drawing the images, scoring every resample (PQ, SQ, RQ of All, Things, Stuff and
each class), and the quantiles. The plain loop is what one would write: for each resample, the counts of the drawn
images are added with NumPy and scored by panopticapi's averaging, PQ alone; it is run for 100 resamples and stated for
10,000. One core, CPU seconds, medians. Memory is the peak of a process of its own, less what it held before the call.
Writes results/bootstrap.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pansight.metrics.bootstrap import bootstrap, paired_test
from pansight.metrics.bootstrap.segments import ImageCounts, segment_figures
from pansight.metrics.bootstrap.sums import SumFigures

IMAGES, CLASSES, THINGS, RESAMPLES, REPEATS = 5000, 133, 80, 10_000, 7
IS_THING = np.arange(CLASSES) < THINGS


def evaluation(skill: float, seed: int) -> ImageCounts:
    """A model on a truth with about 7 classes and 20 segments an image, rare classes included."""
    truth, rng = np.random.default_rng(0), np.random.default_rng(seed)
    share = np.geomspace(0.45, 0.004, CLASSES)[truth.permutation(CLASSES)]
    image, category = np.nonzero(truth.random((IMAGES, CLASSES)) < share)
    segments = np.where(category < THINGS, 1 + truth.poisson(2.5, len(image)), 1)
    ease = np.clip(skill + 0.2 * truth.standard_normal(IMAGES)[image], 0.02, 0.98)
    tp = rng.binomial(segments, ease).astype(np.float64)
    iou = tp * np.clip(0.65 + 0.2 * ease + 0.04 * rng.standard_normal(len(tp)), 0.51, 1)
    return ImageCounts(image, category, tp, rng.poisson(0.4, len(tp)).astype(np.float64), segments - tp, iou)


def of(counts: ImageCounts) -> SumFigures:
    return segment_figures(counts, IS_THING)


def plain_loop(counts: ImageCounts, resamples: int) -> np.ndarray:
    """PQ (All) of each resample, float64: the counts of the drawn images are looked up and added."""
    dense = np.zeros((IMAGES, CLASSES, 4))
    dense[counts.image, counts.category] = np.stack([counts.tp, counts.fp, counts.fn, counts.iou], axis=-1)
    rng = np.random.default_rng(0)
    scores = np.empty(resamples)
    for r in range(resamples):
        tp, fp, fn, iou = dense[rng.integers(0, IMAGES, IMAGES)].sum(axis=0).T
        weight = tp + fp / 2 + fn / 2
        scores[r] = np.mean(iou[weight > 0] / weight[weight > 0])
    return scores


def peak(evaluations: int) -> float:
    """MiB that a bootstrap of so many evaluations needs, and the test of the first two."""
    models = [evaluation(0.6 + 0.01 * k, k) for k in range(evaluations)]
    before = _resident("VmRSS")
    bootstrap([of(model) for model in models], IMAGES, RESAMPLES)
    if evaluations > 1:
        paired_test(of(models[0]), of(models[1]), IMAGES, RESAMPLES)
    return _resident("VmHWM") - before


def _resident(key: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most (the peak of getrusage is inherited from the parent)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def cpu_seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median CPU seconds after a warm-up, child processes included: other work on the machine must not count."""
    seconds: list[float] = []
    for _ in range(repeats + 1):
        start = os.times()[:4]
        run()
        seconds.append(sum(os.times()[:4]) - sum(start))
    return statistics.median(seconds[1:])


def write_evaluation(path: Path, counts: ImageCounts) -> None:
    """An evaluation.json for `pansight compare`."""
    sums = [np.bincount(counts.category, c, CLASSES) for c in (counts.tp, counts.fp, counts.fn, counts.iou)]
    rows = [{"name": f"class {c}", "isthing": c < THINGS} for c in range(CLASSES)]
    for c, row in enumerate(rows):
        row |= {"tp": int(sums[0][c]), "fp": int(sums[1][c]), "fn": int(sums[2][c]), "iou": sums[3][c]}
    table = {"image": counts.image.tolist(), "category": counts.category.tolist(), "iou": counts.iou.tolist()}
    table |= {key: getattr(counts, key).astype(int).tolist() for key in ("tp", "fp", "fn")}
    record = {
        "per_class": {str(c): row for c, row in enumerate(rows)},
        "image_ids": list(range(IMAGES)),
        "counts": table,
    }
    path.write_text(json.dumps(record))


def seconds_of_command() -> float:
    """`pansight compare` of two files, from the start of the process to its end."""
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / f"{k}.json" for k in range(2)]
        for k, file in enumerate(files):
            write_evaluation(file, evaluation(0.6 + 0.01 * k, k))
        command = [sys.executable, "-m", "pansight.apps.cli", "compare", *map(str, files), "--out", f"{name}/page.html"]
        return cpu_seconds(lambda: subprocess.run([*command, "--overwrite"], check=True, stdout=subprocess.DEVNULL))


def main() -> None:
    from common import save  # loads torch, which `peak` must not count

    one, two = evaluation(0.6, 0), evaluation(0.61, 1)
    runs = {
        "intervals of one evaluation": lambda: bootstrap([of(one)], IMAGES, RESAMPLES),
        "intervals of two and of their difference": lambda: bootstrap([of(one), of(two)], IMAGES, RESAMPLES),
        "p-values of every difference": lambda: paired_test(of(one), of(two), IMAGES, RESAMPLES),
    }
    rows = [{"what": what, "seconds": round(cpu_seconds(run), 2)} for what, run in runs.items()]
    rows.append({"what": "pansight compare of two files, whole command", "seconds": round(seconds_of_command(), 2)})
    plain = cpu_seconds(lambda: plain_loop(one, 100), 1) * RESAMPLES / 100
    rows.append({"what": "plain NumPy loop, PQ of one evaluation (from 100 resamples)", "seconds": round(plain, 1)})
    loop = plain_loop(one, 100)
    same = bootstrap([of(one)], IMAGES, 100)
    low, middle, high = np.quantile(loop, (0.025, 0.5, 0.975))  # the very same draws
    ends = float(same.value[0, 0, 0]) + np.array([low, high]) - middle
    script = str(Path(__file__).resolve())
    memory = [float(subprocess.check_output([sys.executable, script, "--peak", str(k)])) for k in (1, 2)]
    record = {
        "what": f"{RESAMPLES} resamples of {IMAGES} images, {CLASSES} classes, {len(one.image)} counts; one core, CPU",
        "target_seconds": 2.0,
        "repeats": REPEATS,
        "rows": rows,
        "pq": {k: round(float(getattr(same, k)[0, 0, 0]), 6) for k in ("value", "low", "high")},
        "largest_difference_to_float64_loop": float(np.abs(ends - [same.low[0, 0, 0], same.high[0, 0, 0]]).max()),
        "peak_MiB": {"one": round(memory[0]), "two, with p-values": round(memory[1])},
    }
    print(json.dumps(record, indent=1))
    save("bootstrap", record)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(peak(int(sys.argv[2])))
    elif os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # it is read once, when NumPy is loaded
        sys.exit(subprocess.call([sys.executable, *sys.argv], env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}))
    else:
        main()
