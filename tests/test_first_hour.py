"""The commands of docs/tutorials/first_hour.md in their order; trainings take two steps, not minutes."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pansight.apps.cli import main
from pansight.data import Shapes
from pansight.data.formats.coco_panoptic import export_coco_panoptic

PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "first_hour.md"
SHORT = ["--train.steps", "2", "--train.batch-size", "2", "--train.trackers", "", "--data.workers", "0"]
"""What a training in the test adds, and its limits on the page give way to."""


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("pansight ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def shortened(words: list[str]) -> list[str]:
    """A training of two steps; everything else as it stands."""
    if words[0] != "train":
        return words
    for limit in ("--max-minutes", "--train.steps"):
        if limit in words:
            at = words.index(limit)
            words = words[:at] + words[at + 2 :]
    return [*words, *SHORT]


@pytest.mark.slow
def test_every_command_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export_coco_panoptic(Shapes(10, 64, 64), tmp_path / "my_data")
    (tmp_path / "photos" / "more").mkdir(parents=True)
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name in ("a.jpg", "more/b.jpg"):
        Image.fromarray(photo).save(tmp_path / "photos" / name)
    for words in commands():
        assert main(shortened(words)) == 0, words
    for name in ("runs/first/report.html", "evaluations/sure/evaluation.json", "comparison.html"):
        assert (tmp_path / name).is_file(), name
    assert len(list((tmp_path / "found" / "overlays").iterdir())) == 2
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile("\n".join(code), str(PAGE), "exec"), {})
    assert (tmp_path / "a.png").is_file()
    shutil.rmtree(tmp_path / "runs")


def test_the_page_is_found_from_the_readme() -> None:
    assert "](docs/tutorials/first_hour.md)" in (PAGE.parents[2] / "README.md").read_text(encoding="utf-8")
