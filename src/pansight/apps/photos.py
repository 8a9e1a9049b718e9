"""``pansight predict``: from photos to overlays, COCO panoptic files and a table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from torch import Tensor

from pansight.apps.pages.draw import overlay
from pansight.data.dataset import image_array, image_tensor
from pansight.data.formats.results import ResultsWriter
from pansight.data.images import IMAGE_SUFFIXES, read_image, write_png
from pansight.engine.infer import check_decode_options
from pansight.engine.predict import Predictor, load
from pansight.engine.progress import ProgressBar, stop_signal
from pansight.errors import Interrupted, PansightError
from pansight.files import replacing_folder
from pansight.ops.maps.regions import class_regions, object_regions
from pansight.types import Instances, LabelSpace, Prediction

RESULTS = ("predictions.json", "instances.json", "overlays", "semantic.json", "semantic")
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
    decode_options: dict[str, Any] | None = None,
    score: float = 0.5,
) -> list[PhotoRow]:
    """Predict photos and write what was found into `out`; all of it appears at the end, or nothing does.

    images: files and folders, which are searched for images, not their sub-folders. decode_options: of the model's
    decode, thresholds and its `task`. score: objects below it are not drawn by models that only give objects.
    Written: overlays/NAME.png, and what `data.formats.results` says: COCO panoptic, else semantic maps or objects.
    Raises PansightError where an image is missing or damaged, or `out` has predictions and `overwrite` is not set, and
    for an option that the model does not know; Interrupted after Ctrl-C or SIGTERM, when nothing is written.
    """
    out = Path(out)
    files = find_images(images)
    taken = [p for p in map(out.joinpath, RESULTS) if p.exists()]
    if taken and not overwrite:
        raise PansightError(where=taken[0], expected="no predictions yet", found="some", hint="add --overwrite")
    predictor = load(weights)
    check_decode_options(predictor.model, predictor.name, decode_options or {})
    rows: list[PhotoRow] = []
    with ExitStack() as stack:
        stop = stack.enter_context(stop_signal("image"))
        bar = stack.enter_context(ProgressBar("predict"))
        overlays = stack.enter_context(replacing_folder(out / "overlays"))
        writer = stack.enter_context(ResultsWriter(out, predictor.labels, listing=True))
        names = list(_unique_names(files))
        for number, (file, name) in enumerate(zip(files, names, strict=True), 1):
            photo = read_image(file)
            start = time.monotonic()
            prediction = predictor.predict(photo, **(decode_options or {}))
            seconds = time.monotonic() - start
            writer.add(number, file.name, prediction)
            picture, found = _drawn(image_tensor(photo), prediction, predictor, score)
            write_png(overlays / f"{name}.png", image_array(picture))
            counts = Counter(predictor.labels[c].name for c in found)
            classes = ", ".join(f"{n} {label}" for label, n in counts.most_common())
            rows.append(PhotoRow(file.name, (photo.shape[0], photo.shape[1]), len(found), classes, seconds))
            bar.update(number / len(files), f"image {number}/{len(files)}")
            if stop.is_set():
                text = f"interrupted after image {number} of {len(files)}; nothing is written"
                raise Interrupted(text, stop.number)
    return rows


def _drawn(image: Tensor, prediction: Prediction, predictor: Predictor, score: float) -> tuple[Tensor, list[int]]:
    """uint8 (3, H, W) with what was found over it, and the category of each segment or object."""
    regions = prediction.panoptic
    if regions is None and prediction.instances is not None:
        found = prediction.instances
        picture = draw_objects(image, found, predictor.labels, score)
        return picture, found.labels[found.scores >= score].tolist()
    if regions is None and prediction.semantic is not None:
        regions = class_regions(prediction.semantic)
    if regions is None:
        raise PansightError(where=predictor.name, expected="segments, objects or classes", found="none of them")
    return overlay(image, regions, predictor.labels), [s.category for s in regions.segments]


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """The files, and the images of the folders, in order. Raises PansightError where a path or an image is missing."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
            if not found:
                raise PansightError(where=path, expected=f"images ({' '.join(IMAGE_SUFFIXES)})", found="none")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise PansightError(
                where=path, expected="an image or a folder of images", found="no such file", code="missing_file"
            )
    if not files:
        raise PansightError(where="predict", expected="at least one image or folder", found="none")
    return files


def _unique_names(files: Sequence[Path]) -> Iterator[str]:
    """The stem of each file, numbered from its second use on."""
    used: Counter[str] = Counter()
    for file in files:
        used[file.stem] += 1
        yield file.stem if used[file.stem] == 1 else f"{file.stem}_{used[file.stem]}"


def draw_objects(image: Tensor, instances: Instances, labels: LabelSpace, score: float) -> Tensor:
    """Masks where there are any, boxes, class and score over uint8 (3, H, W); objects under `score` are left out."""
    if instances.masks is not None:
        regions = object_regions(instances, (image.shape[1], image.shape[2]), score)
        image = overlay(image, regions, labels, names=False)
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
