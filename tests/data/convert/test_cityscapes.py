"""Raw Cityscapes: the three kinds of annotation give the official map; what is missing or wrong is one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trees import CITY_CROWDS, CITY_PANOPTIC, CITY_VALUES, cityscapes_tree, photo, write, write_json

from pansight.data import open_dataset
from pansight.data.convert import convert
from pansight.data.convert.readers.cityscapes import is_cityscapes, open_cityscapes, splits_cityscapes
from pansight.errors import PansightError

TRAIN = "gtFine/train/aachen/aachen_000000_000019_gtFine"


def fails(root: Path, message: str, **options) -> None:
    with pytest.raises(PansightError, match=message) as caught:
        open_cityscapes(root, **options)[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["instance_ids", "polygons"])
def test_ids_and_polygons_give_what_create_panoptic_images_gives(tmp_path, kind):
    source = open_cityscapes(cityscapes_tree(tmp_path), annotations=kind)
    image = source[0]
    assert image.ids is not None
    assert image.ids.dtype == np.int32
    assert np.array_equal(image.ids, CITY_PANOPTIC)
    assert (image.image_id, image.file_name) == ("aachen_000000_000019", "aachen_000000_000019_leftImg8bit.png")
    assert image.image == tmp_path / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    assert image.size == (6, 8)
    labels = {number: source.categories[category].source_id for number, (category, _) in image.segments.items()}
    assert labels == {n: n // 1000 if n >= 1000 else n for n in np.unique(CITY_PANOPTIC).tolist() if n != 0}
    assert {number for number, (_, crowd) in image.segments.items() if crowd} == CITY_CROWDS


def test_categories_are_the_19_evaluated_ones(tmp_path):
    root = cityscapes_tree(tmp_path)
    by_label, by_train = open_cityscapes(root).categories, open_cityscapes(root, ids="train").categories
    assert [c.source_id for c in by_train] == list(range(19))
    assert [c.name for c in by_train] == [c.name for c in by_label]
    assert (by_label[0].name, by_label[0].source_id, by_label[0].is_thing) == ("road", 7, False)
    assert by_label[-1] == ("bicycle", 33, True, (119, 11, 32))
    assert [c.source_id for c in by_label if c.is_thing] == [24, 25, 26, 27, 28, 31, 32, 33]


def test_label_ids_make_crowds_of_things_and_say_so(tmp_path):
    source = open_cityscapes(cityscapes_tree(tmp_path, kinds=("labelIds",)))
    image = source[0]
    assert image.ids is not None
    labels = np.where(CITY_PANOPTIC < 1000, CITY_PANOPTIC, CITY_PANOPTIC // 1000)
    assert np.array_equal(image.ids, labels)
    assert {n for n, (_, crowd) in image.segments.items() if crowd} == {24, 25, 26, 33}
    assert any("one crowd" in note for note in source.notes)


def test_instance_ids_go_before_polygons_before_label_ids(tmp_path):
    def notes(name: str, kinds: tuple[str, ...]) -> str:
        return " ".join(open_cityscapes(cityscapes_tree(tmp_path / name, kinds)).notes)

    assert "crowd" not in notes("a", ("labelIds", "polygons"))
    assert "crowd" in notes("b", ("labelIds",))
    write(tmp_path / "a" / f"{TRAIN}_instanceIds.png", np.full((6, 8), 7, np.uint16))
    assert open_cityscapes(tmp_path / "a")[0].segments == {7: (0, False)}


def test_parts_roots_and_coarse_annotations(tmp_path):
    root = cityscapes_tree(tmp_path / "fine")
    assert "there is also val" in open_cityscapes(root).notes[0]
    assert open_cityscapes(root, "val")[0].image_id == "frankfurt_000001_007973"
    assert open_cityscapes(root / "gtFine", "validation")[0].image_id == "frankfurt_000001_007973"
    fails(root, "expected a part 'test', found train, val", split="test")
    coarse = cityscapes_tree(tmp_path / "coarse", folder="gtCoarse")
    assert open_cityscapes(coarse)[0].image_id == "aachen_000000_000019"
    assert is_cityscapes(root)
    assert is_cityscapes(coarse / "gtCoarse")
    assert not is_cityscapes(tmp_path)
    assert not is_cityscapes(tmp_path / "none")


def test_without_photos_the_annotations_are_read_all_the_same(tmp_path):
    source = open_cityscapes(cityscapes_tree(tmp_path, images=False))
    assert source[0].image is None
    assert "no images: leftImg8bit/train" in source.notes[1]


def test_photos_without_annotations_are_told(tmp_path):
    root = cityscapes_tree(tmp_path)
    write(root / "leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png", photo(6, 8))
    assert "1 images of " in open_cityscapes(root).notes[1]


def test_polygons_are_painted_in_the_order_of_the_file(tmp_path):
    root = cityscapes_tree(tmp_path, kinds=("polygons",))
    square = [[0, 0], [7, 0], [7, 5], [0, 5]]
    objects = [{"label": name, "polygon": square} for name in ("car", "car", "sky", "car")]
    write_json(root / f"{TRAIN}_polygons.json", {"imgHeight": 6, "imgWidth": 8, "objects": objects})
    assert open_cityscapes(root)[0].segments == {26002: (13, False)}


def test_files_that_are_missing_are_one_line(tmp_path):
    fails(tmp_path, r"expected gtFine/ \(gtFine_trainvaltest\.zip\), found no such folder")
    root = cityscapes_tree(tmp_path, kinds=("labelIds",))
    fails(root, r"expected CITY/ with one of \*_gtFine_instanceIds\.png, found none", annotations="instance_ids")
    fails(root, "unknown kind of annotation 'masks'; known: instance_ids, label_ids, polygons", annotations="masks")
    fails(root, "unknown category ids 'both'; known: label, train", ids="both")
    fails(root, "unknown folder of Cityscapes 'fine'; known: gtCoarse, gtFine", folder="fine")
    (root / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png").unlink()
    fails(root, r"aachen_000000_000019_leftImg8bit\.png: expected an image file, found no such file")


def test_wrong_depth_label_or_size_is_one_line(tmp_path):
    root = cityscapes_tree(tmp_path)
    png = root / f"{TRAIN}_instanceIds.png"
    write(png, CITY_VALUES.astype(np.uint8))
    fails(root, r"instanceIds\.png: expected instance_ids of Cityscapes as a PNG of 16 bits, found 8 bits")
    write(png, np.full((6, 8), 34, np.uint16))
    fails(root, r"instanceIds\.png: expected labels 0 … 33 \(times 1000 \+ number\), found 34")
    write(png, np.full((6, 8), 40001, np.uint16))
    fails(root, "found 40001")
    write(png, photo(6, 8))
    fails(root, "expected a PNG with one channel of ids, found a 8-bit RGB PNG")
    write(png, np.full((6, 9), 7, np.uint16))
    fails(root, r"leftImg8bit\.png: expected an image of 6×9 \(its annotation\), found 6×8")
    png.write_bytes(png.read_bytes()[:40])
    fails(root, r"instanceIds\.png: expected")
    Image.fromarray(photo(6, 8)).save(png, format="JPEG")
    fails(root, r"instanceIds\.png: expected a PNG with one channel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["objects"][2].update(label="lorry"), "object 2: expected a label of Cityscapes, found 'lorry'"),
        (lambda c: c["objects"][2].update(label=7), r"expected `str`, found `int` - at `\$\.objects\[2\]\.label`"),
        (lambda c: c["objects"][2].pop("polygon"), r"missing required field `polygon` - at `\$\.objects\[2\]`"),
        (lambda c: c["objects"][2].update(polygon=[[1, 2]]), "object 2: expected a polygon"),
        (
            lambda c: c["objects"][2].update(polygon=[[1, 2], [3, "4"]]),
            r"expected `float`, found `str` - at .*polygon\[1\]",
        ),
        (lambda c: c["objects"][2].update(polygon=[[1, 2], [3, 1e99]]), "object 2: expected a polygon"),
        (
            lambda c: c["objects"][2].update(polygon=[[1, 2], [3, float("nan")]]),
            "expected JSON, found NaN at line 1, column 217",
        ),
        (lambda c: c.update(objects={}), r"expected `array`, found `object` - at `\$\.objects`"),
        (lambda c: c["objects"].append(3), "expected `object`, found `int` - at `.*objects"),
        (lambda c: c.update(imgWidth=10**9), "expected imgHeight and imgWidth in pixels"),
        (lambda c: c.pop("imgHeight"), "missing required field `imgHeight`"),
        (lambda c: c["objects"].extend([c["objects"][2]] * 1000), "at most 1000 objects 'car', found more"),
    ],
)
def test_bad_polygons_are_one_line(tmp_path, change, message):
    root = cityscapes_tree(tmp_path, kinds=("polygons",))
    file = root / f"{TRAIN}_polygons.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    fails(root, message)


def test_nothing_is_painted_larger_than_the_photo(tmp_path):
    root = cityscapes_tree(tmp_path, kinds=("polygons",))
    square = [[0, 0], [9999, 0], [9999, 9999], [0, 9999]]
    content = {"imgHeight": 10_000, "imgWidth": 10_000, "objects": [{"label": "car", "polygon": square}] * 1000}
    write_json(root / f"{TRAIN}_polygons.json", content)
    fails(root, r"expected an image of 10000×10000 \(its annotation\), found 6×8")
    (root / f"{TRAIN}_polygons.json").write_text("[" * 100_000)
    fails(root, "polygons.json: ")


def test_conversion_gives_the_official_annotations(tmp_path):
    root = cityscapes_tree(tmp_path / "city", panoptic=True)
    convert(root, tmp_path / "out")
    for part in ("train", "val"):
        ours = json.loads((tmp_path / f"out/annotations/panoptic_{part}.json").read_text())
        theirs = json.loads((root / f"gtFine/cityscapes_panoptic_{part}.json").read_text())
        (mine,), (official,) = ours["annotations"], theirs["annotations"]
        by_id = {row["id"]: row for row in mine["segments_info"]}
        assert by_id == {row["id"]: row for row in official["segments_info"]}
        assert mine["image_id"] == official["image_id"]
        assert {c["id"]: c["name"] for c in ours["categories"]} == {c["id"]: c["name"] for c in theirs["categories"]}
        converted, read = open_dataset(tmp_path / "out", split=part), open_dataset(root, split=part)
        assert converted.labels == read.labels
        assert torch.equal(converted[0].truth.ids, read[0].truth.ids)
        assert torch.equal(converted[0].image, read[0].image)


def test_the_test_part_is_read_by_name_only(tmp_path):
    root = cityscapes_tree(tmp_path)
    write(root / "gtFine/test/berlin/berlin_000000_000019_gtFine_instanceIds.png", np.zeros((6, 8), np.uint16))
    write(root / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", photo(6, 8))
    assert splits_cityscapes(root) == ("train", "val")
    assert open_cityscapes(root, "test")[0].segments == {}
