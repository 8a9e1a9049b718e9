"""Classes of transformers' configs: things, stuff, ids and colours from the names alone."""

from __future__ import annotations

from typing import Any

import pytest

from pansight.data.categories import category_table, label_space
from pansight.data.categories.coco import coco_ids, coco_panoptic, coco_things
from pansight.errors import PansightError
from pansight.types import LabelSpace
from pansight.weights.huggingface import labels as hub
from pansight.weights.huggingface.export import label_entries

ADE20K = (
    "wall building sky floor tree ceiling road bed_ windowpane grass cabinet sidewalk person earth door table mountain "
    "plant curtain chair car water painting sofa shelf house sea mirror rug field armchair seat fence desk rock "
    "wardrobe lamp bathtub railing cushion base box column signboard chest_of_drawers counter sand sink skyscraper "
    "fireplace refrigerator grandstand path stairs runway case pool_table pillow screen_door stairway river bridge "
    "bookcase blind coffee_table toilet flower book hill bench countertop stove palm kitchen_island computer "
    "swivel_chair boat bar arcade_machine hovel bus towel light truck tower chandelier awning streetlight booth "
    "television_receiver airplane dirt_track apparel pole land bannister escalator ottoman bottle buffet poster stage "
    "van ship fountain conveyer_belt canopy washer plaything swimming_pool stool barrel basket waterfall tent bag "
    "minibike cradle oven ball food step tank trade_name microwave pot animal bicycle lake dishwasher screen blanket "
    "sculpture hood sconce vase traffic_light tray ashcan fan pier crt_screen plate monitor bulletin_board shower "
    "radiator glass clock flag"
)
"""As facebook/maskformer-…-ade and mask2former-…-ade write them; "bed " has a blank at its end there."""

UNUSED_91 = {0: "N/A", 12: "street sign", 26: "hat", 29: "shoe", 30: "eye glasses", 45: "plate", 66: "mirror"}
UNUSED_91 |= {68: "window", 69: "desk", 71: "door", 83: "blender"}


def of(names: list[str], **more: Any) -> LabelSpace:
    table = {str(i): name for i, name in enumerate(names)}
    return hub.label_space({"id2label": dict(sorted(table.items()))} | more, "x: config.json")  # "10" before "2"


@pytest.mark.parametrize(
    "table", ["coco_panoptic", "cityscapes_panoptic", "ade20k_panoptic", "vistas_v1_2_panoptic", "pascal_voc"]
)
def test_names_of_public_data_sets_in_their_own_order(table: str) -> None:
    rows = category_table(table)
    labels = of([row["name"] for row in rows])
    assert [c.id for c in labels] == list(range(len(rows)))
    assert [(c.name, c.source_id, int(c.is_thing), list(c.color)) for c in labels] == [
        (row["name"], row["id"], row["isthing"], row["color"]) for row in rows
    ]
    assert set(labels.names) == set(label_space(table).names)


def test_the_hubs_spelling_of_ade20k() -> None:
    names = [name.replace("_", " ") for name in ADE20K.split()]
    assert len(names) == 150
    rows = category_table("ade20k_panoptic")
    assert [(c.name, c.source_id, int(c.is_thing)) for c in of(names)] == [
        (row["name"], row["id"], row["isthing"]) for row in rows
    ]


def test_coco_instances_are_things_and_parts_of_tables_do() -> None:
    assert of(list(coco_things().names)) == coco_things()
    assert of(list(coco_panoptic().names)) == coco_panoptic()
    riders = of(["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"])  # …-cityscapes-instance
    assert len(riders.things) == 8
    assert riders[1].source_id == 25


