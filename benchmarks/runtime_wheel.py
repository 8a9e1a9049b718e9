"""The runtime as a wheel of its own, beside pansight with torch → results/runtime_wheel.json.

    .venv/bin/python benchmarks/runtime_wheel.py [--repeats 5] [--dry]

The wheel of packaging/runtime is built and installed, with ONNX Runtime, into an empty environment. Both then do the
same: start and have the model ready; and start, predict one generated photo of 640×480 and write its map, to which
`pansight predict` adds a picture. The model is Panoptic-DeepLab on EfficientNet-Lite0 with random weights, exported to
ONNX. Every start is a process of its own with one thread; seconds are those of the processor, memory is the peak of the
process. uv must be on the PATH, or beside the Python that runs this.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, save

MODEL = "panoptic_deeplab"
OPENED = {
    "pansight-runtime": "import sys, pansight_runtime; pansight_runtime.open(sys.argv[1], threads=1)",
    "pansight": "import sys, pansight; pansight.load(sys.argv[1])",
}


def make(folder: Path) -> None:
    """What both start with, in a process of its own: a model of ours, its graph, and a photo."""
    import numpy as np
    import torch

    from pansight.apps.exporting import export
    from pansight.data.images import write_png
    from pansight.models import build
    from pansight.types import LabelSpace
    from pansight.weights import save_model

    torch.manual_seed(0)
    labels = LabelSpace.from_names(["car", "person"], ["road", "sky"])
    options = {"backbone": "tf_efficientnet_lite0", "pretrained": "none"}
    save_model(folder / "model", build(MODEL, labels, **options), MODEL, options)
    export(folder / "model", folder / "graph", to="onnx")
    write_png(folder / "photo.png", np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8))


def uv() -> str:
    found = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if found is None:
        raise SystemExit("uv is not installed")
    return found


def install(folder: Path) -> tuple[Path, Path]:
    """The wheel, and the Python of the environment that has it."""
    subprocess.run(
        [uv(), "build", "--quiet", "--wheel", "--out-dir", folder, ROOT / "packaging" / "runtime"], check=True
    )
    (wheel,) = folder.glob("*.whl")
    home = folder / "environment"
    subprocess.run([uv(), "venv", "--quiet", "--python", sys.executable, home], check=True)
    words = ["--quiet", "--python", home / "bin" / "python", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([uv(), "pip", "install", *words, f"{wheel}[onnx]"], check=True)
    return wheel, home / "bin" / "python"


def run(command: list[str | Path]) -> dict[str, float]:
    """Seconds of the processor and peak MiB of a process, with what it starts."""
    program = ["env", "OMP_NUM_THREADS=1", *map(str, command)]
    child = subprocess.Popen(program, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"failed: {' '.join(program)}")
    return {"seconds": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}


def installed_mib(python: Path) -> float:
    """MiB of the packages in an environment."""
    said = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        check=True,
        text=True,
    )
    files = (path for path in Path(said.stdout.strip()).rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sum(path.stat().st_size for path in files) / 2**20


def measured(folder: Path, python: Path, repeats: int) -> list[dict[str, Any]]:
    photo, rows = folder / "photo.png", []
    tools: dict[str, tuple[Path, Path, list[str | Path]]] = {
        "pansight-runtime": (python, folder / "graph", [python, "-m", "pansight_runtime"]),
        "pansight": (Path(sys.executable), folder / "model", [sys.executable, "-m", "pansight.apps.cli", "predict"]),
    }
    for tool, (interpreter, model, command) in tools.items():
        threads = ["--threads", "1"] if tool == "pansight-runtime" else []
        runs: dict[str, list[dict[str, float]]] = {"ready": [], "one photo": []}
        for turn in range(repeats + 1):  # the first turn compiles Python's modules and warms the file cache
            ready = run([interpreter, "-c", OPENED[tool], model])
            predicted = run([*command, model, photo, "--out", folder / f"{tool}_{turn}", *threads])
            if turn:
                runs["ready"].append(ready)
                runs["one photo"].append(predicted)
        for what, values in runs.items():
            figures = {key: statistics.median(value[key] for value in values) for key in ("seconds", "peak_mib")}
            rows.append({"tool": tool, "what": what, **figures})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="write no result")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make is not None:
        make(arguments.make)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # torch stays out of this process: a child's peak begins at what its parent has
        subprocess.run([sys.executable, __file__, "--make", folder], check=True)
        wheel, python = install(folder)
        rows = measured(folder, python, arguments.repeats)
        sizes = {"wheel_kib": wheel.stat().st_size / 1024, "installed_mib": installed_mib(python)}
    print(sizes)
    if not arguments.dry:
        save("runtime_wheel", {"model": MODEL, "repeats": arguments.repeats, **sizes, "rows": rows})


if __name__ == "__main__":
    main()
