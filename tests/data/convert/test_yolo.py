"""YOLO segmentation as Ultralytics, Roboflow, CVAT and Label Studio write it: exact maps, odd and hostile files."""

import time

import numpy as np
import pytest
from drawn import names, photo, refused, same, turned_photo

from pansight.data.convert import convert, detect
from pansight.data.convert.readers.yolo import is_yolo_seg, open_yolo_seg, splits_yolo_seg

YAML = "path: {path}\ntrain: {train}\nnames:\n  0: person\n  1: 'no'\n"

CAR = "1 0.25 0.0 0.75 0.0 0.75 0.5 0.25 0.5"  # columns 2 … 5, rows 0 … 2
PERSON = "0 0 0.5 0.25 0.5 0.25 1 0 1"  # columns 0 … 1, rows 3 … 5


def tree(root, text=f"{CAR}\n{PERSON}\n", path=".", train="images/train", image="images/train/a.jpg"):
    photo(root / image)
    label = root / (image.replace("images", "labels").rpartition(".")[0] + ".txt")
    label.parent.mkdir(parents=True, exist_ok=True)
    label.write_text(text, newline="")
    (root / "data.yaml").write_text(YAML.format(path=path, train=train))
    return root


def test_polygons_of_the_official_layout(tmp_path):
    source = open_yolo_seg(tree(tmp_path))
    image = source[0]
    same(image, "..1111.. ..1111.. ..1111.. 22...... 22...... 22......")
    assert names(image, source) == ["no", "person"]
    assert [(c.name, c.source_id, c.is_thing) for c in source.categories] == [("person", 0, None), ("no", 1, None)]
    assert (image.image_id, image.file_name, image.size) == ("a", "a.jpg", (6, 8))
    assert image.image == tmp_path / "images/train/a.jpg"
    assert source.notes == ()


def test_parts_joined_by_bridges_are_one_object(tmp_path):
    first, second = ".125 .1667 .375 .1667 .375 .5 .125 .5 .125 .1667", ".625 .6667 .875 .6667 .875 1 .625 1 .625 .6667"
    source = open_yolo_seg(tree(tmp_path, f"0 {first} {second} .125 .1667"))
    same(source[0], "........ .11..... .11..... ........ .....11. .....11.")


def test_line_ends_blank_lines_and_scores(tmp_path):
    text = f"\ufeff{CAR}\r\n\r\n   \r\n{PERSON} 0.75\r\n"
    image = open_yolo_seg(tree(tmp_path, text))[0]
    assert [region.score for region in image.regions] == [1.0, 0.75]
    same(image, "..1111.. ..1111.. ..1111.. 22...... 22...... 22......")


def test_images_without_labels_have_no_objects(tmp_path):
    tree(tmp_path)
    photo(tmp_path / "images/train/b.jpg")
    photo(tmp_path / "images/train/c.jpg")
    (tmp_path / "labels/train/c.txt").write_text("")
    (tmp_path / "labels/train/z.txt").write_text(CAR)
    source = open_yolo_seg(tmp_path)
    assert [len(source[index].regions) for index in range(3)] == [2, 0, 0]
    assert source.notes == ("1 of 3 images have no label file: they have no objects",)
    refused("z.txt: expected an image of this name, found none", lambda: source[3])
    (tmp_path / "labels").rename(tmp_path / "elsewhere")
    refused("labels/train/a.txt: expected label files like this one, found none", lambda: open_yolo_seg(tmp_path))


def test_boxes_are_refused_filled_or_skipped(tmp_path):
    tree(tmp_path, f"0 0.5 0.5 0.5 0.3334\n0 0.5 0.5 0.5 0.3334 0.9\n{PERSON}")
    refused("a.txt: line 1: expected a polygon, found a box", lambda: open_yolo_seg(tmp_path)[0])
    image = open_yolo_seg(tmp_path, boxes="rectangle")[0]
    same(image, "........ ........ ..2222.. 332222.. 33...... 33......")
    assert [region.score for region in image.regions] == [1.0, 0.9, 1.0]
    same(open_yolo_seg(tmp_path, boxes="skip")[0], "........ ........ ........ 11...... 11...... 11......")
    refused("unknown boxes 'draw'; known: error, rectangle, skip", lambda: open_yolo_seg(tmp_path, boxes="draw"))


def test_objects_thinner_than_a_pixel_are_told(tmp_path):
    image = open_yolo_seg(tree(tmp_path, f"1 0.1 0.1 0.9 0.1 0.5 0.1\n{PERSON}"))[0]
    assert image.empty == (1,)
    assert len(image.regions) == 1


def test_turned_photos_are_drawn_as_they_are_seen(tmp_path):
    tree(tmp_path)
    turned_photo(tmp_path / "images/train/a.jpg", (8, 6))
    image = open_yolo_seg(tmp_path)[0]
    assert image.size == (6, 8)


# --- where things are ------------------------------------------------------------------------------------------------


