"""Images drawn as letters, and their match: one letter is one pixel, "." is void."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from pansight.metrics.panoptic.matching import ImageMatch, SegmentTable, match_tables
from pansight.ops.idmap import rgb_to_ids
from pansight.ops.maps.overlap import Overlaps
from pansight.types import Category, LabelSpace

CAT, DOG, SKY, GRASS = range(4)

LABELS = LabelSpace(
    [
        Category(CAT, "cat", True, (200, 0, 0), 17),
        Category(DOG, "dog", True, (0, 200, 0), 18),
        Category(SKY, "sky", False, (0, 0, 200), 187),
        Category(GRASS, "grass", False, (90, 90, 90), 193),
    ]
)
IS_THING = np.array([c.is_thing for c in LABELS])


def ids_of(drawing: str) -> np.ndarray:
    """int32 (H, W): a line per row; the id of a letter is its code."""
    rows = [[0 if letter == "." else ord(letter) for letter in line] for line in drawing.split()]
    return np.array(rows, np.int32)


def table(ids: np.ndarray, category_of: dict[int, int], crowds: set[int] = frozenset()) -> SegmentTable:
    """The table of the ids that are in a map, in the order of `category_of`."""
    known = [i for i in category_of if (ids == i).any()]
    return SegmentTable(
        np.array(known, np.int64),
        np.array([category_of[i] for i in known], np.int64),
        np.array([i in crowds for i in known], bool),
        np.linspace(0.9, 0.5, len(known)),
    )


def overlaps(truth_ids: np.ndarray, prediction_ids: np.ndarray) -> Overlaps:
    pairs = np.stack([truth_ids.ravel(), prediction_ids.ravel()], axis=1).astype(np.int64)
    values, counts = np.unique(pairs, axis=0, return_counts=True)
    return Overlaps(values[:, 0], values[:, 1], counts.astype(np.int64))


def match_maps(truth_ids, prediction_ids, truth_class, prediction_class, crowds=frozenset()) -> ImageMatch:
    tables = table(truth_ids, truth_class, crowds), table(prediction_ids, prediction_class)
    return match_tables(*tables, overlaps(truth_ids, prediction_ids))


def match_drawing(truth: str, prediction: str, crowds: str = "", **classes: int) -> ImageMatch:
    """Letters are cats unless `classes` says otherwise."""
    sides = ids_of(truth), ids_of(prediction)
    category_of = {ord(letter): classes.get(letter, CAT) for letter in sorted({*truth, *prediction} - {*". \n"})}
    return match_maps(*sides, category_of, category_of, {ord(letter) for letter in crowds})


def coco_sample(data_root: Path) -> tuple[LabelSpace, list[tuple[np.ndarray, dict[int, int], set[int]]]]:
    """The label space and (ids, classes, crowds) of the images of panopticapi's sample."""
    root = data_root / "coco_panoptic_sample"
    content = json.loads((root / "panoptic_examples.json").read_text(encoding="utf-8"))
    labels = LabelSpace.from_json(content["categories"])
    category = labels.by_source_id()
    images = []
    for row in content["annotations"]:
        rgb = cv2.cvtColor(cv2.imread(str(root / "panoptic_examples" / row["file_name"])), cv2.COLOR_BGR2RGB)
        segments = row["segments_info"]
        crowds = {s["id"] for s in segments if s["iscrowd"]}
        images.append((rgb_to_ids(rgb), {s["id"]: category[s["category_id"]].id for s in segments}, crowds))
    return labels, images


def random_maps(rng: np.random.Generator, size: int = 16):
    """(truth ids, predicted ids, classes, classes, crowds): a prediction that gets much wrong, but not all."""
    height, width = rng.integers(1, size, 2)
    truth = _rectangles(rng, height, width, rng.choice(2**24 - 1, 6, replace=False) + 1)
    truth_class = {int(i): int(rng.integers(0, 4)) for i in np.unique(truth[truth > 0])}
    prediction = np.roll(truth, rng.integers(-1, 2, 2), axis=(0, 1))
    prediction_class = dict(truth_class)
    for number in list(truth_class):
        inside = prediction == number
        event = rng.random()
        if event < 0.1:
            prediction[inside] = 0
        elif event < 0.25:
            prediction_class[number] = int(rng.integers(0, 4))
        elif event < 0.45:
            prediction[inside & (np.arange(width) % 5 < rng.integers(1, 4))] = number // 2 + 1
            prediction_class[number // 2 + 1] = truth_class[number]
        elif event < 0.6:
            prediction[inside] = next(iter(truth_class))
    if rng.random() < 0.5:
        prediction = np.where(_rectangles(rng, height, width, np.array([5])) > 0, 5, prediction)
        prediction_class[5] = int(rng.integers(0, 4))
    crowds = {i for i in truth_class if rng.random() < 0.15}
    return truth, prediction.astype(np.int32), truth_class, prediction_class, crowds


def _rectangles(rng: np.random.Generator, height: int, width: int, numbers: np.ndarray) -> np.ndarray:
    ids = np.zeros((height, width), np.int32)
    for number in numbers:
        y, x = rng.integers(0, height), rng.integers(0, width)
        ids[y : y + rng.integers(1, 10), x : x + rng.integers(1, 10)] = number
    return ids
