"""ADE20K scene parsing with its instances (ADEChallengeData2016)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.data.convert.source import Source


def open_ade20k(source: Path, split: str | None = None, **options: Any) -> Source:
    """ADE20K scene parsing with its instances (ADEChallengeData2016)."""
    raise NotImplementedError


def is_ade20k(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False


def open_ade20k_full(source: Path, split: str | None = None, **options: Any) -> Source:
    """ADE20K full release of 2021."""
    raise NotImplementedError


def is_ade20k_full(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return False
