"""LabelMe: one JSON beside each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.data.convert.source import Source


def open_labelme(source: Path, split: str | None = None, **options: Any) -> Source:
    """LabelMe: one JSON beside each image."""
    raise NotImplementedError


def is_labelme(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False
