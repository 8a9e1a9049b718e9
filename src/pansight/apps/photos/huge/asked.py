"""What is asked of the prediction of a huge image, checked before any tile is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pansight.apps.photos import Wanted
from pansight.data.formats.rasters import Colours, Raster, Stretch, colours_of
from pansight.data.formats.rasters.contract import missing_package
from pansight.data.formats.rasters.writing import check_packages
from pansight.engine.infer import ClassScorer, GivenProposals
from pansight.engine.predict import Predictor
from pansight.errors import PansightError
from pansight.ops.tiling.maps import MapStitcher, void_of
from pansight.ops.tiling.objects import ObjectStitcher
from pansight.ops.tiling.scores import ScoreStitcher
from pansight.ops.tiling.stitchers import Grid, Photo, Stitcher
from pansight.ops.tiling.stitching import tile_spans
from pansight.types import Instances, LabelSpace, Prediction

CELL = 32
"""Pixels below one cell of the coarsest map of most networks."""
OVERLAP = 128
"""Of tiles that are large enough, in pixels."""
MAPS, OBJECTS = (".tif", ".tiff", ".zarr"), "instances"
"""Suffixes of maps; the kind of result that none of them can hold, since objects may overlap."""
LISTS = (".json", ".geojson")
"""Suffixes of objects."""


class Tiling(NamedTuple):
    """How an image is cut, seen and joined.

    tile: side in pixels. overlap: pixels that neighbours share at least; None: 128, or a quarter of a smaller tile.
    seam_iou: two halves of an object are one from this IoU on, counted in the pixels that both tiles see. bands: those
    seen as red, green and blue, from 1; (): the only three. stretch: "2,98", percentiles of each band that become 0 and
    255, or "0:3000", values; "": uint8 as it is. flip, scales: each tile is seen mirrored, too, and at these factors of
    its size, where the model can make one prediction of several views.
    """

    tile: int = 1024
    overlap: int | None = None
    seam_iou: float = 0.25
    bands: tuple[int, ...] = ()
    stretch: str = ""
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)


class Asked(NamedTuple):
    """target: the file to be written. facts: whatever the result depends on, as plain JSON."""

    kind: str  # "panoptic", "semantic" or "instances"
    target: Path
    table: Path | None
    grid: Grid
    colours: Colours
    stitcher: Stitcher
    labels: LabelSpace
    void: int
    facts: Mapping[str, Any]


def ask(predictor: Predictor, raster: Raster, out: Path, tiling: Tiling, options: dict[str, Any]) -> Asked:
    """Raises PansightError, in one line, for anything that cannot be."""
    least, align = tile_limits(predictor, tiling.tile)
    overlap = min(OVERLAP, tiling.tile // 4) if tiling.overlap is None else tiling.overlap
    tiling = tiling._replace(overlap=overlap)
    _check_numbers(tiling, overlap, least, predictor.name)
    colours = colours_of(raster, tiling.bands, Stretch.parsed(tiling.stretch) if tiling.stretch else None)
    if isinstance(predictor.model, GivenProposals) and predictor.model.needs_proposals:
        expected = "a model that finds regions by itself, since those of a file belong to whole photos"
        raise PansightError(where="--tile", expected=expected, found=predictor.name)
    wanted = Wanted.of(predictor, options, None)
    if tiling.flip or tiling.scales != (1.0,):
        predictor = predictor.with_views(tiling.flip, tiling.scales, **wanted.options)
    kind = _kind_of(wanted.narrowed(predictor.predict(np.zeros((least, least, 3), np.uint8), **wanted.options)))
    target = _target_of(out, raster.path, kind)
    align = align if tiling.tile - overlap >= align else 1
    ys, xs = (tile_spans(length, tiling.tile, overlap, align) for length in raster.size)
    grid = Grid(raster.size, ys, xs)
    facts = _facts(predictor, raster, tiling, colours, kind, wanted)
    return Asked(
        kind,
        target,
        None if kind == OBJECTS else target.with_suffix(".parquet"),
        grid,
        colours,
        _stitcher_of(predictor, wanted, kind, grid, tiling),
        predictor.labels,
        0 if kind == OBJECTS else void_of(predictor.labels, kind == "panoptic"),
        facts,
    )


def tile_limits(predictor: Predictor, tile: int) -> tuple[int, int]:
    """(the smallest side of a tile, the multiples at which tiles begin) for a model, in pixels.

    A tile shows at least one cell of the network's coarsest map. Where tiles are not resized, all begin at multiples of
    that cell, so that the network sees the same grid in every tile, as it would in the whole image.
    """
    rule = predictor.model.input.resize
    cell = max(CELL, rule.divisor)
    return cell, cell if rule.target(tile, tile) == (tile, tile) else 1


def _check_numbers(tiling: Tiling, overlap: int, least: int, model: str) -> None:
    if tiling.tile < least:
        raise PansightError(where="--tile", expected=f"at least {least} pixels for {model}", found=tiling.tile)
    if not 0 <= overlap <= tiling.tile // 2:
        expected = f"0 … {tiling.tile // 2} pixels, half of a tile"
        raise PansightError(where="--overlap", expected=expected, found=overlap)
    if not 0 < tiling.seam_iou <= 1:
        raise PansightError(where="--seam-iou", expected="above 0, at most 1", found=f"{tiling.seam_iou:g}")
    if not tiling.scales or not all(0.1 <= scale <= 10 for scale in tiling.scales):
        found = ", ".join(f"{scale:g}" for scale in tiling.scales) or "none"
        raise PansightError(where="--scales", expected="factors of 0.1 … 10", found=found)


def _kind_of(prediction: Prediction) -> str:
    if prediction.panoptic is not None:
        return "panoptic"
    return OBJECTS if prediction.semantic is None else "semantic"


def _target_of(out: Path, image: Path, kind: str) -> Path:
    """The file that is written. Raises PansightError where its suffix does not fit, or a package is missing."""
    suffixes = LISTS if kind == OBJECTS else MAPS
    suffix = out.suffix.lower()
    if suffix in (*MAPS, *LISTS):
        if suffix not in suffixes:
            what = "objects, which may overlap" if kind == OBJECTS else f"a {kind} map"
            expected = f"a name that ends in {' or '.join(suffixes)} for {what}"
            raise PansightError(where=out, expected=expected, found=suffix)
        target = out
    else:
        target = out / f"{image.stem}{suffixes[0]}"
    if kind != OBJECTS:
        check_packages(target)
    package = {".geojson": "rasterio", ".json": ""}.get(suffix, "" if kind == OBJECTS else "pyarrow")
    if package and find_spec(package) is None:
        raise missing_package(target, package)
    if target.resolve() == image.resolve():
        raise PansightError(where=target, expected="another file than the image itself", found="the image")
    return target


def _stitcher_of(predictor: Predictor, wanted: Wanted, kind: str, grid: Grid, tiling: Tiling) -> Stitcher:
    def predict(photo: Photo) -> Prediction:
        return wanted.narrowed(predictor.predict(photo, **wanted.options))

    def objects(photo: Photo) -> Instances:
        found = predict(photo).instances
        assert found is not None
        return found

    def scores(photo: Photo) -> Tensor:
        return predictor.class_scores([photo])[0]

    if kind == "semantic" and isinstance(predictor.model, ClassScorer):
        return ScoreStitcher(scores, predictor.labels, grid)
    if kind == OBJECTS:
        return ObjectStitcher(objects, predictor.labels, grid, tiling.seam_iou)
    return MapStitcher(predict, predictor.labels, grid, tiling.seam_iou, kind == "panoptic")


def _facts(
    predictor: Predictor, raster: Raster, tiling: Tiling, colours: Colours, kind: str, wanted: Wanted
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, tensor in predictor.model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "image": str(raster.path.resolve()),
        "changed": raster.path.stat().st_mtime_ns,
        "size": list(raster.size),
        "model": predictor.name,
        "weights": digest.hexdigest()[:16],
        "tile": tiling.tile,
        "overlap": tiling.overlap,
        "seam_iou": tiling.seam_iou,
        "bands": list(colours.bands),
        "limits": [list(each) for each in colours.limits],
        "flip": tiling.flip,
        "scales": list(tiling.scales),
        "kind": kind,
        "options": {**wanted.options, "least": wanted.least},
    }
