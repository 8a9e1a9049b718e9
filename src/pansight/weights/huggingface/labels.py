"""From ``id2label`` of a config.json to a LabelSpace. Whether a class is a thing, its id and its colour are not in that
file; they come from known category tables.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from pansight.data.categories import category_table
from pansight.data.categories.coco import coco_ids
from pansight.errors import PansightError
from pansight.types import Category, LabelSpace, palette_color

TABLES = ("coco_panoptic", "cityscapes_panoptic", "ade20k_panoptic", "vistas_v1_2_panoptic", "pascal_voc")
ALIASES = {
    "windowpane": "window",
    "bathtub": "tub",
    "railing": "rail",
    "streetlight": "street lamp",
    "television receiver": "tv",
    "airplane": "plane",
    "apparel": "clothes",
    "swimming pool": "pool",
    "waterfall": "falls",
    "ashcan": "trash can",
}
"""ADE20K's classes that the hub's configs call by another name than the table."""

UNNAMED = re.compile(r"LABEL_\d+|N/A|")
MAX_CLASSES = 10_000


def label_space(config: dict[str, Any], source: str) -> LabelSpace:
    """The classes of a config.json, in the order of its ids.

    Our own export says everything. Else names are looked up in the tables of public data sets: the one that knows most
    of them, at least half, says what is a thing and which colour; where it knows all, ids and spelling, too. COCO's raw
    ids (DETR) are recognised by their places. A class without a name is ``unused_N``; one that no table knows is a
    thing. Raises PansightError where id2label is no map from numbers to names.
    """
    block = config.get("pansight")
    names = _names(config, source)
    if isinstance(block, dict) and "labels" in block:
        labels = _own(block["labels"], f"{source}: pansight.labels")
        if [name.strip() for name in labels.names] == names:  # else it was trained on with other classes since
            return labels
    if _are_coco_ids(names):
        return coco_ids(len(names))
    return _looked_up(names)


def _own(rows: Any, source: str) -> LabelSpace:
    try:
        return LabelSpace.from_json(rows)
    except (TypeError, ValueError, AttributeError) as error:
        raise PansightError(where=source, expected="categories (id, name, isthing, color)", found=error) from error


def _names(config: dict[str, Any], source: str) -> list[str]:
    """Names by id, without gaps."""
    table = config.get("id2label")
    if table is None:
        count = config.get("num_labels", 2)  # transformers leaves out what is its default
        table = {str(i): f"LABEL_{i}" for i in range(count)} if isinstance(count, int) and count < MAX_CLASSES else None
    if (
        not isinstance(table, dict)
        or not table
        or not all(str(key).isdecimal() and len(str(key)) < 10 for key in table)
    ):
        raise PansightError(where=source, expected="id2label, from 0, 1, 2 … to names", found=f"{table!r:.80}")
    named = {int(key): str(value).strip() for key, value in table.items()}
    if max(named) >= MAX_CLASSES:
        raise PansightError(where=source, expected=f"fewer than {MAX_CLASSES} classes", found=f"id {max(named)}")
    return [named.get(i, "") for i in range(max(named) + 1)]


def _are_coco_ids(names: list[str]) -> bool:
    """Whether names stand at COCO's raw ids: DETR's 91 and 250 classes. Names that COCO never used do not matter.

    Most, not all: some files write "tree" for "tree-merged". In any other order hardly one would stand at its id.
    """
    known = [c for c in coco_ids(min(len(names), 250)) if not c.name.startswith("unused_")]
    return len(names) > 90 and sum(names[c.id] == c.name for c in known) >= 0.6 * len(known)


def _looked_up(names: list[str]) -> LabelSpace:
    generic = all(UNNAMED.fullmatch(name) for name in names)
    if generic:
        names = [name if name.startswith("LABEL_") else f"LABEL_{i}" for i, name in enumerate(names)]
    names = [f"unused_{i}" if not generic and UNNAMED.fullmatch(name) else name for i, name in enumerate(names)]
    real = [name for name in names if not name.startswith("unused_")]
    tables = {table: _rows(table) for table in TABLES}
    found = {table: [_row(name, rows) for name in real] for table, rows in tables.items()}
    best = max(TABLES, key=lambda table: sum(row is not None for row in found[table]))  # the first of equals
    hits = [row for row in found[best] if row is not None]
    whole = len(hits) == len(real) == len({row["name"] for row in hits})
    rows = tables[best] if 2 * len(hits) >= len(real) else {}
    counts = Counter(names)
    result: list[Category] = []
    free = max((row["id"] for row in hits), default=0) + 1
    for index, name in enumerate(names):
        row = _row(name, rows)
        if counts[name] > 1:
            name = f"{name} ({index})"
        if row is None:
            source_id = free + index if whole else index
            result.append(Category(index, name, True, palette_color(index), source_id))
        else:
            name, source_id = (row["name"], row["id"]) if whole else (name, index)
            result.append(Category(index, name, bool(row["isthing"]), tuple(row["color"]), source_id))
    return LabelSpace(result)


def _rows(table: str) -> dict[str, dict[str, Any]]:
    return {_plain(row["name"]): row for row in reversed(category_table(table))}


def _row(name: str, rows: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    plain = _plain(name)
    return rows.get(plain) or rows.get(ALIASES.get(plain, plain))


def _plain(name: str) -> str:
    """Lower case, one spelling of blanks, the first of several synonyms: "Road, route" → "road"."""
    return " ".join(name.lower().replace("-", " ").partition(",")[0].split())
