"""Maps of any size, written block row by block row: a tiled, compressed TIFF that GIS programs place, or Zarr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.data.formats.rasters.contract import Georeference, is_installed, missing_package

BLOCK = 512
"""Side of the square blocks that are compressed one by one, in pixels."""
BIG = 2**31
"""Bytes of pixels from which on a TIFF is written as BigTIFF: a plain one ends at 4 GiB, whatever they compress to."""
GDAL_NODATA = 42113


def check_packages(path: Path) -> None:
    """Raises PansightError where a package is missing that a map of this name needs; the suffix says the kind."""
    package = "zarr" if path.suffix.lower() == ".zarr" else "tifffile"
    if not is_installed(package):
        raise missing_package(path, package)


def write_map(
    target: Path,
    rows: Iterable[NDArray[Any]],
    size: tuple[int, int],
    void: int,
    place: Georeference | None,
    zarr: bool,
) -> None:
    """Write a map of `size` (H, W) from its parts (h, W), top to bottom, of any heights and one unsigned type.

    void: the value of pixels that belong to nothing, told as nodata. Raises OSError, that of a full disk among them.
    """
    blocks = _regrouped(rows)
    first = next(blocks)
    every = _chained(first, blocks)
    if zarr:
        _write_zarr(target, every, size, first.dtype, void, place)
    else:
        _write_tiff(target, every, size, first.dtype, void, place)


def _chained(first: NDArray[Any], rest: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    yield first
    yield from rest


def _regrouped(rows: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """The same rows in parts of BLOCK, but for the last."""
    held: list[NDArray[Any]] = []
    for part in rows:
        held.append(part)
        while sum(map(len, held)) >= BLOCK:
            whole = np.concatenate(held)
            yield whole[:BLOCK]
            held = [whole[BLOCK:]]
    whole = np.concatenate(held)
    if len(whole):
        yield whole


def _write_tiff(
    target: Path,
    blocks: Iterator[NDArray[Any]],
    size: tuple[int, int],
    dtype: np.dtype[Any],
    void: int,
    place: Georeference | None,
) -> None:
    import tifffile

    def tiles() -> Iterator[NDArray[Any]]:
        for block in blocks:
            for left in range(0, size[1], BLOCK):
                part = block[:, left : left + BLOCK]
                tile = np.full((BLOCK, BLOCK), void, dtype)  # those of the last row and column are filled up
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile

    tags = [(GDAL_NODATA, 2, 0, str(void), True)]  # 2: text
    tags += [(*tag, True) for tag in (place.tags if place is not None else ())]
    big = size[0] * size[1] * dtype.itemsize >= BIG
    with target.open("wb") as file, tifffile.TiffWriter(file, bigtiff=big) as writer:
        writer.write(
            tiles(),
            shape=size,
            dtype=dtype,
            tile=(BLOCK, BLOCK),
            photometric="minisblack",
            compression="zlib",
            metadata=None,
            software="pansight",
            extratags=tags,
            maxworkers=1,
        )


def _write_zarr(
    target: Path,
    blocks: Iterator[NDArray[Any]],
    size: tuple[int, int],
    dtype: np.dtype[Any],
    void: int,
    place: Georeference | None,
) -> None:
    import zarr

    attributes: dict[str, Any] = {"nodata": void}
    if place is not None:
        attributes |= {"transform": list(place.transform), "crs": place.crs}
    array: Any = zarr.create_array(
        str(target),
        shape=size,
        chunks=(BLOCK, BLOCK),
        dtype=dtype,
        fill_value=void,
        dimension_names=["y", "x"],
        attributes=attributes,
    )
    top = 0
    for block in blocks:
        array[top : top + len(block)] = block
        top += len(block)
