"""Every system as a graph for other engines → results/exports.json: exported or why not, and how much is alike.

    python benchmarks/exports.py [MODEL …] [--targets onnx openvino torch]

The networks are tiny (the options of each entry for tests) and have random weights, three classes and the defaults of
decode. Each graph is run on three generated photos of different sizes, beside its model; `alike` is the least share of
pixels on which the two give the same maps, in the worst of the model's tasks. A row is written as soon as it is known.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from common import merge_rows
from pansight.apps.exporting.graphs import GRAPHS, Exporter
from pansight.errors import PansightError
from pansight.files import read_json
from pansight.models import MODELS, build
from pansight.types import LabelSpace

LABELS = LabelSpace.from_names(["a", "b"], ["c"])
WHAT = "tiny networks of random weights, three generated photos"


def exporter(name: str) -> Exporter:
    torch.manual_seed(0)
    return Exporter(build(name, LABELS, **MODELS[name].tiny), name, dict(MODELS[name].tiny))


def row_of(made: Exporter, target: str) -> dict[str, Any]:
    row: dict[str, Any] = {"model": made.name, "target": target}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        try:
            found = made.write(target, out)
        except PansightError as error:
            return {**row, "exported": False, "why": error.what, "size": "", "alike": None, "outputs": []}
        outputs = read_json(out / "export.json")["outputs"]
    size = "any" if found.size is None else f"{found.size[0]} × {found.size[1]}"
    return {**row, "exported": True, "why": found.why_fixed, "size": size, "alike": found.alike, "outputs": outputs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[name for name, entry in MODELS.items() if not entry.variant_of])
    parser.add_argument("--targets", nargs="+", default=list(GRAPHS))
    args = parser.parse_args()
    for name in args.models:
        made = exporter(name)
        for target in args.targets:
            start = time.perf_counter()
            row = row_of(made, target)
            print(f"{row}  {time.perf_counter() - start:.0f} s", flush=True)
            merge_rows("exports", {"what": WHAT}, [row], ("model", "target"))


if __name__ == "__main__":
    main()
