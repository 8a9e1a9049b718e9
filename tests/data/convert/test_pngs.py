"""Instance numbers and class maps in PNGs: exact maps, odd files, real data."""

import json

import numpy as np
import pytest
from drawn import drawing, grey, palette, photo, refused, same, turned_photo, values_of
from PIL import Image

from pansight.data.convert import convert, detect
from pansight.data.convert.readers import READERS
from pansight.data.convert.readers.pngs import (
    is_instance_png,
    is_semantic_png,
    open_instance_png,
    open_semantic_png,
    splits_instance_png,
    splits_semantic_png,
)

OBJECTS = "..11.... ..11.222 ........ 33....22 33...... ........"

CLASSES = "........ .11..111 .11..111 ...1.... 22222222 a2222222"
"""0 sky, 1 car: two that touch at a corner, one apart; 2 road; 10 nothing."""


def nuclei(root, part="", dtype=np.uint16):
    photo(root / part / "images/a.png")
    grey(root / part / "instances/a.png", values_of(OBJECTS) * np.uint16(100), dtype)
    return root


def street(root, part=""):
    photo(root / part / "images/a.jpg")
    grey(root / part / "labels/a.png", values_of(CLASSES))
    return root


# --- instances -------------------------------------------------------------------------------------------------------


def test_instance_numbers_of_16_bits(tmp_path):
    source = open_instance_png(nuclei(tmp_path))
    image = source[0]
    assert image.ids is not None
    assert image.ids.dtype == np.int32
    expected = values_of(OBJECTS).astype(int) * 100
    assert np.array_equal(image.ids, np.where(expected == 0, 301, expected))
    assert image.segments == {100: (0, False), 200: (0, False), 300: (0, False), 301: (1, False)}
    assert [(c.name, c.source_id, c.is_thing) for c in source.categories] == [
        ("object", 1, True),
        ("background", 2, False),
    ]
    assert (image.image_id, image.file_name, image.size) == ("a", "a.png", (6, 8))
    assert "stuff class 'background'" in source.notes[0]


def test_background_can_stay_void(tmp_path):
    source = open_instance_png(nuclei(tmp_path), thing="nucleus", background="void")
    image = source[0]
    assert set(image.segments) == {100, 200, 300}
    assert image.ids is not None
    assert (image.ids == 0).sum() == 35
    assert [c.name for c in source.categories] == ["nucleus"]
    assert source.notes == ()
    refused("unknown background 'white'", lambda: open_instance_png(tmp_path, background="white"))


def test_no_background_where_objects_fill_the_image(tmp_path):
    photo(tmp_path / "images/a.png")
    grey(tmp_path / "instances/a.png", np.ones((6, 8)))
    assert open_instance_png(tmp_path)[0].segments == {1: (0, False)}


def test_penn_fudan_palette(tmp_path):
    photo(tmp_path / "PNGImages/FudanPed00001.png")
    palette(tmp_path / "PedMasks/FudanPed00001_mask.png", values_of(OBJECTS), [0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9])
    (tmp_path / "Annotation").mkdir()
    assert detect(tmp_path) == "instance_png"
    source = open_instance_png(tmp_path)
    same(source[0], OBJECTS.replace(".", "4"))
    assert source.categories[0].name == "pedestrian"
    assert source[0].image_id == "FudanPed00001"


def test_folders_of_other_names(tmp_path):
    photo(tmp_path / "frames/x/a.jpg")
    grey(tmp_path / "ids/x/a.png", values_of(OBJECTS))
    source = open_instance_png(tmp_path, image_folder="frames", mask_folder="ids", background="void")
    same(source[0], OBJECTS)
    assert (source[0].image_id, source[0].file_name) == ("x/a", "x/a.jpg")
    refused("both image_folder and mask_folder", lambda: open_instance_png(tmp_path, image_folder="frames"))
    refused(
        "frames/ \\+ masks/; found none",
        lambda: open_instance_png(tmp_path, image_folder="frames", mask_folder="masks"),
    )


def test_parts_are_opened_one_by_one(tmp_path):
    nuclei(nuclei(tmp_path, "train"), "val")
    assert is_instance_png(tmp_path)
    assert splits_instance_png(tmp_path) == ("train", "val")
    assert open_instance_png(tmp_path, "validation")[0].image == tmp_path / "val/images/a.png"
    source = open_instance_png(tmp_path)
    assert source[0].image == tmp_path / "train/images/a.png"
    assert source.notes[0] == "part 'train' is read; there is also val (--split)"
    refused("expected a part .test., found train, val", lambda: open_instance_png(tmp_path, "test"))
    summary = convert(tmp_path, tmp_path / "out")
    assert "train 1, val 1" in summary.text()


