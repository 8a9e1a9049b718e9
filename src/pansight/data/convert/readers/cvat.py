"""CVAT for images XML 1.1 (polygons, masks, boxes)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.data.convert.source import Source


def open_cvat(source: Path, split: str | None = None, **options: Any) -> Source:
    """CVAT for images XML 1.1 (polygons, masks, boxes)."""
    raise NotImplementedError


def is_cvat(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False
