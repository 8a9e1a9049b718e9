"""Id maps with a table of segments (Hugging Face post-processing, 16-bit PNG)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.data.convert.source import Source


def open_id_maps(source: Path, split: str | None = None, **options: Any) -> Source:
    """Id maps with a table of segments (Hugging Face post-processing, 16-bit PNG)."""
    raise NotImplementedError


def is_id_maps(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False
