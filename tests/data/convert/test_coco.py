"""COCO's JSONs and those of other tools: instances, stuff under them, detection format, panoptic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO

from pansight.data import open_dataset
from pansight.data.convert import convert, detect
from pansight.data.convert.polygons import region_of_polygons, region_of_rle, unpack_counts
from pansight.data.convert.readers.coco import open_coco_instances, open_coco_panoptic
from pansight.errors import PansightError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools

SQUARE = [1, 1, 4, 1, 4, 3, 1, 3]
"""3 × 2 pixels."""


def annotation(segmentation: Any, number: int = 1, category: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": category, "segmentation": segmentation, **more}


def instances(folder: Path, annotations: list[dict[str, Any]], name="annotations/instances_train.json", **more) -> Path:
    """One 6×8 image, train/a.jpg; classes car 1 and sky 2."""
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "sky"}],
        **more,
    }
    for place in ((folder / name).parent, folder / "train"):
        place.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    Image.new("RGB", (8, 6)).save(folder / "train" / "a.jpg")
    return folder


def mask_of(folder: Path, **options: Any) -> np.ndarray:
    """The only region, as a bool map."""
    image = open_coco_instances(folder, **options)[0]
    (region,) = image.regions
    mask = np.zeros(image.size, bool)
    mask[region.top :, region.left :][: region.mask.shape[0], : region.mask.shape[1]] = region.mask
    return mask


SQUARE_MASK = np.zeros((6, 8), bool)
SQUARE_MASK[1:3, 1:4] = True
PACKED = reference.encode(np.asfortranarray(SQUARE_MASK))["counts"].decode()


@pytest.mark.parametrize(
    "segmentation",
    [
        [SQUARE],
        SQUARE,  # not nested
        [[1, 1], [4, 1], [4, 3], [1, 3]],  # pairs
        [[1.0, 1.0, 4.0, 1.0, 4.0, 3.0], [1, 1, 4, 3, 1, 3]],
        [SQUARE, [2, 2]],  # a part of one point
        {"size": [6, 8], "counts": PACKED},
        {"size": [6, 8], "counts": [7, 2, 4, 2, 4, 2, 27]},
        {"size": [6, 8], "counts": [7, 2, 4, 2, 4, 2, 0, 0, 27]},
    ],
)
def test_every_spelling_of_a_mask_is_understood(tmp_path, segmentation):
    assert np.array_equal(mask_of(instances(tmp_path, [annotation(segmentation)])), SQUARE_MASK)


def test_a_box_counts_only_when_asked(tmp_path):
    folder = instances(tmp_path, [annotation([], bbox=[1, 1, 3, 2])])
    with pytest.raises(PansightError, match=r"annotation 1: expected a mask \(boxes=draw takes the box"):
        mask_of(folder)
    assert np.array_equal(mask_of(folder, boxes="draw"), SQUARE_MASK)
    assert open_coco_instances(folder, boxes="skip")[0].empty == (0,)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 4, 1, 4]], r"expected polygons of x, y pairs, found \[1, 1, 4, 1, 4\]"),
        ([["a", 1, 2, 3, 4, 5]], "expected polygons of x, y pairs"),
        ([[[1, 1], [4, 1], [4, 3]]], "expected polygons of x, y pairs"),
        ("abc", "expected polygons or a run-length mask"),
        (None, "expected a mask"),
        ([[1, 1, 4, 1, 1e300, 3]], "expected finite coordinates"),
        ([[0, 0, 1e6, 0, 0, 5, 1e6, 5]], "expected an outline of at most 1000000 pixels"),
        ({"size": [8, 6], "counts": PACKED}, r"expected a mask of size \[6, 8\], found \[8, 6\]"),
        ({"size": [6, 8], "counts": [7, 2]}, "expected run lengths of 48 pixels, found 9"),
        ({"size": [6, 8], "counts": [-1, 49]}, "expected run lengths"),
        ({"size": [6, 8], "counts": [10**30, 1]}, "expected run lengths"),
        ({"size": [6, 8], "counts": "~~"}, "expected packed run lengths"),
        ({"size": [6, 8], "counts": "oooooooooooo0"}, "expected packed run lengths"),
        ({"size": [6, 8], "counts": "é"}, "expected packed run lengths"),
        ({"size": [6, 8]}, "expected run lengths {size, counts}"),
    ],
)
def test_a_malformed_mask_is_one_line(tmp_path, segmentation, message):
    folder = instances(tmp_path, [annotation(segmentation, 7)])
    with pytest.raises(PansightError, match=message) as caught:
        mask_of(folder)
    assert "instances_train.json: annotation 7: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"annotations": [annotation([SQUARE], 5, 9)]},
            "annotation 5: expected a listed category, found category_id 9",
        ),
        ({"images": [{"id": 1, "file_name": "../b.jpg", "height": 6, "width": 8}]}, "inside the data folder"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "height": 10**6, "width": 10**6}]}, "expected a size in pixels"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "height": 6.5, "width": 8}]}, "expected a size in pixels"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}] * 2}, "expected each image id once"),
        ({"images": [{"id": 1}]}, r"expected|missing required field `file_name`"),
        ({"images": [], "annotations": []}, "expected images"),
        ({"categories": []}, "expected categories, found none"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "expected each category id once"),
        ({"annotations": {}}, "expected `array`, found `object`"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path, change, message):
    folder = instances(tmp_path, **{"annotations": [annotation([SQUARE])]} | change)
    with pytest.raises(PansightError, match=message) as caught:
        convert(folder, tmp_path / "out", "coco_instances")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_sizes_may_be_missing_and_crowds_may_be_polygons(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg", "height": None}]
    folder = instances(tmp_path, [annotation([SQUARE], iscrowd=1)], images=images)
    image = open_coco_instances(folder)[0]
    assert image.size == (6, 8)
    assert image.regions[0].is_crowd


def test_classes_are_things_unless_the_file_or_coco_says_otherwise(tmp_path):
    source = open_coco_instances(instances(tmp_path / "a", []))
    assert [c.is_thing for c in source.categories] == [True, True]
    assert source.notes[0].startswith("COCO instances lists objects: its classes are things")
    said = [{"id": 1, "name": "car", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    source = open_coco_instances(instances(tmp_path / "b", [], categories=said))
    assert [c.is_thing for c in source.categories] == [True, False]
    cocos = [{"id": 1, "name": "person"}, {"id": 157, "name": "sky-other"}]
    source = open_coco_instances(instances(tmp_path / "c", [], categories=cocos))
    assert [c.is_thing for c in source.categories] == [True, False]


def test_other_tools_files_are_found(tmp_path):
    roboflow = tmp_path / "roboflow"
    for part in ("train", "valid"):
        instances(roboflow, [annotation([SQUARE])], f"{part}/_annotations.coco.json")
        Image.new("RGB", (8, 6)).save(roboflow / part / "a.jpg")
    assert detect(roboflow) == "coco_instances"
    assert convert(roboflow, tmp_path / "out1").images == {"train": 1, "val": 1}
    cvat = instances(tmp_path / "cvat", [annotation([SQUARE])], "annotations/instances_default.json")
    (cvat / "train").rename(cvat / "images")
    assert convert(cvat, tmp_path / "out2").images == {"default": 1}
    studio = instances(tmp_path / "studio", [annotation([SQUARE])], "result.json")
    (studio / "train").rename(studio / "images")
    assert convert(studio, tmp_path / "out3").images == {"train": 1}
    assert len(open_dataset(tmp_path / "out3")) == 1


def test_parts_are_chosen_by_name_or_all_taken(tmp_path):
    folder = instances(tmp_path, [annotation([SQUARE])], "annotations/instances_train2017.json")
    instances(folder, [annotation([SQUARE])], "annotations/instances_val2017.json")
    instances(folder, [], "annotations/captions_val2017.json")
    for part in ("train2017", "val2017"):
        (folder / part).mkdir()
        Image.new("RGB", (8, 6)).save(folder / part / "a.jpg")
    assert convert(folder, tmp_path / "all").images == {"train": 1, "val": 1}
    assert convert(folder, tmp_path / "one", split="val").images == {"val": 1}
    with pytest.raises(PansightError, match="part 'test': expected annotations/instances_"):
        convert(folder, tmp_path / "none", "coco_instances", split="test")
    with pytest.raises(PansightError, match="expected one annotation file, found annotations/instances_train2017"):
        open_coco_instances(folder)


def test_stuff_lies_under_the_objects(tmp_path):
    folder = instances(tmp_path, [annotation([SQUARE])])
    pixels = np.full((6, 8), 255, np.uint8)
    pixels[:3], pixels[3, :4], pixels[4] = 156, 148, 0  # sky-other, road, a person of the pixel map
    (folder / "stuff" / "train").mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "stuff" / "train" / "a.png")
    listed = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 157, "name": "sky-other"}, {"id": 149, "name": "road"}, {"id": 183, "name": "other"}],
        "annotations": [
            {"image_id": 1, "category_id": c, "segmentation": _rle(m)}
            for c, m in ((157, (pixels == 156) & ~SQUARE_MASK), (149, pixels == 148), (183, SQUARE_MASK))
        ],
    }
    (folder / "annotations" / "stuff_train.json").write_text(json.dumps(listed))
    found = []
    for n, stuff in enumerate((folder / "stuff", "annotations/stuff_train.json", folder / "annotations")):
        convert(folder, tmp_path / f"out{n}", options={"stuff": str(stuff)})
        sample = open_dataset(tmp_path / f"out{n}")[0]
        names = [open_dataset(tmp_path / f"out{n}").labels[s.category].name for s in sample.truth.segments]
        numbers = {name: s.id for name, s in zip(names, sample.truth.segments)}
        ids = sample.truth.ids.numpy()
        assert set(numbers) == {"car", "sky-other", "road"}
        assert np.array_equal(ids == numbers["car"], SQUARE_MASK)
        assert np.array_equal(ids == numbers["sky-other"], (pixels == 156) & ~SQUARE_MASK)
        assert np.array_equal(ids == numbers["road"], pixels == 148)
        found.append(ids)
    Image.fromarray(pixels + np.uint8(40)).save(folder / "stuff" / "train" / "a.png")
    with pytest.raises(PansightError, match=r"a\.png: expected COCO-stuff's category ids − 1"):
        convert(folder, tmp_path / "bad", options={"stuff": str(folder / "stuff")})
    with pytest.raises(PansightError, match="expected COCO-stuff, a folder of pixel maps or a JSON"):
        convert(folder, tmp_path / "bad", options={"stuff": "nowhere"})


def _rle(mask: np.ndarray) -> dict[str, Any]:
    packed = reference.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": packed["counts"].decode()}


def test_isthing_is_asked_for_where_nobody_says(tmp_path):
    rows = [{"id": 1, "name": "car"}, {"id": 2, "name": "sky"}]
    folder = instances(tmp_path, [annotation([SQUARE])], "panoptic_detection.json", categories=rows)
    with pytest.raises(PansightError, match=r"found no answer for car, sky; name the things: --things A,B") as caught:
        convert(folder / "panoptic_detection.json", tmp_path / "out", images="none")
    assert "\n" not in str(caught.value)
    with pytest.raises(PansightError, match=r"a\.jpg: expected an image file, found no such file \(name the folder"):
        convert(folder / "panoptic_detection.json", tmp_path / "out", things=["car"])
    summary = convert(folder / "panoptic_detection.json", tmp_path / "out", things=["car"], images="none")
    assert (summary.things, summary.stuff) == (("car",), ("sky",))


def test_panoptic_and_detection_format_of_the_real_sample_are_the_same(data_root, tmp_path):
    sample = data_root / "coco_panoptic_sample"
    first = convert(sample, tmp_path / "a")
    second = convert(sample / "panoptic_coco_detection_format.json", tmp_path / "b")
    assert (first.format, second.format) == ("coco_panoptic", "coco_detection_panoptic")
    assert second.overlaps == ()
    assert first.segments == second.segments
    assert sum(first.segments.values()) == 50
    one, two = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
    assert one.labels == two.labels
    for n in range(2):
        (a, b) = one[n].truth, two[n].truth
        pairs = set(zip(a.ids.flatten().tolist(), b.ids.flatten().tolist()))
        assert len(pairs) == len(a.segments) + 1  # and void
        rows = [{s.id: (s.category, s.is_crowd) for s in truth.segments} for truth in (a, b)]
        assert all(rows[0].get(x) == rows[1].get(y) for x, y in pairs)
        assert np.array_equal(a.ids.numpy(), open_dataset(sample)[n].truth.ids.numpy())


def test_masks_of_coco_are_those_of_pycocotools(data_root, capsys):
    folder = data_root / "coco_tiny"
    source, truth = open_coco_instances(folder, "val"), COCO(str(folder / "annotations" / "instances_val2017.json"))
    capsys.readouterr()
    compared = 0
    for n in range(0, len(source), 8):
        image = source[n]
        rows = truth.imgToAnns[image.image_id]
        assert len(rows) == len(image.regions) + len(image.empty)
        for row, region in zip(rows, image.regions, strict=True):
            mask = np.zeros(image.size, bool)
            mask[region.top :, region.left :][: region.mask.shape[0], : region.mask.shape[1]] = region.mask
            assert np.array_equal(mask, truth.annToMask(row).astype(bool))
            assert region.is_crowd == bool(row["iscrowd"])
            assert all(side.any() for side in (region.mask[0], region.mask[-1], region.mask[:, 0], region.mask[:, -1]))
            compared += 1
    assert compared > 60


def test_polygons_off_the_image_and_run_lengths_equal_pycocotools():
    draw = np.random.default_rng(0)
    for _ in range(300):
        size = tuple(int(n) for n in draw.integers(1, 40, 2))
        points = np.round(draw.uniform(-15, 55, (int(draw.integers(3, 9)), 2)), int(draw.integers(0, 3)))
        packed = reference.frPyObjects([points.reshape(-1).tolist()], *size)[0]
        want = reference.decode(packed).astype(bool)
        for region in (region_of_polygons([points], size, 3, "x"), region_of_rle(packed, size, 3, "x")):
            assert (region is None) == (not want.any())
            if region is not None:
                (height, width), top, left = region.mask.shape, region.top, region.left
                assert np.array_equal(want[top : top + height, left : left + width], region.mask)
                assert want.sum() == region.mask.sum()


def test_holes_and_even_odd():
    outer, inner = np.array([[0, 0], [6, 0], [6, 6], [0, 6]]), np.array([[2, 2], [4, 2], [4, 4], [2, 4]])
    want = np.ones((6, 6), bool)
    want[2:4, 2:4] = False
    for region in (
        region_of_polygons([outer], (6, 6), 0, "x", holes=[inner]),
        region_of_polygons([outer, inner], (6, 6), 0, "x", even_odd=True),
    ):
        assert region is not None
        assert np.array_equal(region.mask, want)
    assert region_of_polygons([inner], (6, 6), 0, "x", holes=[outer]) is None
    assert region_of_polygons([], (6, 6), 0, "x") is None


def test_packed_counts_of_any_length():
    draw = np.random.default_rng(1)
    for _ in range(100):
        counts = draw.integers(0, 10 ** int(draw.integers(1, 7)), int(draw.integers(1, 30)))
        height = int(counts.sum())
        packed = reference.frPyObjects({"size": [height, 1], "counts": counts.tolist()}, height, 1)
        assert np.array_equal(unpack_counts(packed["counts"], "x"), counts)
    assert unpack_counts(b"", "x").tolist() == []


def test_panoptic_json_and_png_must_agree(tmp_path):
    (tmp_path / "panoptic_x").mkdir()
    png = tmp_path / "panoptic_x" / "a.png"
    Image.fromarray(np.full((2, 3, 3), (5, 0, 0), np.uint8)).save(png)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "categories": [{"id": 1, "name": "car", "isthing": 1}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 5, "category_id": 1}]}],
    }

    def source(**change: Any):
        (tmp_path / "panoptic_x.json").write_text(json.dumps(content | change))
        return open_coco_panoptic(tmp_path)

    assert source()[0].segments == {5: (0, False)}
    assert source().notes == ("1 images without annotation are left out",)
    row = content["annotations"][0]
    for rows, message in (
        ([row | {"segments_info": []}], r"a\.png: expected only ids that panoptic_x\.json lists, found 5"),
        ([row, row], "image 1: expected one annotation per image"),
        ([row | {"image_id": 9}], "expected annotations of listed images, found 9"),
        ([row | {"segments_info": [{"id": 5, "category_id": 2}]}], "segment 5: expected a listed category"),
        ([row | {"segments_info": [{"id": 0, "category_id": 1}]}], "expected segment ids 1 … 16777215, found 0"),
        ([row | {"segments_info": [{"id": 5, "category_id": 1}] * 2}], "expected each segment id once"),
        ([row | {"file_name": "/etc/passwd"}], "inside the data folder"),
        ([row | {"file_name": "b.png"}], r"b\.png: expected an image file, found no such file"),
    ):
        with pytest.raises(PansightError, match=message):
            source(annotations=rows)[0]


def test_an_annotation_of_an_unlisted_image_is_left_out_and_told(tmp_path):
    folder = instances(tmp_path, [annotation([SQUARE]), annotation([SQUARE]) | {"id": 2, "image_id": 3}])
    summary = convert(folder, tmp_path / "out", images="none")
    assert (sum(summary.images.values()), sum(summary.segments.values()), summary.left_out) == (1, 1, 1)
    assert "annotation 2: expected a listed image, found image_id 3" in summary.skipped[0]
    with pytest.raises(PansightError, match="annotation 2: expected a listed image"):
        convert(folder, tmp_path / "strict", images="none", strict=True)