def test_images_of_parts_within_one_folder(tmp_path):
    photo(tmp_path / "images/train/a.png")
    grey(tmp_path / "instances/train/a.png", values_of(OBJECTS))
    photo(tmp_path / "images/val/b.png")
    grey(tmp_path / "instances/val/b.png", values_of(OBJECTS))
    assert splits_instance_png(tmp_path) == ("train", "val")
    assert [open_instance_png(tmp_path, part)[0].image_id for part in ("train", "val")] == ["a", "b"]


def test_pairs_that_are_none(tmp_path):
    nuclei(tmp_path)
    photo(tmp_path / "images/b.png")
    photo(tmp_path / "images/c.png")
    assert open_instance_png(tmp_path).notes[0] == "2 of 3 images have no PNG and are left out, the first is b.png"
    grey(tmp_path / "instances/z.png", values_of(OBJECTS))
    refused("z.png: expected an image of this name in .*images, found none", lambda: open_instance_png(tmp_path)[1])
    photo(tmp_path / "images/a.jpg")
    refused("expected one image of this name", lambda: open_instance_png(tmp_path))


@pytest.mark.parametrize("damage", ["other size", "empty", "cut", "colour", "text", "image"])
def test_damaged_instance_files(tmp_path, damage):
    nuclei(tmp_path)
    png = tmp_path / "instances/a.png"
    if damage == "other size":
        grey(png, np.ones((5, 8)))
    elif damage == "colour":
        photo(png)
    elif damage == "text":
        png.write_text("nothing")
    else:
        file = tmp_path / "images/a.png" if damage == "image" else png
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else 20])
    refused("a.png: expected", lambda: open_instance_png(tmp_path)[0])


def test_turned_photos_keep_the_size_of_their_masks(tmp_path):
    turned_photo(tmp_path / "images/a.jpg", (8, 6))
    turned_photo(tmp_path / "images/b.jpg", (6, 8))
    grey(tmp_path / "instances/a.png", values_of(OBJECTS))
    grey(tmp_path / "instances/b.png", values_of(OBJECTS))
    assert [image.size for image in map(open_instance_png(tmp_path).__getitem__, range(2))] == [(6, 8)] * 2


# --- classes ---------------------------------------------------------------------------------------------------------


def test_things_are_connected_components(tmp_path):
    source = open_semantic_png(street(tmp_path), classes="sky,car,road", things=("car",), ignore=10)
    image = source[0]
    same(image, "11111111 12211333 12211333 11121111 44444444 .4444444")
    assert image.segments == {1: (0, False), 2: (1, False), 3: (1, False), 4: (2, False)}
    assert [(c.name, c.source_id, c.is_thing) for c in source.categories] == [
        ("sky", 0, False),
        ("car", 1, True),
        ("road", 2, False),
    ]
    assert source.notes[-1].startswith("things are connected components of their class (8-connected)")


def test_four_neighbours_and_small_components(tmp_path):
    street(tmp_path)
    options = {"classes": ["sky", "car", "road"], "things": ("car",), "ignore": "10,255"}
    source = open_semantic_png(tmp_path, **options, connectivity=4)
    same(source[0], "11111111 12211333 12211333 11141111 55555555 .5555555")
    source = open_semantic_png(tmp_path, **options, connectivity=4, min_area=2)
    same(source[0], "11111111 12211333 12211333 111.1111 44444444 .4444444")
    assert source.notes[-1] == "components of fewer than 2 pixels are void"
    assert "4-connected" in source.notes[-2]
    refused("expected 4 or 8, found 6", lambda: open_semantic_png(tmp_path, **options, connectivity=6))


def test_without_things_a_class_is_one_segment(tmp_path):
    source = open_semantic_png(street(tmp_path), classes="sky,car,road", ignore=(10,))
    same(source[0], "11111111 12211222 12211222 11121111 33333333 .3333333")
    assert [c.is_thing for c in source.categories] == [None] * 3
    assert source.notes == ()


def test_without_names_the_values_are_the_names(tmp_path):
    source = open_semantic_png(street(tmp_path), ignore=10)
    assert [(c.name, c.source_id) for c in source.categories] == [("class_0", 0), ("class_1", 1), ("class_2", 2)]
    assert "class_N" in source.notes[0]


