"""COCO instances (polygons, RLE); with stuff=DIR also stuff PNGs, or a COCO-stuff JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.data.convert.source import Source


def open_coco_instances(source: Path, split: str | None = None, **options: Any) -> Source:
    """COCO instances (polygons, RLE); with stuff=DIR also stuff PNGs, or a COCO-stuff JSON."""
    raise NotImplementedError


def is_coco_instances(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False


def open_coco_detection_panoptic(source: Path, split: str | None = None, **options: Any) -> Source:
    """COCO panoptic in the detection format: one RLE per segment."""
    raise NotImplementedError


def is_coco_detection_panoptic(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False


def open_coco_panoptic(source: Path, split: str | None = None, **options: Any) -> Source:
    """COCO panoptic itself: to change classes, fill or rewrite it."""
    raise NotImplementedError


def is_coco_panoptic(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False