def test_detr_stands_at_cocos_raw_ids() -> None:
    detection = [UNUSED_91.get(c.id, c.name) for c in coco_ids(91)]
    assert of(detection) == coco_ids(91)
    panoptic = [f"LABEL_{c.id}" if c.name.startswith("unused") else c.name for c in coco_ids(250)]
    assert of(panoptic) == coco_ids(250)
    assert of([c.name for c in coco_ids(201)]) == coco_ids(201)
    assert of([name.removesuffix("-merged") for name in panoptic]) == coco_ids(250)
    shifted = of([c.name for c in coco_ids(250)][1:])  # as many names, each at another id
    assert shifted != coco_ids(249)
    assert shifted[0].name == "person"


def test_names_of_ones_own() -> None:
    labels = of(["bolt", "nut", "washer ring"])
    assert [(c.name, c.is_thing, c.source_id) for c in labels] == [
        ("bolt", True, 0),
        ("nut", True, 1),
        ("washer ring", True, 2),
    ]
    mixed = of(["Person", "road", "vegetation", "scaffold"])  # a table knows most of them: their kind and colour
    assert [(c.name, c.is_thing, c.source_id) for c in mixed] == [
        ("Person", True, 0),
        ("road", False, 1),
        ("vegetation", False, 2),
        ("scaffold", True, 3),
    ]
    assert mixed[1].color == (128, 64, 128)
    assert [c.is_thing for c in of(["bolt", "nut", "screw", "road"])] == [True] * 4  # too little in common


def test_classes_without_a_name() -> None:
    assert of(["LABEL_0", "LABEL_1"]).names == ("LABEL_0", "LABEL_1")
    assert of(["N/A", "bolt", "LABEL_2", "N/A"]).names == ("unused_0", "bolt", "unused_2", "unused_3")
    gap = hub.label_space({"id2label": {"0": "bolt", "3": "nut"}}, "x")
    assert gap.names == ("bolt", "unused_1", "unused_2", "nut")
    assert hub.label_space({"num_labels": 3}, "x").names == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert len(hub.label_space({}, "x")) == 2  # what transformers leaves out
    assert of(["bolt", "bolt", "nut"]).names == ("bolt (0)", "bolt (1)", "nut")


def test_unused_classes_beside_a_whole_table_keep_ids_apart() -> None:
    rows = category_table("cityscapes_panoptic")
    labels = of([*(row["name"] for row in rows), "N/A"])
    assert labels[19].name == "unused_19"
    assert [c.source_id for c in labels][:19] == [row["id"] for row in rows]


def test_our_export_says_everything() -> None:
    rows = [
        {"id": 7, "name": "person", "isthing": 0, "color": [1, 2, 3]},
        {"id": 3, "name": "sky", "isthing": 1, "color": [4, 5, 6]},
    ]
    labels = LabelSpace.from_json(rows)
    assert hub.label_space(label_entries(labels), "x") == labels
    entries = label_entries(labels)
    entries["id2label"] = {"0": "a", "1": "b", "2": "c"}  # trained on by others: the block is out of date
    assert hub.label_space(entries, "x").names == ("a", "b", "c")
    entries["id2label"] = {"0": "a", "1": "b"}
    assert hub.label_space(entries, "x").names == ("a", "b")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": ["a"]}, "expected id2label, from 0, 1, 2 … to names, found"),
        ({"id2label": {}}, "expected id2label"),
        ({"id2label": {"x": "a"}}, "expected id2label"),
        ({"num_labels": "3"}, "expected id2label"),
        ({"num_labels": 10**9}, "expected id2label"),
        ({"id2label": {"999999999": "a"}}, "expected fewer than 10000 classes, found id 999999999"),
        ({"id2label": {"0": "a"}, "pansight": {"labels": [3]}}, "pansight.labels: expected categories"),
        ({"id2label": {"0": "a"}, "pansight": {"labels": [{"id": 1}]}}, "expected keys id, name, isthing"),
    ],
)
def test_faults(config: dict[str, Any], message: str) -> None:
    with pytest.raises(PansightError, match=message) as error:
        hub.label_space(config, "x: config.json")
    assert "\n" not in str(error.value)
