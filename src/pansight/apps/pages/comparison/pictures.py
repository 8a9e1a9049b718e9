"""The same images of all evaluations side by side: the photo, its truth, and what each of them predicted.

Photo and truth come from the images that an evaluation kept for its page, the predictions from its folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hotcoco import mask as rle
from torch import Tensor

from pansight.apps.pages.viewer import data_url
from pansight.data.formats.results import INSTANCES, PANOPTIC, SEMANTIC
from pansight.data.images import read_image, read_index_png, read_rgb_ids
from pansight.drawing.segments import overlay
from pansight.errors import PansightError
from pansight.files import read_json, safe_join
from pansight.ops.maps.regions import class_regions, object_regions
from pansight.types import IGNORE, Instances, LabelSpace, PanopticSegmentation, Segment

IMAGES = 8
"""Images side by side on a page: of those whose photo was kept, the ones that differ most."""
SIDE = 320
"""Longer side of a picture, pixels."""
DRAWN_SCORE = 0.5
"""Objects under this score are not drawn."""


Read = dict[Path, dict[str, list[Any]]]
"""The rows of files that were read, by image."""


class Kept(NamedTuple):
    """An image that an evaluation kept for its page."""

    folder: Path
    entry: Mapping[str, Any]
    labels: LabelSpace


def side_by_side(result: Mapping[str, Any], files: Sequence[Path]) -> list[dict[str, Any]]:
    """image_id, and pictures: (name, figure of the image or None, data URL or None where it has no prediction).

    result: of `compare`, for the order of the images and their figures. What is not in a folder, or damaged, is left
    out: the figures do not depend on it.
    """
    kept: dict[str, Kept] = {}
    for file in files:
        kept = _kept(file.parent) | kept
    key, names = result["measure"]["image"][0], [e["name"] for e in result["evaluations"]]
    rows: list[dict[str, Any]] = []
    read: Read = {}
    for image in result["per_image"]:
        found = kept.get(str(image["image_id"]))
        if found is not None and len(rows) < IMAGES:
            try:
                rows.append(
                    {"image_id": image["image_id"], "pictures": _pictures(found, files, names, image[key], read)}
                )
            except (PansightError, KeyError, TypeError, ValueError, IndexError):
                continue  # a folder that was changed by hand
    return rows


def _kept(folder: Path) -> dict[str, Kept]:
    listing = folder / "predictions" / "sheet" / "sheet.json"
    if not listing.is_file():
        return {}
    try:
        content = read_json(listing)
        labels = LabelSpace.from_json(content["categories"])
        return {str(entry["image_id"]): Kept(listing.parent, entry, labels) for entry in content["images"]}
    except (PansightError, KeyError, TypeError, ValueError):
        return {}


def _pictures(
    kept: Kept, files: Sequence[Path], names: Sequence[str], figures: Sequence[float | None], read: Read
) -> list[tuple[str, float | None, str | None]]:
    photo = read_image(safe_join(kept.folder, kept.entry["image"], kept.folder))  # uint8 (H, W, 3)
    image = torch.from_numpy(photo).permute(2, 0, 1)  # (H, W, 3) → (3, H, W)
    ids = read_rgb_ids(safe_join(kept.folder, kept.entry["truth"], kept.folder))
    truth = _panoptic(ids, kept.entry["truth_segments"], kept.labels)
    pictures: list[tuple[str, float | None, str | None]] = [("truth", None, _drawn(image, truth, kept.labels))]
    for file, name, figure in zip(files, names, figures):
        found = _prediction(_folder_of(file), kept.entry["image_id"], truth.size, kept.labels, read)
        pictures.append((name, figure, None if found is None else _drawn(image, found, kept.labels)))
    return pictures


def _folder_of(file: Path) -> Path:
    """Where the predictions of an evaluation, or of a file of predictions, lie."""
    return file.parent if file.name == f"{PANOPTIC}.json" else file.parent / "predictions"


def _drawn(image: Tensor, segmentation: PanopticSegmentation, labels: LabelSpace) -> str:
    picture = overlay(image, segmentation, labels).permute(1, 2, 0).numpy()  # (3, H, W) → (H, W, 3)
    height, width = segmentation.size
    scale = min(1.0, SIDE / max(height, width))
    return data_url(np.ascontiguousarray(picture), (max(1, round(scale * height)), max(1, round(scale * width))))


def _prediction(
    folder: Path, image_id: str | int, size: tuple[int, int], labels: LabelSpace, read: Read
) -> PanopticSegmentation | None:
    """The prediction of one image as regions; None where the folder has none."""
    rows = _rows(folder / f"{PANOPTIC}.json", "annotations", "image_id", read).get(str(image_id))
    if rows:
        ids = read_rgb_ids(safe_join(folder / PANOPTIC, rows[0]["file_name"], folder))
        return _panoptic(ids, rows[0]["segments_info"], labels)
    rows = _rows(folder / f"{SEMANTIC}.json", "images", "id", read).get(str(image_id))
    if rows:
        png = safe_join(folder / SEMANTIC, rows[0]["semantic"], folder)
        values = torch.from_numpy(read_index_png(png).astype(np.int64))
        semantic = torch.full_like(values, IGNORE)
        for source_id, category in labels.by_source_id().items():
            semantic[values == source_id] = category.id
        return class_regions(semantic)
    if (folder / f"{INSTANCES}.json").is_file():
        rows = _rows(folder / f"{INSTANCES}.json", "annotations", "image_id", read).get(str(image_id), [])
        return object_regions(_instances(rows, size, labels), size, DRAWN_SCORE)
    return None


def _rows(path: Path, part: str, key: str, read: Read) -> dict[str, list[Any]]:
    """The rows of a file by image; of `part` of it, unless it is a bare list."""
    if path not in read:
        content = read_json(path) if path.is_file() else []
        read[path] = {}
        for row in content if isinstance(content, list) else content[part]:
            read[path].setdefault(str(row[key]), []).append(row)
    return read[path]


def _panoptic(ids: Any, rows: Sequence[Mapping[str, Any]], labels: LabelSpace) -> PanopticSegmentation:
    known = labels.by_source_id()
    kept = [row for row in rows if row["category_id"] in known]
    segments = (Segment(row["id"], known[row["category_id"]].id, row.get("score", 1.0)) for row in kept)
    return PanopticSegmentation(torch.from_numpy(ids), tuple(segments))


def _instances(rows: Sequence[Mapping[str, Any]], size: tuple[int, int], labels: LabelSpace) -> Instances:
    """COCO results, box [x, y, w, h], as objects; masks where all have them."""
    known = labels.by_source_id()
    rows = [row for row in rows if row["category_id"] in known and row["score"] >= DRAWN_SCORE]
    boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # xywh → xyxy
    numbers = torch.tensor([known[row["category_id"]].id for row in rows], dtype=torch.int64)
    scores = torch.tensor([row["score"] for row in rows], dtype=torch.float32)
    masks = None
    if rows and all("segmentation" in row for row in rows):
        masks = torch.from_numpy(np.stack([rle.decode(row["segmentation"]) for row in rows]).astype(bool))
        if tuple(masks.shape[1:]) != size:
            raise PansightError(where="masks", expected=f"{size}", found=tuple(masks.shape[1:]))
    return Instances(boxes, numbers, scores, masks)
