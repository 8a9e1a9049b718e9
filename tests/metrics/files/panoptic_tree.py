"""COCO panoptic files for tests: drawn or random images as JSON and PNGs in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pansight.ops.idmap import ids_to_rgb

CATEGORIES = [
    {"id": 17, "name": "cat", "isthing": 1, "color": [200, 0, 0]},
    {"id": 18, "name": "dog", "isthing": 1, "color": [0, 200, 0]},
    {"id": 187, "name": "sky", "isthing": 0, "color": [0, 0, 200]},
    {"id": 193, "name": "grass", "isthing": 0, "color": [90, 90, 90]},
]
CATEGORY_IDS = [17, 18, 187, 193]
THINGS = (17, 18)


class Drawn(NamedTuple):
    """An image of one side: its map and the rows of its segments_info."""

    ids: np.ndarray
    segments: list[dict[str, Any]]
    image_id: int | str = 1


def drawn(ids, segments: dict[int, int], image_id: int | str = 1, crowds=(), **more: Any) -> Drawn:
    """segments: id → category_id; areas are counted."""
    ids = np.array(ids, np.int32)
    rows = [
        {"id": number, "category_id": category, "area": int((ids == number).sum()), "iscrowd": int(number in crowds)}
        for number, category in segments.items()
    ]
    return Drawn(ids, [row | more for row in rows], image_id)


def write_side(path: Path, images: list[Drawn], categories: list[dict[str, Any]] | None = CATEGORIES) -> Path:
    """NAME.json with its PNGs in the folder NAME. Gives the path of the JSON."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    annotations = []
    for image in images:
        name = f"{image.image_id}.png"
        Image.fromarray(ids_to_rgb(image.ids)).save(folder / name)
        annotations.append({"image_id": image.image_id, "file_name": name, "segments_info": image.segments})
    content: dict[str, Any] = {"images": [], "annotations": annotations}
    if categories is not None:
        content["categories"] = categories
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def random_images(rng: np.random.Generator, count: int, scores: bool = False) -> tuple[list[Drawn], list[Drawn]]:
    """Truths with crowds and void, and predictions near them: shifted, misnamed, with phantoms and losses."""
    sides: tuple[list[Drawn], list[Drawn]] = [], []
    for k in range(count):
        height, width = rng.integers(4, 24, 2)
        truth = np.zeros((height, width), np.int32)
        for number in rng.choice(2**24 - 1, rng.integers(1, 8), replace=False) + 1:
            y, x = rng.integers(0, height), rng.integers(0, width)
            truth[y : y + rng.integers(2, 12), x : x + rng.integers(2, 12)] = number
        prediction = np.roll(truth, rng.integers(-1, 2, 2), (0, 1))
        prediction[: rng.integers(0, 4), : rng.integers(0, 9)] = 77
        of_truth = {int(n): int(rng.choice(CATEGORY_IDS)) for n in np.unique(truth[truth > 0])}
        of_prediction = {
            int(n): of_truth[int(n)] if n != 77 and rng.random() < 0.85 else int(rng.choice(CATEGORY_IDS))
            for n in np.unique(prediction[prediction > 0])
        }
        crowds = {n for n, category in of_truth.items() if category in THINGS and rng.random() < 0.25}
        sides[0].append(drawn(truth, of_truth, 100 - k, crowds))
        found = drawn(prediction, of_prediction, 100 - k)
        if scores:  # few different ones, so that many are equal
            found.segments[:] = [row | {"score": float(rng.choice([0.25, 0.5, 0.75]))} for row in found.segments]
        sides[1].append(found)
    return sides
