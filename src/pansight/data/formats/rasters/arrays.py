"""TIFF without GDAL (plain, OME, pyramids) and Zarr: both are read as Zarr arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pansight.data.formats.rasters.contract import (
    Georeference,
    damaged,
    is_installed,
    missing_package,
    palette_error,
)
from pansight.data.formats.rasters.gdal import check_whole_tiff, raw_geotiff_tags
from pansight.errors import PansightError

MOST_BANDS = 64
"""An axis without a name that is at most so long is taken for that of the bands."""


STRIPES = 16
"""Groups of rows of a sample."""


class ArrayRaster:
    """See ``contract.Raster``. array: any number of axes, those beside y, x and bands of length 1.

    axes: a letter for each: Y, X, and S or C for bands. nodata: the value of pixels that hold none.
    """

    def __init__(
        self,
        path: Path,
        array: Any,
        axes: str,
        alpha: int = 0,
        nodata: float | None = None,
        place: Georeference | None = None,
        file: Any = None,
    ):
        self.path, self.alpha, self.nodata, self.place = path, alpha, nodata, place
        self._array, self._axes, self._file = array, axes.upper().replace("S", "C"), file
        lengths = dict(zip(self._axes, array.shape, strict=True))
        further = {axis: length for axis, length in lengths.items() if axis not in "YXC" and length != 1}
        if not {"Y", "X"} <= set(lengths) or further or len(lengths) < len(array.shape):
            found = ", ".join(f"{axis} of {length}" for axis, length in zip(axes, array.shape, strict=True))
            self.close()
            raise PansightError(where=path, expected="one image with axes y, x and bands", found=found)
        self.size: tuple[int, int] = (lengths["Y"], lengths["X"])
        self.bands: int = lengths.get("C", 1)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)

    def read(
        self, top: int, left: int, height: int, width: int, bands: tuple[int, ...]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        return self._read(slice(top, top + height), slice(left, left + width), bands)

    def sample(self, bands: tuple[int, ...], side: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Of a large image only STRIPES groups of rows, spread evenly over its height, are decoded."""
        height, width = self.size
        if max(self.size) <= side:
            return self._read(slice(0, height), slice(0, width), bands)
        rows, step = math.ceil(min(height, side) / STRIPES), max(1, width // side)
        tops = np.linspace(0, height - rows, STRIPES).astype(int).tolist()
        stripes = [self._read(slice(top, top + rows), slice(0, width), bands) for top in tops]
        pixels, valid = (np.concatenate(parts) for parts in zip(*stripes, strict=True))
        return pixels[:, ::step], valid[:, ::step]

    def _read(self, y: slice, x: slice, bands: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        wanted = [*bands, self.alpha] if self.alpha and self.alpha not in bands else list(bands)
        places = {"Y": y, "X": x, "C": slice(None)}
        try:
            found = np.asarray(self._array[tuple(places.get(axis, 0) for axis in self._axes)])
        except (ValueError, RuntimeError, KeyError) as error:  # what zarr and the decoders of tifffile raise
            raise damaged(self.path, error) from error
        kept = [axis for axis in self._axes if axis in "YXC"]
        order = [kept.index(axis) for axis in "YXC" if axis in kept]
        pixels = found.transpose(order).reshape(y.stop - y.start, x.stop - x.start, self.bands)
        pixels = np.ascontiguousarray(pixels[..., [band - 1 for band in wanted]])
        valid = np.ones(pixels.shape[:2], bool)
        if self.alpha:
            valid &= pixels[..., wanted.index(self.alpha)] > 0
        pixels = pixels[..., : len(bands)]
        if self.nodata is not None:
            is_value = ~np.isnan(pixels) if math.isnan(self.nodata) else pixels != self.nodata
            valid &= is_value.any(2)
        return pixels, valid

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


UNASSOCIATED, ASSOCIATED = 2, 1
"""The kinds of alpha that the tag ExtraSamples names (TIFF 6)."""
PALETTE = 3
"""What the tag PhotometricInterpretation says of pixels that are numbers of colours."""


def open_tiff(path: Path) -> ArrayRaster:
    """The first image of a TIFF at its full size. Raises PansightError where tifffile cannot read it."""
    for package in ("tifffile", "zarr"):
        if not is_installed(package):
            raise missing_package(path, package)
    import tifffile
    import zarr

    check_whole_tiff(path)
    try:
        file = tifffile.TiffFile(path)
        series, page = file.series[0], file.pages[0]
        array = zarr.open_array(series.aszarr(level=0), mode="r")
    except (tifffile.TiffFileError, ValueError, IndexError, KeyError) as error:
        raise PansightError(where=path, expected="a TIFF", reason=" ".join(str(error).split())) from error
    if int(page.photometric) == PALETTE:  # pyright: ignore[reportAttributeAccessIssue]
        file.close()
        raise palette_error(path)
    tags: Any = page.tags  # pyright: ignore[reportAttributeAccessIssue]
    extra = tuple(page.extrasamples)  # pyright: ignore[reportAttributeAccessIssue]
    alpha = next((n for n, kind in enumerate(extra) if kind in (ASSOCIATED, UNASSOCIATED)), None)
    colours = int(page.samplesperpixel) - len(extra)  # pyright: ignore[reportAttributeAccessIssue]
    nodata: float | None = None
    with suppress(ValueError, KeyError):
        nodata = float(str(tags[42113].value).strip("\0 "))  # GDAL_NODATA
    place = _place_of_tags(tags)
    return ArrayRaster(path, array, series.axes, 0 if alpha is None else colours + alpha + 1, nodata, place, file)


def _place_of_tags(tags: Any) -> Georeference | None:
    """From the pixel scale and the first tie point; a rotated image has a transformation instead."""
    if 34264 in tags:
        values = [float(value) for value in tags[34264].value]
        transform = (values[0], values[1], values[3], values[4], values[5], values[7])
    elif 33550 in tags and 33922 in tags:
        scale, tie = tags[33550].value, tags[33922].value
        transform = (scale[0], 0.0, tie[3] - tie[0] * scale[0], 0.0, -scale[1], tie[4] + tie[1] * scale[1])
    else:
        return None
    return Georeference(transform, "", raw_geotiff_tags(tags))


def open_zarr(path: Path) -> ArrayRaster:
    """A Zarr array, or the largest level of an OME-Zarr image. Raises PansightError for anything else."""
    if not is_installed("zarr"):
        raise missing_package(path, "zarr")
    import zarr

    try:
        node: Any = zarr.open(str(path), mode="r")
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise PansightError(where=path, expected="a Zarr array", found="none", code="wrong_format") from error
    attributes: Mapping[str, Any] = dict(node.attrs)
    axes = ""
    if isinstance(node, zarr.Group):
        node, axes = _level_of(node, attributes, path)
    names = getattr(node.metadata, "dimension_names", None) or ()
    if not axes and all(names) and len(names) == node.ndim:
        axes = "".join("C" if str(name)[0].lower() in "bcs" else str(name)[0] for name in names)
    axes = axes or _guessed_axes(node.shape)
    place = None
    if len(attributes.get("transform", ())) == 6:
        a, b, c, d, e, f = (float(value) for value in attributes["transform"])
        place = Georeference((a, b, c, d, e, f), str(attributes.get("crs", "")))
    nodata = attributes.get("nodata")
    return ArrayRaster(path, node, axes, 0, nodata if isinstance(nodata, int | float) else None, place)


def _level_of(group: Any, attributes: Mapping[str, Any], path: Path) -> tuple[Any, str]:
    """(the largest level, its axes) of an OME-Zarr image; of another group its only array."""
    scales = attributes.get("ome", attributes).get("multiscales")
    if scales:
        names = [axis["name"] if isinstance(axis, dict) else axis for axis in scales[0].get("axes", ())]
        return group[scales[0]["datasets"][0]["path"]], "".join(name[0] for name in names)
    arrays = dict(group.arrays())
    if len(arrays) != 1:
        listed = ", ".join(sorted(arrays)) or "none"
        raise PansightError(where=path, expected="one Zarr array", found=f"{len(arrays)}: {listed}; name one of them")
    return next(iter(arrays.values())), ""


def _guessed_axes(shape: Sequence[int]) -> str:
    """Of an array without names: bands are the shorter one of the outer axes."""
    if len(shape) == 3:
        return "CYX" if shape[0] <= MOST_BANDS and shape[0] < shape[2] else "YXC"
    return "YX" if len(shape) == 2 else "".join(chr(ord("A") + n) for n in range(len(shape)))
