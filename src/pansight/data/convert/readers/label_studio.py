"""Label Studio JSON: brush and polygon labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.data.convert.source import Source


def open_label_studio(source: Path, split: str | None = None, **options: Any) -> Source:
    """Label Studio JSON: brush and polygon labels."""
    raise NotImplementedError


def is_label_studio(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False
