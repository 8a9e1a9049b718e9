"""COCO panoptic, COCO instances and instance PNGs: what is read, what is written, and every way to be bad."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as reference_mask

from pansight.data import DATASETS, detect_format, find_splits, open_dataset, reading_notes, split_dataset
from pansight.data.formats.coco_instances import decode_segmentation
from pansight.data.formats.coco_panoptic import export_coco_panoptic, write_coco_panoptic
from pansight.data.formats.shapes import Shapes
from pansight.data.images import write_png
from pansight.errors import PansightError
from pansight.ops.idmap import ids_to_rgb, present_ids
from pansight.types import PanopticSegmentation, Segment

CATEGORIES = [
    {"id": 200, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
    {"id": 7, "name": "cat", "isthing": 1, "color": [4, 5, 6]},
    {"id": 3, "name": "dog", "isthing": 1, "color": [7, 8, 9]},
]
IDS = np.array([[0, 70000, 70000, 5], [0, 0, 300, 5]], np.int32)


@pytest.fixture
def panoptic(tmp_path) -> Path:
    """One image of 2×4 pixels with three segments and void, in the layout of COCO."""
    segments = [
        {"id": 70000, "category_id": 7},
        {"id": 300, "category_id": 3, "iscrowd": 1},
        {"id": 5, "category_id": 200},
    ]
    annotation = {"image_id": 9, "file_name": "a.png", "segments_info": segments}
    image = {"id": 9, "file_name": "a.png", "height": 2, "width": 4}
    (tmp_path / "annotations").mkdir()
    write_png(tmp_path / "annotations" / "panoptic_train2017" / "a.png", ids_to_rgb(IDS))
    write_png(tmp_path / "train2017" / "a.png", np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    content = {"images": [image], "annotations": [annotation], "categories": CATEGORIES}
    (tmp_path / "annotations" / "panoptic_train2017.json").write_text(json.dumps(content))
    return tmp_path


def edit(root: Path, change) -> None:
    file = root / "annotations" / "panoptic_train2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def bad(root: Path, message: str, **options) -> None:
    """Opening and reading ends in one line that holds `message`."""
    with pytest.raises(PansightError, match=message) as caught:
        open_dataset(root, **options)[0]
    assert "\n" not in str(caught.value)


def test_panoptic_reads_things_first_and_keeps_source_ids(panoptic):
    data = open_dataset(panoptic)
    assert detect_format(panoptic) == "coco_panoptic"
    assert [(c.name, c.is_thing, c.source_id) for c in data.labels] == [
        ("cat", True, 7),
        ("dog", True, 3),
        ("sky", False, 200),
    ]
    sample = data[0]
    assert sample.truth.segments == (Segment(70000, 0), Segment(300, 1, 1.0, True), Segment(5, 2))
    assert np.array_equal(sample.truth.ids.numpy(), IDS)
    assert sample.image.permute(1, 2, 0).numpy().reshape(-1).tolist() == list(range(24))
    assert sample.image.permute(1, 2, 0).is_contiguous()  # OpenCV can take it back without a copy
    assert (sample.image_id, sample.size, data.file_name(0), data.image_id(0)) == (9, (2, 4), "a.png", 9)


def test_an_image_without_segments_is_legal(panoptic):
    edit(panoptic, lambda c: c["annotations"][0].update(segments_info=[]))
    write_png(panoptic / "annotations" / "panoptic_train2017" / "a.png", np.zeros((2, 4, 3), np.uint8))
    assert open_dataset(panoptic)[0].truth.segments == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0]["segments_info"].pop(), r"a\.png: expected only ids .*found 5"),
        (lambda c: c["annotations"][0]["segments_info"].append({"id": 8, "category_id": 7}), "found no pixel of 8"),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(category_id=99),
            "listed category, found category_id 99",
        ),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=2**24), "ids 1 … 16777215, found 16777216"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=300), "300 twice"),
        (lambda c: c["annotations"][0].pop("segments_info"), "expected a list segments_info"),
        (lambda c: c["annotations"][0].update(image_id=4), "found image_id 4"),
        (lambda c: c["annotations"].clear(), "annotation for every image, found none for image 9"),
        (lambda c: c["images"].clear(), "empty data set"),
        (lambda c: c["categories"].clear(), "expected categories, found none"),
        (lambda c: c["categories"][0].pop("isthing"), "'isthing' is missing"),
        (lambda c: c.pop("images"), "expected a list under 'images'"),
        (lambda c: c["images"][0].update(file_name="../secret.png"), "inside the data folder, found '../secret.png'"),
        (lambda c: c["images"][0].update(file_name="C:\\x.png"), "inside the data folder"),
        (lambda c: c["annotations"][0].update(file_name="/etc/passwd"), "inside the data folder"),
    ],
)
def test_bad_panoptic_json_is_one_line(panoptic, change, message):
    edit(panoptic, change)
    bad(panoptic, message)


def test_bad_panoptic_files_are_one_line(panoptic):
    png, photo = panoptic / "annotations" / "panoptic_train2017" / "a.png", panoptic / "train2017" / "a.png"
    whole = photo.read_bytes()
    write_png(photo, np.zeros((3, 4, 3), np.uint8))
    bad(panoptic, r"a\.png: expected an image of 2×4 \(its annotation\), found 3×4")
    photo.write_bytes(whole[:-30])
    bad(panoptic, r"train2017/a\.png: expected a whole")
    photo.unlink()
    bad(panoptic, "expected the images in one of")
    photo.write_bytes(whole)
    write_png(png, np.zeros((2, 4), np.uint8))
    bad(panoptic, "expected an 8-bit RGB PNG of segment ids")
    (panoptic / "annotations" / "panoptic_train2017.json").write_text("{]")
    bad(panoptic, r"panoptic_train2017\.json: expected JSON")


def test_what_cannot_be_found_is_listed(tmp_path, panoptic):
    (tmp_path / "nothing").mkdir()
    bad(tmp_path / "nothing", "panoptic_.*json, .*instances.*PedMasks.*found none of them")
    bad(tmp_path / "gone", "expected a data folder, an annotation file or 'shapes', found none")
    bad(panoptic, "expected annotations/panoptic_val", split="val")
    bad(panoptic, "unknown data format 'voc'; known: ade20k, cityscapes, coco_instances", format="voc")
    bad(panoptic, "unknown option of coco_panoptic 'colour'; known: images, json, panoptic", colour=1)


def test_written_shapes_read_back_the_same(tmp_path):
    for split in ("train", "val"):
        export_coco_panoptic(Shapes(4, 64, 80, split=split), tmp_path, split)
    assert find_splits(tmp_path) == ("train", "val")
    assert not list(tmp_path.rglob(".*"))
    for split in ("train", "val"):
        made, read = Shapes(4, 64, 80, split=split), open_dataset(tmp_path, split=split)
        assert read.labels == made.labels
        for index in range(4):
            assert torch.equal(read[index].image, made[index].image)
            assert torch.equal(read[index].truth.ids, made[index].truth.ids)
            assert read[index].truth.segments == made[index].truth.segments
            assert read[index].image_id == made[index].image_id
    rows = json.loads((tmp_path / "annotations" / "panoptic_train.json").read_text())["annotations"][0]["segments_info"]
    ids = Shapes(4, 64, 80)[0].truth.ids.numpy()
    for row in rows:
        y, x = np.nonzero(ids == row["id"])
        assert row["area"] == len(y)
        assert row["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]


def test_the_writer_leaves_all_or_nothing(tmp_path):
    data = Shapes(2, 32, 32)
    target = tmp_path / "out" / "p.json"
    wrong = replace(data[1].truth, segments=(*data[1].truth.segments, Segment(99, 0)))
    items = [(1, "a.jpg", data[0].truth), (2, "b.jpg", wrong)]
    with pytest.raises(PansightError, match="no pixel of 99"):
        write_coco_panoptic(target, items, data.labels)
    assert list(target.parent.iterdir()) == []
    write_coco_panoptic(target, items[:1], data.labels)
    before = {f: f.read_bytes() for f in target.parent.rglob("*") if f.is_file()}
    assert {f.name for f in before} == {"p.json", "a.png"}
    with pytest.raises(PansightError, match="expected no such file or folder yet"):
        write_coco_panoptic(target, items[:1], data.labels)
    with pytest.raises(PansightError, match="no pixel of 99"):
        write_coco_panoptic(target, items, data.labels, overwrite=True)
    assert {f: f.read_bytes() for f in target.parent.rglob("*") if f.is_file()} == before
    write_coco_panoptic(target, [(5, "sub/c.jpg", data[1].truth)], data.labels, overwrite=True)
    assert {f.name for f in target.parent.rglob("*") if f.is_file()} == {"p.json", "sub_c.png"}


def test_images_and_annotations_are_exported_together_or_not_at_all(tmp_path, monkeypatch):
    export_coco_panoptic(Shapes(2, 32, 32), tmp_path)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    replace = Path.replace

    def full_disk(self: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(PansightError, match="panoptic_train: cannot be written: No space left on device"):
        export_coco_panoptic(Shapes(3, 32, 32, seed=5), tmp_path, overwrite=True)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "out").write_text("a file where a folder should be")
    with pytest.raises(PansightError, match="cannot be written"):
        write_coco_panoptic(tmp_path / "out" / "p.json", [], Shapes(1).labels)


# --- COCO instances --------------------------------------------------------------------------------------------------

BIG, SMALL = [0, 0, 8, 0, 8, 6, 0, 6], [2, 2, 5, 2, 5, 5, 2, 5]


@pytest.fixture
def instances(tmp_path) -> Path:
    """An 8×10 image: a large and a small overlapping object and a crowd."""
    (tmp_path / "val2017").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(tmp_path / "val2017" / "a.jpg")
    crowd = {"size": [8, 10], "counts": [0, 40, 40]}  # columns 0 … 4
    objects = [
        {"id": 1, "image_id": 1, "category_id": 18, "segmentation": [SMALL], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "segmentation": [BIG], "iscrowd": 0},
        {"id": 3, "image_id": 1, "category_id": 1, "segmentation": crowd, "iscrowd": 1},
    ]
    images = [{"id": n, "file_name": "a.jpg", "height": 8, "width": 10} for n in (1, 2)]
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    content = {"images": images, "annotations": objects, "categories": categories}
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return tmp_path


def edit_instances(root: Path, change) -> None:
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_instances_overlap_while_the_truth_is_disjoint(instances):
    sample = open_dataset(instances)[0]
    assert detect_format(instances) == "coco_instances"
    assert sample.instances is not None
    assert sample.instances.masks is not None
    small, big, crowd = sample.instances.masks
    assert (small & big).sum() == small.sum() == 9
    assert sample.instances.labels.tolist() == [1, 0, 0]
    assert sample.instances.is_crowd is not None
    assert sample.instances.is_crowd.tolist() == [False, False, True]
    assert sample.instances.boxes_xyxy.tolist() == [[2, 2, 5, 5], [0, 0, 8, 6], [0, 0, 5, 8]]
    ids = sample.truth.ids
    assert torch.equal(ids == 1, small)
    assert torch.equal(ids == 2, big & ~small)
    assert torch.equal(ids == 3, crowd & ~big)
    assert sample.truth.segments == (Segment(1, 1), Segment(2, 0), Segment(3, 0, 1.0, True))
    assert open_dataset(instances)[1].truth.segments == ()  # an image without objects


def test_background_may_be_stuff(instances):
    data = open_dataset(instances, background="stuff")
    assert data.labels.names == ("person", "dog", "background")
    assert (data[0].truth.ids != 0).all()
    assert data[1].truth.segments == (Segment(1, 2),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3]]),
            "annotation 1: expected polygons of 3 or more",
        ),
        (lambda c: c["annotations"][0].update(segmentation=[]), "annotation 1: expected polygons or a run-length"),
        (lambda c: c["annotations"][2]["segmentation"].update(size=[4, 4]), r"size \[8, 10\], found \[4, 4\]"),
        (lambda c: c["annotations"][2]["segmentation"].update(counts=[3]), "run lengths of 80 pixels, found 3"),
        (lambda c: c["annotations"][0].update(category_id=2), "annotation 1: expected a listed category, found 2"),
        (lambda c: c["images"][0].update(height=9), "expected an image of 9×10"),
        (lambda c: c["images"][0].pop("height"), "expected image sizes"),
        (lambda c: c["images"][0].update(file_name="../b.jpg"), "inside the data folder"),
    ],
)
def test_bad_instances_are_one_line(instances, change, message):
    edit_instances(instances, change)
    bad(instances, message)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with numpy 2
@pytest.mark.parametrize("seed", range(8))
def test_masks_equal_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    polygons = [rng.uniform(-2, 32, 2 * rng.integers(3, 9)).tolist() for _ in range(2)]
    packed = reference_mask.merge(reference_mask.frPyObjects(polygons, 30, 28))
    expected = reference_mask.decode(packed)
    assert np.array_equal(decode_segmentation(polygons, (30, 28), "x"), expected)
    text = {"size": [30, 28], "counts": packed["counts"].decode()}
    assert np.array_equal(decode_segmentation(text, (30, 28), "x"), expected)


# --- instance PNGs ---------------------------------------------------------------------------------------------------


def write_pairs(root: Path, images: str, masks: str, suffix: str, numbers: list[list[int]]) -> None:
    ids = np.array(numbers, np.uint16)
    write_png(root / masks / f"x{suffix}.png", ids)
    write_png(root / images / "x.png", np.zeros((*ids.shape, 3), np.uint8))


def test_instance_pngs_of_both_layouts(tmp_path):
    write_pairs(tmp_path / "a" / "train", "images", "instances", "", [[0, 1, 40000]])
    write_pairs(tmp_path / "a" / "val", "images", "instances", "", [[3, 3, 3]])
    write_pairs(tmp_path / "b", "PNGImages", "PedMasks", "_mask", [[0, 2, 0]])
    nuclei = open_dataset(tmp_path / "a", thing="nucleus")
    assert find_splits(tmp_path / "a") == ("train", "val")
    assert nuclei.labels.names == ("nucleus", "background")
    assert nuclei[0].truth.ids.tolist() == [[40001, 1, 40000]]
    assert nuclei[0].truth.segments == (Segment(1, 0), Segment(40000, 0), Segment(40001, 1))
    assert open_dataset(tmp_path / "a", split="val")[0].truth.segments == (Segment(3, 0),)
    people = open_dataset(tmp_path / "b", background="void")
    assert people.labels.names == ("pedestrian",)
    assert people[0].truth.ids.tolist() == [[0, 2, 0]]
    assert people.image_id(0) == "x"
    assert open_dataset(tmp_path, format="instance_png", images="b/PNGImages", masks="b/PedMasks")[0].size == (1, 3)


def test_bad_instance_pngs_are_one_line(tmp_path):
    write_pairs(tmp_path, "images", "instances", "", [[0, 1]])
    write_png(tmp_path / "images" / "y.png", np.zeros((1, 2, 3), np.uint8))
    (tmp_path / "instances" / "x.png").rename(tmp_path / "x.png")
    bad(tmp_path, r"x\.png: expected instances/x\[_mask\]\.png, found no such file")
    write_png(tmp_path / "instances" / "x.png", np.zeros((5, 2), np.uint8))
    bad(tmp_path, "expected an image of 5×2")
    for file in tmp_path.rglob("*.png"):
        file.unlink()
    bad(tmp_path, "expected images .*found none")
    bad(tmp_path, "expected images/ . instances/", format="instance_png", split="val")


def test_splitting_is_repeatable_and_complete():
    data = Shapes(10)
    train, val = split_dataset(data, 0.25, seed=1)
    assert (len(train), len(val)) == (8, 2)
    assert sorted(train.indices + val.indices) == list(range(10))
    assert split_dataset(data, 0.25, seed=1)[1].indices == val.indices
    assert val.image_id(0) == data.image_id(val.indices[0]) == val[0].image_id
    with pytest.raises(PansightError, match="at least 2 images"):
        split_dataset(Shapes(1))


# --- real data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "options", "count", "classes"),
    [
        ("coco_panoptic_sample", {}, 2, 133),
        ("coco_tiny", {"split": "train"}, 80, 80),
        ("coco_tiny", {"split": "val", "background": "stuff"}, 80, 81),
        ("dsb2018", {"split": "train", "thing": "nucleus"}, 473, 2),
        ("dsb2018", {"split": "val"}, 81, 2),
    ],
)
def test_real_data_is_whole(data_root, folder, options, count, classes):
    data = open_dataset(data_root / folder, **options)
    assert (len(data), len(data.labels)) == (count, classes)
    for index in range(0, count, max(1, count // 12)):
        sample = data[index]
        assert sample.image.shape == (3, *sample.size)
        present = set(present_ids(sample.truth.ids.numpy()).tolist()) - {0}
        assert present == {s.id for s in sample.truth.segments}
        assert sample.image_id == data.image_id(index)
        assert PanopticSegmentation(sample.truth.ids, sample.truth.segments).size == sample.size


def test_every_format_is_tested_here():
    official = {"cityscapes", "ade20k", "vistas"}  # in test_official.py
    shards = {"webdataset"}  # in test_webdataset.py
    assert set(DATASETS) == {"shapes", "coco_panoptic", "coco_instances", "instance_png"} | official | shards


# --- the same rules as in convert -------------------------------------------------------------------------------------


FLAGS = [("0", False), ("1", True), (0.0, False), ("false", False), (None, False)]


@pytest.mark.parametrize(("flag", "is_crowd"), FLAGS)
def test_a_crowd_is_what_its_flag_says(instances, flag, is_crowd):
    edit_instances(instances, lambda c: c["annotations"][2].update(iscrowd=flag))
    assert open_dataset(instances)[0].truth.segments[2].is_crowd == is_crowd


@pytest.mark.parametrize(("flag", "is_crowd"), FLAGS)
def test_a_crowd_segment_is_what_its_flag_says(panoptic, flag, is_crowd):
    edit(panoptic, lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd=flag))
    assert open_dataset(panoptic)[0].truth.segments[0].is_crowd == is_crowd


@pytest.mark.parametrize("flag", ["maybe", 2, [1]])
def test_a_flag_of_an_object_that_says_nothing_is_one_line(instances, flag):
    edit_instances(instances, lambda c: c["annotations"][2].update(iscrowd=flag))
    bad(instances, "annotation 3: expected iscrowd 0 or 1, found")


@pytest.mark.parametrize("flag", ["maybe", 2, [1]])
def test_a_flag_that_says_nothing_is_one_line(panoptic, flag):
    edit(panoptic, lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd=flag))
    bad(panoptic, "expected iscrowd 0 or 1, found")
    edit(panoptic, lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd=0))
    edit(panoptic, lambda c: c["categories"][0].update(isthing=flag))
    bad(panoptic, "expected isthing 0 or 1, found")


def test_thingness_may_be_written_as_text(panoptic):
    before = open_dataset(panoptic).labels
    edit(panoptic, lambda c: [row.update(isthing=str(row["isthing"])) for row in c["categories"]])
    assert open_dataset(panoptic).labels == before


@pytest.mark.parametrize("stated", ["..\\..\\upload\\a.jpg", "/home/me/a.jpg", "a.JPEG", "file:///x/a.jpg"])
def test_photos_under_another_path_are_found_and_told(instances, stated):
    edit_instances(instances, lambda c: c["images"][0].update(file_name=stated))
    edit_instances(instances, lambda c: c["images"].pop())
    data = open_dataset(instances)
    assert data[0].size == (8, 10)
    assert data.file_name(0) == "a.jpg"
    (note,) = reading_notes(data)
    assert note.startswith("1 of 1 images are read under another path than the annotations give: ")
    assert note.endswith(" is a.jpg")


@pytest.mark.parametrize("name", ["coco_train", "my_TRAIN_2", "training", "stuff_train2017"])
def test_a_training_part_of_another_name(instances, name):
    (instances / "annotations/instances_val2017.json").rename(instances / f"annotations/{name}.json")
    (instances / "val2017").rename(instances / "Train")
    assert detect_format(instances) == "coco_instances"
    assert find_splits(instances) == ("train",)
    assert len(open_dataset(instances, split="train")) == 2
    bad(instances, "val.*found none", split="val")


def test_folders_and_files_that_the_user_names_lie_in_the_data_folder(instances, tmp_path, monkeypatch):
    (instances / "val2017").rename(instances / "data")
    (tmp_path / "elsewhere/data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    options = {"images": "data", "json": "annotations/instances_val2017.json"}
    assert open_dataset(instances, options=options)[0].size == (8, 10)
    bad(instances, "nowhere: expected a folder of images, found none", options={"images": "nowhere"})
    bad(instances, "no.json: expected an annotation file, found none", options={"json": "no.json"})


@pytest.mark.parametrize("layout", ["{part}/{kind}", "{kind}/{part}"])
def test_parts_of_instance_pngs(tmp_path, layout):
    for part in ("Train", "my-val"):
        write_png(tmp_path / layout.format(part=part, kind="images") / "a.PNG", np.zeros((2, 3, 3), np.uint8))
        write_png(tmp_path / layout.format(part=part, kind="instances") / "a.PNG", np.array([[0, 1, 1]] * 2, np.uint8))
    assert find_splits(tmp_path) == ("train", "val")
    assert [len(open_dataset(tmp_path, split=part)) for part in (None, "train", "val", "dev")] == [1, 1, 1, 1]
