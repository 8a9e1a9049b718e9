"""Two networks each on their own, and what the merge makes of them: the rows "machine-separate" and "machine-panoptic"
of Kirillov, He, Girshick, Rother, Dollár: Panoptic Segmentation, CVPR 2019.

Separate are the instances, by AP, and the semantic map, by IoU; stuff of the semantic map, before anything is painted
over it, has a PQ as well. The merge takes pixels from stuff only, so PQ of things is the same before and after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROWS = ("separate", "panoptic")


def machine_rows(record: Mapping[str, Any], stuff_alone: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """The two rows from an evaluation whose semantic maps and instances are those of the networks; fractions 0..1.

    separate: pq_things, pq_stuff, miou, iou_stuff, ap, ap50; panoptic: pq, pq_things, pq_stuff, and ap_no, the AP of
    the things after the merge (`metrics.without_overlaps`). None stands for what does not exist or is not known.
    stuff_alone: the figures (pq, n) of stuff before the merge.
    """
    iou = [c["iou"] for c in record["semantic"]["per_class"].values() if not c["isthing"] and c["iou"] is not None]
    objects: Mapping[str, Any] = record["instances"].get("mask") or record["instances"].get("box") or {}
    things = record["Things"]["pq"] if record["Things"]["n"] else None
    return {
        "separate": {
            "pq_things": things,
            "pq_stuff": stuff_alone["pq"] if stuff_alone is not None and stuff_alone["n"] else None,
            "miou": record["semantic"]["miou"],
            "iou_stuff": sum(iou) / len(iou) if iou else None,
            "ap": objects.get("ap"),
            "ap50": objects.get("ap50"),
        },
        "panoptic": {
            "pq": record["All"]["pq"],
            "pq_things": things,
            "pq_stuff": record["Stuff"]["pq"] if record["Stuff"]["n"] else None,
            "ap_no": _mask_ap(record.get("without_overlaps")),
        },
    }


def _mask_ap(figures: Mapping[str, Any] | None) -> float | None:
    """AP of masks, None where there is none."""
    masks: Mapping[str, Any] | None = (figures or {}).get("mask")
    return None if masks is None else masks["ap"]
