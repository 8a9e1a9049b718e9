"""Names from files are printed escaped: neither a class nor a photo can colour, move or break a line of a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pansight.apps.cli import main
from pansight.data.images import write_png
from pansight.engine.progress import ProgressBar
from pansight.errors import shown

CLASS = "ca\x1b[31mr\nother\u202e"
FILE = "a\x1b[2Jb\u202ec.png"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    images, annotations = [], []
    for number in range(1, 5):
        name = f"{number}{FILE}"
        rng = np.random.default_rng(number)
        write_png(Path("odd", "train", name), rng.integers(0, 256, (32, 32, 3), np.uint8))
        images.append({"id": number, "file_name": name, "height": 32, "width": 32})
        outline = [[4, 4, 24, 4, 24, 24, 4, 24]]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": outline, "iscrowd": 0})
        annotations[-1] |= {"bbox": [4, 4, 20, 20], "area": 400}
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": CLASS}]}
    Path("odd", "annotations").mkdir()
    Path("odd", "annotations", "instances_train.json").write_text(json.dumps(content))
    return Path("odd")


def is_plain(text: str) -> bool:
    return all(letter.isprintable() or letter in "\n\r" for letter in text) and "ca\\x1b[31mr\n" not in text


TINY = ["--train.steps", "1", "--train.trackers", "", "--backbone", "resnet10t", "--model.options.short", "0"]


@pytest.mark.slow
def test_every_command_prints_names_escaped(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [
        ["convert", "odd", "--to", "pan", "--things", "all"],
        ["check", "odd"],
        ["check", "pan"],
        ["split", "odd", "--out", "parts"],
        ["train", "--data", "pan", "--model", "faster_rcnn", "--out", "run", *TINY],
        ["evaluate", "run", "--out", "again", "--report", "again.html"],
        ["evaluate", "run", "--data", "pan", "--part", "train", "--out", "other"],
        ["compare", "other", "other", "--out", "compared.html"],
        ["predict", "run", "odd/train", "--out", "predicted", "--score", "0"],
        ["check", "pan", "--fix", "fixed"],
        ["export", "run", "--to", "folder", "--out", "exported"],
    ]
    for command in commands:
        code = main(command)
        said = capsys.readouterr()
        text = said.out + said.err
        assert is_plain(text), (command[0], code, text)
        assert code in (0, 1), (command, text)
    for page in Path().rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "\x1b" not in text, page
        assert "\u202e" not in text, page


def test_what_is_left_out_is_told_escaped(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By convert, by train and by predict, whose lines name the file."""
    broken = Path("odd", "train", f"2{FILE}")
    broken.write_bytes(b"no photo")
    codes: list[int] = []
    for command in (
        ["convert", "odd", "--to", "pan", "--things", "all"],
        ["train", "--data", "odd", "--model", "faster_rcnn", "--out", "run", *TINY],
        ["evaluate", "run", "--data", "odd", "--part", "train", "--out", "ev"],
        ["predict", "run", "odd/train", "--out", "predicted", "--score", "0"],
    ):
        codes.append(main(command))
        said = capsys.readouterr()
        text = said.out + said.err
        assert is_plain(text), command
        assert "2a\\x1b[2Jb\\u202ec.png" in text, command
    assert codes == [1, 1, 1, 1]
    for page in Path().rglob("*.html"):
        assert "\x1b" not in page.read_text(encoding="utf-8"), page


def test_progress_is_printed_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a job says of a file: neither its letters nor the marks of the terminal's library count."""
    with ProgressBar("train", every=0) as bar:
        bar.update(1.0, f"{CLASS} [red]")
        bar.say(f"{CLASS} [bold]")
    said = capsys.readouterr().err
    assert said.splitlines() == [f"train: {shown(CLASS)} [red]", f"{shown(CLASS)} [bold]"]
