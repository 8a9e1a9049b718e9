"""Images with instance-id PNGs, 8 or 16 bit (Penn-Fudan, nuclei)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.data.convert.source import Source


def open_instance_png(source: Path, split: str | None = None, **options: Any) -> Source:
    """Images with instance-id PNGs, 8 or 16 bit (Penn-Fudan, nuclei)."""
    raise NotImplementedError


def is_instance_png(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False


def open_semantic_png(source: Path, split: str | None = None, **options: Any) -> Source:
    """Images with class-index PNGs; things are connected components."""
    raise NotImplementedError


def is_semantic_png(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False
