"""LabelMe's JSON of several versions: exact maps, images that moved or lie in the file, hostile files."""

import base64
import io
import json
import pickle
import time

import numpy as np
import pytest
from drawn import names, photo, refused, same, turned_photo
from PIL import Image

from pansight.data.check import check
from pansight.data.convert import convert, detect
from pansight.data.convert.readers.labelme import is_labelme, open_labelme, splits_labelme


def shape(label, points, kind="polygon", group=None, **more):
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}, **more}


def annotation(path, shapes, image="a.jpg", size=(6, 8), **more):
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "imageHeight": size[0], "imageWidth": size[1], **more}))
    return path


def encoded(mask, mode="L"):
    file = io.BytesIO()
    Image.fromarray(np.asarray(mask, np.uint8)).convert(mode).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


SQUARE = [[2, 0], [6, 0], [6, 3], [2, 3]]


def tree(root, *shapes, **more):
    photo(root / "a.jpg")
    annotation(root / "a.json", list(shapes) or [shape("car", SQUARE)], **more)
    return root


def test_every_kind_of_region(tmp_path):
    source = open_labelme(
        tree(
            tmp_path,
            shape("car", SQUARE),
            shape("sign", [[8, 6], [6, 4]], "rectangle"),  # from any corner
            shape("ball", [[2, 4.5], [2, 5.9]], "circle"),
            shape("car", [[5, 3], [7, 4]], "mask", mask=encoded([[1, 0, 1], [0, 1, 0]])),
            shape("box", [[0, 0], [1, 0], [1, 1], [0, 1]], "rotation"),
            shape("box", [[0, 1], [1, 1], [1, 2], [0, 2]], "rectangle"),
        )
    )
    image = source[0]
    same(image, "5.1111.. 6.1111.. ..1111.. .33..4.4 .33...42 .33...22")
    assert names(image, source) == ["car", "sign", "ball", "car", "box", "box"]
    assert [(c.name, c.source_id, c.is_thing) for c in source.categories] == [
        ("ball", 1, None),
        ("box", 2, None),
        ("car", 3, None),
        ("sign", 4, None),
    ]
    assert (image.image_id, image.file_name, image.size) == ("a", "a.jpg", (6, 8))
    assert source.notes == ()


def test_one_label_and_group_is_one_object(tmp_path):
    left, right = [[0, 0], [2, 0], [2, 2], [0, 2]], [[4, 4], [6, 4], [6, 6], [4, 6]]
    source = open_labelme(
        tree(
            tmp_path,
            shape("car", left, group=1),
            shape("bus", [[6, 0], [8, 0], [8, 2], [6, 2]], group=1),
            shape("car", right, group=1),
            shape("car", [[4, 0], [5, 0], [5, 1], [4, 1]], group=2),
        )
    )
    image = source[0]
    same(image, "11..3.22 11....22 ........ ........ ....11.. ....11..")
    assert names(image, source) == ["car", "bus", "car"]
    assert image.regions[0].mask.shape == (6, 6)


def test_what_is_no_region_is_told(tmp_path):
    line = [[0, 0], [5, 5]]
    source = open_labelme(
        tree(
            tmp_path,
            shape("edge", line, "line"),
            shape("edge", line, "linestrip"),
            shape("dot", line[:1], "point"),
            shape("__ignore__", SQUARE),
            shape("car", SQUARE),
            shape("car", [[1, 1], [3, 1], [2, 1]]),
        )
    )
    image = source[0]
    same(image, "..1111.. ..1111.. ..1111.. ........ ........ ........")
    assert [c.name for c in source.categories] == ["car"]
    assert source.notes == ("shapes that are no regions are left out: 1 __ignore__, 1 line, 1 linestrip, 1 point",)
    assert image.empty == (0,)


def test_version_3_has_no_types_and_no_size(tmp_path):
    photo(tmp_path / "a.jpg")
    old = {"flags": {}, "shapes": [{"label": "car", "line_color": None, "fill_color": None, "points": SQUARE}]}
    old |= {"lineColor": [0, 255, 0, 128], "fillColor": [255, 0, 0, 128], "imagePath": "a.jpg", "imageData": "AAAA"}
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(old), encoding="utf-8")
    assert is_labelme(tmp_path)
    same(open_labelme(tmp_path)[0], "..1111.. ..1111.. ..1111.. ........ ........ ........")


