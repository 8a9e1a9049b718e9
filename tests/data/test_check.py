"""check: every defect is found in its place, nothing else is, and nothing that a file may hold breaks it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as reference_mask

from pansight.data.check import RULES, check
from pansight.data.check.defects import Defect, Findings, defect, one_line, shown_value
from pansight.data.images import write_png
from pansight.errors import PansightError
from pansight.ops.idmap import ids_to_rgb

sys.path.insert(0, str(Path(__file__).parent))
import damages
from damages import TRAIN, VAL, edit, photo, png


@pytest.fixture
def data(tmp_path) -> Path:
    return damages.make(tmp_path / "data")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """For tests that leave it as it was."""
    return damages.make(tmp_path_factory.mktemp("sound"))


def errors(root: Path) -> list[Defect]:
    return [d for d in check(root).findings.defects if d.severity == "error"]


def test_a_sound_set_has_no_defect_and_is_counted_exactly(data):
    report = check(data)
    assert {d.code for d in report.findings.defects} == {"category-gap"}
    train = report.parts[0].statistics.to_json()
    assert train["images"] == 4
    # of 48 pixels: sky 16, person 6, dog 6, void 20
    assert train["pixels"] == {"total": 192, "void": 80, "thing": 48, "stuff": 64, "unknown": 0}
    assert train["segments"] == {"thing": 8, "stuff": 4, "unknown": 0, "crowd": 0}
    assert train["thing_sizes"] == {"small": 8, "medium": 0, "large": 0}
    assert train["segments_per_image"] == {"median": 3, "p90": 3, "max": 3, "images_over_100": 0}
    assert train["image_sizes"] == [{"size": [6, 8], "images": 4}]
    dog = next(row for row in train["classes"] if row["name"] == "dog")
    assert dog == {"id": 3, "name": "dog", "isthing": True, "images": 4, "segments": 4, "pixels": 24, "crowds": 0}
    assert [(c.part.name, c.statistics.images) for c in report.parts] == [("train", 4), ("val", 2)]


@pytest.mark.parametrize("damage", damages.ON_IMAGES, ids=lambda d: d.__name__)
def test_every_defect_is_found_where_it_is(data, damage):
    expected = damage(data, 2)
    found = errors(data)
    places = [(d.code, d.file, d.image_id) for d in found]
    assert expected[:3] in places, found
    if expected.segment is not None:
        assert expected in [damages.Expected(d.code, d.file, d.image_id, d.segment) for d in found]
    assert all(d.image_id in (2, None, 4321) for d in found), "other images are sound"
    assert all("\n" not in d.line() for d in found)


@pytest.mark.parametrize("damage", damages.ON_CATEGORIES, ids=lambda d: d.__name__)
def test_every_defect_of_categories_is_found(data, damage):
    expected = damage(data)
    assert expected in [damages.Expected(d.code, d.file, d.image_id, d.segment) for d in errors(data)]


def test_damages_cover_the_codes():
    """A new code needs a damage, or a test of its own below or in test_every_format.py."""
    files = (Path(damages.__file__), Path(__file__), Path(__file__).with_name("test_every_format.py"))
    source = "".join(file.read_text() for file in files)
    assert [code for code in RULES if f'"{code}"' not in source] == []


def test_all_defects_come_at_once(data):
    for n, damage in enumerate((damages.stale_area, damages.png_missing, damages.image_truncated), 1):
        damage(data, n)
    assert {d.code for d in errors(data)} == {"area", "missing-png", "unreadable-image"}


def test_expected_and_found_are_exact(data):
    damages.stale_area(data, 1)
    damages.stale_box(data, 2)
    damages.undeclared(data, 3)
    assert [d.line() for d in errors(data)] == [
        f"{TRAIN}: image 1: segment 301: expected area 6, found 7",
        f"{TRAIN}: image 2: segment 302: expected bbox [1, 3, 3, 2], found [1, 3, 4, 5]",
        f"{png(3)}: image 3: segment 303: expected only ids that the JSON lists, found 6 pixels of 303",
    ]


def test_unlisted_categories_are_not_reported_as_unlisted_ids(data):
    damages.unknown_category(data, 1)
    assert [d.code for d in errors(data)] == ["unknown-category"]


def test_a_png_stored_with_loss_is_one_line(data):
    ids = np.arange(48, dtype=np.int32).reshape(6, 8) + 1
    write_png(data / png(1), ids_to_rgb(ids))
    found = [d for d in errors(data) if d.code == "undeclared-id"]
    assert [d.found for d in found] == ["47 others, such as 1 and 2 (resized or stored with loss?)"]  # 21 is listed


def test_isthing_must_be_stated(data):
    edit(data, lambda c: c["categories"][0].pop("isthing"))
    edit(data, lambda c: c["categories"][2].update(isthing="no"))
    found = [(d.segment, d.found) for d in errors(data)]
    assert found == [("category 1 (person)", "nothing"), ("category 7 (sky)", '"no"')]
    assert {d.code for d in errors(data)} == {"isthing"}


def test_a_category_id_of_two_classes(data):
    edit(data, lambda c: c["categories"].append({"id": 1, "name": "cat", "isthing": 1}))
    assert [(d.code, d.found) for d in errors(data)] == [("duplicate-category", "'person' and 'cat'")]


def test_categories_that_differ_between_parts(data):
    edit(data, lambda c: c["categories"][3].update(isthing=1), VAL)
    found = [d for d in check(data).findings.defects if d.code == "categories-differ"]
    assert [d.line() for d in found] == [
        f"{VAL}: category 8: expected 'grass' (stuff) as in train, found 'grass' (thing)"
    ]


def test_twins_within_a_part_are_a_warning(data):
    (data / photo(2)).write_bytes((data / photo(1)).read_bytes())
    found = [d for d in check(data).findings.defects if d.code == "duplicate-image"]
    assert [(d.severity, d.file, d.found) for d in found] == [("warning", photo(2), f"the bytes of {photo(1)}")]


def test_a_leak_names_the_image_for_training(data):
    """Of three equal images, one in val, both in train are leaks."""
    for n in (1, 3):
        (data / photo(n)).write_bytes((data / "val/scene_5.png").read_bytes())
    assert [(d.code, d.file, d.found) for d in errors(data)] == [
        ("leak", photo(1), "the bytes of val/scene_5.png"),
        ("leak", photo(3), "the bytes of val/scene_5.png"),
    ]


@pytest.mark.parametrize(("turned", "fits"), [(False, True), (True, True), (None, False)])
def test_exif_rotation_is_a_warning_where_the_annotation_fits(data, turned, fits):
    """The annotation may fit the stored pixels or the turned ones; another size is an error besides."""
    shape = {False: (6, 8), True: (8, 6), None: (7, 9)}[turned]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(data / photo(1), exif=exif)
    found = {d.code: d.severity for d in check(data).findings.defects if d.image_id == 1}
    assert found == {"exif": "warning"} | ({} if fits else {"size-mismatch": "error"})


def test_alpha_in_a_png_is_a_warning(data):
    Image.open(data / png(1)).convert("RGBA").save(data / png(1))
    found = [d for d in check(data).findings.defects if d.image_id == 1]
    assert [(d.code, d.severity, d.file) for d in found] == [("png-alpha", "warning", png(1))]


def test_missing_folders_are_one_line(data):
    (data / "train").rename(data / "elsewhere")
    found = errors(data)
    assert [(d.code, d.file, d.found) for d in found] == [("no-folder", TRAIN, "none of 4")]
    named = check(data / TRAIN, images=data / "elsewhere")
    assert named.findings.number("error") == 0
    with pytest.raises(PansightError, match="expected one annotation file where folders are given, found 2"):
        check(data, images=data / "elsewhere")


def test_one_part_that_is_no_json_does_not_hide_the_others(data):
    (data / VAL).write_text("{")
    damages.stale_area(data, 1)
    assert {(d.code, d.file) for d in errors(data)} == {("not-json", VAL), ("area", TRAIN)}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 5000, "\x00"])
def test_a_file_that_is_no_json_is_one_line(data, text):
    (data / TRAIN).write_text(text)
    with pytest.raises(PansightError, match=r"panoptic_train\.json: expected JSON, found") as caught:
        check(data / TRAIN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[], None, 5, "x", {}, {"images": 5, "annotations": None, "categories": {}}])
def test_json_of_another_shape_is_a_defect(data, content):
    (data / TRAIN).write_text(json.dumps(content))
    assert {d.code for d in check(data / TRAIN).findings.defects} == {"structure"}


def test_a_list_without_a_usable_row_is_empty(data):
    edit(data, lambda c: c.update(categories=[5]))
    assert [d.code for d in errors(data) if d.image_id is None] == ["structure", "empty"]


def test_empty_lists_are_defects(data):
    (data / TRAIN).write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    assert [(d.code, d.expected) for d in errors(data / TRAIN)] == [
        ("empty", "at least one of 'categories'"),
        ("empty", "at least one of 'images'"),
    ]


def test_nothing_to_check_says_what_was_looked_for(tmp_path):
    with pytest.raises(PansightError, match=r"expected one of annotations/panoptic_\*\.json"):
        check(tmp_path)
    with pytest.raises(PansightError, match="expected a folder or file, found none"):
        check(tmp_path / "nothing")


def test_a_pipe_is_not_waited_for(data):
    if sys.platform == "win32":
        pytest.skip("pipes in folders are POSIX")
    (data / photo(1)).unlink()
    os.mkfifo(data / photo(1))
    assert [d.code for d in errors(data)] == ["missing-image"]


def test_counts_are_complete_where_lines_are_not_kept(data):
    for n in (1, 2, 3):
        damages.stale_area(data, n)
    findings = check(data, keep=1).findings
    assert findings.counts["area"] == 3
    assert [d.image_id for d in findings.defects if d.code == "area"] == [1]


def test_queries_are_warned_of(tmp_path):
    ids = np.arange(1, 102, dtype=np.int32)[None]  # (1, 101)
    root = damages.make(tmp_path / "data")
    write_png(root / photo(1), np.zeros((1, 101, 3), np.uint8))
    write_png(root / png(1), ids_to_rgb(ids))
    rows = damages.rows(ids, dict.fromkeys(range(1, 102), damages.DOG))
    damages.annotation(root, 1, lambda a: a.update(segments_info=rows))
    edit(root, lambda c: c["images"][0].update(height=1, width=101))
    report = check(root)
    assert report.findings.number("error") == 0
    assert report.parts[0].statistics.objects() == {"median": 3, "p90": 101, "max": 101, "images_over_100": 1}


# --- run lengths and polygons ----------------------------------------------------------------------------------------


def masks(root: Path, *shapes: np.ndarray, thing: bool | None = None) -> Path:
    """One image with these masks as run lengths, exact areas and boxes."""
    write_png(root / "a.png", np.zeros((*shapes[0].shape, 3), np.uint8))
    rows = []
    for n, shape in enumerate(shapes, 1):
        packed = reference_mask.encode(np.asfortranarray(shape.astype(np.uint8)))
        rle = {"size": list(shape.shape), "counts": packed["counts"].decode()}
        box, area = reference_mask.toBbox(packed).tolist(), int(shape.sum())
        rows.append({"id": n, "image_id": 1, "category_id": 1, "segmentation": rle, "area": area, "bbox": box})
    category = {"id": 1, "name": "cell"} | ({} if thing is None else {"isthing": int(thing)})
    height, width = shapes[0].shape
    image = {"id": 1, "file_name": "a.png", "height": height, "width": width}
    (root / "instances.json").write_text(json.dumps({"images": [image], "annotations": rows, "categories": [category]}))
    return root


LEFT, MIDDLE = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
LEFT[:, :3], MIDDLE[1:3, 2:5] = True, True


def test_overlaps_are_an_error_in_the_detection_format(tmp_path):
    report = check(masks(tmp_path, LEFT, MIDDLE, thing=True))
    assert report.parts[0].part.kind == "detection"
    found = [d for d in report.findings.defects if d.severity == "error"]
    assert [(d.code, d.segment, d.found) for d in found] == [("overlap", 2, "2 shared with 1")]
    assert report.parts[0].statistics.to_json()["pixels"]["void"] == 24 - 16


def test_overlaps_are_a_note_in_instances(tmp_path):
    report = check(masks(tmp_path, LEFT, MIDDLE))
    assert report.parts[0].part.kind == "instances"
    found = [(d.code, d.severity, d.found) for d in report.findings.defects]
    assert found == [("objects-overlap", "note", "1 of 2 that share pixels with another")]


def test_masks_are_compared_with_areas_and_boxes(tmp_path):
    root = masks(tmp_path, LEFT, thing=True)
    edit(root, lambda c: c["annotations"][0].update(area=11, bbox=[0, 0, 3, 3]), "instances.json")
    assert [(d.code, d.expected, d.found) for d in errors(root)] == [
        ("area", "area 12", "11"),
        ("box", "bbox [0, 0, 3, 4]", "[0, 0, 3, 3]"),
    ]


def test_areas_and_boxes_of_instances_are_given_some_room(tmp_path):
    root = masks(tmp_path, LEFT)
    edit(root, lambda c: c["annotations"][0].update(area=11.4, bbox=[0.2, 0, 2.5, 4]), "instances.json")
    assert check(root).findings.counts == {}
    edit(root, lambda c: c["annotations"][0].update(area=400, bbox=[0, 0, 30, 4]), "instances.json")
    assert set(check(root).findings.counts) == {"object-area", "object-box"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"segmentation": None}, "mask"),
        ({"segmentation": [[1, 2]]}, "mask"),
        ({"segmentation": {"size": [4, 6], "counts": "zzzz"}}, "mask"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, "mask"),
        ({"segmentation": {"size": [4, 6], "counts": [24]}}, "no-pixels"),
        ({"category_id": 5}, "unknown-category"),
    ],
)
def test_bad_masks_are_defects(tmp_path, change, code):
    root = masks(tmp_path, LEFT)
    edit(root, lambda c: c["annotations"][0].update(change), "instances.json")
    assert [(d.code, d.segment) for d in errors(root)] == [(code, 1)]


def test_endless_masks_are_refused_before_decoding(tmp_path):
    root = masks(tmp_path, LEFT)
    edit(root, lambda c: c["images"][0].update(height=10**6, width=10**6), "instances.json")
    assert {d.code for d in errors(root)} == {"stated-size"}


# --- anything at all -------------------------------------------------------------------------------------------------

ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just(10**400)
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(value=ANY, target=st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_any_value_anywhere_is_a_line(sound, value, target):
    """One value of the JSON becomes another; afterwards a line says so, or the value was one that nobody reads."""
    content = json.loads((sound / VAL).read_text())
    slots = []
    stack = [content]
    while stack:
        holder = stack.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        slots += [(holder, key) for key in keys]
        stack += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    holder, key = slots[target % len(slots)]
    holder[key] = value
    file = sound / "annotations" / "panoptic_val_changed.json"
    file.write_text(json.dumps(content))
    try:
        report = check(file, sound / "val", sound / "annotations" / "panoptic_val", jobs=1)
        assert all(d.line().isprintable() for d in report.findings.defects)
        json.dumps(report.to_json(), allow_nan=False)
    finally:
        file.unlink()


@given(ANY)
def test_any_value_is_shown_in_one_short_line(value):
    assert one_line(shown_value(value)).isprintable()
    assert len(shown_value(value)) <= 600


def test_a_defect_cannot_be_of_an_unknown_code():
    with pytest.raises(KeyError):
        defect("nonsense", "a", "b", "c")
    findings = Findings()
    findings.add([defect("area", "a.json", "area 1", "2", 5, 6)])
    assert findings.number("error") == 1


@pytest.mark.parametrize(("flag", "found"), [("0", 'iscrowd "0"'), ("true", 'iscrowd "true"'), (2, "iscrowd 2")])
def test_a_crowd_flag_of_an_object_that_other_tools_misread_is_told(tmp_path, flag, found):
    row = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]], "iscrowd": flag}
    image = {"id": 1, "file_name": "a.png", "height": 6, "width": 8}
    write_png(tmp_path / "train/a.png", np.zeros((6, 8, 3), np.uint8))
    (tmp_path / "annotations").mkdir()
    content = {"images": [image], "annotations": [row], "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "annotations/instances_train.json").write_bytes(json.dumps(content).encode("utf-8-sig"))
    assert [(d.code, d.found) for d in errors(tmp_path)] == [("crowd-flag", found)]
