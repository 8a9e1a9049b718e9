"""Files that annotations name, however the path is spelled; names of parts; options of readers."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from pansight.data import open_dataset
from pansight.data.dataset import means_split, part_folders, split_of
from pansight.data.options import checked_options
from pansight.data.paths import find_tail, locate_all, path_parts
from pansight.errors import PansightError


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def found(root: Path, name: str, *places: str) -> str | None:
    (file,) = locate_all([name], [root / place for place in places or ("",)]).files
    return None if file is None else file.path.relative_to(root).as_posix()


@pytest.mark.parametrize(
    ("stated", "file"),
    [
        ("sub/a b.png", "sub/a b.png"),
        ("sub\\a b.png", "sub/a b.png"),
        ("..\\..\\media\\upload\\4\\sub\\a b.png", "sub/a b.png"),
        ("C:\\Users\\me\\sub\\a b.png", "sub/a b.png"),
        ("\\\\server\\share\\sub\\a b.png", "sub/a b.png"),
        ("/home/me/data/sub/a b.png", "sub/a b.png"),
        ("../../sub/./a b.png", "sub/a b.png"),
        ("file:///home/me/sub/a%20b.png", "sub/a b.png"),
        ("file:///C:/data/sub/a%20b.png", "sub/a b.png"),
        ("https://host/x/sub/a%20b.png?size=3", "sub/a b.png"),
        ("sub/a%20b.png", "sub/a b.png"),
        ("/data/local-files/?d=x/sub/a%20b.png", "sub/a b.png"),
        ("s3://bucket/sub/a b.png", "sub/a b.png"),
        ("SUB/A B.PNG", "sub/a b.png"),
        ("media/0a1b2c3d-c.jpg", "c.JPEG"),
        ("c.jpg", "c.JPEG"),
        (unicodedata.normalize("NFD", "über.tif"), unicodedata.normalize("NFC", "über.tiff")),
        ("d%20e.png", "d%20e.png"),
    ],
)
def test_a_path_is_its_longest_tail_that_exists(tmp_path, stated, file):
    tree(
        tmp_path, "sub/a b.png", "a b.png", "c.JPEG", unicodedata.normalize("NFC", "über.tiff"), "d%20e.png", "d e.png"
    )
    assert found(tmp_path, stated) == file
    notes = locate_all([stated], [tmp_path]).notes
    assert bool(notes) == (stated != file)
    assert all(file in note and "\n" not in note for note in notes)


@pytest.mark.parametrize("stated", ["../secret.png", "/etc/passwd", "x/../../secret.png", "", "..", "a\0b", "no.png"])
def test_nothing_outside_is_looked_at(tmp_path, stated):
    tree(tmp_path, "secret.png", "in/a.png")
    assert found(tmp_path / "in", stated) is None


def test_an_annotation_file_is_never_the_image(tmp_path):
    tree(tmp_path, "a.json", "b.xml", "folder.png/x")
    assert [found(tmp_path, name) for name in ("a.json", "b.xml", "folder.png")] == [None, None, None]


def test_another_picture_of_the_same_name_is_not_taken(tmp_path):
    tree(tmp_path, "a.jpg", "x/a.jpg", "b.jpg")
    files, notes, ambiguous = locate_all(["x/a.jpg", "y/a.jpg", "old/b.jpg"], [tmp_path])
    assert [file and file.name for file in files] == ["x/a.jpg", None, "b.jpg"]
    assert {name: file.name for name, file in ambiguous.items()} == {"y/a.jpg": "a.jpg"}
    assert len(notes) == 2
    files, _, ambiguous = locate_all(["a.jpg", "A.JPG"], [tree(tmp_path / "in", "a.jpg")])
    assert [file and file.name for file in files] == ["a.jpg", None]
    files, _, _ = locate_all(["m/x/a.jpg", "m/y/a.jpg"], [tree(tmp_path / "in", "x/a.jpg", "y/a.jpg")])
    assert [file and file.name for file in files] == ["x/a.jpg", "y/a.jpg"]


def test_two_names_that_differ_in_letter_case_are_told_apart(tmp_path):
    tree(tmp_path, "a.jpg", "A.jpg")
    assert [found(tmp_path, name) for name in ("a.jpg", "A.jpg", "a.JPG")] == ["a.jpg", "A.jpg", None]


def test_paths_beside_the_file_that_gives_them(tmp_path):
    tree(tmp_path, "ann/a.json", "img/a.jpg", "a.jpg")
    both = locate_all(["../img/a.jpg", "a.jpg"], [tmp_path], starts=[tmp_path / "ann", tmp_path])
    assert [file and file.name for file in both.files] == ["img/a.jpg", "a.jpg"]
    assert both.notes == ()
    (file,) = locate_all(["../../a.jpg"], [tmp_path / "ann"], starts=[tmp_path / "ann"]).files
    assert file is None


def test_folders_are_found_like_files(tmp_path):
    tree(tmp_path, "train/images/a.jpg")
    assert find_tail([tmp_path], "../train/images") == tmp_path / "train/images"
    assert find_tail([tmp_path], "./") == tmp_path
    assert find_tail([tmp_path], "../nowhere") is None
    assert path_parts("C:\\a\\..\\b") == ("a", "b")


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (
            "train",
            "train TRAIN Training train2017 coco_train stuff_train2017 trainset train-a images/train TrainData",
        ),
        ("val", "val valid validation Validation dev val2017 coco_val my-dev valset VAL_2"),
        ("test", "test Test testing test-dev2017 test_images coco_test"),
        (None, "trainval train_val default trainer contest images trains evaluate model unlabeled2017 2017"),
    ],
)
def test_names_of_parts(part, names):
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), part)


def test_a_part_is_asked_for_by_its_own_or_a_plain_name():
    assert means_split("coco_train", "train")
    assert means_split("train2017", "Training")
    assert means_split("default", "default")
    assert means_split("valid", "dev")
    assert not means_split("train2014", "train2017")
    assert not means_split("train", "train2017")
    assert not means_split("val", "train")


def test_folders_of_parts_come_in_order(tmp_path):
    tree(tmp_path, "Val/x", "test2/x", "train_b/x", "train/x", "masks/x", ".train/x", "training.txt")
    assert part_folders(tmp_path, tmp_path / "nowhere") == ("train", "train_b", "Val", "test2")


# --- options ---------------------------------------------------------------------------------------------------------


def opener(source, split=None, images: str | None = None, to: str = "", split_at: int = 3, classes: object = None):
    return images


def test_options_become_what_the_reader_takes():
    assert checked_options("x", opener, {"images": "a", "split_at": "7"}) == {"images": "a", "split_at": 7}
    assert checked_options("x", opener, {"to": 1.2, "images": 5}) == {"to": "1.2", "images": "5"}  # read as TOML
    assert checked_options("x", opener, {"images": None}) == {"images": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "a"}, "unknown option of x 'source'; known: classes, images, split_at, to"),
        ({"split": "a"}, "unknown option of x 'split'"),
        ({"imagse": "a"}, "unknown option of x 'imagse'"),
        ({"split_at": "seven"}, "option split_at: expected a whole number, found 'seven'"),
        ({"split_at": True}, "option split_at: expected a whole number, found True"),
        ({"images": ["a"]}, r"option images: expected a text, found \['a'\]"),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(PansightError, match=message):
        checked_options("x", opener, options)


@pytest.mark.parametrize("name", ["source", "format", "split", "options", "to", "things"])
def test_an_option_called_like_a_parameter_is_no_traceback(name):
    with pytest.raises(PansightError, match=f"unknown option of shapes '{name}'; known: background, count"):
        open_dataset("shapes", options={name: "x"})
