"""Pascal VOC SegmentationClass + SegmentationObject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.data.convert.source import Source


def open_voc(source: Path, split: str | None = None, **options: Any) -> Source:
    """Pascal VOC SegmentationClass + SegmentationObject."""
    raise NotImplementedError


def is_voc(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False
