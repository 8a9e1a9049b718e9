"""What all readers of rasters share: their type, a place on the earth, and the error of a missing package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError


class Georeference(NamedTuple):
    """Where an image lies on the earth.

    transform: (a, b, c, d, e, f): x = a·column + b·row + c and y = d·column + e·row + f of a pixel's upper left corner.
    crs: the coordinate system as WKT, "" where unknown. tags: the GeoTIFF tags as (code, type, count, value).
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str = ""
    tags: tuple[tuple[int, int, int, Any], ...] = ()


class Raster(Protocol):
    """An image that is read by windows. Bands are numbered from 1."""

    path: Path
    size: tuple[int, int]
    """(H, W) in pixels."""
    bands: int
    dtype: np.dtype[Any]
    alpha: int
    """The band that says how opaque a pixel is; 0: none does."""
    place: Georeference | None

    def read(
        self, top: int, left: int, height: int, width: int, bands: tuple[int, ...]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels (height, width, B) of the bands in the raster's own type, and which of them hold a value, bool
        (height, width): neither the raster's nodata value nor wholly transparent. The window lies inside the image.
        Raises PansightError where the file is damaged there.
        """
        ...

    def sample(self, bands: tuple[int, ...], side: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """As `read`, of the whole image made smaller: at most about `side` pixels along each axis, none of them mixed
        from several."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def is_installed(package: str) -> bool:
    return find_spec(package) is not None


def missing_package(path: object, package: str) -> PansightError:
    """The error of a file that cannot be read or written without a package of the extra `huge`."""
    return PansightError(
        where=path, expected=f"{package} to be installed", found="none", hint="install the extra pansight[huge]"
    )


def damaged(path: object, reason: object) -> PansightError:
    """The error of a file whose pixels cannot be read."""
    text = " ".join(f"{reason}".split()) or "an error of the decoder"
    return PansightError(where=path, expected="a whole image", reason=text)


def palette_error(path: object) -> PansightError:
    """The error of an image whose values are numbers of colours in a table, which are no grey."""
    hint = "write the colours themselves: gdal_translate -expand rgb"
    return PansightError(where=path, expected="bands of colours", found="a table of colours", hint=hint)
