"""The commands of the tutorials work as they stand there: each page is run by bash in a folder of its own.

`pansight` is a script in front of the real one that cuts trainings down to two steps on eight images;
everything else, and what stands around it, is run as it is printed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
LIMIT_S = 240
"""Of one page. Less than the 300 s of pytest-timeout, which could not end what a page has started."""

SHIM = '''#!{python}
"""pansight with trainings of two steps on few images."""
import sys

from pansight.apps.cli import main

LIMITS = ("--max-minutes", "--minutes", "--steps", "--train.steps")
words = sys.argv[1:]
while found := [place for place, word in enumerate(words) if word in LIMITS]:
    del words[found[0] : found[0] + 2]
short = ["--train.steps", "2", "--train.batch-size", "2", "--train.trackers", "", "--data.limit", "8"]
options = {{"demo": ["--steps", "2"], "train": short, "sweep": short, "study": ["--steps", "2"]}}
sys.exit(main(words + options.get(words[0], [])))
'''


def run(script: str, folder: Path) -> str:
    """What bash prints of it, with `python` and the shortened `pansight` found first. Fails where the script does."""
    home = folder / ".bin"
    home.mkdir()
    (home / "pansight").write_text(SHIM.format(python=sys.executable), encoding="utf-8")
    (home / "pansight").chmod(0o755)
    paths = os.pathsep.join([str(home), str(Path(sys.executable).parent), os.environ["PATH"]])
    source = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PATH": paths, "PYTHONPATH": source, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that whatever it started ends with it
    ) as process:
        try:
            told, _ = process.communicate(timeout=LIMIT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, told[-3000:]
    return told


def blocks(page: str) -> str:
    return "\n".join(BLOCK.findall((ROOT / "docs" / "tutorials" / page).read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.long
def test_first_model(tmp_path: Path) -> None:
    run(blocks("first_model.md"), tmp_path)
    for name in ("runs/demo/report.html", "found/overlays/shapes.png", "found/predictions.json", "comparison.html"):
        assert (tmp_path / name).is_file(), name


@pytest.mark.slow
@pytest.mark.long
def test_own_data(tmp_path: Path) -> None:
    run(blocks("own_data.md"), tmp_path)
    assert (tmp_path / "runs/table/report.html").is_file()
    assert len(list((tmp_path / "found" / "overlays").iterdir())) == 4
    converted = json.loads((tmp_path / "my_data" / "convert.json").read_text())
    assert converted


@pytest.mark.slow
@pytest.mark.long
def test_compare_systems(tmp_path: Path) -> None:
    run(blocks("compare_systems.md"), tmp_path)
    for name in ("systems.html", "runs/backbones/comparison.html", "gate.html"):
        assert (tmp_path / name).is_file(), name


@pytest.mark.slow
@pytest.mark.long
def test_paper_to_file(tmp_path: Path) -> None:
    told = run(blocks("paper_to_file.md"), tmp_path)
    for part in ("backbone", "fpn", "rcnn", "semantic_head"):
        assert re.search(rf"^{part} +[\d,]+ numbers$", told, flags=re.MULTILINE), part
    assert "torch.Size([128, 128]) torch.int32" in told


@pytest.mark.slow
@pytest.mark.long
def test_huge_images(tmp_path: Path) -> None:
    assert "(1024, 1024) uint32" in run(blocks("huge_images.md"), tmp_path)
    assert (tmp_path / "map.tif").is_file()


def test_what_a_page_starts_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "LIMIT_S", 1)
    with pytest.raises(subprocess.TimeoutExpired):
        run("sleep 60 & echo $! > child; wait", tmp_path)
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_every_page_is_run() -> None:
    """A page with commands has a test of its name here, or in test_first_hour.py."""
    tested = {name.removeprefix("test_") + ".md" for name in globals() if name.startswith("test_")} | {"first_hour.md"}
    assert [page.name for page in TUTORIALS if page.name not in tested | {"README.md"}] == []
