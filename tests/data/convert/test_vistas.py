"""Raw Mapillary Vistas of both versions: values, and where the classes come from."""

import json
from pathlib import Path

import numpy as np
import pytest
from trees import VISTAS_LABELS, vistas_tree, vistas_values, write, write_jpeg, write_palette

from pansight.data import open_dataset
from pansight.data.convert import convert
from pansight.data.convert.readers.vistas import is_vistas, open_vistas, splits_vistas
from pansight.errors import PansightError

IMAGE = "M2kh294N9c72sICO990Uew"


def fails(root: Path, message: str, **options) -> None:
    with pytest.raises(PansightError, match=message) as caught:
        open_vistas(root, **options)[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("version", "flat"), [("1.2", True), ("1.2", False), ("2.0", False)])
def test_values_become_segments(tmp_path, version, flat):
    versions = ("1.2",) if flat else ("1.2", "2.0")
    source = open_vistas(vistas_tree(tmp_path, versions, flat), version=version)
    image = source[0]
    curb = VISTAS_LABELS[version]["curb"]
    assert image.ids is not None
    assert image.ids.dtype == np.int32
    assert image.ids.tolist() == [[256, 256, 257], [256 * (curb + 1)] * 2 + [0], [256 * (curb + 1), 257, 0]]
    assert image.segments == {256: (0, False), 257: (0, False), 256 * (curb + 1): (curb, False)}
    assert source.categories[0].is_thing is True
    assert source.categories[curb].is_thing is False
    assert source.categories[curb].source_id == curb + 1
    assert (image.image_id, image.file_name, image.size) == (IMAGE, f"{IMAGE}.jpg", (3, 3))
    assert image.image == tmp_path / "training/images" / f"{IMAGE}.jpg"


def test_the_newest_version_is_taken_unless_one_is_named(tmp_path):
    root = vistas_tree(tmp_path)
    assert len(open_vistas(root).categories) == 123
    assert len(open_vistas(root, version="1.2").categories) == 65
    assert open_vistas(root, "val")[0].image_id == "_1Gn_xkw7sa_i9GU4mkxxQ"
    assert is_vistas(root)
    assert not is_vistas(root / "training" / "images")
    fails(root, r"unknown version of Vistas '1\.1'; known: 1\.2, 2\.0", version="1.1")
    fails(root, "expected a part 'test', found training, validation", split="test")


def test_classes_of_v1_2_are_built_in(tmp_path):
    source = open_vistas(vistas_tree(tmp_path, ("1.2",), flat=True, config=False))
    assert len(source.categories) == 65
    assert sum(c.is_thing is True for c in source.categories) == 37
    assert source.categories[0] == ("Bird", 1, True, (165, 42, 42))
    assert source[0].segments == {256: (0, False), 257: (0, False), 768: (2, False)}
    assert "classes of v1.2 as built in: no config" in source.notes


def test_v2_without_config_leaves_things_to_the_user(tmp_path):
    source = open_vistas(vistas_tree(tmp_path, ("2.0",), config=False))
    assert {c.is_thing for c in source.categories} == {None}
    assert len(source.categories) == 116
    assert any(note.startswith("no config_v2.0.json: nothing says which classes are things") for note in source.notes)
    assert source[0].segments == {256: (0, False), 257: (0, False), 1280: (4, False)}


def test_the_panoptic_file_goes_before_the_config(tmp_path):
    root = vistas_tree(tmp_path, ("2.0",), panoptic=True)
    file = root / "training/v2.0/panoptic/panoptic_2020.json"
    content = json.loads(file.read_text())
    content["categories"] = [
        {"id": 70, "name": "Curb", "supercategory": "construction--barrier--curb", "isthing": 1, "color": [1, 2, 3]},
        {"id": 40, "name": "animal--bird", "supercategory": "animal", "isthing": 0, "color": [4, 5, 6]},
    ]
    file.write_text(json.dumps(content))
    source = open_vistas(root)
    assert source.categories == (("Curb", 70, True, (1, 2, 3)), ("animal--bird", 40, False, (4, 5, 6)))
    assert source[0].segments == {256: (1, False), 257: (1, False), 1280: (0, False)}
    assert source.notes[1].startswith("things and stuff as in panoptic_2020.json; left void: animal--ground-animal, ")
    content["categories"].append({"id": 1, "name": "dragon", "isthing": 1})
    file.write_text(json.dumps(content))
    fails(root, r"panoptic_2020\.json: expected categories that are labels of the config, found 'dragon'")


