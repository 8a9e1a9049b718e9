"""Two versions of the code, before and after a change, in turns → results/before_after.json and a table of ratios.

    python benchmarks/before_after.py [BEFORE [AFTER]] [--only transformer_speed/detr loader] [--rounds 5] [--dry]

BEFORE, AFTER: a checkout's folder or a git revision; HEAD and this checkout, with what is not committed, if left out.
Every case is a part of another benchmark, our side of it alone, in a process of its own that runs that version's `src`
and `benchmarks` on data that the version before has prepared. A round is one process of each version, the first of them
in turn; the ratio is after / before, the median over the rounds, beside the least and the greatest. Peak memory is that
of the process. Each case is written as soon as it is measured, in place of its earlier figures. `--list` names the
cases; `--only` takes their beginnings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOISE = 0.05
"""By how much a ratio may pass 1 in one run."""

Runs = dict[str, Callable[[], Any]]
SETTINGS = ("float32", "fast")
SPEED = ("detr", "mask2former_r50", "mask2former_swin_tiny", "eomt", "maskformer")
TRAINING = ("mask2former_swin_tiny", "detr", "eomt", "maskformer")
CASES = (
    *(f"rcnn_speed/{what}/{setting}" for what in ("inference", "training") for setting in SETTINGS),
    *(f"transformer_speed/{name}/{setting}" for name in SPEED for setting in SETTINGS),
    *(f"transformer_training/{name}/{setting}" for name in TRAINING for setting in SETTINGS),
    *(f"fusion_speed/{case}" for case in ("20 kept, 480x640", "20 kept, 1024x2048", "50 kept, 1024x2048")),
    "pq_speed/coco",
    "loader/pairs",
    "bootstrap/intervals",
)


# --- in the process of one version: modules come from its benchmarks -------------------------------------------------


def prepare(case: str, folder: Path) -> None:
    """What both versions read, written once."""
    name, *words = case.split("/")
    module = import_module(name)
    if name == "rcnn_speed":
        import torch

        state = module.torchvision_model(module.SIDES[words[0]]).state_dict()
        torch.save(state, folder / f"{words[0]}.pt")
    elif name == "transformer_speed":
        import torch

        drawn = module.hf_models.scene(*module.JOBS[words[0]][0], module.hf_models.KEPT - 1, seed=1)
        module.hf_models.save(words[0], drawn, folder)
        torch.save(drawn.image, folder / "image.pt")
    elif name == "transformer_training":
        module.save(words[0], folder)
    elif name == "pq_speed":
        import_module("pq_sets").write_set(words[0], folder)
    elif name == "loader":
        module.write_data(folder)


def runs_of(case: str, folder: Path) -> Runs:
    """What is timed, by name; each run is the same work again."""
    name, *words = case.split("/")
    module = import_module(name)
    if name == "rcnn_speed":
        return {words[0]: module.JOBS[words[0]]("ours", words[1], folder)}
    if name == "transformer_speed":
        import torch

        image = torch.load(folder / "image.pt", weights_only=True)
        runs = module.ours(words[0], words[1], folder, image, "cpu")
        return {"network": runs.network, "whole": runs.whole}
    if name == "transformer_training":
        return {"step": module.step(words[0], "ours", words[1], folder, "cpu")}
    if name == "fusion_speed":
        return {key: run for key, run in module.contenders(*module.CASES[words[0]]).items() if "fuse" in key}
    if name == "pq_speed":
        return {"score": lambda: module.ours(folder / words[0], 1)}
    if name == "loader":
        batch = module.ours(folder)
        return {"pass": lambda: [batch(step) for step in range(module.IMAGES // module.BATCH)]}
    one, two = module.evaluation(0.6, 0), module.evaluation(0.61, 1)
    facts = (module.IMAGES, module.RESAMPLES)
    figures = getattr(module, "of", None)
    if figures is None:  # before mIoU and AP had intervals, which classes are things was an argument of its own
        facts = (module.IS_THING, *facts)
    else:
        one, two = figures(one), figures(two)
    return {
        "one": lambda: module.bootstrap([one], *facts),
        "difference": lambda: module.bootstrap([one, two], *facts),
        "p-values": lambda: module.paired_test(one, two, *facts),
    }


def measure(case: str, folder: Path, repeats: int, threads: int) -> dict[str, Any]:
    """Median milliseconds of each run, and the peak memory of this process in MiB."""
    if not case.startswith("bootstrap"):  # which needs no torch, and whose memory should not count it
        import torch

        torch.set_num_threads(1 if case.startswith("loader") else threads)
    ms: dict[str, float] = {}
    for name, run in runs_of(case, folder).items():
        seconds: list[float] = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        ms[name] = 1000 * statistics.median(seconds[1:])
    # VmHWM, not getrusage: the latter starts at what the parent process had when it forked
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"ms": ms, "mib": int(status["VmHWM"].split()[0]) / 1024}


# --- in the process that compares ------------------------------------------------------------------------------------


@contextlib.contextmanager
def checkout(version: str) -> Iterator[Path]:
    """The folder of a version; of a git revision a work tree, for as long as it is needed."""
    if Path(version).is_dir():
        yield Path(version).resolve()
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkout"
        subprocess.run([*git, "add", "--detach", str(folder), version], check=True, stdout=subprocess.DEVNULL)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def commit_of(folder: Path) -> str:
    """The commit, with a + where files differ from it."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def child(version: Path, *words: str) -> str:
    """This script in a process that finds the modules of `version`."""
    # -P: the folder of this script, which is first otherwise, may belong to the other version
    paths = os.pathsep.join([str(version / "src"), str(version / "benchmarks")])
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", __file__, *words]
    return subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout


