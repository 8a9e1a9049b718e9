"""Label Studio's JSON: exact maps of every shape, brush masks bit by bit, finding images, hostile files."""

import base64
import json
import time

import numpy as np
import pytest
from drawn import names, photo, refused, same, turned_photo

from pansight.data import open_dataset
from pansight.data.convert import convert, detect
from pansight.data.convert.readers.label_studio import decode_brush, is_label_studio, open_label_studio


def brush(mask, alpha=255, sizes=(3, 4, 8, 16), literal=False):
    """Label Studio's run lengths of a mask, written down from their description; literal: no run is repeated."""
    pixels = np.zeros((*np.asarray(mask).shape, 4), np.uint8)
    pixels[np.asarray(mask, bool)] = (7, 8, 9, alpha)
    values = pixels.reshape(-1).tolist()  # (H, W, 4) → (4HW,)
    words = [f"{len(values):032b}{7:05b}", *(f"{size - 1:04b}" for size in sizes)]
    begin = 0
    while begin < len(values):
        end = begin + 1
        while end < len(values) and (values[end] == values[begin] or literal) and end - begin < 2 ** sizes[3]:
            end += 1
        length = end - begin - 1
        which = next(n for n, size in enumerate(sizes) if length < 2**size)
        words.append(f"{int(not literal)}{which:02b}{length:0{sizes[which]}b}")
        words += [f"{value:08b}" for value in (values[begin:end] if literal else values[begin : begin + 1])]
        begin = end
    bits = "".join(words)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]


def result(kind, label, size=(6, 8), **value):
    row = {"id": "x", "type": kind, "from_name": "label", "to_name": "image", "image_rotation": 0, "origin": "manual"}
    row |= {"original_height": size[0], "original_width": size[1]}
    labels = {kind: [label]} if kind.endswith("labels") and label else {}
    return row | {"value": value | labels}


def square(label="car"):
    """Columns 2 … 5, rows 0 … 2 of 8×6."""
    return result("polygonlabels", label, points=[[25, 0], [75, 0], [75, 50], [25, 50]], closed=True)


def task(*results, image="/data/upload/1/0b5e1f3c-a.jpg", **more):
    annotation = {"id": 9, "completed_by": 1, "result": list(results), "was_cancelled": False, "ground_truth": False}
    row = {"id": 5, "annotations": [annotation], "drafts": [], "predictions": [], "data": {"image": image}}
    return {**row, "meta": {}, "inner_id": 1, **more}


def tree(root, *tasks, images=("images/0b5e1f3c-a.jpg",), size=(6, 8)):
    for name in images:
        photo(root / name, size)
    root.mkdir(exist_ok=True)
    (root / "project-1.json").write_text(json.dumps(tasks or (task(square()),)))
    return root


MASK = [[0] * 8, [0] * 8, [0] * 8, [0, 0, 0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0, 1, 0], [0] * 8]


def test_every_kind_of_region(tmp_path):
    source = open_label_studio(
        tree(
            tmp_path,
            task(
                square(),
                result("rectanglelabels", "sign", x=75, y=66.6667, width=25, height=33.3333, rotation=0),
                result("brushlabels", "car", format="rle", rle=brush(MASK)),
                result("ellipselabels", "ball", x=25, y=75, radiusX=17.5, radiusY=23.3333, rotation=0),
                result("rectanglelabels", "tree", x=25, y=0, width=25, height=16.6667, rotation=90),
            ),
        )
    )
    image = source[0]
    same(image, ".51111.. .51111.. ..1111.. .44..3.3 .44...32 .44...22")
    assert names(image, source) == ["car", "sign", "car", "ball", "tree"]
    assert [(c.name, c.source_id, c.is_thing) for c in source.categories] == [
        ("ball", 1, None),
        ("car", 2, None),
        ("sign", 3, None),
        ("tree", 4, None),
    ]
    assert (image.image_id, image.file_name, image.size) == ("0b5e1f3c-a", "0b5e1f3c-a.jpg", (6, 8))
    assert source.notes == ()


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("sizes", [(3, 4, 8, 16), (1, 2, 5, 9), (4, 4, 4, 4)])
@pytest.mark.parametrize("size", [(1, 1), (6, 8), (37, 53)])
def test_brush_masks(size, sizes, literal):
    mask = np.random.default_rng(1).random(size) < 0.4
    assert np.array_equal(decode_brush(brush(mask, sizes=sizes, literal=literal), size, "x"), mask)
    assert not decode_brush(brush(np.zeros(size)), size, "x").any()
    assert decode_brush(brush(np.ones(size), alpha=1), size, "x").all()


