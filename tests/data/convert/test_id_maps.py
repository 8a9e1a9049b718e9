"""Id maps with a table of segments: every layout that is promised gives the same image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pansight.data import open_dataset
from pansight.data.convert import convert, detect
from pansight.data.convert.readers.id_maps import open_id_maps
from pansight.errors import PansightError

IDS = np.array([[1, 1, 2, 2], [1, 3, 300, 0], [0, 3, 300, 0]], np.int32)
SEGMENTS = [
    {"id": 1, "label_id": 0, "was_fused": False, "score": 0.9},
    {"id": 2, "label_id": 0, "was_fused": False, "score": 0.8},
    {"id": 3, "label_id": 4, "was_fused": True, "score": 0.7},
    {"id": 300, "label_id": 2, "was_fused": False, "score": 0.6},
]
NAMES = {"0": "cat", "2": "dog", "4": "grass", "7": "never seen"}


def tree(folder: Path, images: bool = True, **files: Any) -> Path:
    """JSON, arrays and PNGs under `folder`, by name; config.json with the names of the classes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"id2label": NAMES, "model_type": "x"}))
    if images:
        (folder / "images").mkdir(exist_ok=True)
        Image.new("RGB", (4, 3)).save(folder / "images" / "a.jpg")
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        path = folder / f"{stem}.{suffix}"
        if suffix == "json":
            path.write_text(json.dumps(content))
        elif suffix == "npy":
            np.save(path, content)
        else:
            Image.fromarray(content).save(path)
    return folder


RGB = np.stack([IDS % 256, IDS // 256, 0 * IDS], 2).astype(np.uint8)
TABLE = {"segments_info": SEGMENTS}

LAYOUTS: dict[str, dict[str, Any]] = {
    "in the JSON": {"a_json": TABLE | {"segmentation": IDS.tolist()}},
    "in the JSON, as floats": {"a_json": TABLE | {"segmentation": IDS.astype(float).tolist()}},
    "an array": {"a_json": TABLE, "a_npy": IDS},
    "an array of a batch": {"a_json": TABLE, "a_npy": IDS[None].astype(np.int64)},
    "an array by columns": {"a_json": TABLE, "a_npy": np.asfortranarray(IDS.astype(">u2"))},
    "void as −1": {"a_json": TABLE, "a_npy": np.where(IDS == 0, -1, IDS)},
    "16 bits": {"a_json": TABLE, "a_png": IDS.astype(np.uint16)},
    "RGB": {"a_json": TABLE, "a_png": RGB},
    "a file that is named": {"a_json": TABLE | {"segmentation": "ids.png"}, "ids_png": IDS.astype(np.uint16)},
    "a table by name": {"segments_json": {"a": TABLE}, "a_png": IDS.astype(np.uint16)},
    "a table by file": {"segments_json": {"a.png": TABLE}, "a_png": IDS.astype(np.uint16)},
    "a list": {"segments_json": [{"file_name": "a.png", **TABLE}], "a_png": IDS.astype(np.uint16)},
    "Detectron2": {
        "a_json": {
            "segments_info": [
                {"id": s["id"], "category_id": s["label_id"], "isthing": s["label_id"] != 4} for s in SEGMENTS
            ]
        },
        "a_npy": IDS,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_image(tmp_path, layout):
    folder = tree(tmp_path / "in", **LAYOUTS[layout])
    assert detect(folder) == "id_maps"
    source = open_id_maps(folder)
    image = source[0]
    assert np.array_equal(image.ids, IDS)
    assert [(c.name, c.source_id, c.is_thing) for c in source.categories] == [
        ("cat", 0, True),
        ("dog", 2, True),
        ("grass", 4, False),
    ]
    assert image.segments == {1: (0, False), 2: (0, False), 3: (2, False), 300: (1, False)}
    assert (image.image_id, image.file_name, image.image) == ("a", "a.jpg", folder / "images" / "a.jpg")
    assert "1 classes that never occur are left out" in source.notes
    convert(folder, tmp_path / "out")
    sample = open_dataset(tmp_path / "out")[0]
    assert np.array_equal(sample.truth.ids.numpy(), IDS)


def test_ids_from_zero_move_up(tmp_path):
    """As Hugging Face's instance segmentation numbers: from 0, with −1 for nothing."""
    segments = [{**s, "id": s["id"] - 1} for s in SEGMENTS]
    image = open_id_maps(tree(tmp_path, a_json={"segments_info": segments}, a_npy=IDS - 1))[0]
    assert np.array_equal(image.ids, IDS)
    assert list(image.segments) == [1, 2, 3, 300]


def test_things_are_never_guessed(tmp_path):
    plain = [{"id": s["id"], "label_id": s["label_id"]} for s in SEGMENTS]
    folder = tree(tmp_path / "in", a_json={"segments_info": plain}, a_npy=IDS)
    with pytest.raises(PansightError, match="found no answer for cat, dog, grass; name the things"):
        convert(folder, tmp_path / "out")
    unfused = [{**s, "was_fused": False} for s in SEGMENTS]  # nothing was fused: nothing is told by it
    tree(folder, a_json={"segments_info": unfused})
    assert [c.is_thing for c in open_id_maps(folder).categories] == [None, None, None]
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "person", "2": "cat", "4": "sky-other-merged"}}))
    source = open_id_maps(folder)
    assert [c.is_thing for c in source.categories] == [True, True, False]
    assert "things and stuff of coco_panoptic, whose classes these are" in source.notes


