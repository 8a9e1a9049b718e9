"""``pansight predict``: from photos to overlays, COCO panoptic files and a table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pansight.apps.pages.draw import overlay
from pansight.data.dataset import image_array, image_tensor
from pansight.data.formats.coco_panoptic import PanopticWriter
from pansight.data.images import IMAGE_SUFFIXES, read_image, write_png
from pansight.engine.assemble import check_thresholds
from pansight.engine.predict import load
from pansight.engine.progress import ProgressBar
from pansight.errors import PansightError
from pansight.files import replacing_folder, write_json
from pansight.types import IGNORE, Instances, LabelSpace, PanopticSegmentation, Segment

RESULTS = ("predictions.json", "instances.json", "overlays", "semantic")
"""What is written into the folder."""


class PhotoRow(NamedTuple):
    """A line of the table: how many segments of which classes, and how long the model took."""

    file: str
    size: tuple[int, int]  # (H, W)
    segments: int
    classes: str  # "3 circle, 1 background"
    seconds: float


def predict(
    weights: str | Path,
    images: Sequence[str | Path],
    out: str | Path = "predictions",
    overwrite: bool = False,
    thresholds: dict[str, Any] | None = None,
    score: float = 0.5,
) -> list[PhotoRow]:
    """Predict photos and write what was found into `out`; all of it appears at the end, or nothing does.

    images: files and folders, which are searched for images, not their sub-folders. thresholds: of the model's decode,
    its `task` among them. score: objects below it are not drawn by models that only give objects.
    Written: overlays/NAME.png; predictions.json with predictions/*.png (COCO panoptic), or instances.json where the
    model gives no panoptic map, or semantic/NAME.png where it gives neither: grey, the data set's own category ids.
    Raises PansightError where an image is missing or damaged, or `out` has predictions and `overwrite` is not set, and
    for a threshold that the model does not know.
    """
    out = Path(out)
    files = find_images(images)
    taken = [p for p in map(out.joinpath, RESULTS) if p.exists()]
    if taken and not overwrite:
        raise PansightError(f"{taken[0]}: expected no predictions yet, found some; add --overwrite")
    predictor = load(weights)
    check_thresholds(predictor.model, predictor.name, thresholds or {})
    rows: list[PhotoRow] = []
    objects: list[dict[str, Any]] | None = None
    with ExitStack() as stack:
        bar = stack.enter_context(ProgressBar("predict"))
        overlays = stack.enter_context(replacing_folder(out / "overlays"))
        writer: PanopticWriter | None = None
        maps: Path | None = None
        names = list(_unique_names(files))
        for number, (file, name) in enumerate(zip(files, names, strict=True), 1):
            photo = read_image(file)
            image = image_tensor(photo)
            start = time.monotonic()
            prediction = predictor.predict(photo, **(thresholds or {}))
            seconds = time.monotonic() - start
            if prediction.panoptic is not None:
                if writer is None:
                    writer = stack.enter_context(PanopticWriter(out / "predictions.json", predictor.labels, overwrite))
                writer.add(number, file.name, prediction.panoptic)
                found = [s.category for s in prediction.panoptic.segments]
                picture = overlay(image, prediction.panoptic, predictor.labels)
            elif (instances := prediction.instances) is not None:
                objects = objects or []
                objects += _coco_results(number, instances, predictor.labels)
                found = instances.labels[instances.scores >= score].tolist()
                picture = draw_boxes(image, instances, predictor.labels, score)
            elif prediction.semantic is not None:
                if maps is None:
                    maps = stack.enter_context(replacing_folder(out / "semantic"))
                write_png(maps / f"{name}.png", category_ids(prediction.semantic, predictor.labels))
                regions = regions_of(prediction.semantic)
                found = [s.category for s in regions.segments]
                picture = overlay(image, regions, predictor.labels)
            else:
                raise PansightError(f"{predictor.name}: expected segments, objects or classes, found none of them")
            write_png(overlays / f"{name}.png", image_array(picture))
            counts = Counter(predictor.labels[c].name for c in found)
            classes = ", ".join(f"{n} {label}" for label, n in counts.most_common())
            rows.append(PhotoRow(file.name, (photo.shape[0], photo.shape[1]), len(found), classes, seconds))
            bar.update(number / len(files), f"image {number}/{len(files)}")
        if objects is not None:
            listing = [{"id": n, "file_name": file.name} for n, file in enumerate(files, 1)]
            write_json(out / "instances.json", {"images": listing, "annotations": objects})
    return rows


def category_ids(semantic: Tensor, labels: LabelSpace) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """int64 (H, W), indices into `labels` → the data set's own ids; IGNORE becomes the largest number of the type."""
    ids = [category.source_id for category in labels]
    kind = np.uint8 if max(ids) < 255 else np.uint16
    if not 0 <= min(ids) <= max(ids) < np.iinfo(kind).max:
        raise PansightError(f"semantic map: expected category ids of 0 … 65534, found {min(ids)} … {max(ids)}")
    table = np.full(max(IGNORE + 1, len(ids)), np.iinfo(kind).max, kind)
    table[: len(ids)] = ids
    return cast(Any, table[semantic.numpy()])


def regions_of(semantic: Tensor) -> PanopticSegmentation:
    """One segment for each class, things too, for drawing a semantic map."""
    categories = [category for category in semantic.unique().tolist() if category != IGNORE]
    table = torch.zeros(max([IGNORE, *categories]) + 1, dtype=torch.int32)
    for number, category in enumerate(categories, 1):
        table[category] = number
    return PanopticSegmentation(table[semantic], tuple(Segment(n, c) for n, c in enumerate(categories, 1)))


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """The files, and the images of the folders, in order. Raises PansightError where a path or an image is missing."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
            if not found:
                raise PansightError(f"{path}: expected images ({' '.join(IMAGE_SUFFIXES)}), found none")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise PansightError(f"{path}: expected an image or a folder of images, found no such file")
    if not files:
        raise PansightError("predict: expected at least one image or folder, found none")
    return files


def _unique_names(files: Sequence[Path]) -> Iterator[str]:
    """The stem of each file, numbered from its second use on."""
    used: Counter[str] = Counter()
    for file in files:
        used[file.stem] += 1
        yield file.stem if used[file.stem] == 1 else f"{file.stem}_{used[file.stem]}"


def _coco_results(number: int, instances: Instances, labels: LabelSpace) -> list[dict[str, Any]]:
    """One COCO result an object: box [x, y, w, h] in pixels, score, the data set's own category id."""
    rows: list[dict[str, Any]] = []
    boxes, classes, scores = instances.boxes_xyxy.tolist(), instances.labels.tolist(), instances.scores.tolist()
    for (x1, y1, x2, y2), category, score in zip(boxes, classes, scores, strict=True):
        row = {"image_id": number, "category_id": labels[category].source_id, "score": score}
        rows.append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    return rows


def draw_boxes(image: Tensor, instances: Instances, labels: LabelSpace, score: float) -> Tensor:
    """Boxes with class and score over uint8 (3, H, W); objects under `score` are left out."""
    picture = np.array(image_array(image))  # (H, W, 3), a copy
    height, width = picture.shape[:2]
    thickness, scale = max(1, round(min(height, width) / 300)), max(0.35, min(height, width) / 1200)
    rows = zip(instances.boxes_xyxy.tolist(), instances.labels.tolist(), instances.scores.tolist(), strict=True)
    for (x1, y1, x2, y2), category, confidence in rows:
        if confidence >= score:
            color, corner = labels[category].color, (round(x1), round(y1))
            cv2.rectangle(picture, corner, (round(x2) - 1, round(y2) - 1), color, thickness)
            text = f"{labels[category].name} {confidence:.2f}"
            place = (corner[0] + thickness, max(corner[1] - 2, round(20 * scale)))
            cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)
    return image_tensor(picture)


def photo_table(rows: Sequence[PhotoRow]) -> str:
    """A line for each photo, then the sum."""
    width = max(4, *(len(r.file) for r in rows))
    lines = [f"{'file':{width}}  {'size':>11}  {'segments':>8}  {'seconds':>7}  classes"]
    for row in rows:
        size = f"{row.size[1]}×{row.size[0]}"
        lines.append(f"{row.file:{width}}  {size:>11}  {row.segments:8d}  {row.seconds:7.2f}  {row.classes}")
    total = sum(r.seconds for r in rows)
    lines.append(f"{len(rows)} images, {sum(r.segments for r in rows)} segments, {total:.2f} s")
    return "\n".join(lines)
