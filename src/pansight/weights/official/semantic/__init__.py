"""Loading the semantic networks of other libraries; one file for each network or library."""

from __future__ import annotations

from pansight.data.categories import in_order_of_training
from pansight.types import LabelSpace

KNOWN = {19: "cityscapes_panoptic", 21: "pascal_voc", 150: "ade20k_panoptic"}


def labels_of(classes: int) -> LabelSpace:
    """Cityscapes' 19 classes, Pascal VOC's 21 or ADE20K's 150, as semantic networks number them; else ``class_0`` …"""
    if classes in KNOWN:
        return in_order_of_training(KNOWN[classes])
    return LabelSpace.from_names([], [f"class_{index}" for index in range(classes)])
