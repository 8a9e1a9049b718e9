"""Generated pairs of truth and prediction, COCO panoptic JSON and PNG on both sides, for the benchmarks of figures.

`coco`: 500 pairs of 640x480 with about 12 segments; `city`: 40 pairs of 2048×1024 with about 40. 133 classes (80 of
them things), a tenth of the segments void in the truth, a twentieth crowds; predictions are shifted by up to 6 pixels,
and 15 % of their segments have another class. PNGs are written by Pillow with its defaults, as most tools do.

`hard`: 500 pairs of 640×480 whose PNGs are as large as those of COCO's own annotations, about 14 KiB: regions of stuff
with winding borders and ribbons of void between them, over them things with toothed outlines, 1 in 25 of them a crowd.
Predictions have other borders, leave void, lack one thing in seven and find some that are not there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SETS = {"coco": (500, 480, 640, 12), "city": (40, 1024, 2048, 40), "hard": (500, 480, 640, 12)}
"""Name → pairs, height, width, segments of an image (roughly)."""
CLASSES, THINGS = 133, 80

Map = NDArray[np.int32]


class Side(NamedTuple):
    """A map of ids and its table, a row for each segment; the row of id 0 stands for no segment."""

    ids: NDArray[np.int64]  # (H, W), 0 = void
    table: NDArray[np.int64]  # (S,), the id of each row
    classes: NDArray[np.int64]  # (S,), 1 … CLASSES, things first
    crowd: NDArray[np.bool_]  # (S,)


def write_set(name: str, folder: Path) -> Path:
    """folder/NAME with gt.json, gt/, pred.json, pred/; an existing one is kept."""
    count, height, width, segments = SETS[name]
    target = folder / name
    if (target / "pred.json").exists():
        return target
    rng = np.random.default_rng(0)
    categories = [
        {"id": c + 1, "name": f"c{c}", "isthing": int(c < THINGS), "color": [c, c, c]} for c in range(CLASSES)
    ]
    contents: dict[str, dict[str, Any]] = {}
    for side in ("gt", "pred"):
        (target / side).mkdir(parents=True, exist_ok=True)
        contents[side] = {"images": [], "annotations": [], "categories": categories}
    draw = regions_pair if name == "hard" else cells_pair
    for number in range(count):
        for side, drawn in zip(("gt", "pred"), draw(rng, height, width, segments), strict=True):
            _add(contents[side], target / side, number, drawn)
    for side, content in contents.items():
        (target / f"{side}.json").write_text(json.dumps(content))
    return target


def _add(content: dict[str, Any], folder: Path, number: int, side: Side) -> None:
    name, ids = f"{number:06d}.png", side.ids
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(folder / name)
    row_of = {int(value): row for row, value in enumerate(side.table)}
    segments = [
        {
            "id": i,
            "category_id": int(side.classes[row_of[i]]),
            "area": area,
            "bbox": [0, 0, 1, 1],
            "iscrowd": int(side.crowd[row_of[i]]),
        }
        for i, area in zip(*(each.tolist() for each in np.unique(ids, return_counts=True)))
        if i
    ]
    height, width = ids.shape
    content["images"].append({"id": number, "file_name": f"{number:06d}.jpg", "height": height, "width": width})
    content["annotations"].append({"image_id": number, "file_name": name, "segments_info": segments})


# --- cells: long smooth borders ---------------------------------------------------------------------------------------


def blobs(rng: np.random.Generator, height: int, width: int, count: int) -> Map:
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


def cells_pair(rng: np.random.Generator, height: int, width: int, segments: int) -> tuple[Side, Side]:
    """Truth and prediction: the same cells, shifted."""
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
    return (
        Side(truth_ids[cells], truth_ids, classes, crowd),
        Side(ids[1][moved], ids[1], mistaken, np.zeros(segments + 1, bool)),
    )


# --- regions: as hard to pack as COCO's own ---------------------------------------------------------------------------


class Outline(NamedTuple):
    """A closed curve around a point: a circle with five soft waves and 23 teeth, stretched along x. Pixels."""

    x: float
    y: float
    radius: float
    phase: float
    wave: float  # share of the radius
    stretch: float

    def paint(self, canvas: Map, number: int) -> None:
        angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        teeth = 0.07 * np.sin(23 * angle + 2 * self.phase)
        radius = self.radius * (1 + self.wave * np.sin(5 * angle + self.phase) + teeth)
        corners = [self.x + self.stretch * radius * np.cos(angle), self.y + radius * np.sin(angle)]
        cv2.fillPoly(canvas, [np.stack(corners, 1).astype(np.int32)], number)


def regions_pair(rng: np.random.Generator, height: int, width: int, segments: int) -> tuple[Side, Side]:
    """Truth and prediction: about 5 regions of stuff with `segments` − 5 things over them."""
    n_stuff, n_things = int(rng.integers(3, 8)), segments - 5 + int(rng.integers(-3, 4))
    fields = _fields(rng, n_stuff, height, width)
    truth = fields.argmax(0).astype(np.int32) + 1
    highest = np.partition(fields, -2, axis=0)[-2:]
    truth[highest[1] - highest[0] < 0.03] = 0  # ribbons of void between the regions
    found = (fields + 0.35 * _fields(rng, n_stuff, height, width)).argmax(0).astype(np.int32) + 1
    if rng.random() < 0.5:
        found[: height // 12, width // 2 :] = 0
    stuff = THINGS + 1 + rng.choice(CLASSES - THINGS, n_stuff, replace=False)
    true_classes, found_classes = [0, *stuff.tolist()], [0, *stuff.tolist()]
    if rng.random() < 0.5:  # one region of another class, which no other region has
        left = np.setdiff1d(np.arange(THINGS + 1, CLASSES + 1), stuff)
        found_classes[1] = int(rng.choice(left))
    crowd = [False] * len(true_classes)
    for _ in range(n_things):
        thing = _outline(rng, height, width)
        true_classes.append(int(rng.integers(1, THINGS + 1)))
        crowd.append(bool(rng.random() < 0.04))
        thing.paint(truth, len(true_classes) - 1)
        if rng.random() < 0.85:
            found_classes.append(true_classes[-1] if rng.random() < 0.9 else int(rng.integers(1, THINGS + 1)))
            _moved(rng, thing).paint(found, len(found_classes) - 1)
    for _ in range(int(rng.integers(0, 3))):
        found_classes.append(int(rng.integers(1, THINGS + 1)))
        _outline(rng, height, width).paint(found, len(found_classes) - 1)
    crowds = np.array(crowd), np.zeros(len(found_classes), bool)
    return _side(rng, truth, true_classes, crowds[0]), _side(rng, found, found_classes, crowds[1])


def _fields(rng: np.random.Generator, count: int, height: int, width: int) -> NDArray[np.float32]:
    """(count, H, W): smooth random surfaces."""
    coarse = rng.standard_normal((count, 7, 9)).astype(np.float32)
    return np.stack([cv2.resize(each, (width, height), interpolation=cv2.INTER_CUBIC) for each in coarse])


def _outline(rng: np.random.Generator, height: int, width: int) -> Outline:
    radius = height * float(np.exp(rng.uniform(np.log(0.03), np.log(0.22))))
    place = rng.uniform(0, width), rng.uniform(0, height)
    return Outline(*place, radius, rng.uniform(0, 6), rng.uniform(0.05, 0.3), rng.uniform(0.6, 1.6))


def _moved(rng: np.random.Generator, thing: Outline) -> Outline:
    most = thing.radius * float(rng.choice([0.08, 0.2, 0.45]))
    x, y = thing.x + rng.uniform(-most, most), thing.y + rng.uniform(-most, most)
    return thing._replace(x=x, y=y, radius=thing.radius * rng.uniform(0.9, 1.1), phase=thing.phase + 0.2)


def _side(rng: np.random.Generator, rows: Map, classes: list[int], crowd: NDArray[np.bool_]) -> Side:
    """From a map of rows of the table, of which row 0 is void: its ids are drawn."""
    table = rng.choice(2**24 - 1, len(classes), replace=False).astype(np.int64) + 1
    table[0] = 0
    return Side(table[rows], table, np.array(classes, np.int64), crowd)


# --- more of the same -------------------------------------------------------------------------------------------------


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
