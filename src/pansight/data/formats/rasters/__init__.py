"""Images of any size, read window by window: GeoTIFF and all that GDAL reads, plain and OME TIFF, Zarr; and photos.

`open_raster` chooses the reader; `Colours` turns its bands into the RGB that models see. rasterio, tifffile and zarr
come with the extra `huge` and are imported when a file needs them.
"""

from __future__ import annotations

from pathlib import Path

from pansight.data.formats.rasters.arrays import open_tiff, open_zarr
from pansight.data.formats.rasters.colours import Colours, Stretch, colours_of
from pansight.data.formats.rasters.contract import Georeference, Raster, is_installed, missing_package
from pansight.data.formats.rasters.gdal import GdalRaster
from pansight.data.formats.rasters.photo import PhotoRaster
from pansight.errors import PansightError

__all__ = ["Colours", "Georeference", "Raster", "Stretch", "colours_of", "open_raster"]

PHOTOS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
"""Decoded whole."""
TIFFS = (".tif", ".tiff", ".svs", ".btf", ".tf8")
"""What tifffile reads too."""


def open_raster(path: str | Path) -> Raster:
    """The reader of an image; to be closed, or used in a `with` block.

    OME TIFF is read by tifffile, since GDAL takes each channel for an image of its own; any other TIFF by rasterio, or
    where that is not installed, by tifffile.
    Raises PansightError where the file is missing, damaged or of an unknown kind, and where a package is missing.
    """
    path = Path(path)
    if not path.exists():
        raise PansightError(where=path, expected="an image", found="no such file", code="missing_file")
    name = path.name.lower()
    if path.is_dir() or name.endswith(".zarr"):
        return open_zarr(path)
    if name.endswith(PHOTOS):
        return PhotoRaster(path)
    if name.endswith((".ome.tif", ".ome.tiff")):
        return open_tiff(path)
    if is_installed("rasterio"):
        return GdalRaster(path)
    if name.endswith(TIFFS):
        return open_tiff(path)
    raise missing_package(path, "rasterio")
