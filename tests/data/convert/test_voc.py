"""Pascal VOC: classes and objects as palette PNGs, borders, and the same folders with classes of one's own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import VOC_CLASSES, VOC_OBJECTS, photo, voc_palette, voc_tree, write, write_palette

from pansight.data import open_dataset
from pansight.data.categories import category_table
from pansight.data.convert import convert
from pansight.data.convert.readers.voc import is_voc, open_voc, splits_voc
from pansight.errors import PansightError

IDS = [[4, 0, 0, 0], [0, 1, 2, 0], [0, 1, 2, 2], [4, 0, 0, 3]]
"""Border void, objects under their numbers, the background under the next."""


def fails(root: Path, message: str, **options) -> None:
    with pytest.raises(PansightError, match=message) as caught:
        open_voc(root, **options)[0]
    assert "\n" not in str(caught.value)


def test_objects_take_their_class_and_borders_are_void(tmp_path):
    source = open_voc(voc_tree(tmp_path))
    image = source[0]
    assert image.ids is not None
    assert image.ids.dtype == np.int32
    assert image.ids.tolist() == IDS
    assert image.segments == {1: (15, False), 2: (1, False), 3: (1, False), 4: (0, False)}
    assert (image.image_id, image.file_name, image.size) == ("2007_000032", "2007_000032.jpg", (4, 4))
    assert image.image == tmp_path / "VOC2012/JPEGImages/2007_000032.jpg"
    assert len(source.categories) == 21
    assert source.categories[0] == ("background", 0, False, (0, 0, 0))
    assert all(c.is_thing for c in source.categories[1:])


def test_the_background_may_stay_void(tmp_path):
    source = open_voc(voc_tree(tmp_path), background="void")
    image = source[0]
    assert image.ids is not None
    assert image.ids.tolist() == np.where(np.array(IDS) == 4, 0, IDS).tolist()
    assert image.segments == {1: (14, False), 2: (0, False), 3: (0, False)}
    assert [c.source_id for c in source.categories] == list(range(1, 21))
    fails(tmp_path, "unknown background 'sky'; known: stuff, void", background="sky")


def test_lists_choose_the_images(tmp_path):
    root = voc_tree(tmp_path, devkit=False)
    assert [len(open_voc(root, split)) for split in ("train", "val", "trainval")] == [1, 1, 2]
    assert open_voc(root, "val")[0].image_id == "2007_000033"
    assert "there is also val, trainval" in open_voc(root).notes[0]
    assert is_voc(root)
    assert not is_voc(root / "JPEGImages")
    fails(root, "expected a part 'test', found train, val, trainval", split="test")
    for file in (root / "ImageSets/Segmentation").glob("*.txt"):
        file.unlink()
    assert len(open_voc(root)) == 2  # all that have objects


def test_the_palette_is_the_sets(tmp_path):
    assert [list(color) for color in voc_palette()[:21]] == [row["color"] for row in category_table("pascal_voc")]
    assert voc_palette()[255] == (224, 224, 192)


def test_classes_of_ones_own_in_colours(tmp_path):
    root = voc_tree(tmp_path, devkit=False)
    lines = "# label:color_rgb:parts:actions\ncat:1,2,3::\nbackground:0,0,0::\nsky:9,9,9::\n"
    (root / "labelmap.txt").write_text(lines)
    colors = np.zeros((256, 3), np.uint8)
    colors[15], colors[1], colors[255] = (1, 2, 3), (9, 9, 9), (224, 224, 192)
    write(root / "SegmentationClass/2007_000032.png", colors[VOC_CLASSES])
    numbers = np.zeros((256, 3), np.uint8)
    numbers[1], numbers[2], numbers[3], numbers[255] = (0, 128, 0), (128, 0, 0), (7, 0, 0), (224, 224, 192)
    write(root / "SegmentationObject/2007_000032.png", numbers[VOC_OBJECTS])
    source = open_voc(root)
    assert source.categories == (
        ("cat", 0, None, (1, 2, 3)),
        ("background", 1, False, (0, 0, 0)),
        ("sky", 2, None, (9, 9, 9)),
    )
    image = source[0]
    assert image.ids is not None  # objects are numbered by colour, red the lowest byte
    assert image.ids.tolist() == [[4, 0, 0, 0], [0, 3, 2, 0], [0, 3, 2, 2], [4, 0, 0, 1]]
    assert image.segments == {1: (2, False), 2: (2, False), 3: (0, False), 4: (1, False)}
    write(root / "SegmentationClass/2007_000032.png", photo(4, 4))
    fails(root, r"expected colours of the table of classes, found 40,90,160")
    (root / "labelmap.txt").write_text("cat:1,2,3::\n")
    fails(root, r"labelmap\.txt: expected at most 255 classes, one of them 'background', found 1")


def test_missing_files_are_one_line(tmp_path):
    fails(tmp_path, "expected SegmentationClass/ and SegmentationObject/, found no SegmentationClass/")
    (tmp_path / "SegmentationClass").mkdir()
    fails(tmp_path, "found no SegmentationObject/; classes alone are read by --from semantic_png")
    root = voc_tree(tmp_path / "a", devkit=False)
    (root / "SegmentationObject/2007_000032.png").unlink()
    fails(root, r"SegmentationObject/2007_000032\.png: expected annotations of Pascal VOC, found no such file")
    (root / "JPEGImages/2007_000032.jpg").unlink()
    fails(root, r"JPEGImages/2007_000032\.jpg: expected the image of 2007_000032, found none")
    (root / "ImageSets/Segmentation/train.txt").write_text("../../../secret\n")
    fails(root, "inside the data folder, found '../../../secret'")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n")
    fails(root, r"train\.txt: expected names of images, found none")


@pytest.mark.parametrize(
    ("classes", "objects", "message"),
    [
        (np.where(VOC_CLASSES == 15, 21, VOC_CLASSES), VOC_OBJECTS, "expected classes 0 … 20 or 255, found 21"),
        (VOC_CLASSES, np.where(VOC_OBJECTS == 2, 1, VOC_OBJECTS), "one class for object 1, found aeroplane and person"),
        (VOC_CLASSES, np.where(VOC_OBJECTS == 2, 0, VOC_OBJECTS), "expected an object where the class is 'aeroplane'"),
        (
            np.where(VOC_CLASSES == 15, 0, VOC_CLASSES),
            VOC_OBJECTS,
            "no object where the class is 'background', found 1",
        ),
        (VOC_CLASSES, VOC_OBJECTS[:3], r"expected a size of 4×4 like 2007_000032\.png, found 3×4"),
        (VOC_CLASSES[:3], VOC_OBJECTS[:3], r"2007_000032\.jpg: expected an image of 3×4 \(its annotation\)"),
    ],
)
def test_wrong_values_and_sizes_are_one_line(tmp_path, classes, objects, message):
    root = voc_tree(tmp_path, devkit=False)
    write_palette(root / "SegmentationClass/2007_000032.png", classes.astype(np.uint8), voc_palette())
    write_palette(root / "SegmentationObject/2007_000032.png", objects.astype(np.uint8), voc_palette())
    fails(root, message)


def test_wrong_depth_is_one_line(tmp_path):
    root = voc_tree(tmp_path, devkit=False)
    write(root / "SegmentationClass/2007_000032.png", VOC_CLASSES.astype(np.uint16))
    fails(root, "expected classes of Pascal VOC as a PNG of 8 bits, found 16 bits")


def test_conversion_takes_each_image_once(tmp_path):
    root = voc_tree(tmp_path / "VOCdevkit")
    assert splits_voc(root) == ("train", "val")  # trainval is both
    summary = convert(root, tmp_path / "out")
    assert summary.images == {"train": 1, "val": 1}
    sample = open_dataset(tmp_path / "out", split="val")[0]
    assert sample.truth.ids.tolist() == IDS
    assert sample.image_id == "2007_000033"
    (root / "VOC2012/ImageSets/Segmentation/train.txt").unlink()
    (root / "VOC2012/ImageSets/Segmentation/val.txt").unlink()
    assert splits_voc(root) == ("trainval",)


MORE = "".join(f"class {n}\n" for n in range(2, 15))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("class_names.txt", f"_background_\nsky\n{MORE}cat\n"),
        ("Labels.txt", f"__ignore__\n_background_\nsky\n{MORE}cat\n"),
        ("classes.json", '{"0": "background", "1": "sky", "15": "cat"}'),
        ("label_map.txt", "0: background\n1: sky\n15: cat\n"),
    ],
)
def test_names_of_a_table_of_any_usual_name(tmp_path, file, text):
    root = voc_tree(tmp_path, devkit=False)
    (root / file).write_text(text)
    source = open_voc(root)
    image = source[0]
    names = {number: source.categories[category].name for number, (category, _) in image.segments.items()}
    assert names == {1: "cat", 2: "sky", 3: "sky", 4: "background"}
    assert source.notes[-1] == f"names of the classes are those of {file}"
    assert {c.is_thing for c in source.categories if c.name != "background"} == {None}


def test_without_a_table_the_names_are_pascal_vocs_and_no_others(tmp_path):
    root = voc_tree(tmp_path, devkit=False)
    assert "names are those of Pascal VOC" in open_voc(root).notes[-1]
    classes = np.where(VOC_CLASSES == 15, 21, VOC_CLASSES).astype(np.uint8)
    write_palette(root / "SegmentationClass/2007_000032.png", classes, voc_palette())
    fails(root, "found 21; the names of other classes are read from class_names.txt beside the folders")


def test_few_numbers_may_be_stored_in_few_bits(tmp_path):
    root = voc_tree(tmp_path, devkit=False)
    small = np.array([[0, 0, 1, 1]] * 4, np.uint8)
    for folder in ("SegmentationClass", "SegmentationObject"):
        image = Image.fromarray(small)
        image.putpalette([0, 0, 0, 128, 0, 0])
        image.save(root / folder / "2007_000032.png", bits=2)
    image = open_voc(root)[0]
    assert image.ids is not None
    assert image.ids.tolist() == [[2, 2, 1, 1]] * 4