def test_without_names_classes_have_numbers(tmp_path):
    folder = tree(tmp_path / "in", a_json=TABLE, a_npy=IDS)
    (folder / "config.json").unlink()
    source = open_id_maps(folder)
    assert [c.name for c in source.categories] == ["class_0", "class_2", "class_4"]
    (folder / "names.txt").write_text("cat\nbird\ndog\ncow\ngrass\n")
    assert [c.name for c in open_id_maps(folder, classes="names.txt").categories] == ["cat", "dog", "grass"]


def test_parts_and_no_images(tmp_path):
    for part in ("train", "val"):
        tree(tmp_path / "in" / part, images=False, a_json=TABLE, a_npy=IDS)
    assert convert(tmp_path / "in", tmp_path / "out", images="none").images == {"train": 1, "val": 1}
    with pytest.raises(PansightError, match=r"a\.png: expected an image file, found none \(--images none"):
        convert(tmp_path / "in", tmp_path / "more")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a_json": TABLE}, r"a\.json: expected a map a\.png or a\.npy in "),
        ({"a_json": TABLE, "a_npy": IDS + 7}, r"a\.npy: expected only ids that the table lists, found 7"),
        ({"a_json": TABLE, "a_npy": IDS[0]}, r"a\.npy: expected an array \(H, W\) of at most 100 million"),
        ({"a_json": TABLE, "a_npy": IDS + 0.5}, r"a\.npy: expected ids −1 … 16777215"),
        ({"a_json": TABLE, "a_npy": IDS - 5}, r"a\.npy: expected ids −1 … 16777215"),
        ({"a_json": TABLE, "a_npy": np.full((2, 2), np.nan)}, r"a\.npy: expected ids −1 … 16777215"),
        ({"a_json": TABLE, "a_npy": np.array([[{}]], object)}, r"a\.npy: expected an array of whole numbers"),
        ({"a_json": TABLE | {"segmentation": [[1, 2], [3]]}}, "expected a map of rows of one length"),
        ({"a_json": TABLE | {"segmentation": [[]]}}, "expected a map of rows of one length"),
        ({"a_json": TABLE | {"segmentation": [["a"]]}}, "expected `int | float`, found `str`"),
        ({"a_json": TABLE | {"segmentation": "../../x.png"}}, "inside the data folder"),
        ({"a_json": {"segments_info": [{"id": 1}]}, "a_npy": IDS}, "segment 1: expected a label_id, found none"),
        ({"a_json": {"segments_info": [{"id": 1, "label_id": 5}]}, "a_npy": IDS}, "a name for every label_id"),
        ({"a_json": {"segments_info": SEGMENTS[:1] * 2}, "a_npy": IDS}, "segment 1: expected each id once"),
        ({"a_json": {"segments_info": [{"id": -3, "label_id": 0}]}, "a_npy": IDS}, "expected an id 0 … 16777215"),
        ({"a_json": [TABLE], "a_png": RGB}, "expected a file_name in every row"),
        ({"a_json": [{"file_name": "/x.png", **TABLE}], "a_png": RGB}, "inside the data folder"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, files, message):
    with pytest.raises(PansightError, match=message) as caught:
        open_id_maps(tree(tmp_path, **files))[0]
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_segments_without_a_pixel_are_told(tmp_path):
    more = [*SEGMENTS, {"id": 9, "label_id": 2, "was_fused": False}]
    summary = convert(tree(tmp_path / "in", a_json={"segments_info": more}, a_npy=IDS), tmp_path / "out")
    assert [(v.file_name, v.class_name, v.pixels) for v in summary.vanished] == [("a.jpg", "dog", 0)]