def test_brush_masks_as_label_studio_writes_them():
    """The first bytes of a published export (3332×2527): 32 bits of count, 8 of a value, lengths of 3, 4, 8, 16."""
    head = [2, 1, 233, 240, 57, 27]
    assert int.from_bytes(bytes(head[:4]), "big") == 3332 * 2527 * 4
    empty = head[:4] + brush(np.zeros((1, 1)))[4:6]
    assert empty == head
    bits = f"{4 * 6 * 8:032b}" + "00111" + "0010001101111111" + "1" + "10" + f"{4 * 48 - 1:08b}" + "00000000"
    bits += "0" * (-len(bits) % 8)
    zeros = [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]
    assert zeros[4:6] == [57, 27]
    assert not decode_brush(zeros, (6, 8), "x").any()


def test_half_transparent_pixels_belong_from_the_half_on():
    mask = np.zeros((1, 3, 4), np.uint8)
    bits = f"{12:032b}{7:05b}" + "0010001101111111" + "0" + "01" + f"{11:04b}"
    mask[0, :, 3] = 255, 128, 127
    bits += "".join(f"{value:08b}" for value in mask.reshape(-1).tolist())
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]
    assert decode_brush(rle, (1, 3), "x").tolist() == [[True, True, False]]


def test_labels_in_a_result_of_their_own(tmp_path):
    shape = result("polygon", None, points=square()["value"]["points"])
    label = {**result("labels", None, **shape["value"]), "value": {**shape["value"], "labels": ["bus"]}}
    source = open_label_studio(tree(tmp_path, task(shape, label)))
    assert names(source[0], source) == ["bus"]
    assert len(source[0].regions) == 1


def test_what_is_left_out_is_told(tmp_path):
    first = task(
        square(),
        result("keypointlabels", "dot", x=1, y=1, width=1),
        result("choices", None, choices=["good"]),
        {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
        {**square(None)},
        {**square(), "value": {**square()["value"], "closed": False}},
        {**square(), "value": {**square()["value"], "polygonlabels": ["bus", "car"]}},
        result("polygonlabels", "car", points=[[0, 50], [50, 50], [25, 50]]),
        predictions=[{"model_version": "v1", "result": [square("ghost")]}],
    )
    cancelled = {"result": [square("no")], "was_cancelled": True}
    rows = (first, task(annotations=[cancelled]), task(annotations=[]))
    source = open_label_studio(tree(tmp_path, *rows))
    assert len(source) == 1
    assert names(source[0], source) == ["car", "bus"]
    assert source[0].empty == (1,)
    assert source.notes == (
        "2 tasks have no annotation that was not cancelled and are left out",
        "1 predictions are left out",
        "1 regions have several labels: the first is read",
        "results that are no regions are left out: 1 choices, 1 keypointlabels, 1 open polygon, "
        "1 polygon without a label, 1 relation",
    )


def test_several_annotations_of_a_task(tmp_path):
    rows = [{"result": [square("first")]}, {"result": [square("truth")], "ground_truth": True}]
    source = open_label_studio(tree(tmp_path, task(annotations=[{"result": [], "was_cancelled": True}, *rows])))
    assert names(source[0], source) == ["truth"]
    assert source.notes == ("1 tasks have several annotations: the ground truth is read, else the first",)
    old = {"id": 1, "data": {"image": "0b5e1f3c-a.jpg"}, "completions": rows[:1]}
    assert [c.name for c in open_label_studio(tree(tmp_path, old)).categories] == ["first"]


def test_an_annotation_without_results_is_an_image_without_objects(tmp_path):
    source = open_label_studio(
        tree(tmp_path, task(), task(square(), image="b.jpg"), images=("0b5e1f3c-a.jpg", "b.jpg"))
    )
    assert [len(source[n].regions) for n in range(2)] == [0, 1]


# --- images ----------------------------------------------------------------------------------------------------------

RESOLVE = "/tasks/5/resolve/?fileuri=" + base64.b64encode(b"s3://bucket/deep/a.jpg").decode()


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("/data/upload/1/0b5e1f3c-a.jpg", "0b5e1f3c-a.jpg"),
        ("/data/upload/1/0b5e1f3c-a.jpg", "a.jpg"),
        ("/data/upload/0b5e1f3c-a%20b.jpg", "images/a b.jpg"),
        ("/data/local-files/?d=deep/er/a.jpg", "images/deep/er/a.jpg"),
        ("/data/local-files/?d=C%3A%5Cdeep%5Ca.jpg", "a.jpg"),
        ("s3://bucket/deep/a.jpg", "deep/a.jpg"),
        ("gs://bucket/deep/a.jpg", "images/a.jpg"),
        ("http://localhost:8080/x/a.jpg?X-Amz-Expires=1&d2=%2F", "a.jpg"),
        (RESOLVE, "a.jpg"),
        ("deep\\a.jpg", "deep/a.jpg"),
    ],
)
def test_images_are_found_by_the_end_of_their_address(tmp_path, text, file):
    source = open_label_studio(tree(tmp_path, task(square(), image=text), images=(file,)))
    assert source[0].image == tmp_path / file
    assert len(source[0].regions) == 1


