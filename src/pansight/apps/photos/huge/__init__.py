"""``pansight predict --tile``: one image of any size, predicted in tiles that are joined to one map.

The image is read tile by tile and the result is written block by block, so that memory depends on the width of a row of
tiles and not on the size of the image. Rows that are done are kept on disk (``unfinished.py``), and a second pass gives
every segment the id that it has in the whole image.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pansight.apps.photos.huge.asked import OBJECTS, Asked, Tiling, ask
from pansight.apps.photos.huge.tables import write_coco, write_geojson, write_segments
from pansight.apps.photos.huge.unfinished import Unfinished
from pansight.data.formats.rasters import Colours, Raster, open_raster
from pansight.data.formats.rasters.writing import write_map
from pansight.engine.predict import Predictor, load
from pansight.engine.progress import ProgressBar, Stop, stop_signal
from pansight.errors import Interrupted, PansightError
from pansight.files import replacing
from pansight.ops.tiling.maps import joined_map
from pansight.ops.tiling.objects import joined_objects
from pansight.ops.tiling.stitchers import Grid, Rows, Stitcher
from pansight.ops.tiling.stitching import Pieces, Tile

__all__ = ["HugeResult", "Tiling", "predict_huge", "result_lines"]


class HugeResult(NamedTuple):
    """What was written. table: the segments in Parquet; None of objects, whose file is a table itself.

    was_finished: the file stood there already when the prediction was to be resumed; classes are not counted then.
    """

    file: Path
    table: Path | None
    size: tuple[int, int]  # (H, W) in pixels
    tiles: int
    classes: Counter[str]  # how many segments each class has
    seconds: float
    colours: Colours
    was_finished: bool = False


def predict_huge(
    weights: str | Path | Predictor,
    image: str | Path,
    out: str | Path = "predictions",
    tiling: Tiling = Tiling(),  # noqa: B008 (immutable)
    decode_options: dict[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> HugeResult:
    """Predict an image of any size in tiles and write what was found.

    image: what `data.formats.rasters.open_raster` reads. out: a file, whose suffix says its kind: .tif or .zarr for
    maps, .json (COCO) or .geojson for objects; or a folder, in which the file is named after the image. A map of
    segments has ids from 1, uint32, 0 = void; one of classes the data set's own category ids. Its table of segments,
    NAME.parquet, lies beside it. decode_options: as of ``apps.photos.predict``.
    Rows of tiles that are done stand in ``NAME.unfinished`` until the end; resume goes on with them, to the same result
    as in one go, and leaves a result that is finished as it is. A tile without any pixel that has a value is not
    predicted.
    Raises PansightError for files, options and models that do not fit, and where the disk is full; Interrupted after
    Ctrl-C or SIGTERM. In both cases nothing appears under the name of the result.
    """
    with open_raster(image) as raster:
        predictor = weights if isinstance(weights, Predictor) else load(weights)
        asked = ask(predictor, raster, Path(out), tiling, dict(decode_options or {}))
        state = Unfinished(asked.target)
        tiles, start = len(asked.grid.ys) * len(asked.grid.xs), time.monotonic()
        standing = [path for path in (asked.target, asked.table) if path is not None and path.exists()]
        if standing and not state.folder.exists() and not overwrite:
            if resume and asked.target in standing:
                return HugeResult(asked.target, asked.table, raster.size, tiles, Counter(), 0.0, asked.colours, True)
            hint = "add --overwrite to replace it"
            raise PansightError(where=standing[0], expected="no prediction yet", found="one", hint=hint)
        done = state.begin(asked.facts, resume, overwrite)
        with stop_signal("tile") as stop, ProgressBar("predict") as bar:
            try:
                _predict_rows(asked, raster, state, done, stop, bar)
                segments = _write(asked, raster, state.rows(len(asked.grid.ys)), stop, bar)
            except PansightError as error:
                if error.code == "cannot_write":
                    told = f"the rows of tiles that are done are kept in {state.folder}; go on with --resume"
                    raise PansightError(
                        error.message, where=error.where, reason=error.reason, hint=told, code=error.code
                    ) from error
                raise
    state.remove()
    classes = Counter(asked.labels[category].name for category in segments.category.tolist())
    seconds = time.monotonic() - start
    return HugeResult(asked.target, asked.table, raster.size, tiles, classes, seconds, asked.colours)


def _predict_rows(asked: Asked, raster: Raster, state: Unfinished, done: int, stop: Stop, bar: ProgressBar) -> None:
    """Predict the rows of tiles after the first `done`, and keep each of them."""
    grid, stitcher = asked.grid, asked.stitcher
    number = sum(len(state.load(row, ["area"])["area"]) for row in range(done))
    pace = _Pace(grid, done, bar)
    for row in range(done, len(grid.ys)):
        stitcher.begin_row(number)
        for column in range(len(grid.xs)):
            if stop.is_set():
                raise _interrupted(stop, row, len(grid.ys))
            tile = grid.tile(row, column)
            _predict_tile(asked.colours, raster, stitcher, tile, state)
            pace.after(tile)
        arrays = stitcher.end_row()
        number += len(arrays["area"])
        state.save(row, arrays)


def _predict_tile(colours: Colours, raster: Raster, stitcher: Stitcher, tile: Tile, state: Unfinished) -> None:
    photo, valid = colours.read(raster, tile.y.start, tile.x.start, *tile.size)
    below = stitcher.add(tile, photo if valid.any() else None, valid, state.above(tile.row, tile.column))
    state.leave(tile.row, tile.column, below)


def _interrupted(stop: Stop, done: int, total: int) -> Interrupted:
    text = f"interrupted after {done} of {total} rows of tiles, which are kept; go on with --resume"
    return Interrupted(text, stop.number)


class _Pace:
    """Shows how many tiles are done and how many million pixels a second."""

    def __init__(self, grid: Grid, done: int, bar: ProgressBar):
        self.bar, self.total = bar, len(grid.ys) * len(grid.xs)
        self.tiles, self.pixels, self.start = done * len(grid.xs), 0, time.monotonic()

    def after(self, tile: Tile) -> None:
        self.tiles += 1
        self.pixels += (tile.y.own_stop - tile.y.own_start) * (tile.x.own_stop - tile.x.own_start)
        rate = self.pixels / 1e6 / max(1e-9, time.monotonic() - self.start)
        self.bar.update(self.tiles / self.total, f"tile {self.tiles}/{self.total}, {rate:.2f} Mpixel/s")


def _write(asked: Asked, raster: Raster, rows: Rows, stop: Stop, bar: ProgressBar) -> Pieces:
    """Write the result from all rows of tiles; returns the table of what was found."""

    def load(row: int, names: Sequence[str]) -> Any:
        if stop.is_set():
            raise _interrupted(stop, rows.length, rows.length)
        bar.update((row + 1) / rows.length, f"writing, row of tiles {row + 1}/{rows.length}")
        return rows.load(row, names)

    paced, labels = Rows(rows.length, load), asked.labels
    with replacing(asked.target) as path:
        if asked.kind == OBJECTS:
            segments, objects = joined_objects(paced, labels)
            if asked.target.suffix.lower() == ".geojson":
                write_geojson(path, objects, raster.place, labels)
            else:
                write_coco(path, objects, raster.size, raster.path.name, labels)
            return segments
        assert asked.table is not None
        segments, ids, parts = joined_map(paced, labels, asked.kind == "panoptic", asked.void)
        with replacing(asked.table) as table:
            write_segments(table, segments, ids, labels, scored=asked.kind == "panoptic")
            zarr = asked.target.suffix.lower() == ".zarr"
            write_map(path, parts, raster.size, asked.void, raster.place, zarr)
    return segments


def result_lines(result: HugeResult) -> str:
    """What the command prints of an image."""
    if result.was_finished:
        return f"{result.file}: finished before; --overwrite predicts it anew"
    height, width = result.size
    rate = height * width / 1e6 / max(1e-9, result.seconds)
    count = sum(result.classes.values())
    classes = ", ".join(f"{n} {name}" for name, n in result.classes.most_common())
    lines = [f"{result.file}: {width}×{height}, {result.tiles} tiles, {result.seconds:.1f} s, {rate:.2f} Mpixel/s"]
    lines.append(f"segments   {count}" + (f": {classes}" if classes else ""))
    if result.table is not None:
        lines.append(f"table      {result.table}")
    if result.colours.limits:
        limits = ", ".join(f"{low:g} … {high:g}" for low, high in result.colours.limits)
        bands = ",".join(map(str, result.colours.bands))
        lines.append(f"stretched  bands {bands} from {limits} to 0 … 255")
    return "\n".join(lines)
