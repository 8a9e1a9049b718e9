"""From COCO panoptic to other formats and back: the maps and the classes stay the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as reference

from pansight.data import open_dataset
from pansight.data.convert import TARGETS, convert
from pansight.data.convert.targets.outlines import MAX_PARTS, one_outline, outlines
from pansight.data.dataset import ids_tensor
from pansight.data.formats.coco_panoptic import CocoPanoptic, write_coco_panoptic
from pansight.errors import PansightError
from pansight.ops.idmap import present_ids
from pansight.types import LabelSpace, PanopticSegmentation, Segment

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools

CITY = LabelSpace.from_names(["car", "person"], ["road", "sky"])


def write(folder: Path, maps: dict[str, tuple[np.ndarray, list[Segment]]], labels: LabelSpace = CITY) -> Path:
    """A COCO panoptic folder of one part, val, with black images."""
    items = []
    (folder / "val").mkdir(parents=True)
    for n, (name, (ids, segments)) in enumerate(maps.items()):
        Image.new("RGB", ids.shape[::-1]).save(folder / "val" / name)
        items.append((n + 1, name, PanopticSegmentation(ids_tensor(ids), tuple(segments))))
    write_coco_panoptic(folder / "annotations" / "panoptic_val.json", items, labels)
    return folder


@pytest.fixture
def drawn(tmp_path) -> Path:
    """Two images: an object with a hole, in two parts and touching itself at a corner; a crowd, stuff and void."""
    ids = np.zeros((9, 12), np.int32)
    ids[:3], ids[3:] = 5, 9  # sky, road
    ids[2:7, 1:6] = 26000  # a car
    ids[4, 3] = 9  # the road through its window
    ids[7, 6] = 26000
    ids[0, 11] = 26000
    ids[5:8, 8:11] = 300
    ids[8, 8:] = 70000  # a crowd of persons
    ids[3, 6:9] = 0
    segments = [Segment(5, 3), Segment(26000, 0), Segment(9, 2), Segment(300, 1), Segment(70000, 1, is_crowd=True)]
    small = np.array([[1, 0], [0, 1], [1, 1]], np.int32)
    return write(tmp_path / "drawn", {"a.png": (ids, segments), "c.png": (small, [Segment(1, 1)])})


def maps_of(folder: Path) -> list[tuple[np.ndarray, dict[int, tuple[str, bool]]]]:
    """(ids, {id: (class name, is_crowd)}) of each image."""
    dataset = open_dataset(folder, "coco_panoptic")
    assert isinstance(dataset, CocoPanoptic)
    samples = [dataset[n].truth for n in range(len(dataset))]
    names = dataset.labels.names
    return [(t.ids.numpy(), {s.id: (names[s.category], s.is_crowd) for s in t.segments}) for t in samples]


def same_segments(a: tuple, b: tuple, only=lambda name, crowd: True) -> None:
    """The two maps cut the image alike, whatever the ids; of the segments that `only` keeps."""
    found = []
    for ids, segments in (a, b):
        kept = {number: row for number, row in segments.items() if only(*row)}
        found.append(sorted((*row, (ids == number).tobytes()) for number, row in kept.items()))
    assert found[0] == found[1]


def is_object(name: str, crowd: bool) -> bool:
    return CITY.by_name()[name].is_thing


def test_panoptic_to_panoptic_is_the_same(drawn, tmp_path):
    summary = convert(drawn, tmp_path / "out")
    for (ids, segments), (again, rows) in zip(maps_of(drawn), maps_of(tmp_path / "out"), strict=True):
        assert np.array_equal(ids, again)
        assert segments == rows
    old, new = (
        json.loads((place / "annotations" / "panoptic_val.json").read_text()) for place in (drawn, tmp_path / "out")
    )
    assert old == new
    assert summary.images == {"val": 2}
    assert summary.crowds == 1
    assert (tmp_path / "out" / "val" / "a.png").read_bytes() == (drawn / "val" / "a.png").read_bytes()


def test_coco_instances_and_back(drawn, tmp_path):
    summary = convert(drawn, tmp_path / "coco", target="coco_instances")
    assert summary.notes == ("2 segments of stuff are left out: COCO instances lists objects",)
    content = json.loads((tmp_path / "coco" / "annotations" / "instances_val.json").read_text())
    assert [row["name"] for row in content["categories"]] == ["car", "person"]
    assert [row["id"] for row in content["annotations"]] == [1, 2, 3, 4]
    assert [row["iscrowd"] for row in content["annotations"]] == [0, 0, 1, 0]
    for row in content["annotations"]:
        assert row["area"] == reference.area(row["segmentation"])
        assert row["bbox"] == reference.toBbox(row["segmentation"]).tolist()
    assert len(open_dataset(tmp_path / "coco", "coco_instances")) == 2
    convert(tmp_path / "coco", tmp_path / "again", overlap="error")
    for old, new in zip(maps_of(drawn), maps_of(tmp_path / "again"), strict=True):
        same_segments(old, new, is_object)


def test_yolo_and_back_gives_the_same_pixels(drawn, tmp_path):
    summary = convert(drawn, tmp_path / "yolo", target="yolo_seg")
    assert summary.notes == (
        "2 segments of stuff are left out: YOLO has none",
        "1 segments of crowds are left out: YOLO has none",
        "there is no part 'train', which YOLO's data.yaml wants",
    )
    assert (tmp_path / "yolo" / "data.yaml").read_text() == (
        'path: .\nval: "images/val"\nnames:\n  0: "car"\n  1: "person"\n'
    )
    lines = (tmp_path / "yolo" / "labels" / "val" / "a.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1"]
    assert lines[1].split()[1:] == [f"{v:.7g}" for v in (8 / 12, 5 / 9, 11 / 12, 5 / 9, 11 / 12, 8 / 9, 8 / 12, 8 / 9)]
    convert(tmp_path / "yolo", tmp_path / "again", "yolo_seg", overlap="error", things=["all"])
    for old, new in zip(maps_of(drawn), maps_of(tmp_path / "again"), strict=True):
        same_segments(old, new, lambda name, crowd: is_object(name, crowd) and not crowd)


def test_class_pngs_hold_every_pixels_class(drawn, tmp_path):
    convert(drawn, tmp_path / "classes", target="semantic_png")
    (ids, segments), _ = maps_of(drawn)
    values = np.asarray(Image.open(tmp_path / "classes" / "labels" / "val" / "a.png"))
    want = np.full(ids.shape, 255)
    for number, (name, _) in segments.items():
        want[ids == number] = CITY.names.index(name)
    assert values.dtype == np.uint8
    assert np.array_equal(values, want)
    rows = json.loads((tmp_path / "classes" / "classes.json").read_text())
    assert [(row["id"], row["name"], row["isthing"]) for row in rows] == [
        (0, "car", 1),
        (1, "person", 1),
        (2, "road", 0),
        (3, "sky", 0),
    ]
    convert(tmp_path / "classes", tmp_path / "again", "semantic_png")
    for (old, old_rows), (new, new_rows) in zip(maps_of(drawn), maps_of(tmp_path / "again"), strict=True):
        for name in CITY.names:
            numbers = [[n for n, row in rows.items() if row[0] == name] for rows in (old_rows, new_rows)]
            assert np.array_equal(np.isin(old, numbers[0]), np.isin(new, numbers[1]))


def test_cityscapes_and_back_is_the_same(drawn, tmp_path):
    convert(drawn, tmp_path / "city", target="cityscapes")
    folder = tmp_path / "city" / "gtFine" / "val" / "images"
    values, (ids, _) = np.asarray(Image.open(folder / "a_gtFine_instanceIds.png")), maps_of(drawn)[0]
    assert values.dtype == np.uint16
    for old, new in ((5, 23), (9, 7), (26000, 26000), (300, 24000), (70000, 24), (0, 0)):
        assert np.array_equal(values == new, ids == old)
    labels = np.asarray(Image.open(folder / "a_gtFine_labelIds.png"))
    assert np.array_equal(labels, np.where(values < 1000, values, values // 1000))
    convert(tmp_path / "city", tmp_path / "again", "cityscapes")
    for old, new in zip(maps_of(drawn), maps_of(tmp_path / "again"), strict=True):
        same_segments(old, new)
    # and a second time nothing moves at all
    convert(tmp_path / "again", tmp_path / "city2", target="cityscapes")
    for file in sorted(folder.glob("*.png")):
        again = next((tmp_path / "city2" / "gtFine").rglob(file.name))
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(again)))


def test_names_of_cityscapes_keep_their_city(tmp_path):
    ids = np.ones((2, 3), np.int32)
    name = "aachen_000000_000019_leftImg8bit.png"
    write(tmp_path / "in", {name: (ids, [Segment(1, 0)])})
    convert(tmp_path / "in", tmp_path / "out", target="cityscapes")
    files = sorted(f.relative_to(tmp_path / "out").as_posix() for f in (tmp_path / "out").rglob("*.png"))
    assert files == [
        "gtFine/val/aachen/aachen_000000_000019_gtFine_instanceIds.png",
        "gtFine/val/aachen/aachen_000000_000019_gtFine_labelIds.png",
        f"leftImg8bit/val/aachen/{name}",
    ]


def test_what_a_target_cannot_hold_is_refused(tmp_path):
    ids = np.ones((2, 3), np.int32)
    write(tmp_path / "in", {"a.png": (ids, [Segment(1, 0)])}, LabelSpace.from_names([], ["hay", "road"]))
    for target in ("coco_instances", "yolo_seg"):
        with pytest.raises(PansightError, match=f"{target}: expected classes that are things"):
            convert(tmp_path / "in", tmp_path / "out", target=target)
    with pytest.raises(PansightError, match=r"cityscapes: expected classes of Cityscapes .*found hay$"):
        convert(tmp_path / "in", tmp_path / "out", target="cityscapes")
    assert not (tmp_path / "out").exists()
    write(tmp_path / "two", {name: (ids, [Segment(1, 0)]) for name in ("a.png", "a.bmp")})
    for target in ("yolo_seg", "semantic_png", "cityscapes"):
        with pytest.raises(PansightError, match=r"a\.bmp: expected names of images that differ before the suffix"):
            convert(tmp_path / "two", tmp_path / "out", target=target)
    many = np.arange(1, 1003, dtype=np.int32).reshape(6, 167)
    write(tmp_path / "many", {"a.png": (many, [Segment(int(n), 0) for n in many.flat])})
    with pytest.raises(PansightError, match=r"a\.png: expected at most 1000 objects of car, found more"):
        convert(tmp_path / "many", tmp_path / "out", target="cityscapes")


@st.composite
def panoptic_maps(draw) -> tuple[np.ndarray, list[Segment]]:
    """Up to 6 segments of every form in up to 12×12 pixels; stuff once a class, crowds among the things."""
    seed = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    numbers = np.concatenate([[0], seed.choice(np.arange(1, 2**24), 6, replace=False)]).astype(np.int32)
    ids = numbers[seed.integers(0, len(numbers), (height, width))]
    for _ in range(3):  # some larger areas
        y, x = int(seed.integers(0, height)), int(seed.integers(0, width))
        ids[y : y + int(seed.integers(1, 9)), x : x + int(seed.integers(1, 9))] = seed.choice(numbers)
    classes = [0, 0, 1, 1, 2, 3]
    present = set(present_ids(ids).tolist()) - {0}
    return ids, [
        Segment(int(number), category, 1.0, category < 2 and bool(seed.random() < 0.2))
        for number, category in zip(numbers[1:], classes)
        if int(number) in present
    ]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(panoptic_maps(), min_size=1, max_size=3), st.sampled_from(["coco_instances", "yolo_seg", "cityscapes"]))
def test_round_trips_of_any_map(tmp_path_factory, maps, target):
    place = tmp_path_factory.mktemp("round")
    write(place / "in", {f"{n}.png": row for n, row in enumerate(maps)})
    convert(place / "in", place / "there", target=target)
    convert(place / "there", place / "back", target, overlap="error", things=["car", "person"])
    for old, new in zip(maps_of(place / "in"), maps_of(place / "back"), strict=True):
        if target == "coco_instances":
            same_segments(old, new, is_object)
        elif target == "yolo_seg":
            same_segments(old, new, lambda name, crowd: is_object(name, crowd) and not crowd)
        else:  # crowds of one class cannot be told apart there
            same_segments(old, new, lambda name, crowd: not crowd)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_outlines_enclose_the_same_pixels(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    if not mask.any():
        return
    parts = outlines(mask)
    for part in parts:  # straight lines, by turns horizontal and vertical
        steps = np.abs(part - np.roll(part, 1, axis=0))
        assert ((steps == 0).sum(axis=1) == 1).all()
    outline = one_outline(parts).reshape(-1).astype(float).tolist()
    again = reference.decode(reference.frPyObjects([outline], height, width)[0])
    assert np.array_equal(again.astype(bool), mask)


def test_noise_is_joined_at_one_corner():
    mask = np.indices((40, 40)).sum(axis=0) % 2 == 0
    mask[::2] = False
    parts = outlines(mask)
    assert len(parts) > MAX_PARTS
    outline = one_outline(parts).reshape(-1).astype(float).tolist()
    assert np.array_equal(reference.decode(reference.frPyObjects([outline], 40, 40)[0]).astype(bool), mask)


def test_a_square_has_four_corners():
    mask = np.zeros((5, 6), bool)
    mask[1:4, 2:5] = True
    (outline,) = outlines(mask)
    assert sorted(map(tuple, outline.tolist())) == [(2, 1), (2, 4), (5, 1), (5, 4)]
    mask[2, 3] = False
    assert [len(part) for part in outlines(mask)] == [4, 4]


def test_every_target_is_tested_here():
    in_shards = {"webdataset"}  # which tests/data/test_webdataset.py reads back
    assert set(TARGETS) - in_shards == {"coco_panoptic", "coco_instances", "semantic_png", "yolo_seg", "cityscapes"}
