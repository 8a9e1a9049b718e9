"""One policy in every reader: what cannot be used is left out and told, the rest is converted, and the command ends
with 1; ``--strict`` stops instead. Hidden files are no part of the data.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_every_reader import MAKERS
from trees import ADE_IMAGES, CITY_IMAGES, VISTAS_IMAGES, VOC_IMAGES

from pansight.apps.cli import main
from pansight.data.convert import READERS

NAME_THINGS = {name: [] if name in ("cityscapes", "ade20k", "voc") else ["--things", "all"] for name in READERS}

SECOND = {
    "cityscapes": (CITY_IMAGES["val"], "frankfurt_000002_000001"),
    "ade20k": (ADE_IMAGES["validation"], "ADE_val_00000002"),
    "ade20k_full": ("ADE_val_00016869", "ADE_val_00016870"),
    "vistas": (VISTAS_IMAGES["validation"], "_2Gn_xkw7sa_i9GU4mkxxQ"),
    "voc": (VOC_IMAGES["val"], "2007_000034"),
}
"""Readers whose trees have an image to train on and one to validate on → the latter, and the name of its copy."""
IN_ONE_FILE = {"coco_instances", "coco_detection_panoptic", "coco_panoptic", "cvat", "label_studio"}
"""All images are annotated in one file."""
IN_SHARDS = {"webdataset"}
"""Photos and annotations are no files of their own: tests/data/test_webdataset.py damages them within their shard."""


def again(text: str) -> str:
    """What is said of image a, said of image b."""
    return text.replace("a.jpg", "b.jpg").replace("a.png", "b.png")


def two_images(name: str, root: Path) -> Path:
    """A set of at least two images; the second one is called b where the maker of the test's set has only one."""
    MAKERS[name](root)
    if name in SECOND:
        first, second = SECOND[name]
        for file in [file for file in root.rglob(f"{first}*") if file.is_file()]:
            copy = file.with_name(file.name.replace(first, second))
            if file.suffix == ".json":
                copy.write_text(file.read_text().replace(first, second))
            else:
                shutil.copy(file, copy)
        for file in root.rglob("val.txt"):
            file.write_text(f"{first}\n{second}\n")
        return root
    for file in list(root.rglob("a.*")):
        copy = file.with_name(f"b{file.suffix}")
        if file.suffix == ".json":
            copy.write_text(again(file.read_text()))
        else:
            shutil.copy(file, copy)
    if name == "cvat":
        (file,) = root.glob("*.xml")
        head, image, tail = file.read_text().partition("<image")
        image, close, tail = (image + tail).partition("</image>")
        second = again(image).replace('id="0"', 'id="1"')
        file.write_text(f"{head}{image}{close}{second}{close}{tail}")
    if name == "label_studio":
        (file,) = root.glob("p.json")
        (task,) = json.loads(file.read_text())
        file.write_text(json.dumps([task, {**json.loads(again(json.dumps(task))), "id": 2}]))
    if name.startswith("coco_"):
        (file,) = (root / "annotations").glob("*.json")
        content = json.loads(file.read_text())
        for rows in (content["images"], content["annotations"]):
            (row,) = rows
            second = json.loads(again(json.dumps(row)))
            for key in {"id", "image_id"} & set(row):
                second[key] = 2
            rows.append(second)
        file.write_text(json.dumps(content))
    return root


def second_files(name: str, root: Path) -> Iterator[Path]:
    """All files of the second image alone."""
    for file in sorted(root.rglob("*")):
        is_second = file.name.startswith(SECOND[name][1]) if name in SECOND else file.stem == "b"
        if file.is_file() and is_second:
            yield file


def second_photo(name: str, root: Path) -> Path:
    files = [f for f in second_files(name, root) if f.suffix == ".jpg" or "leftImg8bit" in f.name]
    (file,) = files
    return file


def second_annotations(name: str, root: Path) -> list[Path]:
    return [file for file in second_files(name, root) if file != second_photo(name, root)]


def run(name: str, source: Path, out: Path, *more: str) -> int:
    return main(["convert", str(source), "--to", str(out), "--from", name, *NAME_THINGS[name], *more])


def images_in(out: Path) -> int:
    return sum(len(json.loads(file.read_text())["images"]) for file in (out / "annotations").glob("*.json"))


