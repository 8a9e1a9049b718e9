"""What the fuzz test found, each by name; and a handful of hostile inputs whose outcome is decided."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
import time
import zipfile
import zlib
from pathlib import Path

import damages
import numpy as np
import pytest
import test_yolo
from drawn import palette, photo
from mutate_json import DEEP
from mutate_png import chunks_of, join, png_of
from PIL import Image
from seeds import EVALUATE, Seed, all_seeds

from pansight.apps.cli import LONGEST, main
from pansight.data.convert import convert
from pansight.data.images import check_png, read_header, read_index_png
from pansight.errors import PansightError
from pansight.files import read_json, write_json
from pansight.types import Category, LabelSpace

RECORD = ("--json", "out/record.json")


@pytest.fixture(scope="module")
def seeds() -> dict[str, Seed]:
    return {seed.name: seed for seed in all_seeds()}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def laid_out(place: Path, seed: Seed) -> Path:
    for name, data in seed.files.items():
        (place / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "in" / name).write_bytes(data)
    return place / "in"


def complaint(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("pansight: ")
    return lines[0]


# --- found -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes")
@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("seed", "file", "command"),
    [
        ("evaluate", "gt.json", EVALUATE),
        ("evaluate", "gt/1.png", EVALUATE),
        ("evaluate", "map.toml", (*EVALUATE, "--map", "in/map.toml")),
        ("evaluate merge", "p1.json", ("evaluate", "--merge", "in/p1.json", "in/p2.json")),
        ("check panoptic", "annotations/panoptic_train.json", ("check", "in/annotations/panoptic_train.json")),
        (
            "convert coco_panoptic",
            "annotations/panoptic_train/scene_3.png",
            ("convert", "in", "--to", "out", "--strict"),
        ),
        ("convert coco_instances", "train/a.jpg", ("convert", "in", "--to", "out")),
        ("convert voc", "VOC2012/ImageSets/Segmentation/train.txt", ("convert", "in", "--to", "out")),
        ("convert cvat", "annotations.xml", ("convert", "in/annotations.xml", "--to", "out", "--from", "cvat")),
        ("convert yolo_seg", "data.yaml", ("convert", "in", "--to", "out", "--from", "yolo_seg")),
        ("convert labelme", "a.json", ("convert", "in", "--to", "out", "--from", "labelme")),
        ("convert label_studio", "project-1.json", ("convert", "in", "--to", "out", "--from", "label_studio")),
    ],
)
def test_pipes_are_refused_and_not_waited_for(place, capsys, seeds, seed, file, command):
    path = laid_out(place, seeds[seed]) / file
    path.unlink()
    os.mkfifo(path)
    complaint(capsys, *command)
    assert not (place / "out").exists()


def test_the_decoders_remarks_are_not_printed(place, capfd):
    damages.make(place / "data")
    image = place / "data/train/scene_1.png"
    odd = join([(k, zlib.compress(bytes(999)) if k == b"IDAT" else c) for k, c in chunks_of(image.read_bytes())])
    image.write_bytes(odd)
    assert main(["check", "data"]) == 0
    assert capfd.readouterr().err == ""


def test_names_that_are_no_text_are_printed(place, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    (place / "data\udcff").mkdir()
    (place / "data\udcff/panoptic_a.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert main(["check", "data\udcff"]) == 1
    stream.seek(0)
    assert stream.read().startswith("data\\udcff: COCO panoptic")


def test_a_line_about_a_long_name_is_cut_in_its_middle(place, capsys):
    line = complaint(capsys, "check", "x/" * 1500)
    assert len(line) < LONGEST + 20
    assert " … " in line
    assert line.endswith(("too long", "found none"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["parts"]["instances"]["images"][0]["prediction"].update(labels=5), "damaged"),
        (lambda c: c["parts"]["instances"]["images"][0]["prediction"]["labels"].__setitem__(0, 2**32 + 1), "damaged"),
        (lambda c: c["parts"]["instances"]["images"][0]["prediction"]["labels"].__setitem__(0, 2), "damaged"),
        (lambda c: c["parts"]["instances"]["images"][0]["prediction"].update(codes=[5.0]), "damaged"),
        (lambda c: c["parts"]["errors"]["prediction"][0].__setitem__(0, float("inf")), "found Infinity at line"),
        (lambda c: c.update(labels=[{**row, "color": [0, 0, 300]} for row in c["labels"]]), "a colour"),
        (lambda c: c.update(shard=[1, 10**12]), "expected a shard of 2 images"),
        (lambda c: c.update(shard=None), "damaged"),
    ],
)
def test_a_damaged_partial_result_is_one_line(place, capsys, seeds, change, said):
    laid_out(place, seeds["evaluate merge"])
    content = read_json("in/p1.json")
    change(content)
    Path("in/p1.json").write_text(json.dumps(content))
    line = complaint(capsys, "evaluate", "--merge", "in/p1.json", "in/p2.json", *RECORD)
    assert said in line
    assert not (place / "out").exists()


def test_colours_that_are_none(place, capsys, seeds):
    laid_out(place, seeds["evaluate"])
    content = read_json("in/gt.json")
    content["categories"][1]["color"] = [0, 0, 256]
    write_json("in/gt.json", content)
    line = complaint(capsys, *EVALUATE, "--report", "out/r.html")
    assert (
        "in/gt.json: label space: category 'dog': expected a colour [r, g, b], each 0 … 255, found (0, 0, 256)" in line
    )


def test_many_classes_take_linear_time():
    categories = [Category(n, f"class {n}", True, (0, 0, 0), n) for n in range(50_000)]
    start = time.monotonic()
    LabelSpace(categories)
    with pytest.raises(PansightError, match="expected each name once, found 'class 7'"):
        LabelSpace([*categories, Category(50_000, "class 7", True, (0, 0, 0), 50_000)])
    assert time.monotonic() - start < 5


def test_all_things_and_a_new_class_to_fill_with(place):
    summary = convert(test_yolo.tree(place / "in"), place / "out", things=["all"], fill="ground")
    assert (summary.things, summary.stuff) == (("person", "no"), ("ground",))
    with pytest.raises(PansightError, match="fill: expected a stuff class, found the thing class 'person'"):
        convert(place / "in", place / "other", things=["all"], fill="person")


def test_a_class_without_a_name(place, capsys, seeds):
    laid_out(place, seeds["convert coco_detection_panoptic"])
    file = Path("in/annotations/panoptic_train.json")
    file.write_text(file.read_text().replace('"sky"', '" "'))
    line = complaint(capsys, "convert", "in", "--to", "out", "--things", "all")
    assert "classes: expected a name for every class, found none for 2" in line


def test_large_palettes_are_read_without_a_warning(place, monkeypatch):
    values = np.arange(48).reshape(6, 8)
    palette(place / "a.png", values, list(range(256)) * 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert np.array_equal(read_index_png(place / "a.png"), values)


@pytest.mark.parametrize(
    ("size", "stream", "found"),
    [((9_999, 9_999), zlib.compress(bytes(1000)), "17 bytes"), ((6, 8), bytes(70_000), "70000 bytes")],
)
def test_packed_pixels_that_cannot_be_those_of_the_size(size, stream, found):
    data = png_of(*size, stream)
    with pytest.raises(PansightError, match=f"expected a whole PNG of {size[0]}×{size[1]}, found {found}"):
        check_png(data, read_header(data, "a.png"), "a.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (700, 900)])
@pytest.mark.parametrize("level", [0, 9])
@pytest.mark.parametrize(("bits", "kind", "samples"), [(1, 0, 1), (16, 2, 3), (8, 6, 4)])
def test_packed_pixels_of_the_size_pass(size, level, bits, kind, samples):
    row = 1 + -(-size[1] * bits * samples // 8)
    for raw in (bytes(size[0] * row), np.random.default_rng(0).integers(0, 256, size[0] * row, np.uint8).tobytes()):
        data = png_of(*size, zlib.compress(raw, level), bits, kind)
        check_png(data, read_header(data, "a.png"), "a.png")


# --- decided ---------------------------------------------------------------------------------------------------------


def test_links_of_the_user_are_followed_and_stay(place):
    """A folder of links to photos is usual; what they lead to is read, and never written."""
    photo(place / "elsewhere/b.jpg")
    test_yolo.tree(place / "in")
    image = place / "in/images/train/a.jpg"
    image.unlink()
    image.symlink_to("../../../elsewhere/b.jpg")
    before = (place / "elsewhere/b.jpg").stat().st_mtime_ns
    assert main(["convert", "in", "--to", "out", "--things", "all"]) == 0
    assert not (place / "out/train/a.jpg").is_symlink()
    assert (place / "out/train/a.jpg").read_bytes() == (place / "elsewhere/b.jpg").read_bytes()
    assert (place / "elsewhere/b.jpg").stat().st_mtime_ns == before


def test_links_that_lead_in_circles(place, capsys):
    test_yolo.tree(place / "in")
    (place / "in/images/train/up").symlink_to("..")
    assert main(["convert", "in", "--to", "out", "--things", "all"]) == 0
    image = place / "in/images/train/a.jpg"
    image.unlink()
    image.symlink_to("a.jpg")
    complaint(capsys, "convert", "in", "--to", "again", "--things", "all")
    for name in ("a.json", "b.json"):
        Path(name).symlink_to(name)
    complaint(capsys, "evaluate", "--gt", "a.json", "--pred", "b.json", "--json", "c.json")
    complaint(capsys, "evaluate", "--merge", "a.json", "b.json")
    complaint(capsys, "convert", "in", "--to", "a.json", "--things", "all")
    damages.make(place / "data")
    complaint(capsys, "check", "data", "--fix", "a.json")


def test_links_in_an_archive_are_refused(place, capsys):
    entry = zipfile.ZipInfo("link")
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile("in.zip", "w") as archive:
        archive.writestr(entry, "/etc")
        archive.writestr("link/evil.txt", "evil")
    for command in (("check", "in.zip"), ("convert", "in.zip", "--to", "out")):
        assert "found a link or device 'link'" in complaint(capsys, *command)


@pytest.mark.parametrize("text", ["[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP])
def test_nested_json_is_one_line(place, capsys, seeds, text):
    laid_out(place, seeds["evaluate"])
    Path("in/gt.json").write_text(text)
    assert "in/gt.json: expected COCO panoptic, found" in complaint(capsys, *EVALUATE)


def test_mutations_that_change_nothing_change_no_figure(place, capsys, seeds):
    """Unknown keys, a byte order of chunks and remarks in the PNGs: the right result."""
    laid_out(place, seeds["evaluate"])
    assert main([*EVALUATE, "--json", "out/a.json"]) == 0
    content = read_json("in/pred.json")
    content |= {"info": {"deep": [[[[]]]]}, "extra": None}
    content["annotations"].reverse()
    write_json("in/pred.json", content)
    chunks = chunks_of(Path("in/pred/0.png").read_bytes())
    Path("in/pred/0.png").write_bytes(join([chunks[0], (b"tEXt", b"k\0v"), *chunks[1:], (b"abcd", b"x")]))
    assert main([*EVALUATE, "--json", "out/b.json"]) == 0
    first, second = read_json("out/a.json"), read_json("out/b.json")
    assert {k: first[k] for k in ("All", "Things", "Stuff")} == {k: second[k] for k in ("All", "Things", "Stuff")}
