"""split: shares of classes, groups, the same seed, nothing on both sides, and a folder that opens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pansight.data import open_dataset
from pansight.data.check import check
from pansight.data.check.split import group_key, split
from pansight.data.check.stratify import stratify
from pansight.data.images import write_png
from pansight.errors import PansightError
from pansight.ops.idmap import ids_to_rgb

sys.path.insert(0, str(Path(__file__).parent))
import damages
from damages import CATEGORIES, edit, rows

NAMES = [f"{place}_{n}.png" for place in ("harbour", "street", "field", "forest") for n in range(5)]


@pytest.fixture
def data(tmp_path) -> Path:
    """One part of 20 images of four places; sky in all, persons in half, a dog in two."""
    root, rng = tmp_path / "data", np.random.default_rng(1)
    content = {"info": {"year": 2026}, "images": [], "annotations": [], "categories": CATEGORIES}
    for n, name in enumerate(NAMES):
        ids = np.zeros((4, 4), np.int32)
        ids[0], ids[1] = 7, (1 if n % 2 else 0)
        ids[2] = 3 if n in (4, 17) else 0
        classes = {int(i): int(i) for i in np.unique(ids) if i}
        write_png(root / "images" / name, rng.integers(0, 256, (4, 4, 3), np.uint8))
        write_png(root / "panoptic_all" / name, ids_to_rgb(ids))
        content["images"].append({"id": n, "file_name": name, "height": 4, "width": 4, "license": 1})
        content["annotations"].append({"image_id": n, "file_name": name, "segments_info": rows(ids, classes)})
    (root / "panoptic_all.json").write_text(json.dumps(content))
    return root


def sides(out: Path) -> tuple[list[str], list[str]]:
    names = []
    for side in ("train", "val"):
        content = json.loads((out / "annotations" / f"panoptic_{side}.json").read_text())
        names.append([image["file_name"] for image in content["images"]])
    return names[0], names[1]


def test_the_parts_open_and_hold_every_image_once(data, tmp_path):
    result = split(data, tmp_path / "out", val=0.2)
    train, val = sides(tmp_path / "out")
    assert (len(train), len(val)) == result.images == (16, 4)
    assert sorted(train + val) == sorted(NAMES)
    assert check(tmp_path / "out").findings.number("error") == 0
    for part, number in (("train", 16), ("val", 4)):
        dataset = open_dataset(tmp_path / "out", split=part)
        assert len([dataset[n] for n in range(len(dataset))]) == number


def test_rows_and_files_are_as_they_were(data, tmp_path):
    split(data, tmp_path / "out")
    whole = json.loads((data / "panoptic_all.json").read_text())
    for side in ("train", "val"):
        part = json.loads((tmp_path / "out" / "annotations" / f"panoptic_{side}.json").read_text())
        assert part["categories"] == CATEGORIES
        assert part["info"] == {"year": 2026}
        assert all(row in whole["images"] for row in part["images"])
        assert all(row in whole["annotations"] for row in part["annotations"])
        for row in part["images"]:
            name = row["file_name"]
            copy = tmp_path / "out" / side / name
            assert copy.read_bytes() == (data / "images" / name).read_bytes()
            mask = tmp_path / "out" / "annotations" / f"panoptic_{side}" / name
            assert mask.read_bytes() == (data / "panoptic_all" / name).read_bytes()


def test_classes_are_shared_out_and_rare_ones_are_on_both_sides(data, tmp_path):
    result = split(data, tmp_path / "out", val=0.2)
    table = {row.name: row for row in result.classes}
    assert table["sky"].images == (16, 4)
    assert table["person"].images == (8, 2)
    assert table["dog"].images == (1, 1)
    assert [row.name for row in result.classes] == ["sky", "person", "dog"]


def test_the_seed_decides(data, tmp_path):
    first, again, other = (sides_of(data, tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first == again
    assert first != other


def sides_of(data: Path, out: Path, seed: int) -> tuple[list[str], list[str]]:
    split(data, out, seed=seed)
    return sides(out)


def test_groups_stay_together(data, tmp_path):
    result = split(data, tmp_path / "out", val=0.25, group="_")
    train, val = sides(tmp_path / "out")
    assert result.groups == 4
    assert (len(train), len(val)) == (15, 5)
    assert not {name.split("_")[0] for name in train} & {name.split("_")[0] for name in val}


def test_images_of_the_same_bytes_stay_together(data, tmp_path):
    twins = ["harbour_0.png", "street_1.png", "field_2.png", "forest_3.png"]
    for name in twins[1:]:
        (data / "images" / name).write_bytes((data / "images" / twins[0]).read_bytes())
    for seed in range(5):
        split(data, tmp_path / f"out{seed}", val=0.5, seed=seed)
        train, val = sides(tmp_path / f"out{seed}")
        assert set(twins) <= set(train) or set(twins) <= set(val)
        assert check(tmp_path / f"out{seed}").findings.counts["leak"] == 0


@pytest.mark.parametrize(
    ("name", "group", "key"),
    [
        ("a_1_2.jpg", "_", "a"),
        ("a.jpg", "_", "a.jpg"),
        ("city/a_1.jpg", "/", "city"),
        ("abcdef.jpg", "3", "abc"),
        ("x7y8.jpg", "([0-9])y", "7"),
        ("xy.jpg", "([0-9])y", "xy.jpg"),
        ("xy.jpg", "(z)?x", ""),
    ],
)
def test_group_keys(name, group, key):
    assert group_key(name, group) == key


def test_a_bad_expression_is_one_line():
    with pytest.raises(PansightError, match="expected a regular expression with a group"):
        group_key("a", "((")
    with pytest.raises(PansightError, match="expected a regular expression with a group"):
        group_key("a", r"a|\(")


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, float("nan")])
def test_shares_outside_the_open_interval_are_refused(data, tmp_path, value):
    with pytest.raises(PansightError, match="expected a share for validation between 0 and 1"):
        split(data, tmp_path / "out", val=value)
    assert not (tmp_path / "out").exists()


def test_one_group_cannot_be_split(data, tmp_path):
    with pytest.raises(PansightError, match="expected at least 2 images or groups, found 1"):
        split(data, tmp_path / "out", group="(.)?$")


def test_several_parts_need_a_choice(tmp_path):
    root = damages.make(tmp_path / "data")
    with pytest.raises(PansightError, match="expected one part to split, found train, val; name one"):
        split(root, tmp_path / "out")
    with pytest.raises(PansightError, match="--part: expected one of train, val, found 'test'"):
        split(root, tmp_path / "out", part="test")
    assert split(root, tmp_path / "out", part="train").images == (3, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append(5), r"images\[20\]: expected an object, found 5 \(see pansight check\)"),
        (lambda c: c["annotations"].pop(), "image 19: expected an annotation for every image"),
        (lambda c: c["images"][0].update(file_name="no.png"), "image 0: expected its image file, found none"),
        (lambda c: c["annotations"][0].update(file_name="../a.png"), "PNG inside the data folder"),
        (lambda c: c["annotations"][0].update(file_name="no.png"), "image 0: expected its PNG, found no such file"),
    ],
)
def test_what_check_would_find_is_told_before_anything_is_written(data, tmp_path, change, message):
    edit(data, change, "panoptic_all.json")
    with pytest.raises(PansightError, match=message):
        split(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_touched(data, tmp_path):
    (tmp_path / "out").mkdir()
    for overwrite in (False, True):
        with pytest.raises(PansightError, match="expected no such folder yet"):
            split(data, tmp_path / "out", overwrite=overwrite)
    split(data, tmp_path / "other")
    split(data, tmp_path / "other", seed=3, overwrite=True)
    assert json.loads((tmp_path / "other" / "split.json").read_text())["seed"] == 3


def test_coco_instances_are_split_too(data_root, tmp_path):
    result = split(data_root / "coco_tiny", tmp_path / "out", val=0.3, part="train2017", link=True)
    assert result.images == (57, 23)
    assert len(open_dataset(tmp_path / "out", split="val")) == 23
    both = [row for row in result.classes if sum(row.images) > 1]
    assert len(both) > 40
    assert all(min(row.images) > 0 for row in both)


# --- who goes where --------------------------------------------------------------------------------------------------


@st.composite
def tables(draw) -> tuple[list[int], list[dict[int, int]]]:
    images = draw(st.lists(st.integers(1, 5), min_size=2, max_size=30))
    classes = [draw(st.dictionaries(st.integers(-3, 6), st.integers(1, n), max_size=5)) for n in images]
    return images, classes


@given(tables(), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(deadline=None)
def test_both_sides_have_a_unit_and_the_seed_decides(table, fraction, seed):
    images, classes = table
    in_val = stratify(images, classes, fraction, seed)
    assert in_val.shape == (len(images),)
    assert 0 < in_val.sum() < len(images)
    assert np.array_equal(in_val, stratify(images, classes, fraction, seed))


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_shares_of_classes_are_nearer_than_by_chance(fraction):
    """600 images, 30 classes from very frequent to very rare: counts in val against the wanted ones."""
    rng = np.random.default_rng(0)
    shows = rng.random((600, 30)) < 0.9 * 0.82 ** np.arange(30)
    classes = [{int(c): 1 for c in np.flatnonzero(row)} for row in shows]
    in_val = stratify([1] * 600, classes, fraction, 0)
    total = shows.sum(0)
    error = np.abs(shows[in_val].sum(0) - fraction * total)
    assert abs(int(in_val.sum()) - 600 * fraction) <= 1
    assert error.max() <= 3
    drawn = [np.abs(shows[rng.permutation(600)[: round(600 * fraction)]].sum(0) - fraction * total) for _ in range(20)]
    assert error.mean() < np.mean(drawn) / 2
    several = total >= 2
    assert (shows[in_val].any(0) & shows[~in_val].any(0))[several].all()


def test_a_class_of_two_images_is_on_both_sides_whatever_the_fraction():
    classes = [{0: 1} for _ in range(98)] + [{0: 1, 1: 1}, {0: 1, 1: 1}]
    for fraction in (0.01, 0.1, 0.9):
        in_val = stratify([1] * 100, classes, fraction, 0)
        assert in_val[98:].sum() == 1
