"""Panoptic quality from files beside panopticapi and hotcoco: pairs per second, peak memory, equal figures.

    PANOPTICAPI=CHECKOUT .venv/bin/python benchmarks/pq_speed.py [--repeats 5]

PANOPTICAPI: a checkout of cocodataset/panopticapi (it is on no registry); left out where it is not set. Every
contender runs in a process of its own, in turns; seconds are of reading both JSONs, scoring and averaging, after the
libraries are loaded. One core: the process is bound to one. Ours computes PQ, mIoU and PQ† (error analysis off).
Writes results/pq_speed.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import ROOT, save

FOLDER = ROOT / "runs" / "pq_sets"
TIMES = (1, 2, 4, 6, 8, 10)
"""The 500 pairs of `coco`, so many times over, are scored in one go for the curve of memory."""


def ours(folder: Path, cores: int) -> tuple[float, float]:
    from pansight.metrics.files.pairs import PanopticPairs
    from pansight.metrics.files.panoptic_json import PanopticFile
    from pansight.metrics.files.score import Figures, score
    from pansight.ops.maps.label_png import PairCounter, open_label_png

    def run(indices: range | None) -> float:
        truth = PanopticFile(folder / "gt.json")
        prediction = PanopticFile(folder / "pred.json", truth.labels)
        pairs = PanopticPairs(truth, folder / "gt", prediction, folder / "pred")
        return score(pairs, Figures(errors=False), indices, cores).record()["All"]["pq"]

    run(range(2))
    sides = [(folder / side / "000000.png").read_bytes() for side in ("gt", "pred")]
    PairCounter().count(*(open_label_png(data, "") for data in sides))  # loads the compiled code
    start = time.perf_counter()
    return run(None), time.perf_counter() - start


def panopticapi(folder: Path, cores: int) -> tuple[float, float]:
    sys.path.insert(0, os.environ["PANOPTICAPI"])
    from panopticapi import evaluation  # type: ignore[import-not-found]

    if cores == 1:  # its own single-core function, in this process
        evaluation.pq_compute_multi_core = lambda pairs, *rest: evaluation.pq_compute_single_core(0, pairs, *rest)
    paths = [str(folder / name) for name in ("gt.json", "pred.json", "gt", "pred")]
    start = time.perf_counter()
    result = evaluation.pq_compute(*paths)
    return float(result["All"]["pq"]), time.perf_counter() - start


def hotcoco(folder: Path, cores: int) -> tuple[float, float]:
    from hotcoco.panoptic import pq_compute

    paths = [str(folder / name) for name in ("gt.json", "pred.json", "gt", "pred")]
    start = time.perf_counter()
    result = pq_compute(*paths)
    return float(result["All"]["pq"]), time.perf_counter() - start


WHOLE_COMMAND = """
import sys
from pansight.apps.cli import main
code = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""
"""The command line, and what it held in memory at most."""

CONTENDERS = {"pansight": ours, "panopticapi": panopticapi, "hotcoco": hotcoco}


def peak(pid: str = "self") -> dict[str, float]:
    """MiB: the most a process had in memory, and what of it is its own now (not pages of library files)."""
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {"peak_mib": int(rows["VmHWM"].split()[0]) / 1024, "own_mib": int(rows["RssAnon"].split()[0]) / 1024}


def one(name: str, set_name: str, cores: int) -> None:
    """What a process of its own does: prints a JSON line."""
    with contextlib.redirect_stdout(io.StringIO()):
        pq, seconds = CONTENDERS[name](FOLDER / set_name, cores)
    print(json.dumps({"pq": pq, "seconds": seconds, **peak()}))


def run(name: str, set_name: str, cores: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, set_name, str(cores)]
    environment = os.environ | {"RAYON_NUM_THREADS": str(cores), "OMP_NUM_THREADS": "1"}
    bound = ["taskset", "-c", "0"] if cores == 1 else []
    done = subprocess.run([*bound, *command], capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def decoding(set_name: str) -> dict[str, float]:
    """Milliseconds a pair: inflating alone, both id maps, and everything, on one core."""
    import imagecodecs

    from pansight.ops.maps.label_png import PairCounter, decode_ids, open_label_png

    folder = FOLDER / set_name
    names = sorted(path.name for path in (folder / "gt").iterdir())[:100]
    pairs = [[open_label_png((folder / side / name).read_bytes(), name) for side in ("gt", "pred")] for name in names]
    counter = PairCounter()
    steps = {
        "inflate": lambda *pair: [
            imagecodecs.deflate_decode(png.packed, out=png.height * (png.width * 3 + 1)) for png in pair
        ],
        "decode to id maps": lambda a, b: (decode_ids(a), decode_ids(b)),
        "count pairs without maps": counter.count,
    }
    result: dict[str, float] = {}
    for what, step in steps.items():
        times: list[float] = []
        for _ in range(5):
            start = time.perf_counter()
            for a, b in pairs:
                step(a, b)
            times.append((time.perf_counter() - start) / len(pairs) * 1e3)
        result[what] = statistics.median(times)
    return result


def memory_curve() -> list[dict[str, float]]:
    """Seconds and peak MiB of the whole command for more and more pairs in one go; 5,000 are as many as COCO has."""
    from pq_sets import repeat_set

    rows: list[dict[str, float]] = []
    for times in TIMES:
        folder = repeat_set(FOLDER / "coco", FOLDER / f"coco_{times}", times)
        command = [sys.executable, "-c", WHOLE_COMMAND, "evaluate", "--no-errors", "--overwrite"]
        command += ["--gt", str(folder / "gt.json"), "--pred", str(folder / "pred.json")]
        command += ["--json", str(FOLDER / "figures.json")]
        start = time.perf_counter()
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds = time.perf_counter() - start
        rows.append({"pairs": 500 * times, "seconds": seconds, "peak_mib": int(said.split()[-2]) / 1024})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", nargs=3)
    arguments = parser.parse_args()
    if arguments.one:
        name, set_name, cores = arguments.one
        one(name, set_name, int(cores))
        return
    from pq_sets import SETS, write_set

    for name in SETS:
        write_set(name, FOLDER)
    names = [name for name in CONTENDERS if name != "panopticapi" or "PANOPTICAPI" in os.environ]
    rows: list[dict[str, Any]] = []
    for set_name, (count, *_) in SETS.items():
        for cores in (1, os.cpu_count() or 1):
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            for turn in range(arguments.repeats + 1):  # the first turn warms the file cache
                for name in names:
                    result = run(name, set_name, cores)
                    if turn:
                        runs[name].append(result)
            rate = {name: count / statistics.median(r["seconds"] for r in runs[name]) for name in names}
            for name in names:
                rows.append(
                    {
                        "set": set_name,
                        "cores": cores,
                        "tool": name,
                        "pairs_per_second": rate[name],
                        "ours_over_it": rate["pansight"] / rate[name],
                        "peak_mib": max(r["peak_mib"] for r in runs[name]),
                        "own_mib": max(r["own_mib"] for r in runs[name]),
                        "pq": runs[name][0]["pq"],
                    }
                )
                print(rows[-1], flush=True)
    steps = {name: decoding(name) for name in SETS}
    save("pq_speed", {"repeats": arguments.repeats, "rows": rows, "milliseconds": steps, "curve": memory_curve()})


if __name__ == "__main__":
    main()
