"""check --fix: the copy is sound whatever was wrong, keeps all that was right, and the original stays as it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pansight.data import open_dataset
from pansight.data.check import check
from pansight.data.check.fix import Repaired, fix
from pansight.errors import PansightError
from pansight.ops.idmap import rgb_to_ids

sys.path.insert(0, str(Path(__file__).parent))
import damages
from damages import DOG, PERSON, SKY, TRAIN, VAL, edit, photo, png

LOST = {
    *(damages.image_missing, damages.image_truncated, damages.image_is_text, damages.image_bomb),
    *(damages.image_outside, damages.image_name_of_half_a_character, damages.image_without_name),
    *(damages.image_name_too_long, damages.png_missing, damages.png_truncated, damages.png_bomb, damages.png_outside),
    *(damages.png_of_classes, damages.png_is_jpeg, damages.sizes_differ, damages.annotation_missing),
    *(damages.no_segments_info, damages.png_without_name, damages.leaked),
}
"""Damages that cost the image; after all others it is in the copy."""


@pytest.fixture
def data(tmp_path) -> Path:
    return damages.make(tmp_path / "data")


def digest(root: Path) -> dict[str, str]:
    """Every file of a folder by what it holds."""
    return {
        str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in root.rglob("*") if f.is_file()
    }


def fixed(root: Path, **options) -> tuple[Repaired, Path]:
    out = root.parent / "fixed"
    return fix(check(root), out, **options), out


def sound(out: Path, parts=("train", "val")) -> None:
    """No error, and every sample is read."""
    report = check(out)
    assert [d.line() for d in report.findings.defects if d.severity == "error"] == []
    for part in parts:
        dataset = open_dataset(out, split=part)
        assert [dataset[n].size for n in range(len(dataset))] == [(6, 8)] * len(dataset)


def segments(out: Path, n: int) -> dict[int, tuple[int, int]]:
    """id → (category, area) of an image of the copy."""
    content = json.loads((out / TRAIN).read_text())
    row = next(a for a in content["annotations"] if a["image_id"] == n)
    return {s["id"]: (s["category_id"], s["area"]) for s in row["segments_info"]}


WHOLE = {70_002: (SKY, 16), 302: (PERSON, 6), 22: (DOG, 6)}


@pytest.mark.parametrize("damage", damages.ON_IMAGES, ids=lambda d: d.__name__)
def test_every_damage_is_repaired_or_the_image_left_out(data, damage):
    damage(data, 2)
    before = digest(data)
    repaired, out = fixed(data)
    assert digest(data) == before
    sound(out)
    kept = {image["id"] for image in json.loads((out / TRAIN).read_text())["images"]}
    assert kept == ({1, 3, 4} if damage in LOST else {1, 2, 3, 4})
    assert [(part, number) for part, number, _ in repaired.dropped] == ([("train", 2)] if damage in LOST else [])


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (damages.stale_area, WHOLE),
        (damages.stale_box, WHOLE),
        (damages.declared_without_pixels, WHOLE),
        (damages.undeclared, {70_002: (SKY, 16), 22: (DOG, 6)}),
        (damages.unknown_category, {70_002: (SKY, 16), 22: (DOG, 6)}),
        (damages.large_id, {70_002: (SKY, 16), 22: (DOG, 6)}),
        (damages.id_with_point, WHOLE),
        (damages.segment_twice, WHOLE),
        (damages.segment_of_two_classes, {70_002: (SKY, 16), 22: (DOG, 6)}),
        (damages.split_stuff, WHOLE),
        (damages.an_annotation_a_segment, WHOLE),
        (damages.two_annotations, WHOLE),
        (damages.png_as_palette, WHOLE),
        (damages.png_as_grey, {400: (SKY, 16), 302: (PERSON, 6), 22: (DOG, 6)}),
        (damages.image_id_with_point, WHOLE),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_left_of_a_repaired_image(data, damage, left):
    damage(data, 2)
    _, out = fixed(data)
    assert segments(out, 2) == left
    ids = rgb_to_ids(np.array(Image.open(out / png(2))))
    assert {int(n): int((ids == n).sum()) for n in np.unique(ids) if n} == {n: area for n, (_, area) in left.items()}
    assert int((ids == 0).sum()) == 48 - sum(area for _, area in left.values())


def test_a_sound_set_is_copied_byte_for_byte(data):
    _, out = fixed(data)
    copy = digest(out)
    assert copy.pop("repairs.json")
    original = digest(data)
    assert {k: v for k, v in copy.items() if k.endswith(".png")} == {
        k: v for k, v in original.items() if k.endswith(".png")
    }
    for file in (TRAIN, VAL):
        assert json.loads((out / file).read_text()) == json.loads((data / file).read_text())


def test_repairs_are_listed(data):
    damages.stale_area(data, 1)
    damages.image_missing(data, 2)
    repaired, out = fixed(data)
    listed = json.loads((out / "repairs.json").read_text())
    assert repaired.done == {"area": 1, "missing-image": 1}
    assert listed["remedies"]["area"] == {"found": 1, "remedy": "counted again"}
    assert listed["dropped_images"] == [{"part": "train", "image_id": 2, "file_name": "scene_2.png"}]
    assert [(d["code"], d["image_id"]) for d in listed["defects"] if d["severity"] == "error"] == [
        ("area", 1),
        ("missing-image", 2),
    ]


@pytest.mark.parametrize("damage", damages.ON_CATEGORIES, ids=lambda d: d.__name__)
def test_categories_are_repaired(data, damage):
    damage(data)
    _, out = fixed(data)
    sound(out)
    rows = json.loads((out / TRAIN).read_text())["categories"]
    if damage is damages.category_id_as_text:
        assert [row["id"] for row in rows] == [1, 3, 7]
    else:
        assert [row["id"] for row in rows] == [1, 3, 7, 8]
    names = {damages.category_name_twice: "person 3"}
    assert rows[1]["name"] == names.get(damage, "dog")


def test_isthing_is_asked_for_never_guessed(data):
    edit(data, lambda c: [row.pop("isthing") for row in c["categories"]])
    with pytest.raises(PansightError, match=r"isthing.* cannot be repaired without you \(name the things: --things"):
        fixed(data)
    with pytest.raises(PansightError, match=r"--things: expected names of categories \(dog, .*, found 'cow'"):
        fixed(data, things=["person", "cow"])
    assert not (data.parent / "fixed").exists()
    _, out = fixed(data, things=["person", "dog"])
    sound(out)
    assert [row["isthing"] for row in json.loads((out / TRAIN).read_text())["categories"]] == [1, 1, 0, 0]


def test_stuff_that_becomes_stuff_by_the_users_word_is_merged(data):
    damages.split_stuff(data, 2)
    edit(data, lambda c: c["categories"][2].pop("isthing"))
    _, out = fixed(data, things=[])
    assert segments(out, 2) == WHOLE


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["categories"].append({"id": 1, "name": "cat", "isthing": 1}), "'person' and 'cat'; cannot be"),
        (lambda c: c["categories"].clear(), "expected at least one of 'categories'"),
        (lambda c: c.update(images=5), "expected a list under 'images', found 5"),
        (
            lambda c: [row.update(file_name="no.png") for row in c["annotations"]],
            "PNGs in the usual folders, found none",
        ),
    ],
)
def test_what_only_a_person_can_settle_is_refused(data, damage, message):
    edit(data, damage)
    with pytest.raises(PansightError, match=message):
        fixed(data)
    assert sorted(os.listdir(data.parent)) == ["data"]


def test_a_set_without_a_whole_image_is_refused(data):
    for n in (1, 2, 3, 4):
        damages.image_truncated(data, n)
    with pytest.raises(PansightError, match="expected images that can be kept, found none"):
        fix(check(data / TRAIN), data.parent / "fixed")
    _, out = fixed(data)  # with val there is something to keep
    sound(out, parts=("val",))


def test_masks_are_sent_to_convert(tmp_path):
    rows = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2]]}]
    image = {"id": 1, "file_name": "a.png", "height": 4, "width": 4}
    content = {"images": [image], "annotations": rows, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(PansightError, match="expected COCO panoptic to repair, found masks"):
        fix(check(tmp_path), tmp_path / "out")


def test_nothing_is_overwritten_but_an_older_copy(data):
    before = digest(data)
    for place in (data, data / "train", data / "annotations" / "panoptic_train" / "new", data.parent):
        for overwrite in (False, True):
            with pytest.raises(PansightError, match=r"expected (no such folder yet|a folder apart from the data)"):
                fix(check(data), place, overwrite=overwrite)
    assert digest(data) == before
    _, out = fixed(data)
    (out / "old").write_text("x")
    with pytest.raises(PansightError, match="expected no such folder yet"):
        fixed(data)
    fixed(data, overwrite=True)
    assert not (out / "old").exists()
    assert sorted(os.listdir(data.parent)) == ["data", "fixed"]


def test_an_interrupted_fix_leaves_nothing(data):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fixed(data, progress=stop)
    assert sorted(os.listdir(data.parent)) == ["data"]


def test_hard_links_where_asked(data):
    damages.split_stuff(data, 2)
    before = digest(data)
    _, out = fixed(data, link=True)
    assert (out / photo(1)).samefile(data / photo(1))
    assert not (out / png(2)).samefile(data / png(2))  # it was changed
    assert digest(data) == before


def test_two_annotations_that_share_a_png_do_not_share_the_copy(data):
    """Images 1 and 2 name one PNG, each lists other segments of it."""
    edit(data, lambda c: c["annotations"][1].update(file_name="scene_1.png"))
    edit(data, lambda c: c["annotations"][1].update(segments_info=c["annotations"][0]["segments_info"][:1]))
    _, out = fixed(data)
    sound(out)
    assert segments(out, 1) == {70_001: (SKY, 16), 301: (PERSON, 6), 21: (DOG, 6)}
    assert segments(out, 2) == {70_001: (SKY, 16)}


HARMS = st.lists(st.sampled_from(damages.ON_IMAGES), max_size=3)


@pytest.mark.slow
@given(harms=HARMS, others=st.lists(st.sampled_from(damages.ON_CATEGORIES), max_size=1), twice=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_copy_passes_check_whatever_was_wrong(tmp_path_factory, harms, others, twice):
    """Up to three images damaged, or one of them three times, and a category: each found, all repaired."""
    root = damages.make(tmp_path_factory.mktemp("harm") / "data")
    applied: list[damages.Expected] = []
    for n, damage in enumerate(harms, 1):
        try:
            applied.append(damage(root, 1 if twice else n))
        except Exception:
            assert twice, "only a damage before it can be in the way"
    applied += [damage(root) for damage in others]
    before = digest(root)
    report = check(root)
    codes = {d.code for d in report.findings.defects}
    if not twice:
        assert {expected.code for expected in applied} <= codes
    try:
        repaired = fix(report, root.parent / "fixed")
        assert repaired.images == 6 - len(repaired.dropped)
        sound(root.parent / "fixed")
    finally:
        assert digest(root) == before
        shutil.rmtree(root.parent)


PLAIN = [None, True, False, 0, 1, 3, 7, -1, 2**24, 10**400, 0.0, 1.0, 7.0, -0.5, 1e300, "", "1", "scene_2.png", ".."]
NESTED = [[], [1], {}, [0, 0, 8, 2], [[]], {"id": 1}, {"id": 1, "category_id": 7}, "./scene_1.png", "a/b", "\ud800"]
VALUES = st.sampled_from(PLAIN + NESTED)


@pytest.mark.slow
@given(edits=st.lists(st.tuples(VALUES, st.integers(0, 10**6)), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_copy_passes_check_whatever_the_json_holds(tmp_path_factory, edits):
    """Values anywhere in the JSON become others: the copy is sound, or it is refused in one line."""
    root = damages.make(tmp_path_factory.mktemp("harm") / "data")
    content = json.loads((root / TRAIN).read_text())
    for value, target in edits:
        slots, stack = [], [content]
        while stack:
            holder = stack.pop()
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            slots += [(holder, key) for key in keys]
            stack += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
        holder, key = slots[target % len(slots)]
        holder[key] = json.loads(json.dumps(value))
    (root / TRAIN).write_text(json.dumps(content))
    before = digest(root)
    refused = ""
    try:
        fix(check(root), root.parent / "fixed", things=["dog"])
    except PansightError as error:
        refused = str(error)
    assert refused.isprintable()
    assert refused or digest(root.parent / "fixed")
    if not refused:
        sound(root.parent / "fixed", parts=[c.part.name for c in check(root.parent / "fixed").parts])
    assert digest(root) == before
    shutil.rmtree(root.parent)


@pytest.mark.parametrize("turned", [False, True])
def test_images_turned_by_exif_are_kept_as_they_are(data, turned):
    """The annotation fits one orientation; readers of pansight follow it, so nothing is repaired."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((8, 6, 3) if turned else (6, 8, 3), np.uint8)).save(data / photo(1), exif=exif)
    repaired, out = fixed(data)
    sound(out)
    assert repaired.dropped == ()
    assert (out / photo(1)).read_bytes() == (data / photo(1)).read_bytes()