def test_other_keys_and_the_name_of_the_upload(tmp_path):
    row = task(square(), data={"text": "photo of a.jpg, no", "photo": "/x/b.png"})
    assert open_label_studio(tree(tmp_path, row, images=("b.png",)))[0].file_name == "b.png"
    row = task(square(), file_upload="0b5e1f3c-c.jpg", image="http://localhost/a.jpg")
    assert open_label_studio(tree(tmp_path, row, images=("c.jpg",)))[0].file_name == "c.jpg"
    row = task(square(), data={"image": "data:image/png;base64,AAAA", "n": 5})
    refused("task 5: expected an image file or URL in data, found", lambda: open_label_studio(tree(tmp_path, row)))


@pytest.mark.parametrize("text", ["../../secret.jpg", "/data/local-files/?d=../../secret.jpg", "C:\\secret.jpg"])
def test_images_stay_in_the_folder(tmp_path, text):
    photo(tmp_path / "secret.jpg")
    source = open_label_studio(tree(tmp_path / "in", task(square(), image=text), images=()))
    assert source[0].image is None
    assert source[0].file_name == "secret.jpg"


def test_no_images_or_some(tmp_path):
    rows = task(square()), task(square(), image="/x/b.jpg", id=6)
    source = open_label_studio(tree(tmp_path, *rows, images=()))
    assert [(source[n].image, source[n].file_name, source[n].size) for n in range(2)] == [
        (None, "0b5e1f3c-a.jpg", (6, 8)),
        (None, "b.jpg", (6, 8)),
    ]
    assert source.notes == ("no image was found: sizes are those of the annotations",)
    photo(tmp_path / "frames/b.jpg")
    refused("task 5: expected '/data/upload.*a.jpg' in ", lambda: open_label_studio(tmp_path, image_folder="frames")[1])
    refused("pictures: expected a folder of images", lambda: open_label_studio(tmp_path, image_folder="pictures"))
    photo(tmp_path / "frames/a.jpg")
    assert open_label_studio(tmp_path, image_folder="frames")[0].image == tmp_path / "frames/a.jpg"
    tree(tmp_path, task(), images=())
    refused("task 5: expected an image file or original_width", lambda: open_label_studio(tmp_path)[0])
    tree(tmp_path, task(square()), task(square(), image="1b5e1f3c-a.jpg"), images=("a.jpg",))
    refused("a.jpg: expected an image for every task, found several", lambda: open_label_studio(tmp_path))


