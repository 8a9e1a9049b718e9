"""ADE20K: the benchmark with its instances, and the full release of 2021."""

import json
from pathlib import Path

import numpy as np
import pytest
from trees import (
    ADE_CLASSES,
    ADE_FULL_BLUE,
    ADE_FULL_CLASSES,
    ADE_IDS,
    ADE_INSTANCES,
    ade20k_full_tree,
    ade20k_tree,
    write,
    write_jpeg,
)

from pansight.data import open_dataset
from pansight.data.convert import convert
from pansight.data.convert.readers.ade20k import is_ade20k, is_ade20k_full, open_ade20k, open_ade20k_full
from pansight.errors import PansightError

STREET = "images/ADE/training/urban/street/ADE_train_00016869"


def fails(opener, root: Path, message: str, **options) -> None:
    with pytest.raises(PansightError, match=message) as caught:
        opener(root, **options)[0]
    assert "\n" not in str(caught.value)


def coded(red: int, green) -> np.ndarray:
    green = np.asarray(green, np.uint8)
    return np.dstack([np.where(green > 0, red, 0).astype(np.uint8), green, np.zeros_like(green)])


def test_things_cover_stuff_and_things_without_instance_are_void(tmp_path):
    source = open_ade20k(ade20k_tree(tmp_path))
    image = source[0]
    assert image.ids is not None
    assert image.ids.dtype == np.int32
    assert np.array_equal(image.ids, ADE_IDS)
    assert image.segments == {1: (0, False), 3: (2, False), 13001: (12, False), 13002: (12, False)}
    assert (image.image_id, image.file_name, image.size) == ("ADE_train_00000001", "ADE_train_00000001.jpg", (4, 4))
    assert image.image == tmp_path / "images/training/ADE_train_00000001.jpg"


def test_categories_are_those_of_the_panoptic_files(tmp_path):
    categories = open_ade20k(ade20k_tree(tmp_path)).categories
    assert [c.source_id for c in categories] == list(range(150))
    assert sum(c.is_thing is True for c in categories) == 100
    assert categories[12] == ("person", 12, True, (150, 5, 61))


def test_parts_and_roots(tmp_path):
    root = ade20k_tree(tmp_path / "ADEChallengeData2016")
    assert open_ade20k(root, "val")[0].image_id == "ADE_val_00000001"
    assert open_ade20k(tmp_path, "validation")[0].image_id == "ADE_val_00000001"
    assert "there is also validation" in open_ade20k(root).notes[0]
    assert is_ade20k(root)
    assert is_ade20k(tmp_path)
    assert not is_ade20k_full(root)
    fails(open_ade20k, root, "expected a part 'test', found training, validation", split="test")
    write_jpeg(root / "images/training/ADE_train_00000002.jpg", 4, 4)
    assert "1 images of" in open_ade20k(root).notes[1]


def test_missing_files_of_the_benchmark_are_one_line(tmp_path):
    fails(open_ade20k, tmp_path, r"expected annotations/ \(ADEChallengeData2016\.zip\), found no such folder")
    root = ade20k_tree(tmp_path / "a", instances=False)
    fails(open_ade20k, root, r"expected annotations_instance/ \(a tar of its own\), found no such folder")
    root = ade20k_tree(tmp_path / "b")
    (root / "images/training/ADE_train_00000001.jpg").unlink()
    fails(open_ade20k, root, r"images/training/ADE_train_00000001\.jpg: expected an image file, found no such file")
    (root / "annotations_instance/training/ADE_train_00000001.png").unlink()
    fails(open_ade20k, root, "expected the instances of ADE_train_00000001.png, found no such file")


def test_wrong_values_and_depths_of_the_benchmark_are_one_line(tmp_path):
    root = ade20k_tree(tmp_path)
    classes = root / "annotations/training/ADE_train_00000001.png"
    instances = root / "annotations_instance/training/ADE_train_00000001.png"
    write(instances, coded(101, ADE_INSTANCES))
    fails(open_ade20k, root, "expected classes 1 … 100 in the red channel of an instance, found 101")
    write(instances, coded(0, ADE_INSTANCES))
    fails(open_ade20k, root, "in the red channel of an instance, found 0")
    write(instances, coded(13, ADE_INSTANCES[:3]))
    fails(open_ade20k, root, r"expected a size of 4×4 like ADE_train_00000001\.png, found 3×4")
    write(instances, ADE_INSTANCES)
    fails(open_ade20k, root, "expected an 8-bit RGB PNG")
    write(instances, coded(13, ADE_INSTANCES))
    write(classes, np.full((4, 4), 151, np.uint8))
    fails(open_ade20k, root, "expected classes 0 … 150, found 151")
    write(classes, ADE_CLASSES.astype(np.uint16))
    fails(open_ade20k, root, "expected classes of ADE20K as a PNG of 8 bits, found 16 bits")


# --- the full release ------------------------------------------------------------------------------------------------


