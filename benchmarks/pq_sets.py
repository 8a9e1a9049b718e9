"""Generated pairs of truth and prediction, COCO panoptic JSON and PNG on both sides, for the benchmarks of figures.

`coco`: 500 pairs of 640x480 with about 12 segments; `city`: 40 pairs of 2048×1024 with about 40. 133 classes (80 of
them things), a tenth of the segments void in the truth, a twentieth crowds; predictions are shifted by up to 6 pixels,
and 15 % of their segments have another class. PNGs are written by Pillow with its defaults, as most tools do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SETS = {"coco": (500, 480, 640, 12), "city": (40, 1024, 2048, 40)}
CLASSES, THINGS = 133, 80


def blobs(rng: np.random.Generator, height: int, width: int, count: int) -> NDArray[np.int32]:
    """Cells around random points with wavy outlines, 1 … count."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for axis in (y, x):
        coarse = rng.standard_normal((max(3, height // 40), max(3, width // 40))).astype(np.float32)
        axis += 12 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    nearest = np.full((height, width), np.inf, np.float32)
    cells = np.zeros((height, width), np.int32)
    for number, (row, column) in enumerate(rng.random((count, 2)) * (height, width), 1):
        distance = (y - row) ** 2 + (x - column) ** 2 * rng.uniform(0.5, 2)
        closer = distance < nearest
        nearest[closer], cells[closer] = distance[closer], number
    return cells


def write_set(name: str, folder: Path) -> Path:
    """folder/NAME with gt.json, gt/, pred.json, pred/; an existing one is kept."""
    count, height, width, segments = SETS[name]
    target = folder / name
    if (target / "pred.json").exists():
        return target
    rng = np.random.default_rng(0)
    sides: dict[str, dict[str, Any]] = {}
    categories = [
        {"id": c + 1, "name": f"c{c}", "isthing": int(c < THINGS), "color": [c, c, c]} for c in range(CLASSES)
    ]
    for side in ("gt", "pred"):
        (target / side).mkdir(parents=True, exist_ok=True)
        sides[side] = {"images": [], "annotations": [], "categories": categories}
    for number in range(count):
        cells = blobs(rng, height, width, segments)
        classes = rng.integers(1, CLASSES + 1, segments + 1)
        void = rng.random(segments + 1) < 0.1
        crowd = (rng.random(segments + 1) < 0.05) & (classes <= THINGS)
        ids = rng.choice(2**24 - 1, (2, segments + 1), replace=False).astype(np.int64) + 1
        shift = np.array([[1, 0, rng.uniform(-6, 6)], [0, 1, rng.uniform(-6, 6)]], np.float32)
        moved = cv2.warpAffine(
            cells.astype(np.float32), shift, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
        ).astype(np.int32)
        mistaken = np.where(rng.random(segments + 1) < 0.15, rng.integers(1, CLASSES + 1, segments + 1), classes)
        truth_ids = np.where(void, 0, ids[0])
        _add(sides["gt"], target / "gt", number, truth_ids[cells], truth_ids, classes, crowd)
        _add(sides["pred"], target / "pred", number, ids[1][moved], ids[1], mistaken, np.zeros(segments + 1, bool))
    for side, content in sides.items():
        (target / f"{side}.json").write_text(json.dumps(content))
    return target


def _add(content: dict[str, Any], folder: Path, number: int, ids: Any, table: Any, classes: Any, crowd: Any) -> None:
    name = f"{number:06d}.png"
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(folder / name)
    row_of = {int(value): row for row, value in enumerate(table)}
    segments = [
        {
            "id": i,
            "category_id": int(classes[row_of[i]]),
            "area": area,
            "bbox": [0, 0, 1, 1],
            "iscrowd": int(crowd[row_of[i]]),
        }
        for i, area in zip(*(each.tolist() for each in np.unique(ids, return_counts=True)))
        if i
    ]
    height, width = ids.shape
    content["images"].append({"id": number, "file_name": f"{number:06d}.jpg", "height": height, "width": width})
    content["annotations"].append({"image_id": number, "file_name": name, "segments_info": segments})


def repeat_set(source: Path, target: Path, times: int) -> Path:
    """The images of a set `times` over under new ids; PNGs are links, so that it takes no space."""
    for side in ("gt", "pred"):
        content = json.loads((source / f"{side}.json").read_text())
        folder = target / side
        folder.mkdir(parents=True, exist_ok=True)
        annotations, images = [], []
        for turn in range(times):
            for image, row in zip(content["images"], content["annotations"]):
                number = turn * len(content["images"]) + row["image_id"]
                link = folder / f"{number:06d}.png"
                if not link.exists():
                    link.symlink_to((source / side / row["file_name"]).resolve())
                annotations.append({**row, "image_id": number, "file_name": link.name})
                images.append({**image, "id": number})
        record = {**content, "images": images, "annotations": annotations}
        (target / f"{side}.json").write_text(json.dumps(record))
    return target