def test_turned_and_resized_images(tmp_path):
    tree(tmp_path)
    turned_photo(tmp_path / "images/0b5e1f3c-a.jpg", (8, 6))
    assert open_label_studio(tmp_path)[0].size == (6, 8)
    photo(tmp_path / "images/0b5e1f3c-a.jpg", (12, 16))
    refused("expected an image of 6×8 .its annotation., found 12×16", lambda: open_label_studio(tmp_path)[0])


def test_detection(tmp_path):
    tree(tmp_path)
    assert detect(tmp_path) == "label_studio"
    assert is_label_studio(tmp_path / "project-1.json")
    (tmp_path / "other.json").write_text('[{"a": 1}]')
    (tmp_path / "coco.json").write_text('{"images": [], "annotations": []}')
    assert is_label_studio(tmp_path)
    assert len(open_label_studio(tmp_path)) == 1
    assert not is_label_studio(tmp_path / "other.json")
    assert not is_label_studio(tmp_path / "coco.json")
    assert not is_label_studio(tmp_path / "missing")
    (tmp_path / "project-2.json").write_text(json.dumps([task(square())]))
    refused("expected one JSON export of Label Studio, found project-1", lambda: open_label_studio(tmp_path))
    assert len(open_label_studio(tmp_path / "project-2.json")) == 1


def test_conversion_asks_for_the_things(tmp_path):
    tree(tmp_path / "in")
    refused("no answer for car", lambda: convert(tmp_path / "in", tmp_path / "out"))
    assert "1 things" in convert(tmp_path / "in", tmp_path / "out", things=["car"]).text()


# --- what is refused -------------------------------------------------------------------------------------------------


def test_json_min_is_told_apart(tmp_path):
    tree(
        tmp_path, {"image": "/data/upload/1/a.jpg", "id": 1, "label": [{"points": [[0, 0]], "polygonlabels": ["car"]}]}
    )
    refused("JSON-MIN lacks them: export as JSON", lambda: open_label_studio(tmp_path))


HUGE = f"{2**31:032b}" + "00111" + "0010001101111111"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (result("polygonlabels", "car", points=[[1], [2], [3]]), "expected points of two numbers"),
        (result("polygonlabels", "car", points=[[1, 1], [412, 2], [3, 3]]), "expected coordinates in per cent"),
        (result("polygonlabels", "car", points=[["a", 1]]), "expected `float`, found `str`"),
        (result("polygonlabels", "car", points=7), "expected `array`, found `int`"),
        (result("rectanglelabels", "car", x=1, y=1, width=-5, height=1), "expected a width and height, found -5"),
        (result("rectanglelabels", "car", x=1e300, y=1, width=5, height=1), "expected coordinates in per cent"),
        (result("rectanglelabels", "car", x=1, y=1, width=1e300, height=1), "expected finite coordinates"),
        (result("ellipselabels", "car", x=1, y=1, radiusX=-5, radiusY=1), "expected radii"),
        (result("ellipselabels", "car", x=1, y=1, radiusX=1e300, radiusY=1), "expected radii"),
        (result("brushlabels", "car", format="png", rle=[]), "expected a brush mask of format 'rle'"),
        (result("brushlabels", "car", format="rle", rle=[]), "found an early end"),
        (result("brushlabels", "car", format="rle", rle=[256]), "expected run lengths as bytes"),
        (result("brushlabels", "car", format="rle", rle=["x"]), "expected `int`, found `str`"),
        (result("brushlabels", "car", format="rle", rle=brush(MASK)[:-3]), "found an early end"),
        (result("brushlabels", "car", format="rle", rle=brush([[1]])), "expected run lengths of 192 values"),
        (result("brushlabels", "car", format="rle", rle=[*brush(MASK)[:6], 255, 255, 255, 255]), "values, found"),
        ({**square(), "image_rotation": 90}, "expected an image that was not turned in Label Studio"),
    ],
)
def test_shapes_that_are_none(tmp_path, row, message):
    tree(tmp_path, task(square(), row))
    refused(f"task 5: result 2 .*{message}", lambda: open_label_studio(tmp_path)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "expected JSON"),
        ("", "expected JSON"),
        ("{}", "expected `array`, found `object`"),
        ("[1]", "expected `object`, found `int`"),
        ("[]", "expected annotated tasks, found none"),
        ("[" * 100_000, "expected `object`, found `array`"),
        ('[{"id": ' + "[" * 100_000, "expected"),
        ('[{"meta": ' + "[" * 100_000, "expected JSON"),
        ('[{"id": 1, "data": [], "annotations": []}]', "data"),
        ('[{"id": 1, "data": {"image": 5}, "annotations": [{"result": []}]}]', "expected an image file or URL"),
        ('[{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": {}}]}]', "result"),
        ('[{"id": 1, "data": {"image": "http://[x/a.jpg"}, "annotations": [{"result": [{"type": 5}]}]}]', "type"),
    ],
)
def test_broken_files(tmp_path, text, message):
    tree(tmp_path)
    (tmp_path / "project-1.json").write_text(text)
    refused(f"project-1.json: .*{message}", lambda: open_label_studio(tmp_path)[0])
    assert is_label_studio(tmp_path) in (True, False)


