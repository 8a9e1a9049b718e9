"""Category tables of public data sets, one JSON each: facts from the sources named in TABLES.

    category_table("cityscapes_panoptic")[0]    # {"id": 7, "name": "road", "supercategory": "flat", "isthing": 0, …}
    label_space("cityscapes_panoptic")          # the same as a LabelSpace, things first

A row has `name` and `color` (RGB, 0..255), `isthing` (0, 1, or null where the source does not say), and `id`, the id in
the data set's panoptic files (`labelId` in vistas_v2_0_labels, whose panoptic ids are in the user's own files only).
Further keys: `trainId` (contiguous, 255 or −1 = not trained on), `annotationId` and `instanceId` (values in the PNGs of
ADE20K), `ignoreInEval`, `hasInstances` (Cityscapes), `supercategory`.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from pansight.errors import PansightError, choice_error
from pansight.types import LabelSpace

TABLES: dict[str, str] = {
    "coco_panoptic": "COCO panoptic 2017: 80 things, 53 stuff (cocodataset/panopticapi)",
    "cityscapes_panoptic": "the 19 evaluated classes of Cityscapes: 8 things, 11 stuff (mcordts/cityscapesScripts)",
    "cityscapes_all_labels": "all 35 labels of Cityscapes, those left out of the evaluation included",
    "ade20k_panoptic": "ADE20K scene parsing: 100 things, 50 stuff (facebookresearch/Mask2Former)",
    "vistas_v1_2_panoptic": "Mapillary Vistas v1.2: 37 things, 28 stuff (facebookresearch/Mask2Former)",
    "vistas_v2_0_labels": "the 124 labels of Mapillary Vistas v2.0, things not told from stuff (datumaro)",
    "pascal_voc": "Pascal VOC: 20 things and the background",
    "penn_fudan": "Penn-Fudan: pedestrians",
}
"""Name of a table → what it holds, and the public repository that it was taken from."""


def category_table(name: str) -> list[dict[str, Any]]:
    """The rows of a table, in its order; the caller's own copy. Raises PansightError listing the names."""
    if name not in TABLES:
        raise choice_error("category table", name, TABLES)
    return json.loads((files(__name__) / f"{name}.json").read_text(encoding="utf-8"))


def label_space(name: str) -> LabelSpace:
    """A table as a LabelSpace: things, then stuff, each in the table's order; `source_id` is the table's `id`.

    Raises PansightError where the table does not tell things from stuff.
    """
    rows = category_table(name)
    unknown = [row["name"] for row in rows if row["isthing"] is None]
    if unknown:
        raise PansightError(
            where=name, expected="to know things from stuff", found=f"classes that do not say: {unknown[0]}, …"
        )
    return LabelSpace.from_json(sorted(rows, key=lambda row: not row["isthing"]))


def in_order_of_training(name: str) -> LabelSpace:
    """A table with a `trainId` as a LabelSpace in the order of these, as semantic networks number their classes."""
    return LabelSpace.from_json(sorted(category_table(name), key=lambda row: row["trainId"]))