def test_values_of_no_class_are_told(tmp_path):
    street(tmp_path)
    source = open_semantic_png(tmp_path, classes="sky,car,road")
    message = r"labels/a.png: expected pixels of the 3 classes, found value 10 \(option ignore=10 for void\)"
    refused(message, lambda: source[0])
    refused("unknown class 'sea'", lambda: open_semantic_png(tmp_path, classes="sky,car", ignore="sea"))


def test_classes_of_16_bits(tmp_path):
    photo(tmp_path / "images/a.png")
    grey(tmp_path / "masks/a.png", values_of(CLASSES) * np.uint16(5000), np.uint16)
    source = open_semantic_png(tmp_path, ignore=50000)
    assert [c.source_id for c in source.categories] == [0, 5000, 10000]
    assert drawing(source[0]).split()[0] == "11111111"


TABLES = {
    "classes.txt": "sky\ncar\r\n\nroad\n",
    "label_colors.txt": "0 0 0\tsky\n255 0 0  car\n0 255 0 road\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nsky:0,0,0::\ncar:255,0,0::\nroad:0,255,0::\n",
    "class_dict.csv": "name,r,g,b\nsky,0,0,0\ncar, 255, 0, 0\nroad,0,255,0\n",
    "_classes.csv": "Pixel Value, Class\n2, road\n0, sky\n1, car\n",
    "classes.json": '["sky", "car", "road"]',
    "codes.txt": "\ufeffsky\ncar\nroad",
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_of_classes_are_found(tmp_path, name):
    (street(tmp_path) / name).write_text(TABLES[name], encoding="utf-8")
    source = open_semantic_png(tmp_path, ignore=10)
    assert {c.name: c.source_id for c in source.categories} == {"sky": 0, "car": 1, "road": 2}
    assert f"names of the classes are those of {name}" in source.notes
    if name in ("label_colors.txt", "labelmap.txt", "class_dict.csv"):
        assert {c.name: c.color for c in source.categories}["car"] == (255, 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        {"0": "sky", "1": "car", "2": "road"},
        {"classes": [{"name": "sky"}, {"name": "car"}, {"name": "road"}]},
        {"categories": [{"id": 2, "name": "road"}, {"id": 0, "name": "sky"}, {"id": 1, "name": "car", "isthing": 1}]},
    ],
)
def test_json_tables(tmp_path, content):
    file = street(tmp_path) / "my.json"
    file.write_text(json.dumps(content))
    for classes in ("my.json", str(file)):
        source = open_semantic_png(tmp_path, classes=classes, ignore=10)
        assert {c.name: c.source_id for c in source.categories} == {"sky": 0, "car": 1, "road": 2}
    known = {c.name: c.is_thing for c in source.categories}["car"]
    assert known is (True if "categories" in content else None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "names, or objects with a name"),
        ("7", "a list of classes"),
        ('["a", "a"]', "each name of a class once"),
        ('[{"name": "a", "id": 1}, {"name": "b", "id": 1}]', "each value of a class once"),
        ('[{"name": "a", "id": -1}]', "a whole number as id of 'a', found -1"),
        ('[{"name": "a", "id": 1e400}]', "a whole number as id of .a., found inf"),
        ('[{"name": "a", "color": [1, 2, 300]}]', "colours of three numbers 0 … 255"),
        ('[{"name": "a", "isthing": "no"}]', "isthing 0 or 1"),
        ("[" * 100_000, "JSON, found"),
        ("[]", "1 … 65536 classes, found 0"),
        ("{", "JSON, found"),
    ],
)
def test_broken_tables(tmp_path, text, message):
    (street(tmp_path) / "classes.json").write_text(text)
    refused(f"classes.json: .*{message}", lambda: open_semantic_png(tmp_path))


def test_colours_by_a_table(tmp_path):
    street(tmp_path)
    colors = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), *[(7, 7, 7)] * 8], np.uint8)
    Image.fromarray(colors[values_of(CLASSES)]).save(tmp_path / "labels/a.png")
    refused(r"a table of colours \(option classes=FILE\); found RGB", lambda: open_semantic_png(tmp_path))
    table = tmp_path / "label_colors.txt"
    table.write_text(TABLES["label_colors.txt"])
    refused(r"3 classes, found colour \(7, 7, 7\)", lambda: open_semantic_png(tmp_path)[0])
    table.write_text(TABLES["label_colors.txt"] + "7 7 7 Void\n")
    source = open_semantic_png(tmp_path, things=("car",), ignore="Void")
    same(source[0], "11111111 12211333 12211333 11121111 44444444 .4444444")
    assert [c.name for c in source.categories] == ["sky", "car", "road"]


