"""What cannot be used is left out of every data set alike, before anything is learnt or measured, and is told; strict
stops instead. Hidden files are no part of the data.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pansight.apps.cli import main
from pansight.config import DataConfig
from pansight.data import DATASETS, open_dataset, reading_notes
from pansight.data.dataset import Subset
from pansight.data.images import END, check_stored, write_picture, write_png
from pansight.data.left_out import left_out_of, usable
from pansight.engine.assemble import left_out, open_data
from pansight.errors import PansightError

SIZE = 32, 40
IDS = np.zeros(SIZE, np.uint16)
IDS[4:20, 4:24] = 1
RGB = np.stack([IDS, np.zeros_like(IDS), np.zeros_like(IDS)], -1).astype(np.uint8)
OUTLINE = [4, 4, 24, 4, 24, 20, 4, 20]
CATEGORIES = [{"id": 1, "name": "car", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
NAMES = "abc"


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)


def coco(root: Path, photos: str, name: str, of_image: Callable[[str, int], dict[str, Any]], suffix: str) -> Path:
    images = [
        {"id": n, "file_name": f"{letter}{suffix}", "height": SIZE[0], "width": SIZE[1]}
        for n, letter in enumerate(NAMES, 1)
    ]
    for n, letter in enumerate(NAMES, 1):
        write_picture(root / photos / f"{letter}{suffix}", picture(n))
    content = {
        "images": images,
        "annotations": [of_image(letter, n) for n, letter in enumerate(NAMES, 1)],
        "categories": CATEGORIES,
    }
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))
    return root


def panoptic(root: Path, photos: str, name: str, suffix: str) -> Path:
    """COCO panoptic, whose PNGs lie in a folder called as the JSON, or beside that of Vistas."""
    pngs = (root / name).parent if name.endswith("_2018.json") else (root / name).with_suffix("")
    for letter in NAMES:
        write_png(pngs / f"{letter}.png", RGB)

    def of_image(letter: str, n: int) -> dict[str, Any]:
        rows = [{"id": 1, "category_id": 1, "iscrowd": 0, "area": 320, "bbox": [4, 4, 20, 16]}]
        return {"image_id": n, "file_name": f"{letter}.png", "segments_info": rows}

    return coco(root, photos, name, of_image, suffix)


def coco_panoptic(root: Path) -> Path:
    return panoptic(root, "train", "annotations/panoptic_train.json", ".jpg")


def coco_instances(root: Path) -> Path:
    def of_image(letter: str, n: int) -> dict[str, Any]:
        return {"id": n, "image_id": n, "category_id": 1, "segmentation": [OUTLINE], "iscrowd": 0}

    return coco(root, "train", "annotations/instances_train.json", of_image, ".jpg")


def instance_png(root: Path) -> Path:
    for n, letter in enumerate(NAMES, 1):
        write_picture(root / "images" / f"{letter}.jpg", picture(n))
        write_png(root / "instances" / f"{letter}.png", IDS)
    return root


def ade20k(root: Path) -> Path:
    return panoptic(root, "images/training", "ade20k_panoptic_train.json", ".jpg")


def vistas(root: Path) -> Path:
    (root / "training" / "v1.2").mkdir(parents=True)
    return panoptic(root, "training/images", "training/v1.2/panoptic/panoptic_2018.json", ".jpg")


def cityscapes(root: Path) -> Path:
    """Whose photos lie in a folder for each city, called by their image ids."""
    panoptic(root, "photos", "gtFine/cityscapes_panoptic_train.json", ".png")
    file = root / "gtFine" / "cityscapes_panoptic_train.json"
    content = json.loads(file.read_text())
    for row, annotation, letter in zip(content["images"], content["annotations"], NAMES):
        row["id"] = annotation["image_id"] = f"ulm_{letter}_000019"
        photo = root / "leftImg8bit" / "train" / "ulm" / f"ulm_{letter}_000019_leftImg8bit.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / "photos" / f"{letter}.png", photo)
    file.write_text(json.dumps(content))
    return root


MAKERS = {make.__name__: make for make in (coco_panoptic, coco_instances, instance_png, ade20k, vistas, cityscapes)}
MASKED = sorted(set(MAKERS) - {"coco_instances"})
FILES = sorted(MAKERS)


def test_every_data_set_of_files_has_a_maker():
    assert set(MAKERS) | {"shapes", "webdataset"} == set(DATASETS)  # shards are damaged in test_webdataset.py


def photo_of(root: Path, letter: str) -> Path:
    (found,) = [
        file
        for file in root.rglob("*")
        if file.name in (f"{letter}.jpg", f"ulm_{letter}_000019_leftImg8bit.png") and not file.name.startswith(".")
    ]
    return found


def mask_of(root: Path, letter: str) -> Path:
    (found,) = root.rglob(f"{letter}.png")
    return found


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "no image": lambda file: file.write_bytes(b"what a download leaves"),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-40]),
    "half a header": lambda file: file.write_bytes(file.read_bytes()[:20]),
    "of another size": lambda file: write_picture(file, np.zeros((8, 8, 3), np.uint8)),
}


def names_b(error: object) -> bool:
    return "/b." in str(error) or "_b_" in str(error)


def expect_two_of_three(name: str, source: Path) -> None:
    whole = open_dataset(source, name)
    rest = usable(whole)
    assert len(rest) == 2
    assert [names_b(error) for error in left_out_of(rest)] == [True]
    assert all(rest[n].image.shape == (3, *SIZE) for n in range(2))
    assert left_out_of(Subset(rest, [1])) == left_out_of(rest)
    with pytest.raises(PansightError) as caught:
        usable(whole, strict=True)
    assert names_b(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_photos(name: str, damage: str, tmp_path: Path) -> None:
    source = MAKERS[name](tmp_path / "in")
    assert usable(open_dataset(source, name)).__class__.__name__ != "Usable"
    DAMAGES[damage](photo_of(source, "b"))
    expect_two_of_three(name, source)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_masks(name: str, damage: str, tmp_path: Path) -> None:
    source = MAKERS[name](tmp_path / "in")
    DAMAGES[damage](mask_of(source, "b"))
    if (name, damage) == ("instance_png", "missing"):  # as of any folder of photos, a note tells that it has none
        data = open_dataset(source, name)
        assert len(usable(data)) == 2
        assert reading_notes(data) == ("1 images without a PNG are left out, such as 'b'",)
    else:
        expect_two_of_three(name, source)


@pytest.mark.parametrize("name", sorted({*MASKED, "cityscapes"}))
def test_a_small_png_that_is_damaged_in_its_middle(name: str, tmp_path: Path) -> None:
    """One bit of its pixels; where photos are PNGs, of a photo."""
    source = MAKERS[name](tmp_path / "in")
    file = photo_of(source, "b")
    file = file if file.suffix == ".png" else mask_of(source, "b")
    data = bytearray(file.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 1
    file.write_bytes(data)
    expect_two_of_three(name, source)


EMPTY: dict[str, Any] = {
    "on a line": [[4, 4, 24, 4, 30, 4]],
    "on a slanting line": [[0, 0, 8, 8, 16, 16, 24, 24]],
    "thinner than a pixel": [[4, 4.1, 24, 4.1, 24, 4.15, 4, 4.15]],
    "right of the image": [[44, 4, 60, 4, 60, 20, 44, 20]],
    "above the image": [[4, -20, 24, -20, 24, -4] + [14, -5] * 12],
    "outside, twice": [[-9, -9, -4, -9, -4, -4], [44, 40, 60, 40, 60, 50]],
    "no runs of it": {"size": [*SIZE], "counts": [SIZE[0] * SIZE[1]]},
    "no runs of it, packed": {"size": [*SIZE], "counts": "PX1"},
}


@pytest.mark.parametrize("kind", EMPTY)
def test_an_object_without_a_pixel_is_told(kind: str, tmp_path: Path) -> None:
    source = coco_instances(tmp_path / "in")
    file = source / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][1]["segmentation"] = EMPTY[kind]
    file.write_text(json.dumps(content))
    rest = usable(open_dataset(source))
    (error,) = left_out_of(rest)
    assert "annotation 2: expected a mask with pixels in the image (32×40)" in str(error)
    found = [rest[n].instances for n in range(3)]
    assert [0 if each is None else len(each) for each in found] == [1, 0, 1]


@pytest.mark.parametrize(
    "segmentation",
    [[[4, 4, 5, 4, 5, 5, 4, 5]], [[-4, 4, 24, 4, 24, 20]], [[1, 1, 2, 2, 3, 3], [4, 4, 9, 4, 9, 9, 4, 9]]],
)
def test_a_small_object_and_one_that_begins_outside_stay(segmentation: Any, tmp_path: Path) -> None:
    source = coco_instances(tmp_path / "in")
    file = source / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][1]["segmentation"] = segmentation
    file.write_text(json.dumps(content))
    data = open_dataset(source)
    assert usable(data) is data
    assert len(data[1].instances or ()) == 1


@pytest.mark.parametrize("name", FILES)
def test_hidden_files_are_no_data(name: str, tmp_path: Path) -> None:
    source = MAKERS[name](tmp_path / "in")
    for file in list(source.rglob("*")):
        if file.is_file():
            file.with_name(f"._{file.name}").write_bytes(b"\x00\x05\x16\x07")
        else:
            (file / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    (source / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    data = usable(open_dataset(source))
    assert len(data) == 3
    assert left_out_of(data) == ()


@pytest.mark.parametrize("name", FILES)
def test_where_nothing_else_remains_it_is_an_error(name: str, tmp_path: Path) -> None:
    source = MAKERS[name](tmp_path / "in")
    for letter in NAMES:
        photo_of(source, letter).write_bytes(b"no photo")
    with pytest.raises(PansightError, match=r"none of 3 images can be used; the first: .*expected an image"):
        usable(open_dataset(source, name))


def edited(source: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    (file,) = source.rglob("*_train.json")
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return source


@pytest.mark.parametrize(
    "outline", [[[]], [[4, 4]], [[4, 4, 24, 4]], [[4, 4, 24, 4, 4, 4]], [[4, 4] * 3], [[4, 4], []]]
)
def test_outlines_of_too_few_points(outline: Any, tmp_path: Path) -> None:
    """The image is kept: the object has no pixel anyway."""
    source = coco_instances(tmp_path / "in")
    edited(source, lambda c: c["annotations"][1].update(segmentation=outline))
    data = usable(open_dataset(source))
    assert [len(data[n].truth.segments) for n in range(3)] == [1, 0, 1]
    assert ["annotation 2: expected an outline of 3 or more points" in str(e) for e in left_out_of(data)] == [True]
    with pytest.raises(PansightError, match="annotation 2"):
        usable(open_dataset(source), strict=True)


def test_a_stray_point_beside_an_outline_covers_nothing(tmp_path: Path) -> None:
    source = coco_instances(tmp_path / "in")
    edited(source, lambda c: c["annotations"][1].update(segmentation=[[1, 1], OUTLINE]))
    data = usable(open_dataset(source))
    assert left_out_of(data) == ()
    assert int((data[1].truth.ids > 0).sum()) == 320


@pytest.mark.parametrize(
    "change",
    [
        {"segmentation": None},
        {"segmentation": "x"},
        {"segmentation": [["a"] * 6]},
        {"segmentation": {"size": [9, 9], "counts": [81]}},
        {"iscrowd": "perhaps"},
    ],
)
def test_an_image_whose_objects_are_not_all_known(change: dict[str, Any], tmp_path: Path) -> None:
    source = coco_instances(tmp_path / "in")
    edited(source, lambda c: c["annotations"][1].update(change))
    data = usable(open_dataset(source))
    assert [data.image_id(n) for n in range(len(data))] == [1, 3]
    assert ["annotation 2" in str(error) for error in left_out_of(data)] == [True]


@pytest.mark.parametrize("name", ["coco_instances", "coco_panoptic"])
def test_annotations_of_unlisted_images(name: str, tmp_path: Path) -> None:
    source = MAKERS[name](tmp_path / "in")
    edited(source, lambda c: c["annotations"].append({**c["annotations"][0], "id": 9, "image_id": 99}))
    data = usable(open_dataset(source))
    assert len(data) == 3
    assert ["image_id 99" in str(error) for error in left_out_of(data)] == [True]


def test_images_without_an_annotation_are_noted(tmp_path: Path) -> None:
    source = coco_panoptic(tmp_path / "in")
    edited(source, lambda c: c["annotations"].pop(1))
    data = open_dataset(source)
    assert len(usable(data)) == 2
    assert reading_notes(data) == ("1 images without annotation are left out, such as 2",)


def test_a_mask_without_a_photo(tmp_path: Path) -> None:
    source = instance_png(tmp_path / "in")
    photo_of(source, "b").unlink()
    assert ["b.png: expected an image images/b.*" in str(e) for e in left_out_of(usable(open_dataset(source)))] == [
        True
    ]


def test_the_parts_of_a_run_leave_out_the_same(tmp_path: Path) -> None:
    source = coco_panoptic(tmp_path / "in")
    DAMAGES["cut off"](photo_of(source, "b"))
    training, validation, _ = open_data(DataConfig(source=str(source)))
    assert len(training) + len(validation) == 2
    (line,) = left_out(training, validation)
    assert "b.jpg: expected a whole JPEG" in line
    with pytest.raises(PansightError, match=r"b\.jpg"):
        open_data(DataConfig(source=str(source), strict=True))


def test_a_large_file_is_seen_to_be_whole_by_its_ends(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    for suffix in (".jpg", ".png"):
        file = tmp_path / f"a{suffix}"
        write_picture(file, noise)
        data = file.read_bytes()
        assert len(data) > 2 * END or suffix == ".jpg"
        header = check_stored(file, (300, 400))
        assert (header.height, header.width) == (300, 400)
        file.write_bytes(data[: len(data) // 2])
        with pytest.raises(PansightError, match="truncated"):
            check_stored(file)
        start = data[:2] + b"\xff\xfe\xff\xf0" + bytes(0xFFEE)  # a comment as long as one may be
        if suffix == ".jpg":
            file.write_bytes(start + start[2:] + data[2:])
            assert check_stored(file).width == 400
            with pytest.raises(PansightError, match="300×401"):
                check_stored(file, (300, 401))


TINY = ["--train.steps", "1", "--train.trackers", "", "--backbone", "resnet10t", "--model.options.short", "0"]


def test_train_and_evaluate_tell_and_end_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, run = coco_panoptic(tmp_path / "in"), str(tmp_path / "run")
    bad = photo_of(source, "b")
    DAMAGES["cut off"](bad)
    train = ["train", "--data", str(source), "--model", "faster_rcnn", "--out", run, *TINY]
    assert main([*train, "--strict"]) == 2
    assert "b.jpg" in capsys.readouterr().err
    assert not Path(run).exists()
    assert main(train) == 1
    assert "left out   " in (said := capsys.readouterr().out)
    assert f"{bad.name}: expected a whole JPEG" in said
    measure = ["evaluate", run, "--data", str(source), "--part", "train", "--out", str(tmp_path / "ev")]
    assert main([*measure, "--strict"]) == 2
    assert main(measure) == 1
    record = json.loads((tmp_path / "ev" / "evaluation.json").read_text())
    assert ["b.jpg" in line for line in record["about"]["left_out"]] == [True]
