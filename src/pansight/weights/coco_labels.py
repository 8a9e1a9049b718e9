"""COCO's label spaces, which official checkpoints leave out: see `pansight.data.categories.coco`."""

from pansight.data.categories.coco import coco_91, coco_ids, coco_panoptic, coco_things

__all__ = ["coco_91", "coco_ids", "coco_panoptic", "coco_things"]