def test_layouts_of_class_maps(tmp_path):
    values = values_of("1.11")
    for image, png in (
        ("segnet/train/a.png", "segnet/trainannot/a.png"),
        ("roboflow/train/a.jpg", "roboflow/train/a_mask.png"),
        ("fastai/images/a.png", "fastai/labels/a_P.png"),
        ("voc/JPEGImages/a.jpg", "voc/SegmentationClass/a.png"),
        ("flat/a.jpg", "flat/a_mask.png"),
    ):
        photo(tmp_path / image, (1, 4))
        grey(tmp_path / png, values)
        root = tmp_path / image.split("/")[0]
        assert is_semantic_png(root)
        source = open_semantic_png(root)
        assert len(source) == 1
        same(source[0], "2122")
        assert splits_semantic_png(root) == (("train",) if "/train/" in image else ())


def test_instance_numbers_are_not_taken_for_classes(tmp_path):
    photo(tmp_path / "images/a.png", (30, 30))
    grey(tmp_path / "labels/a.png", np.arange(900).reshape(30, 30), np.uint16)
    refused("more than 256 values .instance numbers", lambda: open_semantic_png(tmp_path))


def test_other_formats_are_not_taken_for_class_maps(tmp_path):
    photo(tmp_path / "yolo/images/a.jpg")
    (tmp_path / "yolo/labels").mkdir()
    (tmp_path / "yolo/labels/a.txt").write_text("0 0 0 1 0 1 1\n")
    photo(tmp_path / "coco/images/default/a.jpg")
    (tmp_path / "coco/annotations").mkdir()
    (tmp_path / "coco/annotations/instances_default.json").write_text('{"images": [], "annotations": []}')
    for root in (tmp_path / "yolo", tmp_path / "coco", tmp_path / "nothing", tmp_path):
        assert not is_semantic_png(root)
        assert not is_instance_png(root)


def test_a_cvat_coco_export_is_left_to_the_coco_reader(tmp_path):
    """annotations/instances_default.json beside images/default/."""
    photo(tmp_path / "images/default/a.jpg")
    content = {"images": [{"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}], "annotations": []}
    content["categories"] = [{"id": 1, "name": "car"}]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_default.json").write_text(json.dumps(content))
    mine = ("yolo_seg", "labelme", "cvat", "label_studio", "instance_png", "semantic_png")
    for source in (tmp_path, tmp_path / "annotations", tmp_path / "annotations/instances_default.json"):
        assert [name for name in mine if READERS[name].detect(source)] == []


# --- whole conversions and real data ---------------------------------------------------------------------------------


def test_conversion_cuts_the_things_that_the_user_names(tmp_path):
    street(tmp_path / "in")
    summary = convert(tmp_path / "in", tmp_path / "out", things=["class_1"], options={"ignore": 10})
    assert "4: 2 things, 2 stuff" in summary.text()
    assert "connected components" in summary.text()


def test_camvid(data_root):
    names = [
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "signsymbol",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ]
    root = data_root / "camvid"
    assert detect(root) == "semantic_png"
    assert splits_semantic_png(root) == ("train", "val")
    source = open_semantic_png(root, "val", classes=names, things=("car", "pedestrian", "bicyclist"), ignore=11)
    assert len(source) == 101
    image = source[0]
    assert image.ids is not None
    assert image.size == (360, 480)
    raw = np.asarray(Image.open(root / f"val/labels/{image.image_id}.png"))
    classes = np.full(raw.shape, 11)
    for number, (category, _) in image.segments.items():
        classes[image.ids == number] = category
    assert np.array_equal(classes, raw)
    assert set(np.unique(image.ids)) - {0} == set(image.segments)


def test_dsb2018(data_root):
    root = data_root / "dsb2018"
    assert detect(root) == "instance_png"
    source = open_instance_png(root, "val", background="void")
    assert len(source) == 81
    for index in (0, 40, 80):
        image = source[index]
        assert image.ids is not None
        raw = np.asarray(Image.open(root / f"val/instances/{image.image_id}.png"))
        assert np.array_equal(image.ids, raw)
        assert set(np.unique(raw)) - {0} == set(image.segments)
