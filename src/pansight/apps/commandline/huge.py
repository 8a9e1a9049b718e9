"""The flags of ``pansight predict`` for images of any size. What the command needs is loaded when it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pansight.errors import PansightError
from pansight.files import listed


@dataclass(frozen=True)
class HugeSettings:
    """Images of any size, predicted in tiles (docs/huge.md)."""

    tile: int | None = None
    """Side of the tiles in pixels, such as 1024. Without it images are predicted whole."""
    overlap: int | None = None
    """Pixels that neighbouring tiles share at least. [default: 128, at most a quarter of a tile]"""
    seam_iou: float | None = None
    """Two halves of an object are one from this IoU on, in the pixels that both tiles see. [default: 0.25]"""
    bands: str | None = None
    """The bands seen as red, green and blue, from 1, such as 4,3,2. [default: the only three]"""
    stretch: str | None = None
    """What becomes 0 and 255: percentiles of each band such as 2,98, or values such as 0:3000."""
    flip: bool = False
    """Look at the mirrored tile too, where the model can join several views."""
    scales: str | None = None
    """Look at each tile at these factors of its size, such as 0.75,1,1.25, and join what is seen."""
    resume: bool = False
    """Go on with a prediction that was interrupted or killed."""


def check_unused(settings: HugeSettings) -> None:
    """Raises PansightError for a flag that says nothing without --tile."""
    given = [name for name, value in vars(settings).items() if value not in (None, False)]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise PansightError(where=flag, expected="--tile, the side of the tiles, such as 1024", found="none")


def check_whole_photos(given: Mapping[str, bool]) -> None:
    """Raises PansightError for a flag that says nothing of an image in tiles. given: flag → whether it is there."""
    for flag, is_given in given.items():
        if is_given:
            raise PansightError(where=flag, expected="photos that are predicted whole", found="--tile")


def predict_huge(
    weights: str,
    images: Sequence[str],
    out: Path,
    overwrite: bool,
    options: dict[str, Any],
    settings: HugeSettings,
) -> int:
    """The command with --tile."""
    from pansight.apps.photos import huge
    from pansight.data.formats.rasters import open_raster
    from pansight.engine.predict import load

    defaults = huge.Tiling()
    assert settings.tile is not None
    tiling = huge.Tiling(
        settings.tile,
        settings.overlap,
        defaults.seam_iou if settings.seam_iou is None else settings.seam_iou,
        tuple(_numbers("--bands", settings.bands, int)),
        settings.stretch or "",
        settings.flip,
        tuple(_numbers("--scales", settings.scales, float)) or defaults.scales,
    )
    if not images:
        raise PansightError(where="predict", expected="at least one image", found="none")
    if len(images) > 1 and out.suffix:
        raise PansightError(where="--out", expected="a folder for several images", found=out)
    for image in images:
        open_raster(Path(image)).close()  # before the model is loaded, which takes longer
    predictor = load(weights)
    for image in map(Path, images):
        print(huge.result_lines(huge.predict_huge(predictor, image, out, tiling, options, overwrite, settings.resume)))
    return 0


def _numbers(flag: str, text: str | None, kind: type[int] | type[float]) -> list[Any]:
    try:
        return [kind(part) for part in listed(text or "")]
    except ValueError:
        raise PansightError(where=flag, expected="numbers such as 4,3,2", found=text) from None
