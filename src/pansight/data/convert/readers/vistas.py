"""Mapillary Vistas v1.2 and v2.0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.data.convert.source import Source


def open_vistas(source: Path, split: str | None = None, **options: Any) -> Source:
    """Mapillary Vistas v1.2 and v2.0."""
    raise NotImplementedError


def is_vistas(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False