def test_classes_in_the_order_of_labels_txt(tmp_path):
    tree(tmp_path, shape("car", SQUARE), shape("ant", SQUARE), shape("bee", SQUARE))
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nbus\ncar\nbee\n")
    assert [c.name for c in open_labelme(tmp_path).categories] == ["bus", "car", "bee", "ant"]


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", ["..\\img\\a.jpg", "../img/a.jpg", "/home/me/img/a.jpg", "C:\\work\\img\\a.jpg"])
def test_images_in_a_folder_of_their_own(tmp_path, stated):
    photo(tmp_path / "img/a.jpg")
    photo(tmp_path / "img/b.jpg")
    annotation(tmp_path / "ann/a.json", [shape("car", SQUARE)], image=stated)
    assert detect(tmp_path) == "labelme"
    source = open_labelme(tmp_path)
    assert source[0].image == tmp_path / "img/a.jpg"
    assert (source[0].image_id, source[0].file_name) == ("ann/a", "a.jpg")
    assert source.notes[-1] == "1 images have no annotation file and are left out, the first is b.jpg"
    moved = [f"1 of 1 images are read under another path than the annotations give: {stated!r} is img/a.jpg"]
    assert list(source.notes[:-1]) == ([] if stated == "../img/a.jpg" else moved)


def test_paths_stay_in_the_folder(tmp_path):
    photo(tmp_path / "secret.jpg")
    annotation(tmp_path / "in/a.json", [shape("car", SQUARE)], image="../secret.jpg")
    message = "a.json: expected the image '../secret.jpg' in this folder, or imageData"
    refused(message, lambda: open_labelme(tmp_path / "in"))
    for odd in ("x" * 5000, "..", "", "a\0b"):
        annotation(tmp_path / "in/a.json", [shape("car", SQUARE)], image=odd)
        refused("a.json: expected the image", lambda: open_labelme(tmp_path / "in"))
    photo(tmp_path / "in/a.png")  # of the same name
    assert open_labelme(tmp_path / "in")[0].file_name == "a.png"


def test_images_within_the_json(tmp_path):
    data = photo(tmp_path / "away/a.jpg").read_bytes()
    (tmp_path / "away/a.jpg").unlink()
    text = base64.b64encode(data).decode()
    annotation(tmp_path / "in/sub/a.json", [shape("car", SQUARE)], imageData=text)
    source = open_labelme(tmp_path / "in")
    image = source[0]
    assert image.image == data
    assert image.file_name == "a.jpg"
    assert source.notes == ("1 images are taken from imageData: their files are not there",)
    assert pickle.loads(pickle.dumps(source))[0].image == data
    for mode in ("copy", "hardlink", "symlink"):  # there is no file to link to
        summary = convert(tmp_path / "in", tmp_path / mode, things=["all"], images=mode)
        assert "train 1" in summary.text()
        assert [file.read_bytes() for file in (tmp_path / mode).rglob("*.jpg")] == [data]


def test_an_image_within_a_json_is_checked(tmp_path):
    """`check` converts for the moment; the image must still be there when it looks at it."""
    data = photo(tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").unlink()
    annotation(tmp_path / "in/a.json", [shape("car", SQUARE)], imageData=base64.b64encode(data).decode())
    report = check(tmp_path / "in")
    assert report.images == 1
    assert report.findings.number("error") == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("!!!", "imageData: expected base64, found .* in '!!!'"),
        ("AAAA", "imageData: expected an image"),
        (
            base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + b"\xff" * 20).decode(),
            "imageData: expected at most 100 million",
        ),
        ("", "expected the image 'a.jpg'"),
    ],
)
def test_broken_image_data(tmp_path, data, message):
    annotation(tmp_path / "a.json", [shape("car", SQUARE)], imageData=data)
    refused(f"a.json: {message}", lambda: open_labelme(tmp_path))


def test_turned_and_resized_images(tmp_path):
    annotation(tmp_path / "a.json", [shape("car", SQUARE)])
    turned_photo(tmp_path / "a.jpg", (8, 6))
    assert open_labelme(tmp_path)[0].size == (6, 8)
    turned_photo(tmp_path / "a.jpg", (6, 8))
    assert open_labelme(tmp_path)[0].size == (6, 8)
    photo(tmp_path / "a.jpg", (12, 16))
    refused("a.jpg: expected an image of 6×8 .its annotation., found 12×16", lambda: open_labelme(tmp_path)[0])


def test_two_files_for_one_image(tmp_path):
    tree(tmp_path)
    annotation(tmp_path / "b.json", [shape("car", SQUARE)])
    refused("expected one JSON an image, found several of a.jpg", lambda: open_labelme(tmp_path))


def test_parts(tmp_path):
    tree(tmp_path / "train")
    tree(tmp_path / "val")
    assert splits_labelme(tmp_path) == ("train", "val")
    assert is_labelme(tmp_path)
    assert open_labelme(tmp_path, "val")[0].image == tmp_path / "val/a.jpg"
    refused("expected a part 'test', found train, val", lambda: open_labelme(tmp_path, "test"))
    tree(tmp_path)
    assert splits_labelme(tmp_path) == ()
    assert [image.image_id for image in map(open_labelme(tmp_path).__getitem__, range(3))] == ["a", "train/a", "val/a"]