def test_roboflow(tmp_path):
    for part in ("train", "valid"):
        photo(tmp_path / part / "images/x_jpg.rf.0a1b.jpg")
        (tmp_path / part / "labels").mkdir()
        (tmp_path / part / "labels/x_jpg.rf.0a1b.txt").write_text(CAR)
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n"
    (tmp_path / "data.yaml").write_text(f"{paths}nc: 2\nnames: ['person', 'car']\n\nroboflow:\n  license: CC BY 4.0\n")
    assert detect(tmp_path) == "yolo_seg"
    assert splits_yolo_seg(tmp_path) == ("train", "val")
    source = open_yolo_seg(tmp_path, "val")
    assert source[0].image == tmp_path / "valid/images/x_jpg.rf.0a1b.jpg"
    assert source[0].image_id == "x_jpg.rf.0a1b"
    assert names(source[0], source) == ["car"]
    assert source.notes == (
        "data.yaml: '../valid/images' is read as 'valid/images'",
        "data.yaml: the part 'test' is not there and is left out",
    )
    assert "there is also val" in open_yolo_seg(tmp_path).notes[1]
    refused("expected 'test'|expected '../test/images'|expected a part 'test'", lambda: open_yolo_seg(tmp_path, "test"))


def test_cvat_lists_images_in_a_file(tmp_path):
    tree(tmp_path, path="./", train="train.txt", image="images/train/sub/a.jpg")
    photo(tmp_path / "images/train/b.jpg")
    (tmp_path / "train.txt").write_text("data/images/train/sub/a.jpg\nimages/train/b.jpg\r\n\n")
    source = open_yolo_seg(tmp_path)
    assert [source[n].file_name for n in range(2)] == ["sub/a.jpg", "b.jpg"]
    same(source[0], "..1111.. ..1111.. ..1111.. 22...... 22...... 22......")
    (tmp_path / "train.txt").write_text("images/train/gone.jpg\n")
    refused("train.txt: line 1: expected an image in .*gone.jpg", lambda: open_yolo_seg(tmp_path))


def test_a_list_of_folders(tmp_path):
    tree(tmp_path, train="[images/one, images/two]", image="images/one/a.jpg")
    photo(tmp_path / "images/two/a.png")
    source = open_yolo_seg(tmp_path)
    assert [source[n].file_name for n in range(2)] == ["one/a.jpg", "two/a.png"]


@pytest.mark.parametrize("path", ["/content/datasets/mine", "../datasets/mine", "mine", "C:\\\\data\\\\mine"])
def test_paths_of_other_machines(tmp_path, path):
    tree(tmp_path, path=path)
    assert len(open_yolo_seg(tmp_path)) == 1
    tree(tmp_path / "up/mine", path=path)
    (tmp_path / "up/mine/data.yaml").rename(tmp_path / "up/other.yaml")
    assert open_yolo_seg(tmp_path / "up/other.yaml")[0].image == tmp_path / "up/mine/images/train/a.jpg"


@pytest.mark.parametrize("train", ["../../etc", "/etc/passwd", "x" * 5000, "a\0b", "nothing/here"])
def test_paths_stay_in_the_folder(tmp_path, train):
    inner = tree(tmp_path / "inner", train=f'"{train}"'.replace("\0", "\\0"))
    photo(tmp_path / "etc/passwd/a.jpg")
    refused("expected .* inside .*found no such folder", lambda: open_yolo_seg(inner))


def test_without_yaml_the_names_come_from_classes_txt(tmp_path):
    tree(tmp_path, image="images/a.jpg")
    (tmp_path / "data.yaml").unlink()
    assert is_yolo_seg(tmp_path)
    refused("expected data.yaml with names of classes", lambda: open_yolo_seg(tmp_path))
    (tmp_path / "classes.txt").write_text("person\ncar\n")
    source = open_yolo_seg(tmp_path)
    assert names(source[0], source) == ["car", "person"]
    refused("expected images/ and labels/ of 'val'", lambda: open_yolo_seg(tmp_path, "val"))
    assert splits_yolo_seg(tmp_path) == ()
    (tmp_path / "images/val").mkdir()
    (tmp_path / "images/a.jpg").rename(tmp_path / "images/val/a.jpg")
    (tmp_path / "labels/val").mkdir()
    (tmp_path / "labels/a.txt").rename(tmp_path / "labels/val/a.txt")
    assert splits_yolo_seg(tmp_path) == ("val",)
    assert len(open_yolo_seg(tmp_path, "val")[0].regions) == 2


def test_labels_beside_the_images(tmp_path):
    photo(tmp_path / "obj_train_data/a.jpg")
    (tmp_path / "obj_train_data/a.txt").write_text(CAR)
    (tmp_path / "data.yaml").write_text(YAML.format(path=".", train="obj_train_data"))
    assert len(open_yolo_seg(tmp_path)[0].regions) == 1


