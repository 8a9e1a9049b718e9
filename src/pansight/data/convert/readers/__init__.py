"""Readers of foreign annotations, by name. A new one is a file with `open_NAME` and `is_NAME`, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pansight.data.convert.readers.ade20k import (
    is_ade20k,
    is_ade20k_full,
    open_ade20k,
    open_ade20k_full,
    splits_ade20k,
    splits_ade20k_full,
)
from pansight.data.convert.readers.cityscapes import is_cityscapes, open_cityscapes, splits_cityscapes
from pansight.data.convert.readers.coco import (
    is_coco_detection_panoptic,
    is_coco_instances,
    is_coco_panoptic,
    open_coco_detection_panoptic,
    open_coco_instances,
    open_coco_panoptic,
    splits_coco_detection_panoptic,
    splits_coco_instances,
    splits_coco_panoptic,
)
from pansight.data.convert.readers.cvat import is_cvat, open_cvat, splits_cvat
from pansight.data.convert.readers.id_maps import is_id_maps, open_id_maps, splits_id_maps
from pansight.data.convert.readers.label_studio import is_label_studio, open_label_studio
from pansight.data.convert.readers.labelme import is_labelme, open_labelme, splits_labelme
from pansight.data.convert.readers.pngs import (
    is_instance_png,
    is_semantic_png,
    open_instance_png,
    open_semantic_png,
    splits_instance_png,
    splits_semantic_png,
)
from pansight.data.convert.readers.vistas import is_vistas, open_vistas, splits_vistas
from pansight.data.convert.readers.voc import is_voc, open_voc, splits_voc
from pansight.data.convert.readers.webdataset import is_webdataset, open_webdataset, splits_webdataset
from pansight.data.convert.readers.yolo import is_yolo_seg, open_yolo_seg, splits_yolo_seg
from pansight.data.convert.source import Source


def in_one_piece(source: Path) -> tuple[str, ...]:
    """The splits of a format that has none."""
    return ()


class Reader(NamedTuple):
    """How a format is opened, how it is told from the others, and which parts a source of it has.

    A reader whose sources may hold several splits gives `splits_NAME`; `convert` then opens each of them by its name
    ("train", "val", "test" or the source's own), else once with split=None, for everything there is.
    """

    open: Callable[..., Source]  # (source, split, **options)
    detect: Callable[[Path], bool]
    splits: Callable[[Path], tuple[str, ...]] = in_one_piece  # cheap, never raises


READERS: dict[str, Reader] = {
    "cityscapes": Reader(open_cityscapes, is_cityscapes, splits_cityscapes),
    "ade20k": Reader(open_ade20k, is_ade20k, splits_ade20k),
    "ade20k_full": Reader(open_ade20k_full, is_ade20k_full, splits_ade20k_full),
    "vistas": Reader(open_vistas, is_vistas, splits_vistas),
    "webdataset": Reader(open_webdataset, is_webdataset, splits_webdataset),
    "voc": Reader(open_voc, is_voc, splits_voc),
    "coco_instances": Reader(open_coco_instances, is_coco_instances, splits_coco_instances),
    "coco_detection_panoptic": Reader(
        open_coco_detection_panoptic, is_coco_detection_panoptic, splits_coco_detection_panoptic
    ),
    "coco_panoptic": Reader(open_coco_panoptic, is_coco_panoptic, splits_coco_panoptic),
    "yolo_seg": Reader(open_yolo_seg, is_yolo_seg, splits_yolo_seg),
    "labelme": Reader(open_labelme, is_labelme, splits_labelme),
    "cvat": Reader(open_cvat, is_cvat, splits_cvat),
    "label_studio": Reader(open_label_studio, is_label_studio),
    "instance_png": Reader(open_instance_png, is_instance_png, splits_instance_png),
    "semantic_png": Reader(open_semantic_png, is_semantic_png, splits_semantic_png),
    "id_maps": Reader(open_id_maps, is_id_maps, splits_id_maps),
}
"""Name → reader; where several recognise a source, the first one here is taken: special layouts before general ones."""
