"""The runtime as a package of its own: it needs nothing of pansight, and its wheel predicts in an empty environment."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from test_model import exported, photo

from pansight.runtime.engines import ENGINES

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "pansight" / "runtime"
PACKAGING = ROOT / "packaging" / "runtime"
MODULES = {"numpy": "numpy", "PIL": "pillow", "onnxruntime": "onnxruntime", "openvino": "openvino"}
"""Module → the package that brings it."""

PROGRAM = """
import sys
import pansight_runtime as runtime

prediction = runtime.open(sys.argv[1], threads=1).predict(sys.argv[2])
print(prediction.semantic.shape, sorted({"pansight", "torch"} & {*sys.modules}))
"""


def settings(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def imported() -> set[str]:
    """The modules outside of the standard library that the runtime needs; engines are loaded by name."""
    found = set(ENGINES)
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add((node.module or "").partition(".")[0])
    return found - set(sys.stdlib_module_names)


def test_the_wheel_asks_for_what_the_runtime_imports() -> None:
    project, whole = settings(PACKAGING), settings(ROOT)
    engines = [row for rows in project["optional-dependencies"].values() for row in rows]
    everything = {row for rows in whole["optional-dependencies"].values() for row in rows} | {*whole["dependencies"]}
    assert imported() <= set(MODULES)
    for module in imported():
        assert any(row.startswith(MODULES[module]) for row in project["dependencies"] + engines), module
    assert {*project["dependencies"], *engines} <= everything, "the same bounds as in pansight"
    assert (project["version"], project["requires-python"]) == (whole["version"], whole["requires-python"])


def predicts(python: Path, folder: Path, **variables: str) -> None:
    graph = exported(folder / "graph")
    Image.fromarray(photo()).save(folder / "photo.png")
    words = [python, "-c", PROGRAM, graph, folder / "photo.png"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment)
    assert (done.returncode, done.stdout) == (0, "(30, 44) []\n"), done.stderr


def test_it_predicts_under_a_name_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "pansight_runtime")
    predicts(Path(sys.executable), tmp_path, PYTHONPATH=str(tmp_path))


@pytest.mark.slow
@pytest.mark.long
def test_the_wheel_predicts_in_an_empty_environment(tmp_path: Path) -> None:
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("uv is not installed")
    built = subprocess.run(
        [uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path, PACKAGING], capture_output=True, text=True
    )
    if built.returncode != 0 and "hatchling" in built.stderr:
        pytest.skip("no registry from which the build's own requirement could come")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    assert names == {f"pansight_runtime/{path.relative_to(SOURCE).as_posix()}" for path in SOURCE.rglob("*.py")}
    python = tmp_path / "empty" / "bin" / "python"
    words = ["--quiet", "--python", python, "--constraint", ROOT / "constraints.txt", f"{wheel}[onnx]"]
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "empty"],
        [uv, "pip", "install", *words],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    predicts(python, tmp_path)