def test_conversion_asks_for_the_things(tmp_path):
    tree(tmp_path / "in")
    refused("no answer for person, no; name the things", lambda: convert(tmp_path / "in", tmp_path / "out"))
    summary = convert(tmp_path / "in", tmp_path / "out", things=["person"], fill="floor")
    assert "3: 1 things, 2 stuff" in summary.text()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0 0 1 0 1 1", "expected a class 0 … 1 of the list of names, found '2'"),
        ("-1 0 0 1 0 1 1", "expected a class"),
        ("0.5 0 0 1 0 1 1", "expected a class"),
        ("nan 0 0 1 0 1 1", "expected a class"),
        ("inf 0 0 1 0 1 1", "expected a class"),
        ("car 0 0 1 0 1 1", "expected numbers"),
        ("0 0 0 1 0 nan 1", "expected coordinates 0 … 1 .*found nan"),
        ("0 0 0 1e999 0 1 1", "expected coordinates .*found 1e999"),
        ("0 0 0 300 0 300 200", "expected coordinates 0 … 1 .*found 300"),
        ("0 -5 0 1 0 1 1", "expected coordinates .*found -5"),
        ("0 0.5 0.5 0.2", "expected a class, x, y pairs"),
        ("0", "expected a class, x, y pairs"),
        ("0 0 0 1 0 1 1 7", "expected a class, x, y pairs and perhaps a score"),
        ("0 0 0 1 0", "expected a polygon, found a box"),
        ("\x00\x01", "expected numbers"),
        ("0 0 0 1 0 1 " + "9" * 10_000, "expected coordinates"),
    ],
)
def test_lines_that_are_no_polygons(tmp_path, line, message):
    tree(tmp_path, f"{CAR}\n{line}\n")
    refused(f"a.txt: line 2: {message}", lambda: open_yolo_seg(tmp_path)[0])


def test_labels_that_are_no_text(tmp_path):
    tree(tmp_path)
    label = tmp_path / "labels/train/a.txt"
    label.write_bytes(b"\xff\xfe0 0 0")
    refused("a.txt: expected text in UTF-8", lambda: open_yolo_seg(tmp_path)[0])
    label.unlink()
    label.mkdir()
    refused("a.txt: expected label files like this one", lambda: open_yolo_seg(tmp_path)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images\nnames: [a, a]", "each name of a class once"),
        ("train: images\nnames: {0: a, x: b}", "names by class number, found 'x'"),
        ("train: images\nnames: {0: a, 0: b, -1: c}", "names by class number"),
        ("train: images\nnames: 7", "names as a list or a mapping"),
        ("train: images\nnames: [a, [b]]", "names as a list or a mapping"),
        ("train: images\nnames: []", "classes, found 0"),
        ("train: images\nnames: [a]\nnc: 80", "as many names as nc says"),
        ("train: {a: b}\nnames: [a]", "a path or a list of paths under 'train'"),
        ("train: images\nnames: [a]\nkpt_shape: [17, 3]", "found key points"),
        ("train: &x [1]\nval: *x\nnames: [a]", "plain YAML, found an alias"),
        ("train: images\nnames: [a", "plain YAML"),
        ("train: images\nnames: " + "[" * 5_000, "plain YAML"),
        ("train: images\nnames: [" + "a," * 200_000, "a short YAML file"),
        ("names: [a]", "expected data.yaml with names"),
        ("- names", "a YAML mapping"),
    ],
)
def test_broken_yaml(tmp_path, text, message):
    tree(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    refused(message, lambda: open_yolo_seg(tmp_path))
    assert is_yolo_seg(tmp_path) in (True, False)
    assert splits_yolo_seg(tmp_path) is not None


def test_yaml_cannot_run_code_or_multiply(tmp_path):
    tree(tmp_path)
    bomb = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))
    (tmp_path / "data.yaml").write_text(f"a0: &a0 [x]\n{bomb}\nnames: *a29\ntrain: images")
    refused("an alias", lambda: open_yolo_seg(tmp_path))
    (tmp_path / "data.yaml").write_text("names: !!python/object/apply:os.system ['false']\ntrain: images")
    assert [c.name for c in open_yolo_seg(tmp_path).categories] == ["false"]


def test_a_million_points_take_a_bounded_time(tmp_path):
    rng = np.random.default_rng(0)
    angles = np.sort(rng.random(500_000)) * 2 * np.pi
    circle = np.stack([0.5 + 0.4 * np.cos(angles), 0.5 + 0.4 * np.sin(angles)], 1).round(6)
    tree(tmp_path, "0 " + " ".join(map(str, circle.reshape(-1).tolist())))
    start = time.monotonic()
    assert len(open_yolo_seg(tmp_path)[0].regions) == 1
    zigzag = " ".join(f"{n % 2} {n / 4e5:.6f}" for n in range(400_000))
    tree(tmp_path, f"0 {zigzag}")
    photo(tmp_path / "images/train/a.jpg", (4000, 4000))
    refused("a.txt: line 1: expected an outline of at most", lambda: open_yolo_seg(tmp_path)[0])
    assert time.monotonic() - start < 20
