"""Writes input_sizes.json: the sizes that detectron2, DETR and EoMT give to photos, by their own functions.

    python tests/ops/golden/make_input_sizes.py DETECTRON2 DETR EOMT

The arguments are git directories of the three repositories. Only the functions named here are run, cut out of their
files, as the repositories need packages that nothing else here does.
"""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
import types
from pathlib import Path
from typing import Any


def function(repository: str, path: str, name: str) -> Any:
    """The (first) function of that name in a file of a repository, without its decorators."""
    text = subprocess.run(
        ["git", f"--git-dir={repository}", "show", f"HEAD:{path}"], capture_output=True, text=True, check=True
    ).stdout
    found = next(n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef) and n.name == name)
    found.decorator_list, found.returns = [], None
    for argument in found.args.args:
        argument.annotation = None
    scope: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(ast.Module([found], [])), path, "exec"), scope)
    return scope[name]


def main(detectron2: str, detr: str, eomt: str) -> None:
    shortest_edge = function(detectron2, "detectron2/data/transforms/augmentation_impl.py", "get_output_shape")
    aspect_ratio = function(detr, "datasets/transforms.py", "get_size_with_aspect_ratio")
    panoptic = function(eomt, "training/lightning_module.py", "scale_img_size_instance_panoptic")
    semantic = function(eomt, "training/lightning_module.py", "scale_img_size_semantic")
    squares = [types.SimpleNamespace(img_size=(side, side)) for side in (640, 512)]
    draw = random.Random(0)
    sizes = [(draw.randint(1, 3000), draw.randint(1, 3000)) for _ in range(250)]
    # sides that are scaled to halves, and the usual ones
    sizes += [(1600, w) for w in range(1601, 1640)] + [(h, 1280) for h in range(961, 1000)]
    sizes += [(480, 640), (640, 480), (427, 640), (800, 1333), (1333, 800), (640, 640), (1, 1), (1, 9000), (9000, 1)]
    rows = [
        [
            *size,
            *shortest_edge(*size, 800, 1333),
            *aspect_ratio(size[::-1], 800, 1333),
            *panoptic(squares[0], size),
            *semantic(squares[1], size),
        ]
        for size in sizes
    ]
    lines = ",\n".join(json.dumps(row) for row in rows)
    Path(__file__).with_name("input_sizes.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