@pytest.mark.parametrize(("height", "width"), [(-6, 8), (0, 8), (6.5, 8), (1e300, 8), (99999, 99999)])
def test_sizes_that_are_none(tmp_path, height, width):
    tree(tmp_path, task({**square(), "original_height": height, "original_width": width}))
    refused("task 5: expected original_width and _height in pixels", lambda: open_label_studio(tmp_path))


def test_sizes_that_disagree(tmp_path):
    tree(tmp_path, task(square(), {**square(), "original_width": 9}))
    refused("expected results of one image size", lambda: open_label_studio(tmp_path))


def test_a_million_points_take_a_bounded_time(tmp_path):
    angles = np.arange(60_000) * (2 * np.pi / 60_000)
    circle = np.stack([50 + 40 * np.cos(angles), 50 + 40 * np.sin(angles)], 1).tolist()
    start = time.monotonic()
    assert len(open_label_studio(tree(tmp_path, task(result("polygonlabels", "car", points=circle))))[0].regions) == 1
    mask = np.random.default_rng(0).random((60, 80)) < 0.5
    row = result("brushlabels", "car", (60, 80), format="rle", rle=brush(mask))
    tree(tmp_path, task(row), size=(60, 80))
    assert open_label_studio(tmp_path)[0].regions[0].mask.sum() == mask.sum()
    assert time.monotonic() - start < 20


def two_images(*to_names: str):
    """A task of two Image tags with a square on each name in `to_names`."""
    rows = [square(label) | {"to_name": name} for label, name in zip(("car", "tree"), to_names)]
    return task(*rows) | {"data": {"image1": "/data/upload/1/a.jpg", "image2": "/data/upload/1/b.jpg"}}


TWO = ("images/a.jpg", "images/b.jpg")


@pytest.mark.parametrize("to_names", [("img1", "img2"), ("image1", "image2")])
def test_two_images_of_a_task_keep_their_own_regions(tmp_path, to_names):
    summary = convert(tree(tmp_path / "in", two_images(*to_names), images=TWO), tmp_path / "out", things="all")
    assert summary.images == {"train": 2}
    dataset = open_dataset(tmp_path / "out")
    found = {dataset.file_name(n): [dataset.labels[s.category].name for s in dataset[n].truth.segments] for n in (0, 1)}
    assert found == {"a.jpg": ["car"], "b.jpg": ["tree"]}


def test_a_region_that_names_neither_image_is_not_guessed(tmp_path):
    source = tree(tmp_path / "in", two_images("one", "two"), images=TWO)
    message = r"expected a to_name that tells which image is meant \(image1, image2\), found 'one'"
    refused(message, lambda: convert(source, tmp_path / "out", things="all"))
