"""GeoTIFF and every other raster that GDAL reads, through rasterio."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pansight.data.formats.rasters.contract import Georeference, damaged, is_installed, palette_error
from pansight.errors import PansightError

CACHE = 256
"""MiB of decoded blocks that GDAL keeps, enough for a row of tiles of most striped files; its default grows with
the memory of the machine."""


class GdalRaster:
    """See ``contract.Raster``. Raises PansightError where GDAL cannot open the file, and for a truncated TIFF."""

    def __init__(self, path: Path):
        import rasterio
        from rasterio.enums import ColorInterp
        from rasterio.errors import NotGeoreferencedWarning, RasterioError

        self.path = path
        self._stack = ExitStack()
        self._errors: type[Exception] = RasterioError
        self._stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a plain image is no reason to warn
                self._file: Any = self._stack.enter_context(rasterio.open(path))
        except RasterioError as error:
            self._stack.close()
            raise PansightError(where=path, expected="an image that GDAL reads", reason=_reason(error)) from error
        if self._file.count == 0:
            names = [name.partition(":")[2] for name in self._file.subdatasets]
            self._stack.close()
            raise PansightError(where=path, expected="one image", found=f"{len(names)}: {', '.join(names)}")
        if ColorInterp.palette in self._file.colorinterp:
            self._stack.close()
            raise palette_error(path)
        if self._file.driver == "GTiff" and is_installed("tifffile"):
            check_whole_tiff(path)
        self.size: tuple[int, int] = (self._file.height, self._file.width)
        self.bands: int = self._file.count
        self.dtype: np.dtype[Any] = np.result_type(*self._file.dtypes)
        interpretations = list(self._file.colorinterp)
        self.alpha = interpretations.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in interpretations else 0
        self.place = _place_of(self._file)

    def read(
        self, top: int, left: int, height: int, width: int, bands: tuple[int, ...]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        from rasterio.windows import Window

        return self._read(bands, window=Window(left, top, width, height))  # pyright: ignore[reportCallIssue]

    def sample(self, bands: tuple[int, ...], side: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        shape = tuple(min(length, side) for length in self.size)
        return self._read(bands, out_shape=(len(bands), *shape))  # of an overview where the file has one

    def _read(self, bands: tuple[int, ...], **options: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        try:
            pixels = self._file.read(list(bands), **options)  # (B, H, W)
            valid = self._file.read_masks(list(bands), **options).any(0)
        except self._errors as error:
            raise damaged(self.path, _reason(error)) from error
        return np.ascontiguousarray(pixels.transpose(1, 2, 0)), valid

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def check_whole_tiff(path: Path) -> None:
    """Raises PansightError where a TIFF promises pixels beyond its end, which else only the last rows of tiles tell."""
    import tifffile

    length = path.stat().st_size
    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            ends = np.add(page.dataoffsets, page.databytecounts)
    except (tifffile.TiffFileError, ValueError, IndexError):
        return  # what GDAL can open and tifffile cannot is left to GDAL
    if len(ends) and ends.max() > length:
        missing = int(ends.max()) - length
        raise PansightError(where=path, expected="a whole TIFF", found=f"{missing:,} bytes too few (truncated)")


def _place_of(file: Any) -> Georeference | None:
    transform = tuple(float(value) for value in tuple(file.transform)[:6])
    if file.crs is None and transform == (1, 0, 0, 0, 1, 0):
        return None
    a, b, c, d, e, f = transform
    return Georeference((a, b, c, d, e, f), file.crs.to_wkt() if file.crs else "", geotiff_tags(file))


def geotiff_tags(file: Any) -> tuple[tuple[int, int, int, Any], ...]:
    """The tags that say the place of an open file in GeoTIFF, as GDAL writes them into a small file in memory."""
    import io

    import rasterio
    import tifffile
    from rasterio.io import MemoryFile

    profile = {"driver": "GTiff", "width": 1, "height": 1, "count": 1, "dtype": "uint8"}
    with MemoryFile() as memory:
        with rasterio.Env(), memory.open(**profile, crs=file.crs, transform=file.transform) as one:
            one.write(np.zeros((1, 1, 1), np.uint8))
        with tifffile.TiffFile(io.BytesIO(memory.read())) as tiff:
            tags: Any = tiff.pages[0].tags  # pyright: ignore[reportAttributeAccessIssue]
            return raw_geotiff_tags(tags)


GEOTIFF_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
"""Pixel scale, tie points, transformation, and the three lists of keys (OGC GeoTIFF 1.1)."""


def raw_geotiff_tags(tags: Any) -> tuple[tuple[int, int, int, Any], ...]:
    """Of the tags of a page of tifffile those that say its place, as tifffile writes them."""
    found = [tags[code] for code in GEOTIFF_TAGS if code in tags]
    return tuple((tag.code, int(tag.dtype), 0 if isinstance(tag.value, str) else tag.count, tag.value) for tag in found)


def _reason(error: BaseException) -> object:
    """rasterio's own line says to look at the error before it."""
    return error.__cause__ or error