def compare(case: str, versions: Sequence[Path], rounds: int, repeats: int, threads: int) -> list[dict[str, Any]]:
    """One row for each run of a case that both versions have."""
    found: list[list[dict[str, Any]]] = [[], []]
    with tempfile.TemporaryDirectory() as folder:
        child(versions[0], "--prepare", case, folder)
        for turn in range(rounds):
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                words = ("--measure", case, folder, "--repeats", str(repeats), "--threads", str(threads))
                found[side].append(json.loads(child(versions[side], *words).splitlines()[-1]))
    mib = [statistics.median(one["mib"] for one in side) for side in found]
    rows: list[dict[str, Any]] = []
    for name in found[0][0]["ms"]:
        if name not in found[1][0]["ms"]:
            continue
        before, after = ([one["ms"][name] for one in side] for side in found)
        ratios = [b / a for a, b in zip(before, after, strict=True)]
        rows.append(
            {
                "case": case,
                "what": name,
                "before_ms": statistics.median(before),
                "after_ms": statistics.median(after),
                "ratio": statistics.median(ratios),
                "ratios": [min(ratios), max(ratios)],
                "before_mib": mib[0],
                "after_mib": mib[1],
                "memory_ratio": mib[1] / mib[0],
            }
        )
    return rows


def line(row: dict[str, Any]) -> str:
    low, high = row["ratios"]
    slower = "  slower" if row["ratio"] > 1 + NOISE else ""
    larger = "  larger" if row["memory_ratio"] > 1 + NOISE else ""
    return (
        f"{row['case'] + ' ' + row['what']:62s} {row['before_ms']:9.1f} {row['after_ms']:9.1f} ms  {row['ratio']:.3f} "
        f"({low:.3f} … {high:.3f}) {row['before_mib']:7.0f} {row['after_mib']:7.0f} MiB  {row['memory_ratio']:.3f}"
        f"{slower}{larger}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", default="HEAD")
    parser.add_argument("after", nargs="?", default=str(ROOT))
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of cases")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each version")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs in each process, after one that is not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="print only, write no file")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--prepare", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        prepare(args.prepare[0], Path(args.prepare[1]))
        return
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]), args.repeats, args.threads)))
        return
    cases = [case for case in CASES if case.startswith(tuple(args.only))]
    if args.list or not cases:
        print("\n".join(CASES))
        return
    with checkout(args.before) as before, checkout(args.after) as after:
        names = {"before": commit_of(before), "after": commit_of(after), "rounds": args.rounds}
        print(names, flush=True)
        for case in cases:
            rows = compare(case, (before, after), args.rounds, args.repeats, args.threads)
            print("\n".join(map(line, rows)), flush=True)
            if not args.dry:  # after every case: a run of an hour can be cut short
                from common import merge_rows  # loads torch, which the measured processes may not want

                merge_rows("before_after", {"threads": args.threads}, [names | row for row in rows], ("case", "what"))


if __name__ == "__main__":
    main()
