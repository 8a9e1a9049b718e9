"""Which bands of a raster a model sees as red, green and blue, and how their values become 0 … 255."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pansight.data.formats.rasters.contract import Raster
from pansight.errors import PansightError

SAMPLE = 1024
"""Pixels along each axis of the sample that percentiles are computed on."""


class Stretch(NamedTuple):
    """The values of a band that become 0 and 255, those between in proportion: percentiles, or values themselves."""

    low: float
    high: float
    percent: bool = True

    @classmethod
    def parsed(cls, text: str) -> Self:
        """ "2,98" are percentiles, "0:3000" values. Raises PansightError for anything else."""
        percent = "," in text
        try:
            low, high = (float(part) for part in text.split("," if percent else ":"))
        except ValueError:
            low, high = math.nan, math.nan
        if not (low < high and math.isfinite(high - low)) or (percent and not 0 <= low < high <= 100):
            expected = "two percentiles such as 2,98, or two values such as 0:3000"
            raise PansightError(where="--stretch", expected=expected, found=text)
        return cls(low, high, percent)


@dataclass(frozen=True)
class Colours:
    """How windows of a raster become RGB.

    bands: one, which is repeated, or three, in the order red, green, blue. limits: of each of them the values that
    become 0 and 255; (): uint8, taken as it is.
    """

    bands: tuple[int, ...]
    limits: tuple[tuple[float, float], ...] = ()

    def read(
        self, raster: Raster, top: int, left: int, height: int, width: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """RGB uint8 (height, width, 3), black where there is no value, and where there is one, bool (height, width)."""
        pixels, valid = raster.read(top, left, height, width, self.bands)
        if self.limits:
            low, high = np.array(self.limits, np.float32).T  # (B,) each
            valid = valid & np.isfinite(pixels).all(2)
            scaled = (np.where(valid[..., None], pixels, 0).astype(np.float32) - low) * (255 / (high - low))
            pixels = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
        pixels = np.where(valid[..., None], pixels, 0).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(pixels, (height, width, 3))), valid


def colours_of(raster: Raster, bands: tuple[int, ...] = (), stretch: Stretch | None = None) -> Colours:
    """bands: numbers from 1; (): the only three, or the only one, beside alpha.

    Raises PansightError where they are not told, for bands that there are not, and for values that are no uint8 and no
    stretch for them.
    """
    colours = tuple(band for band in range(1, raster.bands + 1) if band != raster.alpha)
    found = f"{raster.bands} of {raster.dtype}"
    if not bands and len(colours) not in (1, 3):
        hint = "name three of them, red first: --bands 4,3,2" + ("" if _is_plain(raster) else " --stretch 2,98")
        raise PansightError(where=raster.path, expected="3 bands of uint8", found=found, hint=hint)
    chosen = bands or colours
    if len(chosen) not in (1, 3) or not all(1 <= band <= raster.bands for band in chosen):
        expected = f"one or three bands, each 1 … {raster.bands}"
        raise PansightError(where="--bands", expected=expected, found=", ".join(map(str, chosen)))
    if stretch is None:
        if _is_plain(raster):
            return Colours(chosen)
        hint = "scale them to 0 … 255 by percentiles, --stretch 2,98, or by values, --stretch 0:3000"
        raise PansightError(where=raster.path, expected="3 bands of uint8", found=found, hint=hint)
    if not stretch.percent:
        return Colours(chosen, ((stretch.low, stretch.high),) * len(chosen))
    pixels, valid = raster.sample(chosen, SAMPLE)
    return Colours(chosen, tuple(_limits(pixels[..., n], valid, stretch) for n in range(len(chosen))))


def _is_plain(raster: Raster) -> bool:
    return raster.dtype == np.uint8


def _limits(band: NDArray[Any], valid: NDArray[np.bool_], stretch: Stretch) -> tuple[float, float]:
    """A band of one value everywhere becomes black."""
    values = band[valid & np.isfinite(band)].astype(np.float64)
    if not len(values):
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, [stretch.low, stretch.high]))
    return low, high if high > low else low + 1.0
