"""Ordinary photos (JPEG, PNG, BMP, WebP) as rasters: they are decoded whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pansight.data.formats.rasters.contract import Georeference
from pansight.data.images import open_pillow, read_bytes, read_image


class PhotoRaster:
    """See ``contract.Raster``: three bands, uint8. Raises PansightError as `read_image` does."""

    def __init__(self, path: Path):
        self.path = path
        self._photo = read_image(path)  # (H, W, 3)
        self.size: tuple[int, int] = (self._photo.shape[0], self._photo.shape[1])
        self.bands, self.dtype, self.alpha = 3, np.dtype(np.uint8), 0
        self.place: Georeference | None = None
        self._valid = _opaque(path, self.size)

    def read(
        self, top: int, left: int, height: int, width: int, bands: tuple[int, ...]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        place = slice(top, top + height), slice(left, left + width)
        return self._photo[place][..., [band - 1 for band in bands]], self._valid[place]

    def sample(self, bands: tuple[int, ...], side: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        step = max(1, max(self.size) // side)
        return self._photo[::step, ::step, [band - 1 for band in bands]], self._valid[::step, ::step]

    def close(self) -> None:
        """There is nothing to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _opaque(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """bool (H, W): False where a PNG or WebP is wholly transparent."""
    with open_pillow(read_bytes(path)) as image:
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            alpha = np.asarray(image.convert("RGBA").getchannel("A")) > 0
            return alpha if alpha.shape == size else np.ones(size, bool)
    return np.ones(size, bool)
