"""The official panoptic layouts are recognised and read as they lie; what is missing is said in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from trees import (
    ADE_IDS,
    CITY_CROWDS,
    CITY_PANOPTIC,
    ade20k_tree,
    cityscapes_panoptic,
    cityscapes_tree,
    photo,
    vistas_tree,
    voc_tree,
    write,
)

from pansight.config import DataConfig
from pansight.data import detect_format, find_splits, open_dataset
from pansight.data.categories import label_space
from pansight.data.formats.coco_panoptic import CocoPanoptic
from pansight.engine.assemble import open_data
from pansight.errors import PansightError


def fails(root: Path, message: str, **options) -> None:
    with pytest.raises(PansightError, match=message) as caught:
        open_dataset(root, **options)[0]
    assert "\n" not in str(caught.value)


def change(file: Path, edit) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


# --- Cityscapes ------------------------------------------------------------------------------------------------------


def test_cityscapes_finds_its_images_in_spite_of_their_names(tmp_path):
    root = cityscapes_tree(tmp_path, panoptic=True)
    assert "_gtFine_leftImg8bit" in (root / "gtFine/cityscapes_panoptic_train.json").read_text()  # the known mistake
    assert detect_format(root) == "cityscapes"
    assert find_splits(root) == ("train", "val")
    data = open_dataset(root)
    assert isinstance(data, CocoPanoptic)
    assert data.labels == label_space("cityscapes_panoptic")
    assert data.file_name(0) == "aachen/aachen_000000_000019_leftImg8bit.png"
    sample = data[0]
    assert np.array_equal(sample.truth.ids.numpy(), CITY_PANOPTIC)
    assert {s.id for s in sample.truth.segments if s.is_crowd} == CITY_CROWDS
    assert sample.image[:, 0, 0].tolist() == photo(1, 1)[0, 0].tolist()
    assert open_dataset(root, split="val").image_id(0) == "frankfurt_000001_007973"


def test_cityscapes_by_folder_by_file_and_with_train_ids(tmp_path):
    root = cityscapes_tree(tmp_path, panoptic=True)
    assert open_dataset(root / "gtFine", split="val")[0].image_id == "frankfurt_000001_007973"
    file = root / "gtFine/cityscapes_panoptic_val.json"
    assert detect_format(file) == "cityscapes"
    assert find_splits(file) == ()
    assert open_dataset(file)[0].image_id == "frankfurt_000001_007973"
    cityscapes_panoptic(root, "train", "aachen_000000_000019", train_ids=True)
    assert {c.source_id for c in open_dataset(root).labels} == {c.source_id for c in label_space("cityscapes_panoptic")}
    assert {c.source_id for c in open_dataset(root, ids="train").labels} == set(range(19))
    (root / "gtFine/cityscapes_panoptic_train.json").unlink()
    assert find_splits(root) == ("train", "val")
    assert {c.source_id for c in open_dataset(root).labels} == set(range(19))


def test_training_takes_a_cityscapes_root_as_it_is(tmp_path):
    root = cityscapes_tree(tmp_path, panoptic=True)
    training, validation, note = open_data(DataConfig(source=str(root)))
    assert (training.image_id(0), validation.image_id(0)) == ("aachen_000000_000019", "frankfurt_000001_007973")
    assert "part val" in note


def test_cityscapes_says_what_is_missing(tmp_path):
    root = cityscapes_tree(tmp_path / "a")
    assert detect_format(root) == "cityscapes"
    fails(
        root,
        r"expected gtFine/cityscapes_panoptic_\*\.json \(panoptic annotations\), found none; run createPanopticImgs of "
        r"cityscapesScripts, or convert the raw annotations: pansight convert .*a --from cityscapes --to OUT",
    )
    root = cityscapes_tree(tmp_path / "b", panoptic=True)
    fails(root, "expected a part 'test', found train, val", split="test")
    fails(root, "unknown category ids 'both'; known: label, train", ids="both")
    change(root / "gtFine/cityscapes_panoptic_train.json", lambda c: c["images"][0].update(id="x"))
    fails(root, r"cityscapes_panoptic_train\.json: expected image ids CITY_SEQUENCE_FRAME, found 'x'")
    for rows, key in (("images", "id"), ("annotations", "image_id")):
        outside = {key: "../../a_b_c"}
        change(root / "gtFine/cityscapes_panoptic_train.json", lambda c, r=rows, o=outside: c[r][0].update(o))
    fails(root, "inside the data folder")
    (root / "leftImg8bit/val/frankfurt/frankfurt_000001_007973_leftImg8bit.png").unlink()
    fails(root, r"_leftImg8bit\.png: expected an image file, found no such file", split="val")
    root = cityscapes_tree(tmp_path / "c", panoptic=True, images=False)
    fails(root, r"leftImg8bit/train: expected the images \(leftImg8bit_trainvaltest\.zip\), found no such folder")


# --- ADE20K ----------------------------------------------------------------------------------------------------------


def test_ade20k_leaves_out_stuff_that_things_have_covered(tmp_path):
    root = ade20k_tree(tmp_path, panoptic=True)
    listed = json.loads((root / "ade20k_panoptic_train.json").read_text())["annotations"][0]["segments_info"]
    assert {row["id"] for row in listed} == {1, 2, 3, 13001, 13002}  # 2, a building, has lost its pixels
    assert detect_format(root) == "ade20k"
    assert find_splits(root) == ("train", "val")
    data = open_dataset(root)
    assert data.labels == label_space("ade20k_panoptic")
    sample = data[0]
    assert np.array_equal(sample.truth.ids.numpy(), ADE_IDS)
    assert {s.id for s in sample.truth.segments} == {1, 3, 13001, 13002}
    assert sample.image_id == "ADE_train_00000001"
    assert open_dataset(root, split="val").image_id(0) == "ADE_val_00000001"
    assert open_dataset(root / "ade20k_panoptic_val.json").image_id(0) == "ADE_val_00000001"


def test_segments_without_pixels_are_an_error_elsewhere(tmp_path):
    root = ade20k_tree(tmp_path, panoptic=True)
    options = {"json": root / "ade20k_panoptic_train.json", "images": root / "images/training"}
    fails(root, "found no pixel of 2", format="coco_panoptic", panoptic=root / "ade20k_panoptic_train", **options)


def test_ade20k_says_what_is_missing(tmp_path):
    root = ade20k_tree(tmp_path / "a")
    fails(
        root, r"expected ade20k_panoptic_\*\.json .*found none; run the panoptic preparation script of MaskFormer, or"
    )
    root = ade20k_tree(tmp_path / "b", panoptic=True)
    for file in (root / "images/training").iterdir():
        file.unlink()
    fails(root, r"ADE_train_00000001\.jpg: expected an image file, found no such file")
    (root / "images/training").rmdir()
    fails(root, r"images/training: expected the images \(ADEChallengeData2016\.zip\), found no such folder")


# --- Mapillary Vistas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [True, False])
def test_vistas_of_both_versions(tmp_path, flat):
    root = vistas_tree(tmp_path, ("1.2",) if flat else ("1.2", "2.0"), flat, panoptic=True)
    assert detect_format(root) == "vistas"
    assert find_splits(root) == ("train", "val")
    old = open_dataset(root, version="1.2")
    assert len(old.labels) == 65
    sample = old[0]
    assert sample.truth.ids.tolist() == [[1000, 1000, 1001], [1512, 1512, 0], [1512, 1001, 0]]
    assert {s.id for s in sample.truth.segments if s.is_crowd} == {1001}
    assert open_dataset(root, split="val").image_id(0) == "_1Gn_xkw7sa_i9GU4mkxxQ"
    if not flat:
        assert len(open_dataset(root).labels) == 123  # the newest
        file = root / "validation/v1.2/panoptic/panoptic_2018.json"
        assert open_dataset(file).image_id(0) == "_1Gn_xkw7sa_i9GU4mkxxQ"


def test_a_part_of_vistas_is_read_by_itself(tmp_path):
    part = vistas_tree(tmp_path, ("1.2",), flat=True, panoptic=True) / "validation"  # looks like images and instances
    assert detect_format(part) == "vistas"
    assert find_splits(part) == ()
    assert open_dataset(part).image_id(0) == "_1Gn_xkw7sa_i9GU4mkxxQ"


def test_vistas_says_what_is_missing(tmp_path):
    root = vistas_tree(tmp_path / "a", ("1.2",), flat=True)  # images/ and instances/, but no instance numbers
    assert detect_format(root) == "vistas"
    fails(
        root, r"expected training/\[v…/\]panoptic/panoptic_2020\.json or panoptic_2018\.json .*, found none; it is in"
    )
    root = vistas_tree(tmp_path / "b", ("1.2",), panoptic=True)
    fails(root, r"expected training/\[v2\.0/\]panoptic/panoptic_2020\.json", version="2.0")
    fails(root, r"unknown version of Vistas '3'; known: 1\.2, 2\.0", version="3")
    (root / "training/images/M2kh294N9c72sICO990Uew.jpg").unlink()
    fails(root, "expected an image file, found no such file")


# --- telling them from others ----------------------------------------------------------------------------------------


def test_other_folders_are_not_taken_for_official_ones(tmp_path):
    for folder in ("images/training", "annotations/training"):  # many sets are laid out like ADE20K
        (tmp_path / "other" / folder).mkdir(parents=True)
    fails(tmp_path / "other", "a Cityscapes, ADE20K or Vistas root; found none of them")
    fails(voc_tree(tmp_path / "voc"), "found none of them")
    write(tmp_path / "pairs/training/images/a.png", photo(2, 2))
    write(tmp_path / "pairs/training/instances/a.png", np.ones((2, 2), np.uint16))
    assert detect_format(tmp_path / "pairs") == "instance_png"


def test_coco_panoptic_made_of_cityscapes_beside_it_is_taken_where_the_official_is_not_there(tmp_path):
    root = cityscapes_tree(tmp_path)
    (root / "annotations").mkdir()
    (root / "annotations/panoptic_train.json").write_text("{}")
    assert detect_format(root) == "coco_panoptic"
    cityscapes_panoptic(root, "train", "aachen_000000_000019")
    assert detect_format(root) == "cityscapes"
