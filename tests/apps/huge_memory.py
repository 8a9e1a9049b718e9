"""Prints the peak memory in MiB of predicting a low image in tiles, and then one that is eight times as high.

The peak of a process never falls, so that the second figure is larger only if the larger image takes more memory. Run
by test_huge_memory.py, since the peak belongs to a whole process.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from huge_scenes import LABELS, Oracle, scene

from pansight.apps.photos.huge import Tiling, predict_huge
from pansight.data.formats.rasters import gdal
from pansight.engine.predict import PhotoPrediction
from pansight.types import PanopticSegmentation, Segment

WIDTH, LOW, HIGH = 2048, 1024, 8192


class Bright(Oracle):
    """One object a tile, the bright pixels, so that nearly no time is spent on predicting."""

    def predict(self, image: Any, proposals: Any = None, **options: Any) -> PhotoPrediction:
        ids = torch.from_numpy((image[..., 0] > 150).astype(np.int32))
        segments = (Segment(1, 0),) if ids.any() else ()
        return PhotoPrediction(PanopticSegmentation(ids, segments), photo=image, labels=LABELS)


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def write_image(path: Path, height: int) -> None:
    tile = scene(512, 512)
    tiles = (tile for _ in range(height // 512 * (WIDTH // 512)))
    tifffile.imwrite(path, tiles, shape=(height, WIDTH, 3), dtype=np.uint8, tile=(512, 512), compression="zlib")


gdal.CACHE = 8  # MiB, which even the low image fills
folder = Path(sys.argv[1])
for height in (LOW, HIGH):
    write_image(folder / "image.tif", height)
    predict_huge(Bright(), folder / "image.tif", folder / "map.tif", Tiling(256, 32), overwrite=True)
    print(peak_mib())
