"""Panoptic maps as files of COCO's format: a PNG of colours for each photo, and one JSON of all segments."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import RuntimeFault
from .values import Array, Label, Panoptic, Prediction

TABLE = "panoptic.json"


def write(out: str | Path, predictions: Iterable[tuple[str, Prediction]], labels: Sequence[Label]) -> Path:
    """Write (name, prediction) pairs as OUT/panoptic.json and OUT/panoptic/NAME.png → the JSON's path.

    id = R + 256·G + 256²·B, 0 is void; areas and boxes are counted from the map. Predictions are taken one by one.
    Raises RuntimeFault where `out` exists, where one has no panoptic map, where two have one name, and where the disk
    refuses. The folder appears whole or not at all.
    """
    out = Path(out)
    if out.exists():
        raise RuntimeFault(out, "a new folder", "one that exists")
    temporary = out.with_name(f".{out.name}.{os.getpid():x}.tmp")
    try:
        (temporary / "panoptic").mkdir(parents=True)
        rows: dict[str, dict[str, Any]] = {}
        for name, prediction in predictions:
            if prediction.panoptic is None:
                raise RuntimeFault(name, "a panoptic map", "none: the model has other outputs")
            if name in rows:
                raise RuntimeFault(name, "photos of different names", "two of one")
            Image.fromarray(_colours(prediction.panoptic.ids)).save(temporary / "panoptic" / f"{name}.png")
            segments = segment_rows(prediction.panoptic, labels)
            rows[name] = {"image_id": name, "file_name": f"{name}.png", "segments_info": segments}
        categories = [
            {"id": each.source_id, "name": each.name, "isthing": int(each.is_thing), "color": list(each.color)}
            for each in labels
        ]
        content = {"annotations": list(rows.values()), "categories": categories}
        (temporary / TABLE).write_text(json.dumps(content), encoding="utf-8")
        temporary.rename(out)
    except OSError as error:
        raise RuntimeFault(out, "a folder that can be written", f"{error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out / TABLE


def segment_rows(panoptic: Panoptic, labels: Sequence[Label]) -> list[dict[str, Any]]:
    """``segments_info``: source category ids, areas, boxes [x, y, w, h], and the score where it is not 1."""
    rows: list[dict[str, Any]] = []
    for segment in panoptic.segments:
        mask = panoptic.ids == segment.id
        y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(y):
            continue
        box = [int(x[0]), int(y[0]), int(x[-1] - x[0] + 1), int(y[-1] - y[0] + 1)]
        row = {"id": segment.id, "category_id": labels[segment.category].source_id, "area": int(mask.sum())}
        row |= {"bbox": box, "iscrowd": 0}
        rows.append(row if segment.score == 1.0 else row | {"score": float(segment.score)})
    return rows


def _colours(ids: Array) -> Array:
    """int32 (H, W) → uint8 (H, W, 3)."""
    return np.stack((ids & 255, ids >> 8 & 255, ids >> 16), axis=-1).astype(np.uint8)