def test_one_file_and_files_of_other_tools(tmp_path):
    tree(tmp_path)
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "other.json").write_text('{"images": []}')
    (tmp_path / "._a.json").write_bytes(b"\x00\x05")
    source = open_labelme(tmp_path)
    assert source.notes == ("2 JSON files are not LabelMe's and are left out: list.json, …",)
    assert len(open_labelme(tmp_path / "a.json")) == 1
    assert is_labelme(tmp_path / "a.json")
    assert not is_labelme(tmp_path / "other.json")
    assert not is_labelme(tmp_path / "missing")
    (tmp_path / "a.json").unlink()
    assert not is_labelme(tmp_path)
    refused("expected LabelMe's JSON files", lambda: open_labelme(tmp_path))


# --- what is refused -------------------------------------------------------------------------------------------------

MASK = encoded([[1, 1], [1, 1]])


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (shape("car", [[1, 1, 1], [2, 2], [3, 3]]), "expected points of two numbers"),
        (shape("car", [[1e9, 1], [2, 2], [3, 3]]), "expected finite coordinates"),
        (shape("car", SQUARE[:3], "rectangle"), "expected 2 points of a rectangle, found 3"),
        (shape("car", [[1, 1], [1e300, 1]], "circle"), "expected radii"),
        (shape("car", [[1, 1], [1e9, 1]], "circle"), "expected radii"),
        (shape("car", [[1, 1], [1e6, 1]], "circle"), "expected .*outline|expected finite"),
        (shape("car", [[0, 0], [1, 1]], "mask"), "mask: expected an image|mask: expected a PNG"),
        (shape("car", [[0, 0], [1, 1]], "mask", mask="%%%"), "mask: expected base64"),
        (shape("car", [[0, 0], [5, 5]], "mask", mask=MASK), "expected a mask of 6×6 as its box, found 2×2"),
        (shape("car", [[0, 0], [1e300, 5]], "mask", mask=MASK), "expected the corners of the mask's box"),
        (shape("car", [[0, 0], [1, 1]], "mask", mask=MASK[:-20]), "expected"),
    ],
)
def test_shapes_that_are_none(tmp_path, drawn, message):
    tree(tmp_path, shape("bus", SQUARE), drawn)
    refused(f"a.json: shape 2 .'car'.*{message}", lambda: open_labelme(tmp_path)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"shapes": 7}', r"expected `array \| null`, found `int` - at `\$.shapes`"),
        ('{"shapes": [{"label": null}]}', "label"),
        ('{"shapes": [{"points": []}]}', "label"),
        ('{"shapes": [{"label": "a", "points": [["x", 1]]}]}', "points"),
        ('{"shapes": [{"label": "a", "points": [[NaN, 1]]}]}', "expected JSON"),
        ('{"shapes": [{"label": "a", "shape_type": "cloud"}]}', "expected shapes of type polygon, .*found 'cloud'"),
        ('{"shapes": [], "imageHeight": 0, "imageWidth": 8}', "expected imageHeight and imageWidth in pixels"),
        ('{"shapes": [], "imageHeight": 1e300, "imageWidth": 8}', "expected imageHeight and imageWidth in pixels"),
        ('{"shapes": [], "imageHeight": "6", "imageWidth": 8}', "imageHeight"),
        ('{"shapes": ' + "[" * 100_000, "expected `object`"),
        ('{"x": ' + '{"x":' * 100_000, "expected JSON"),
        ('{"shapes": [', "expected JSON"),
        ("", "expected JSON"),
        ("\x00", "expected JSON"),
    ],
)
def test_broken_files(tmp_path, text, message):
    tree(tmp_path)
    (tmp_path / "a.json").write_text(text)
    refused(f"a.json: .*{message}", lambda: open_labelme(tmp_path)[0])
    assert is_labelme(tmp_path) in (True, False)


def test_masks_partly_outside_and_in_other_png_modes(tmp_path):
    mask = [[1, 1, 1], [1, 0, 1]]
    for mode in ("L", "1", "P", "RGB", "RGBA", "LA"):
        values = np.array(mask) * (1 if mode in ("L", "LA") else 255)
        drawn = shape("car", [[6, -1], [8, 0]], "mask", mask=encoded(values, mode))
        same(open_labelme(tree(tmp_path, drawn))[0], "......1. " + "........ " * 5)
    outside = shape("car", [[20, 20], [22, 21]], "mask", mask=encoded(mask))
    assert open_labelme(tree(tmp_path, outside))[0].empty == (0,)


def test_a_million_points_take_a_bounded_time(tmp_path):
    angles = np.arange(60_000) * (2 * np.pi / 60_000)
    circle = np.stack([4 + 3 * np.cos(angles), 3 + 2 * np.sin(angles)], 1).tolist()
    zigzag = [[(n % 2) * 4000, n / 4e4] for n in range(60_000)]
    start = time.monotonic()
    assert len(open_labelme(tree(tmp_path, shape("car", circle)))[0].regions) == 1
    tree(tmp_path, shape("car", zigzag))
    refused("expected an outline of at most", lambda: open_labelme(tmp_path)[0])
    assert time.monotonic() - start < 20
