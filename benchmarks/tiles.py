"""Images in tiles: what the seams cost, and speed and memory against the size of the image → results/tiles.json.

Seams: mosaics of nuclei (dsb2018, val) that are small enough to be predicted whole. The stitched map is scored against
the untiled one, over all nuclei and over those at the seams alone, and both against the annotation. The limits of
proposals and detections are raised, so that neither is cut to the number of objects that a photo has.

Sizes: the same nuclei repeated over images of 2,000 … 20,000 pixels a side, each in a process of its own.

    python benchmarks/tiles.py seams --weights RUN
    python benchmarks/tiles.py sizes --weights RUN --sides 2000 5000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import tifffile
import torch

from common import DATA, merge_rows, peak_resident_mib
from pansight.apps.photos.huge import Tiling, predict_huge
from pansight.apps.photos.huge.asked import tile_limits
from pansight.data import open_dataset
from pansight.data.images import write_png
from pansight.engine.predict import PhotoPrediction, Predictor, load
from pansight.metrics.panoptic.quality import PanopticQuality
from pansight.models import build
from pansight.ops.maps.overlap import overlaps_of
from pansight.ops.tiling.stitching import tile_spans
from pansight.types import PanopticSegmentation, Prediction, Sample, Segment

CELL = 256
"""Side of the crops that mosaics are made of, in pixels."""
SIDE, OVERLAP, SEAM_IOU = 1024, 128, Tiling().seam_iou
TILINGS = [
    Tiling(tile, overlap, SEAM_IOU)
    for tile, overlaps in ((512, (0, 64, 128)), (256, (0, 32, 64, 128)))
    for overlap in overlaps
]
TILINGS += [Tiling(256, 32, iou) for iou in (0.05, 0.1, 0.5, 0.75, 0.9)]
KEY = ("what", "model", "side", "tile", "overlap", "seam_iou")
NAME = "tiles"


class Remembering(Predictor):
    """Predicts each tile once, however often it is stitched by another rule."""

    def __init__(self, model: Any, name: str, options: dict[str, Any]):
        super().__init__(model, name, options, "cpu")
        self._known: dict[bytes, PhotoPrediction] = {}

    def predict(self, image: Any, proposals: Any = None, **options: Any) -> PhotoPrediction:
        key = image.tobytes()
        if key not in self._known:
            self._known[key] = super().predict(image, proposals, **options)
        return self._known[key]

    def forget(self) -> None:
        self._known.clear()


def without_limits(weights: Path) -> Remembering:
    """The trained model, with ten times as many proposals and detections where it has such limits."""
    loaded = load(weights, "cpu")
    raised = {name: 10 * loaded.options[name] for name in ("proposals", "detections") if name in loaded.options}
    options = loaded.options | raised
    model = build(loaded.name, loaded.labels, **(options | {"pretrained": "none"}))
    model.load_state_dict(loaded.model.state_dict())
    return Remembering(model, loaded.name, options)


def mosaic(data: Any, side: int, seed: int) -> tuple[np.ndarray, PanopticSegmentation]:
    """RGB uint8 (side, side, 3) of random crops, and its annotation."""
    rng = np.random.default_rng(seed)
    photo, ids = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.int32)
    background, count = 1, 1
    for top in range(0, side, CELL):
        for left in range(0, side, CELL):
            sample = data[int(rng.integers(len(data)))]
            height, width = sample.size
            y, x = int(rng.integers(height - CELL + 1)), int(rng.integers(width - CELL + 1))
            photo[top : top + CELL, left : left + CELL] = sample.image[:, y : y + CELL, x : x + CELL].permute(1, 2, 0)
            crop = sample.truth.ids[y : y + CELL, x : x + CELL].numpy()
            things = [s.id for s in sample.truth.segments if data.labels[s.category].is_thing]
            for number in np.intersect1d(things, crop).tolist():
                count += 1
                ids[top : top + CELL, left : left + CELL][crop == number] = count
    ids[ids == 0] = background
    nucleus, rest = data.labels.things[0].id, data.labels.stuff[0].id
    segments = [Segment(background, rest), *(Segment(n, nucleus) for n in range(2, count + 1))]
    return photo, PanopticSegmentation(torch.from_numpy(ids), tuple(segments))


def quality(data: Any, found: PanopticSegmentation, reference: PanopticSegmentation) -> dict[str, float]:
    """PQ of all classes and of nuclei, in percent."""
    metric = PanopticQuality(data.labels)
    sample = Sample(torch.zeros(3, 1, 1, dtype=torch.uint8), reference, 1, found.size)
    metric.update(Prediction(found), sample)
    record = metric.compute()
    nucleus = next(row for row in record["per_class"].values() if row["name"] == data.labels.things[0].name)
    return {"pq": 100 * record["All"]["pq"], "pq_nucleus": 100 * nucleus["pq"]}


def quality_by_place(
    found: np.ndarray, reference: np.ndarray, seams: list[int]
) -> dict[str, tuple[float, int, int, int]]:
    """Of objects that lie on a seam and of all others: (sum of IoU, matched, only found, only in the reference)."""
    overlaps = overlaps_of(found, reference)
    areas = [dict(zip(*(each.tolist() for each in np.unique(ids, return_counts=True)))) for ids in (found, reference)]
    pairs: dict[int, tuple[int, float]] = {}
    for a, b, pixels in zip(*(column.tolist() for column in overlaps)):
        iou = pixels / (areas[0][a] + areas[1][b] - pixels)
        if a and b and iou > 0.5:
            pairs[b] = (a, iou)
    at = [_on_lines(ids, seams) for ids in (found, reference)]
    result: dict[str, tuple[float, int, int, int]] = {}
    for place in ("seams", "inside"):
        wanted = [{n for n in areas[side] if n and (n in at[side]) == (place == "seams")} for side in (0, 1)]
        matched = [pair for b, pair in pairs.items() if b in wanted[1]]
        alone = len([a for a in wanted[0] if a not in {pair[0] for pair in pairs.values()}])
        result[place] = (sum(iou for _, iou in matched), len(matched), alone, len(wanted[1]) - len(matched))
    return result


def _on_lines(ids: np.ndarray, seams: list[int]) -> set[int]:
    """The objects with a pixel beside a line between two tiles."""
    rows = [ids[n - 1 : n + 1].ravel() for n in seams] + [ids[:, n - 1 : n + 1].ravel() for n in seams]
    return set(np.unique(np.concatenate(rows)).tolist()) if rows else set()


def stitched(predictor: Predictor, photo: np.ndarray, tiling: Tiling, folder: Path) -> PanopticSegmentation:
    write_png(folder / "mosaic.png", photo)
    result = predict_huge(predictor, folder / "mosaic.png", folder / "map.tif", tiling, overwrite=True)
    index = {category.source_id: category.id for category in predictor.labels}
    rows = pyarrow.parquet.read_table(result.table).to_pylist()
    segments = tuple(Segment(row["id"], index[row["category_id"]], row["score"]) for row in rows)
    return PanopticSegmentation(torch.from_numpy(tifffile.imread(result.file).astype(np.int32)), segments)


def things_alone(found: PanopticSegmentation, data: Any) -> np.ndarray:
    things = [segment.id for segment in found.segments if data.labels[segment.category].is_thing]
    ids = found.ids.numpy()
    return np.where(np.isin(ids, things), ids, 0)


def measure_seams(weights: Path, seeds: int) -> None:
    data: Any = open_dataset(DATA / "dsb2018", "auto", "val", thing="nucleus")
    predictor = without_limits(weights)
    sums: dict[Tiling, dict[str, Any]] = {}
    whole_scores: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            photo, truth = mosaic(data, SIDE, seed)
            whole = predictor.predict(photo).panoptic
            assert whole is not None
            whole_scores.append(quality(data, whole, truth))
            for tiling in TILINGS:
                found = stitched(predictor, photo, tiling, Path(folder))
                row = sums.setdefault(tiling, {"against": [], "truth": [], "seams": [], "inside": []})
                row["against"].append(quality(data, found, whole))
                row["truth"].append(quality(data, found, truth))
                things = (things_alone(each, data) for each in (found, whole))
                for place, counts in quality_by_place(*things, seams_of(predictor, tiling)).items():
                    row[place].append(counts)
            predictor.forget()
            print(f"mosaic {seed + 1}/{seeds}", flush=True)
    rows = [_seam_row(predictor.name, tiling, row, whole_scores) for tiling, row in sums.items()]
    for row in rows:
        print(row)
    what = f"{seeds} mosaics of {SIDE}×{SIDE} pixels from nuclei (dsb2018, val)"
    merge_rows(NAME, {"seams": what, **_other_facts("seams")}, rows, KEY)


def seams_of(predictor: Predictor, tiling: Tiling) -> list[int]:
    """The first row, or column, of each tile but the first, which are the same for both axes."""
    _, align = tile_limits(predictor, tiling.tile)
    assert tiling.overlap is not None
    return [span.own_start for span in tile_spans(SIDE, tiling.tile, tiling.overlap, align)[1:]]


def _seam_row(model: str, tiling: Tiling, row: dict[str, Any], whole_scores: list[dict[str, float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"what": "seams", "model": model, "side": SIDE, "tile": tiling.tile}
    figures |= {"overlap": tiling.overlap, "seam_iou": tiling.seam_iou}
    for name in ("pq", "pq_nucleus"):
        figures[f"{name}_against_untiled"] = float(np.mean([scores[name] for scores in row["against"]]))
        figures[f"{name}_least"] = float(min(scores[name] for scores in row["against"]))
        figures[f"{name}_of_tiles"] = float(np.mean([scores[name] for scores in row["truth"]]))
        figures[f"{name}_of_untiled"] = float(np.mean([scores[name] for scores in whole_scores]))
    for place in ("seams", "inside"):
        iou, matched, alone, missed = np.sum(row[place], axis=0).tolist()
        figures[f"pq_{place}"] = 100 * iou / max(1.0, matched + 0.5 * alone + 0.5 * missed)
        figures[f"objects_{place}"] = int(matched + missed)
    return figures


def _other_facts(but: str) -> dict[str, Any]:
    """The facts of the other part, which stays in the file."""
    from common import RESULTS

    path = RESULTS / f"{NAME}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    return {key: before[key] for key in ("seams", "sizes") if key in before and key != but}


# --- sizes -----------------------------------------------------------------------------------------------------------


def write_large(path: Path, side: int) -> None:
    """A tiled, compressed TIFF of `side` × `side` pixels: a mosaic of 2048 pixels, repeated."""
    data = open_dataset(DATA / "dsb2018", "auto", "val", thing="nucleus")
    base, _ = mosaic(data, 2048, 0)
    across = np.tile(base, (1, -(-side // 2048), 1))[:, :side]

    def tiles() -> Any:
        for top in range(0, side, 512):
            rows = across[np.arange(top, top + 512) % 2048]
            for left in range(0, side, 512):
                tile = np.zeros((512, 512, 3), np.uint8)
                part = rows[: side - top, left : left + 512]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile

    with tifffile.TiffWriter(path) as writer:
        options: dict[str, Any] = {"photometric": "rgb", "compression": "zlib", "compressionargs": {"level": 1}}
        writer.write(tiles(), shape=(side, side, 3), dtype=np.uint8, tile=(512, 512), **options)


def measure_one(weights: Path, side: int, image: Path, tile: int, task: str, scale: float) -> dict[str, Any]:
    predictor = load(weights, "cpu")
    loaded_mib, start, wall = peak_resident_mib(), time.process_time(), time.perf_counter()
    options = {"task": task} if task else {}
    tiling = Tiling(tile, OVERLAP, scales=(scale,))
    result = predict_huge(predictor, image, image.with_name("map.tif"), tiling, options)
    seconds = time.process_time() - start
    return {
        "what": "sizes",
        "model": predictor.name,
        "side": side,
        "tile": tile,
        "overlap": OVERLAP,
        "seam_iou": SEAM_IOU,
        "scale": scale,
        "tiles": result.tiles,
        "segments": sum(result.classes.values()),
        "seconds": seconds,
        "wall_seconds": time.perf_counter() - wall,
        "mpixels_per_second": side * side / 1e6 / seconds,
        "peak_mib": peak_resident_mib(),
        "loaded_mib": loaded_mib,
        "map_mib": result.file.stat().st_size / 2**20,
    }


def measure_sizes(weights: Path, sides: list[int], tile: int, task: str, scale: float) -> None:
    for side in sides:
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "large.tif"
            write_large(image, side)
            words = ["one", "--weights", str(weights), "--sides", str(side), "--tile", str(tile), "--task", task]
            words += ["--scale", str(scale)]
            command = [sys.executable, __file__, *words, "--image", str(image)]
            lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        row = json.loads(lines[-1])
        print(row, flush=True)
        facts = {"sizes": "a mosaic of nuclei (dsb2018, val), repeated; seconds of the processor, one thread"}
        facts |= _other_facts("sizes")
        merge_rows(NAME, facts, [row], KEY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("seams", "sizes", "one"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--sides", type=int, nargs="+", default=[2000, 5000, 10000, 20000])
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--task", default="", help="panoptic: objects from the classes of a semantic model")
    parser.add_argument("--scale", type=float, default=1.0, help="of what the network sees of a tile")
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    if args.what == "seams":
        measure_seams(args.weights, args.seeds)
    elif args.what == "sizes":
        measure_sizes(args.weights, args.sides, args.tile, args.task, args.scale)
    else:
        print(json.dumps(measure_one(args.weights, args.sides[0], args.image, args.tile, args.task, args.scale)))


if __name__ == "__main__":
    main()
