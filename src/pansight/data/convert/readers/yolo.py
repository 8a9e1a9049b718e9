"""YOLO segmentation: data.yaml, images/, labels/*.txt with polygons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.data.convert.source import Source


def open_yolo_seg(source: Path, split: str | None = None, **options: Any) -> Source:
    """YOLO segmentation: data.yaml, images/, labels/*.txt with polygons."""
    raise NotImplementedError


def is_yolo_seg(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False
