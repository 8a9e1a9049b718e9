"""Whatever reads an archive, or converts for the moment, leaves nothing among the temporary files: neither where it
succeeds nor where it fails, even while its error, and with it all that it saw, is still held.
"""

from __future__ import annotations

import base64
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from drawn import photo
from test_every_reader import MAKERS

from pansight.data.check import check
from pansight.data.check.split import split
from pansight.data.convert import READERS, convert
from pansight.errors import PansightError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def archived(source: Path) -> Path:
    to = source.with_suffix(".zip")
    with zipfile.ZipFile(to, "w") as archive:
        for file in sorted(source.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(source).as_posix())
    return to


def steps(source: Path, name: str, out: Path) -> Iterator[object]:
    """Commands that succeed and commands that fail, early and late."""
    things = None if name in ("cityscapes", "ade20k", "voc") else ["all"]
    yield lambda: convert(source, out / "a", name, things=things)
    yield lambda: convert(source, out / "b", name, things=["no such class"])
    yield lambda: convert(source, out / "c", name, things=things, overlap="error")
    yield lambda: convert(source, out / "d", name, split="no such part", things=things)
    yield lambda: convert(source, out / "a", name, things=things)  # the folder is there
    yield lambda: check(source)
    yield lambda: check(source, images=Path("no such folder"))
    yield lambda: split(source, out / "e", val=0.5)  # of one image


@pytest.mark.parametrize("name", sorted(READERS))
def test_archives(name: str, tmp_path: Path, temporary: Path) -> None:
    source = archived(MAKERS[name](tmp_path / "in"))
    errors = list[PansightError]()
    for number, step in enumerate(steps(source, name, tmp_path)):
        try:
            step()  # pyright: ignore
        except PansightError as error:
            errors.append(error)
        assert list(temporary.iterdir()) == [], number
    assert len(errors) >= 3


@pytest.mark.parametrize("whole", [True, False])
def test_images_within_annotations(whole: bool, tmp_path: Path, temporary: Path) -> None:
    data = photo(tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").unlink()
    text = base64.b64encode(data if whole else b"no photo").decode()
    shapes = [{"label": "car", "points": [[2, 0], [6, 0], [6, 3]], "shape_type": "polygon"}]
    content = {"shapes": shapes, "imagePath": "a.jpg", "imageHeight": 6, "imageWidth": 8, "imageData": text}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_text(json.dumps(content))
    kept = list[PansightError]()
    for step in (lambda: convert(tmp_path / "in", tmp_path / "out", things=["all"]), lambda: check(tmp_path / "in")):
        try:
            step()
        except PansightError as error:
            kept.append(error)
        assert list(temporary.iterdir()) == []
    assert bool(kept) is not whole
