"""``pansight predict``: from photos to overlays, files that other tools read, and a table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pansight.apps.photos.finding import find_photos, left_out_line
from pansight.data.dataset import image_array, image_tensor
from pansight.data.formats.results import ResultsWriter
from pansight.data.images import read_image, write_png
from pansight.drawing.prediction import draw_prediction
from pansight.engine.infer import check_decode_options, known_decode_options
from pansight.engine.predict import Predictor, load
from pansight.engine.progress import ProgressBar, stop_signal
from pansight.errors import Interrupted, PansightError, choice_error, shown
from pansight.files import flat_name, replacing_folder
from pansight.models import entry
from pansight.ops.maps.regions import surer_than
from pansight.types import LabelSpace, Prediction

RESULTS = ("predictions.json", "instances.json", "overlays", "semantic.json", "semantic")
"""What is written into the folder."""

TASKS = {"panoptic": "panoptic", "semantic": "semantic", "instances": "instance"}
"""What a model produces, and the task that asks for it."""


class PhotoRow(NamedTuple):
    """A line of the table: how many segments of which classes, and how long the model took."""

    file: str
    size: tuple[int, int]  # (H, W)
    segments: int
    classes: str  # "3 circle, 1 background"
    seconds: float


class PhotoResults(NamedTuple):
    """What came of the photos: a row for each that was predicted, an error for each that could not be read."""

    rows: list[PhotoRow]
    failed: list[PansightError]
    left_out: Counter[str]  # files in folders that are no photos: kind → number


class Drawing(NamedTuple):
    """How overlays are drawn. score: objects below it are left out of pictures and table, where there is no panoptic
    map; None: 0.5, or the threshold that was given. background: paint stuff of the name background, too."""

    score: float | None = None
    opacity: float = 0.5
    names: bool = True
    background: bool = False


def predict(
    weights: str | Path,
    images: Sequence[str | Path],
    out: str | Path = "predictions",
    overwrite: bool = False,
    decode_options: dict[str, Any] | None = None,
    drawing: Drawing = Drawing(),  # noqa: B008 (immutable)
    recursive: bool = True,
) -> PhotoResults:
    """Predict photos and write what was found into `out`; all of it appears at the end, or nothing does.

    images: files, folders with their sub-folders (those only where `recursive`), and patterns. decode_options: of the
    model's decode, thresholds and its `task`; any model takes a task that it produces, and `score_threshold`, the least
    score of objects. Written: overlays/NAME.png, and what `data.formats.results` says: COCO panoptic, else semantic
    maps or objects. A photo that cannot be read is left out and told in the results.
    Raises PansightError where a path is missing, no photo can be read, or `out` has predictions and `overwrite` is not
    set, and for an option that the model does not know; Interrupted after Ctrl-C or SIGTERM, when nothing is written.
    """
    out, options = Path(out), dict(decode_options or {})
    _check_shares(options.get("score_threshold"), drawing)
    found = find_photos(images, recursive, without=out)
    taken = [p for p in map(out.joinpath, RESULTS) if p.exists()]
    if taken and not overwrite:
        raise PansightError(where=taken[0], expected="no predictions yet", found="some", hint="add --overwrite")
    predictor = load(weights)
    wanted = Wanted.of(predictor, options, drawing.score)
    rows: list[PhotoRow] = []
    failed: list[PansightError] = []
    with ExitStack() as stack:
        stop = stack.enter_context(stop_signal("image"))
        bar = stack.enter_context(ProgressBar("predict"))
        overlays = stack.enter_context(replacing_folder(out / "overlays"))
        writer = stack.enter_context(ResultsWriter(out, predictor.labels, listing=True))
        names: set[str] = set()
        for number, (file, name) in enumerate(found.photos, 1):
            bar.update(number / len(found.photos), f"image {number}/{len(found.photos)}")
            try:
                photo = read_image(file)
            except PansightError as error:
                failed.append(error)
                continue
            start = time.monotonic()
            prediction = wanted.narrowed(predictor.predict(photo, **wanted.options))
            seconds = time.monotonic() - start
            size = (photo.shape[0], photo.shape[1])
            writer.add(len(rows) + 1, name, prediction, size=size)
            picture = draw_prediction(
                image_tensor(photo), prediction, predictor.labels, **drawing._replace(score=wanted.drawn)._asdict()
            )
            write_png(overlays / flat_name(name, ".png", names), image_array(picture))
            categories = found_categories(prediction, wanted.drawn)
            classes = _counted(categories, predictor.labels)
            rows.append(PhotoRow(shown(name), size, len(categories), classes, seconds))
            if stop.is_set():
                text = f"interrupted after image {number} of {len(found.photos)}; nothing is written"
                raise Interrupted(text, stop.number)
        if not rows:
            raise failed[0] if len(failed) == 1 else failed[0].at(f"none of {len(failed)} photos can be read")
    return PhotoResults(rows, failed, found.left_out)


class Wanted(NamedTuple):
    """What is asked of a model: options of its decode, the one kind of result that is kept, and the least scores."""

    options: dict[str, Any]
    kind: str | None  # "panoptic", "semantic" or "instances"; None: whatever the model gives
    least: float  # objects below it are not kept, where objects are all that is kept
    drawn: float  # and those below it are not drawn

    @classmethod
    def of(cls, predictor: Predictor, options: dict[str, Any], score: float | None) -> Wanted:
        """Raises PansightError for options and tasks that the model does not know."""
        options, kind = dict(options), None
        known = known_decode_options(predictor.model)
        least = options.get("score_threshold", 0.0)
        drawn = options.get("score_threshold", 0.5) if score is None else score
        if "task" in options and "task" not in known:
            task, produced = options.pop("task"), entry(predictor.name).produces
            has_components = "components" in known  # which make panoptic maps and objects of a semantic map
            kinds = {TASKS[each]: each for each in (TASKS if has_components else produced)}
            if task not in kinds:
                raise choice_error(f"task of {predictor.name}", task, kinds)
            kind = kinds[task]
            if has_components and kind != "semantic":
                options["components"] = True
        if "score_threshold" not in known and "instances" in entry(predictor.name).produces:
            options.pop("score_threshold", None)
        check_decode_options(predictor.model, predictor.name, options)
        return cls(options, kind, least, drawn)

    def narrowed(self, prediction: Prediction) -> Prediction:
        """The kind that is kept, without objects under the least score."""
        panoptic, semantic, instances = prediction.panoptic, prediction.semantic, prediction.instances
        if self.kind is not None:
            panoptic = panoptic if self.kind == "panoptic" else None
            semantic = semantic if self.kind == "semantic" else None
            instances = instances if self.kind == "instances" else None
        if panoptic is None and instances is not None:
            instances = surer_than(instances, self.least)
        return Prediction(panoptic, semantic, instances)


def _check_shares(threshold: float | None, drawing: Drawing) -> None:
    """Raises PansightError, before anything is loaded."""
    for name, value in (("--threshold", threshold), ("--score", drawing.score), ("--opacity", drawing.opacity)):
        if value is not None and not 0 <= value <= 1:
            raise PansightError(where=name, expected="0 … 1", found=f"{value:g}")


def found_categories(prediction: Prediction, score: float) -> list[int]:
    """The category of each segment, else of each object of at least this score, else of each class of the map."""
    if prediction.panoptic is not None:
        return [segment.category for segment in prediction.panoptic.segments]
    if prediction.instances is not None:
        return prediction.instances.labels[prediction.instances.scores >= score].tolist()
    if prediction.semantic is not None:
        return [category for category in torch.unique(prediction.semantic).tolist() if category >= 0]
    return []


def _counted(categories: Sequence[int], labels: LabelSpace) -> str:
    counts = Counter(labels[category].name for category in categories)
    return ", ".join(f"{n} {label}" for label, n in counts.most_common())


def photo_table(results: PhotoResults) -> str:
    """A line for each photo, the sum, what was left out, and what could not be read."""
    rows = results.rows
    width = max(4, *(len(r.file) for r in rows))
    lines = [f"{'file':{width}}  {'size':>11}  {'segments':>8}  {'seconds':>7}  classes"]
    for row in rows:
        size = f"{row.size[1]}×{row.size[0]}"
        lines.append(f"{row.file:{width}}  {size:>11}  {row.segments:8d}  {row.seconds:7.2f}  {row.classes}")
    total = sum(r.seconds for r in rows)
    lines.append(f"{len(rows)} images, {sum(r.segments for r in rows)} segments, {total:.2f} s")
    lines += [left_out_line(results.left_out)] if results.left_out else []
    lines += [f"not read   {error}" for error in results.failed]
    return "\n".join(lines)
