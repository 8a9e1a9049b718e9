"""The built-in category tables: counts, things and stuff, ids, colours, and that they travel with the package."""

from importlib.resources import files

import pytest

from pansight.data.categories import TABLES, category_table, label_space
from pansight.data.categories.coco import coco_91, coco_ids, coco_panoptic, coco_things
from pansight.errors import PansightError

COUNTS = {
    "coco_panoptic": (80, 53),
    "cityscapes_panoptic": (8, 11),
    "cityscapes_all_labels": (8, 27),
    "ade20k_panoptic": (100, 50),
    "vistas_v1_2_panoptic": (37, 28),
    "pascal_voc": (20, 1),
    "penn_fudan": (1, 0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_tables_are_label_spaces_with_the_published_counts(name):
    labels, rows = label_space(name), category_table(name)
    assert (len(labels.things), len(labels.stuff)) == COUNTS[name]
    assert {c.source_id for c in labels} == {row["id"] for row in rows}
    assert [c.is_thing for c in labels] == sorted((c.is_thing for c in labels), reverse=True)
    assert {c.name: (c.source_id, c.color) for c in labels} == {
        row["name"]: (row["id"], tuple(row["color"])) for row in rows
    }


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_whole(name):
    rows = category_table(name)
    assert len({row["name"] for row in rows}) == len(rows)
    assert all(row["name"] == row["name"].strip() for row in rows)  # ADE20K's have blanks at their ends upstream
    assert all(len(row["color"]) == 3 and all(0 <= v <= 255 for v in row["color"]) for row in rows)


def test_every_table_is_listed_and_lies_beside_the_loader():
    assert {f.name for f in files("pansight.data.categories").iterdir() if f.name.endswith(".json")} == {
        f"{name}.json" for name in TABLES
    }


def test_vistas_2_does_not_say_what_is_a_thing():
    rows = category_table("vistas_v2_0_labels")
    assert [row["labelId"] for row in rows] == list(range(124))
    assert {row["isthing"] for row in rows} == {None}
    assert sum(row["voidOrCrowd"] for row in rows) == 8
    with pytest.raises(PansightError, match="vistas_v2_0_labels: expected to know things from stuff"):
        label_space("vistas_v2_0_labels")


def test_ids_agree_within_and_between_tables():
    every = {row["id"]: row for row in category_table("cityscapes_all_labels")}
    evaluated = category_table("cityscapes_panoptic")
    assert [row["trainId"] for row in evaluated] == list(range(19))
    assert [row["id"] for row in evaluated] == [number for number, row in every.items() if not row["ignoreInEval"]]
    assert all(every[row["id"]]["isthing"] == row["isthing"] for row in evaluated)
    assert {row["id"] for row in evaluated if row["isthing"]} == {24, 25, 26, 27, 28, 31, 32, 33}
    ade = category_table("ade20k_panoptic")
    assert [(row["id"], row["annotationId"]) for row in ade] == [(n, n + 1) for n in range(150)]
    assert sorted(row["instanceId"] for row in ade if row["isthing"]) == list(range(1, 101))
    assert [row["id"] for row in category_table("vistas_v1_2_panoptic")] == list(range(1, 66))
    coco = category_table("coco_panoptic")
    assert sorted(row["thingId"] for row in coco if row["isthing"]) == list(range(80))
    assert [row["trainId"] for row in coco] == list(range(133))
    assert [row["color"] for row in category_table("pascal_voc")[:3]] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


def test_a_table_is_the_callers_own():
    category_table("penn_fudan")[0]["name"] = "changed"
    assert category_table("penn_fudan")[0]["name"] == "pedestrian"


def test_an_unknown_table_names_the_known():
    with pytest.raises(PansightError, match=r"unknown category table 'coco'; known: ade20k_panoptic, cityscapes_all"):
        category_table("coco")


def test_coco_ids_stand_at_their_own_index():
    """DETR's classes are COCO's raw ids: 91 for boxes, 250 for panoptic segmentation."""
    for count, named in ((91, 80), (250, 133)):
        labels = coco_ids(count)
        assert [c.source_id for c in labels] == [c.id for c in labels] == list(range(count))
        assert sum(not c.name.startswith("unused_") for c in labels) == named
    rows = {row["id"]: row for row in category_table("coco_panoptic")}
    for c in coco_ids(250):
        if c.id in rows:
            row = rows[c.id]
            assert (c.name, c.is_thing, list(c.color)) == (row["name"], bool(row["isthing"]), row["color"])
    assert [c.id for c in coco_ids(250) if c.is_thing] == list(range(91))  # the official rule: a thing up to 90
    assert coco_ids(250)[12].name == "unused_12"
    assert [c.name for c in coco_91()] == [c.name for c in coco_ids(91)[1:]]
    assert coco_91()[0].source_id == 1


def test_coco_things_come_first():
    assert coco_panoptic() == label_space("coco_panoptic")
    assert coco_things()[:] == coco_panoptic()[:80]
    assert coco_panoptic()[80].name == "banner"