def left_out_and_strict(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], Path]
) -> None:
    """`damage` returns the file whose name must be told."""
    source = two_images(name, tmp_path / "in")
    assert run(name, source, tmp_path / "whole") == 0
    whole = images_in(tmp_path / "whole")
    file = damage(source)
    capsys.readouterr()
    assert run(name, source, tmp_path / "rest") == 1
    said = capsys.readouterr()
    assert file.stem in said.out + said.err
    assert images_in(tmp_path / "rest") == whole - 1
    assert run(name, source, tmp_path / "strict", "--strict") == 2
    line = capsys.readouterr().err
    assert line.startswith("pansight: ")
    assert line.count("\n") == 1
    assert not (tmp_path / "strict").exists()


EVERY = pytest.mark.parametrize("name", sorted(set(READERS) - IN_SHARDS))


@EVERY
def test_a_missing_photo(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def damage(source: Path) -> Path:
        file = second_photo(name, source)
        file.unlink()
        return file

    left_out_and_strict(name, tmp_path, capsys, damage)


@EVERY
def test_a_photo_that_is_none(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def damage(source: Path) -> Path:
        file = second_photo(name, source)
        file.write_bytes(b"no photo")
        return file

    left_out_and_strict(name, tmp_path, capsys, damage)


@pytest.mark.parametrize("name", [*sorted(set(READERS) - IN_ONE_FILE - IN_SHARDS), "coco_panoptic"])
def test_annotations_of_one_image_that_are_damaged(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All files of that image end early, as a copy that was broken off leaves them."""

    def damage(source: Path) -> Path:
        files = second_annotations(name, source)
        for file in files:
            data = file.read_bytes()
            file.write_bytes(data[: len(data) // 2])
        return files[0]

    left_out_and_strict(name, tmp_path, capsys, damage)


@pytest.mark.parametrize("name", ["coco_panoptic", "voc", *sorted(set(SECOND) - {"voc"})])
def test_a_missing_mask(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image that a list names must have one; of a folder of photos, a note tells how many have none."""
    source = two_images(name, tmp_path / "in")
    assert run(name, source, tmp_path / "whole") == 0
    whole = images_in(tmp_path / "whole")
    for file in second_annotations(name, source):
        file.unlink()
    capsys.readouterr()
    assert run(name, source, tmp_path / "rest") == (1 if name in ("coco_panoptic", "voc") else 0)
    assert "left out" in capsys.readouterr().out
    assert images_in(tmp_path / "rest") == whole - 1


@EVERY
def test_hidden_files_are_no_data(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """macOS writes ._NAME beside every file of a foreign disk, and .DS_Store into every folder."""
    source = two_images(name, tmp_path / "in")
    assert run(name, source, tmp_path / "before") == 0
    for file in list(source.rglob("*")):
        if file.is_file():
            file.with_name(f"._{file.name}").write_bytes(b"\x00\x05\x16\x07")
        else:
            (file / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    (source / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    capsys.readouterr()
    assert run(name, source, tmp_path / "after") == 0
    assert "._" not in capsys.readouterr().out
    assert images_in(tmp_path / "after") == images_in(tmp_path / "before")


OUTLINES: dict[str, tuple[str, str]] = {
    "coco_instances": ("[2, 0, 6, 0, 6, 3, 2, 3]", "[2, 0, 6, 0]"),
    "yolo_seg": ("0 0.25 0 0.75 0 0.75 0.5 0.25 0.5", "0 0.25 0"),  # of two points it would be a box
    "labelme": ("[[2, 0], [6, 0], [6, 3], [2, 3]]", "[[2, 0], [6, 0]]"),
    "cvat": ("2,0;6,0;6,3;2,3", "2,0;6,0"),
    "label_studio": ("[[25, 0], [75, 0], [75, 50], [25, 50]]", "[[25, 0], [75, 0]]"),
}
"""Reader of outlines → an outline in its file, and the same one with too few points.

Cityscapes is not here: its own code draws such outlines."""


@pytest.mark.parametrize("name", sorted(OUTLINES))
def test_an_outline_of_too_few_points(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, (good, bad) = two_images(name, tmp_path / "in"), OUTLINES[name]
    texts = {file: file.read_text() for file in sorted(source.rglob("*")) if file.suffix in (".json", ".txt", ".xml")}
    file = next(file for file, text in texts.items() if good in text)
    file.write_text(texts[file].replace(good, bad, 1))
    assert run(name, source, tmp_path / "out") == 1
    assert images_in(tmp_path / "out") == 2
    assert "car" in capsys.readouterr().out  # the class whose object is gone
