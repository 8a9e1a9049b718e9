"""What the tests of readers draw and compare: maps as rows of text, images of one colour, refusals in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pansight.data.convert.source import Annotated, Source
from pansight.errors import PansightError

DIGITS = ".123456789abcdefghijklmnopqrstuvwxyz"


def photo(path: Path, size: tuple[int, int] = (6, 8), **options: Any) -> Path:
    """An image file of (H, W); JPEG or what the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (90, 120, 150)).save(path, **options)
    return path


def turned_photo(path: Path, stored: tuple[int, int] = (8, 6)) -> Path:
    """A JPEG that a viewer shows at the other size: EXIF orientation 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return photo(path, stored, exif=exif)


def values_of(text: str) -> np.ndarray:
    """Rows of characters → uint8 (H, W): "." is 0, "1" 1 … "a" 10 …"""
    return np.array([[DIGITS.index(letter) for letter in row] for row in text.split()], np.uint8)


def grey(path: Path, values: Any, dtype: type = np.uint8) -> Path:
    """A one-channel PNG of 8 or 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype)).save(path)
    return path


def palette(path: Path, values: Any, colors: list[int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8)).convert("L")
    image.putpalette(colors)
    image.save(path)
    return path


def drawing(image: Annotated) -> str:
    """Its disjoint map, else its regions painted in their order, as rows of characters: the n-th is n."""
    rows = np.zeros(image.size, np.int32)
    if image.ids is not None:
        rows = image.ids.copy()
    for n, region in enumerate(image.regions, 1):
        height, width = region.mask.shape
        assert region.mask.dtype == np.bool_
        assert region.mask.any()
        rows[region.top : region.top + height, region.left : region.left + width][region.mask] = n
    return "\n".join("".join(DIGITS[v] for v in row) for row in rows.tolist())


def same(image: Annotated, text: str) -> None:
    assert drawing(image).split() == text.split()


def names(image: Annotated, source: Source) -> list[str]:
    """The class of each region."""
    return [source.categories[region.category].name for region in image.regions]


def refused(message: str, call: Callable[[], Any]) -> str:
    """The error of `call`, one line that holds `message`, a regular expression."""
    with pytest.raises(PansightError, match=message) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text
