"""A small sweep over backbones, rates and seeds, and what it prints → results/sweep_example.json.

    python benchmarks/sweep_example.py [--folder runs/sweep_example] [--minutes 1] [--seeds 2]

Semantic FPN on generated shapes of 64 pixels: three backbones × two rates × the seeds, each trained for --minutes. Kept
are the command and what `pansight compare` prints of the finished sweep, which docs/sweeps.md shows. A second call goes
on in the folder. With benchmarks/processor_clock on PYTHONPATH and one thread the minutes are the processor's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from camvid import pansight
from common import save

BACKBONES = ("resnet10t", "resnet18", "tf_efficientnet_lite0")
RATES = ("3e-4", "3e-3")


def words(minutes: float, seeds: int) -> list[str]:
    """The sweep, without its folder."""
    size = [word for side in ("height", "width") for word in (f"--data.options.{side}", "64")]
    size += [word for side in ("height", "width") for word in (f"--data.validation-options.{side}", "64")]
    given = ["--model", "semantic_fpn", "--data", "shapes", *size, "--train.trackers", "", "--data.workers", "0"]
    given += ["--vary", f"model.backbone={','.join(BACKBONES)}", "--vary", f"train.lr={','.join(RATES)}"]
    return [*given, "--seeds", str(seeds), "--train.max-minutes", f"{minutes:g}", "--jobs", "1"]


def printed(folder: Path) -> str:
    """What `compare` prints of a sweep, without the names of its files."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pansight.apps.cli", "compare", str(folder)]
        environment = os.environ | {"COLUMNS": "120"}
        out = ["--out", str(Path(temporary) / "comparison.html")]
        text = subprocess.run([*command, *out], check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return "\n".join(line.rstrip() for line in text.splitlines() if temporary not in line and str(folder) not in line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/sweep_example"))
    parser.add_argument("--minutes", type=float, default=1.0, help="of each training")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    given = words(args.minutes, args.seeds)
    pansight("sweep", *given, "--out", str(args.folder), threads=1)
    shown = ["pansight", "sweep", *(f"'{word}'" if "," in word or not word else word for word in given)]
    save("sweep_example", {"command": " ".join(shown), "printed": printed(args.folder)})


if __name__ == "__main__":
    main()
