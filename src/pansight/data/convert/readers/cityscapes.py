"""Cityscapes gtFine: instanceIds, labelIds or polygons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.data.convert.source import Source


def open_cityscapes(source: Path, split: str | None = None, **options: Any) -> Source:
    """Cityscapes gtFine: instanceIds, labelIds or polygons."""
    raise NotImplementedError


def is_cityscapes(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False