def test_the_full_release_is_read_without_guessing_things(tmp_path):
    source = open_ade20k_full(ade20k_full_tree(tmp_path))
    assert source.categories == (
        ("car, auto, automobile", 401, None, None),
        ("person, individual", 1831, None, None),
        ("sky", 2420, None, None),
    )
    image = source[0]
    expected = np.where(ADE_FULL_CLASSES > 0, ADE_FULL_CLASSES * 256 + ADE_FULL_BLUE, 0)
    assert image.ids is not None
    assert np.array_equal(image.ids, expected)
    assert [category for category, _ in image.segments.values()] == [0, 0, 1, 2]  # two cars
    assert image.image == tmp_path / f"{STREET}.jpg"
    assert (image.image_id, image.file_name, image.size) == ("ADE_train_00016869", "ADE_train_00016869.jpg", (3, 3))
    assert any("does not say which classes are things" in note for note in source.notes)


def test_full_release_parts_and_roots(tmp_path):
    root = ade20k_full_tree(tmp_path / "ADE20K_2021_17_01", encoding="latin-1")
    assert len(open_ade20k_full(root)) == 1  # masks of objects and parts are no images of their own
    assert open_ade20k_full(tmp_path, "val")[0].image_id == "ADE_val_00016869"
    assert is_ade20k_full(root)
    assert is_ade20k_full(tmp_path)
    assert not is_ade20k(root)


def test_classes_of_one_name_are_told_apart_by_number(tmp_path):
    root = ade20k_full_tree(tmp_path)
    file = root / f"{STREET}.json"
    content = json.loads(file.read_text())
    content["annotation"]["object"][3]["name"] = "sky"
    file.write_text(json.dumps(content))
    assert [c.name for c in open_ade20k_full(root).categories][1:] == ["sky (1831)", "sky (2420)"]


def test_bad_full_releases_are_one_line(tmp_path):
    fails(open_ade20k_full, tmp_path, "expected images/ADE/training .*found no such folder")
    root = ade20k_full_tree(tmp_path)
    file, seg = root / f"{STREET}.json", root / f"{STREET}_seg.png"
    write(seg, np.full((3, 3, 3), (0, 7, 64), np.uint8))
    fails(open_ade20k_full, root, "expected classes that the JSON files name, found class 7")
    write(seg, np.zeros((3, 3), np.uint8))
    fails(open_ade20k_full, root, "expected an 8-bit RGB PNG")
    write(seg, np.zeros((3, 4, 3), np.uint8))
    fails(open_ade20k_full, root, r"ADE_train_00016869\.jpg: expected an image of 3×4")
    file.write_text("{]")
    fails(open_ade20k_full, root, r"ADE_train_00016869\.json: expected JSON")
    file.write_text('{"annotation": {"object": [{"name": "sky"}]}}')
    fails(open_ade20k_full, root, "name_ndx")
    file.write_text("[" * 100_000)
    fails(open_ade20k_full, root, r"ADE_train_00016869\.json: ")
    file.unlink()
    fails(open_ade20k_full, root, r"ADE_train_00016869\.json: expected the names of the objects, found no such file$")
    (root / f"{STREET}_atr.txt").write_text('001 # 0 # 0 # sky # sky # ""\n')
    fails(open_ade20k_full, root, "this is the release of 2017")


def test_odd_objects_of_the_full_release_have_no_name(tmp_path):
    root = ade20k_full_tree(tmp_path)
    file = root / f"{STREET}.json"
    content = json.loads(file.read_text())
    objects = content["annotation"]["object"]
    content["annotation"]["object"] = [*objects, {**objects[0], "name": [], "name_ndx": []}]
    file.write_text(json.dumps(content))
    assert len(open_ade20k_full(root).categories) == 3
    content["annotation"]["object"] = objects[0]  # a list of one, as MATLAB writes it
    file.write_text(json.dumps(content))
    assert [c.name for c in open_ade20k_full(root).categories] == ["sky"]


def test_conversion_asks_what_is_a_thing_and_joins_stuff(tmp_path):
    root = ade20k_full_tree(tmp_path / "full")
    with pytest.raises(PansightError, match="found no answer for car, auto, automobile, person, individual, sky"):
        convert(root, tmp_path / "out")
    summary = convert(root, tmp_path / "out", things=["person, individual"])
    assert summary.images == {"train": 1, "val": 1}
    assert summary.segments == {"car, auto, automobile": 2, "person, individual": 2, "sky": 2}  # one per image
    sample = open_dataset(tmp_path / "out")[0]
    assert (sample.truth.ids > 0).tolist() == (ADE_FULL_CLASSES > 0).tolist()


def test_conversion_of_the_benchmark(tmp_path):
    root = ade20k_tree(tmp_path / "ade", panoptic=True)
    convert(root, tmp_path / "out")
    for part in ("train", "val"):
        converted, read = open_dataset(tmp_path / "out", split=part)[0], open_dataset(root, split=part)[0]
        assert converted.truth.ids.tolist() == read.truth.ids.tolist() == ADE_IDS.tolist()
        assert set(converted.truth.segments) == set(read.truth.segments)