def test_the_config_says_what_is_evaluated(tmp_path):
    root = vistas_tree(tmp_path, ("2.0",))
    file = root / "config_v2.0.json"
    config = json.loads(file.read_text())
    config["labels"][4] |= {"evaluate": False}
    config["labels"][0].pop("instances")
    file.write_text(json.dumps(config))
    source = open_vistas(root)
    assert source[0].segments == {256: (0, False), 257: (0, False)}
    assert source.categories[0].is_thing is None
    assert "left void: construction--barrier--curb, void--unlabeled" in source.notes[1]


def test_missing_files_are_one_line(tmp_path):
    fails(tmp_path, r"expected training/\[v2\.0/\]instances, found no such folder")
    root = vistas_tree(tmp_path, ("2.0",))
    fails(root, r"expected training/\[v1\.2/\]instances", version="1.2")
    (root / "training/images" / f"{IMAGE}.jpg").unlink()
    fails(root, rf"training/images/{IMAGE}\.jpg: expected the image of {IMAGE}\.png, found no such file")
    write_jpeg(root / "training/images/other.jpg", 3, 3)
    assert "1 images of" in open_vistas(root).notes[-1]


def test_wrong_files_are_one_line(tmp_path):
    root = vistas_tree(tmp_path, ("2.0",))
    png = root / "training/v2.0/instances" / f"{IMAGE}.png"
    write(png, np.full((3, 3), 124 * 256 + 3, np.uint16))
    fails(root, r"expected labels 0 … 123, found 124 \(value 31747\)")
    write(png, vistas_values("2.0")[:2])
    fails(root, r"expected an image of 2×3 \(its annotation\), found 3×3")
    write_palette(png, np.zeros((3, 3), np.uint8), [(0, 0, 0)])
    fails(root, "expected instances of Vistas as a PNG of 16 bits, found 8 bits")
    (root / "config_v2.0.json").write_text('{"labels": [{"name": 3}]}')
    fails(root, r"config_v2\.0\.json: expected `str`, found `int` - at")
    (root / "config_v2.0.json").write_text("[" * 100_000)
    fails(root, r"config_v2\.0\.json: ")


def test_conversion_takes_both_parts_of_the_newest_version(tmp_path):
    root = vistas_tree(tmp_path / "vistas")
    assert splits_vistas(root) == ("training", "validation")
    summary = convert(root, tmp_path / "out")
    assert summary.images == {"train": 1, "val": 1}
    assert summary.things == ("animal--bird",)
    sample = open_dataset(tmp_path / "out", split="val")[0]
    assert sample.truth.ids.tolist() == [[256, 256, 257], [1280, 1280, 0], [1280, 257, 0]]
    assert sample.image_id == "_1Gn_xkw7sa_i9GU4mkxxQ"


def test_conversion_of_v2_without_config_asks_what_is_a_thing(tmp_path):
    root = vistas_tree(tmp_path / "vistas", ("2.0",), config=False)
    with pytest.raises(PansightError, match=r"expected to know which are things .*found no answer for animal--bird"):
        convert(root, tmp_path / "out")
    assert convert(root, tmp_path / "out", things=["animal--bird"]).things == ("animal--bird",)


def test_a_part_is_read_by_itself(tmp_path):
    part = vistas_tree(tmp_path / "vistas", ("1.2",), flat=True) / "validation"  # looks like images and instances
    assert is_vistas(part)
    assert splits_vistas(part) == ("validation",)
    assert open_vistas(part)[0].image_id == "_1Gn_xkw7sa_i9GU4mkxxQ"
    assert convert(part, tmp_path / "out").images == {"val": 1}
