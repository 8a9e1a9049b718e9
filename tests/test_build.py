"""The wheel is whole: it installs into an empty environment, and what is missing there is said in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def ran(*words: str | Path, cwd: Path, limit_s: float = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], cwd=cwd, text=True, capture_output=True, timeout=limit_s)


@pytest.mark.slow
@pytest.mark.long
def test_the_wheel_says_in_one_line_what_an_empty_environment_lacks(tmp_path: Path) -> None:
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("uv is not installed")
    built = ran(uv, "build", "--quiet", "--out-dir", tmp_path / "dist", ROOT, cwd=tmp_path)
    if built.returncode != 0 and "hatchling" in built.stderr:
        pytest.skip("no registry from which the build's own requirement could come")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert len(list((tmp_path / "dist").glob("*.tar.gz"))) == 1
    names = zipfile.ZipFile(wheel).namelist()
    for part in ("pansight/recipes/shapes/panoptic_fpn.toml", "pansight/apps/cli.py"):
        assert part in names
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks"))]
    home = tmp_path / "empty"
    assert ran(uv, "venv", "--quiet", "--python", sys.executable, home, cwd=tmp_path).returncode == 0
    python = home / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    words = ("--quiet", "--python", python, "--constraint", constraints, wheel)
    installed = ran(uv, "pip", "install", *words, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    told = ran(home / "bin" / "pansight", "demo", cwd=tmp_path)
    assert told.returncode == 2
    assert len(told.stderr.strip().splitlines()) == 1, told.stderr
    assert "pip install" in told.stderr
