"""COCO's label spaces as official checkpoints number them, all from the one table coco_panoptic.json."""

from __future__ import annotations

from pansight.data.categories import category_table
from pansight.types import Category, LabelSpace, palette_color


def coco_things() -> LabelSpace:
    """80 things in COCO's order."""
    return LabelSpace(_known(is_thing=True))


def coco_panoptic() -> LabelSpace:
    """80 things, then 53 stuff classes, both by ascending source id."""
    things = _known(is_thing=True)
    return LabelSpace([*things, *(c._replace(id=len(things) + c.id) for c in _known(is_thing=False))])


def coco_91() -> LabelSpace:
    """90 things, index = source id - 1: torchvision's detectors keep COCO's ids, ten of which were never used."""
    return LabelSpace(c._replace(id=c.id - 1) for c in coco_ids(91)[1:])


def coco_ids(count: int) -> LabelSpace:
    """The source ids 0 … count - 1, index = source id: DETR's 91 (things) and 250 (panoptic) classes.

    Ids that COCO does not use are named ``unused_N``; they are things up to 90, where the ids of things end, and stuff
    from there on.
    """
    known = {c.source_id: c for c in (*_known(is_thing=True), *_known(is_thing=False))}
    unused = (Category(i, f"unused_{i}", i <= 90, palette_color(i), i) for i in range(count))
    return LabelSpace(known[c.id]._replace(id=c.id) if c.id in known else c for c in unused)


def _known(is_thing: bool) -> list[Category]:
    """The things, or the stuff, by ascending source id; ids from 0."""
    rows = sorted((r for r in category_table("coco_panoptic") if bool(r["isthing"]) == is_thing), key=lambda r: r["id"])
    return [Category(i, r["name"], is_thing, tuple(r["color"]), r["id"]) for i, r in enumerate(rows)]
