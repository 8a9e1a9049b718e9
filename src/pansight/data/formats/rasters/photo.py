"""Ordinary photos (JPEG, PNG, BMP, WebP) as rasters: they are decoded whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from pansight.data.formats.rasters.contract import Georeference
from pansight.data.images import open_pillow, read_bytes, read_image
from pansight.errors import PansightError
from pansight.ops.maps.label_png import MAX_PIXELS


class PhotoRaster:
    """See ``contract.Raster``: three bands, uint8. Raises PansightError as `read_image` does."""

    def __init__(self, path: Path):
        self.path = path
        _check_size(path)
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


def _check_size(path: Path) -> None:
    """Raises PansightError for a photo that is too large to be decoded whole. Damaged ones are left to `read_image`."""
    try:
        with open_pillow(read_bytes(path)) as image:
            width, height = image.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return
    if height * width > MAX_PIXELS:
        expected = f"at most {MAX_PIXELS // 10**6} million pixels in a file that is decoded whole"
        hint = "convert it to a tiled TIFF, which is read by windows: gdal_translate -co TILED=YES"
        raise PansightError(where=path, expected=expected, found=f"{width}×{height}", hint=hint)


def _opaque(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """bool (H, W): False where a PNG or WebP is wholly transparent."""
    with open_pillow(read_bytes(path)) as image:
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            alpha = np.asarray(image.convert("RGBA").getchannel("A")) > 0
            return alpha if alpha.shape == size else np.ones(size, bool)
    return np.ones(size, bool)
