"""``pansight predict``: from photos and videos to overlays, files that other tools read, and a table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pansight.apps.photos.finding import Photo, find_photos, left_out_line
from pansight.apps.photos.video import MAX_RATE, OURS, Video, VideoWriter, in_natural_order, is_video
from pansight.config import DataConfig
from pansight.data.dataset import image_array, image_tensor
from pansight.data.formats.predictions.proposals import Proposals
from pansight.data.formats.results import ResultsWriter
from pansight.data.formats.webdataset.storage import Piece
from pansight.data.images import decode_image, read_image, write_png
from pansight.drawing.prediction import draw_prediction
from pansight.engine.assemble import check_proposals
from pansight.engine.infer import check_decode_options, known_decode_options
from pansight.engine.predict import PhotoPrediction, Predictor, load
from pansight.engine.predict.pipeline import Result, Shown, mapped
from pansight.engine.progress import ProgressBar, Stop, stop_signal
from pansight.errors import Interrupted, PansightError, choice_error, shown
from pansight.files import flat_name, replacing_folder
from pansight.models import entry
from pansight.ops.maps.regions import surer_than
from pansight.types import LabelSpace, Prediction

PredictionKind = TypeVar("PredictionKind", bound=Prediction)

RESULTS = ("predictions.json", "instances.json", "overlays", "semantic.json", "semantic")
"""What is written into the folder."""

SPEEDS = ("exact", "fast")

TASKS = {"panoptic": "panoptic", "semantic": "semantic", "instances": "instance"}
"""What a model produces, and the task that asks for it."""


class PhotoRow(NamedTuple):
    """A line of the table: how many segments of which classes, and how long the model took."""

    file: str
    size: tuple[int, int]  # (H, W)
    segments: int
    classes: str  # "3 circle, 1 background"
    seconds: float
    frames: int = 1  # of a video; segments, classes and seconds are those of all of them


class PhotoResults(NamedTuple):
    """What came of the photos: a row for each that was predicted, an error for each that could not be read.

    notes: lines for the user on what was written otherwise than one may expect. seconds: that reading, predicting and
    writing took together, which go on at the same time. speed: what "fast" chose, "" where it was not asked.
    """

    rows: list[PhotoRow]
    failed: list[PansightError]
    left_out: Counter[str]  # files in folders that are no photos: kind → number
    notes: Sequence[str] = ()
    seconds: float = 0.0
    speed: str = ""


class Drawing(NamedTuple):
    """How overlays are drawn. score: objects below it are left out of pictures and table, where there is no panoptic
    map; None: 0.5, or the threshold that was given. background: paint stuff of the name background, too."""

    score: float | None = None
    opacity: float = 0.5
    names: bool = True
    background: bool = False


class Pace(NamedTuple):
    """How fast photos are predicted. speed: "exact" computes as the model was measured, "fast" tries what this machine
    is quickest with (`Predictor.tuned`). batch_size: photos of equal network size that are predicted at once.
    """

    speed: str = "exact"
    batch_size: int = 1


def predict(
    weights: str | Path,
    images: Sequence[str | Path],
    out: str | Path = "predictions",
    overwrite: bool = False,
    decode_options: dict[str, Any] | None = None,
    drawing: Drawing = Drawing(),  # noqa: B008 (immutable)
    recursive: bool = True,
    every: int = 1,
    fps: float | None = None,
    proposals: Sequence[str | Path] = (),
    pace: Pace = Pace(),  # noqa: B008 (immutable)
) -> PhotoResults:
    """Predict photos and videos and write what was found into `out`; all of it appears at the end, or nothing does.

    images: files, folders with their sub-folders (those only where `recursive`), and patterns; tar shards, Parquet
    lists of paths, and files and folders of any store of fsspec (s3://bucket/photos); videos by their names, of which
    every `every`-th frame is predicted. fps: all photos are the frames of one video, in the order of the numbers in
    their names, so many a second. decode_options: of the model's decode, thresholds and its `task`; any
    model takes a task that it produces, and `score_threshold`, the least score of objects. Written: overlays/NAME.png,
    of a video overlays/NAME.mp4, and what `data.formats.results` says: COCO panoptic, else semantic maps or objects,
    for each frame. A photo, video or frame that cannot be read is left out and told in the results.
    proposals: files of regions, by the names of the photos, for a detector that is given them.
    Raises PansightError where a path is missing, no photo can be read, or `out` has predictions and `overwrite` is not
    set, and for an option that the model does not know; Interrupted after Ctrl-C or SIGTERM, when nothing is written.
    """
    out, options = Path(out), dict(decode_options or {})
    _check_shares(options.get("score_threshold"), drawing)
    if pace.speed not in SPEEDS:
        raise choice_error("speed", pace.speed, SPEEDS)
    if pace.batch_size < 1:
        raise PansightError(where="--batch-size", expected="1 or more", found=pace.batch_size)
    if every < 1:
        raise PansightError(where="--every", expected="1 or more", found=every)
    if fps is not None and not 0 < fps <= MAX_RATE:
        raise PansightError(where="--fps", expected=f"frames a second, up to {MAX_RATE}", found=f"{fps:g}")
    found = find_photos(images, recursive, without=out, pieces=True)
    taken = [p for p in map(out.joinpath, RESULTS) if p.exists()]
    if taken and not overwrite:
        raise PansightError(where=taken[0], expected="no predictions yet", found="some", hint="add --overwrite")
    regions = Proposals(proposals) if proposals else None
    predictor = load(weights)
    check_proposals(predictor.model, predictor.name, DataConfig(proposals=tuple(map(str, proposals))))
    wanted = Wanted.of(predictor, options, drawing.score)
    clips, failed, total = _clips(found.photos, images, every, fps)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_signal("image"))
        bar = stack.enter_context(ProgressBar("predict"))
        overlays = stack.enter_context(replacing_folder(out / "overlays"))
        writer = stack.enter_context(ResultsWriter(out, predictor.labels, listing=True))
        job = _Job(predictor, wanted, drawing, overlays, writer, bar, stop, total, regions)
        job.failed += failed
        if pace.speed == "fast":
            job.tune(clips)
        job.run(clips, pace.batch_size)
        if not job.rows:
            failed = job.failed
            raise failed[0] if len(failed) == 1 else failed[0].at(f"none of {len(failed)} photos can be read")
    speed = "" if job.predictor.speed is None else job.predictor.speed.line()
    return PhotoResults(job.rows, job.failed, found.left_out, job.notes, time.monotonic() - job.start, speed)


class Clip(NamedTuple):
    """Frames that belong together: a photo, a video file, or photos that are the frames of one.

    rate: frames a second of the overlay video; 0: a photo alone, which is drawn as one.
    """

    name: str
    photos: list[Photo]
    rate: float = 0.0
    every: int = 1
    video: bool = False


def _clips(
    photos: Sequence[Photo], given: Sequence[str | Path], every: int, fps: float | None
) -> tuple[list[Clip], list[PansightError], int]:
    """(what is to be predicted, the errors of videos that cannot be opened, the number of all frames)."""
    stills = [photo for photo in photos if not is_video(photo.file)]
    clips = [Clip(photo.name, [photo]) for photo in stills]
    total = len(stills)
    if fps is not None and stills:
        folder = next((Path(path).resolve().name for path in given if Path(path).is_dir()), "frames")
        kept = sorted(stills, key=lambda photo: in_natural_order(photo.name))[::every]
        clips, total = [Clip(folder or "frames", kept, fps / every)], len(kept)
    failed: list[PansightError] = []
    for photo in photos:
        if not is_video(photo.file):
            continue
        try:
            with Video(photo.file) as video:
                clips.append(Clip(photo.name, [photo], video.rate / every, every, video=True))
                total += -(-video.count // every)
        except PansightError as error:
            failed.append(error)
    return clips, failed, total


class Frame(NamedTuple):
    """A picture to be predicted. source: its file, or the piece of one that it is; its pixels, RGB uint8 (H, W, 3); or
    the error in its place."""

    clip: Clip
    name: str
    source: Path | Piece | NDArray[np.uint8] | PansightError


def read_photo(source: Path | Piece, name: str) -> NDArray[np.uint8]:
    """RGB uint8 (H, W, 3). Raises PansightError where it cannot be read."""
    return read_image(source) if isinstance(source, Path) else decode_image(source.read(), f"{source.place}: {name}")


class _Picture(NamedTuple):
    """An overlay that is to be drawn, and where it goes."""

    clip: Clip
    path: Path
    prediction: PhotoPrediction


def _frames(clip: Clip) -> Iterator[Frame]:
    """The frames of a clip, and behind those of a video the error that tells of frames that cannot be decoded."""
    if not clip.video:
        yield from (Frame(clip, photo.name, photo.piece or photo.file) for photo in clip.photos)
        return
    stem = PurePosixPath(clip.name).with_suffix("")
    with Video(clip.photos[0].file) as video:
        for number, pixels in video.frames(clip.every):
            yield Frame(clip, f"{stem}/frame_{number:06d}.png", pixels)
        complaint = video.complaint()
    if complaint is not None:
        yield Frame(clip, clip.name, complaint)


class _Job:
    """A prediction at work: what is the same for every frame, and what came of those so far."""

    def __init__(
        self,
        predictor: Predictor,
        wanted: Wanted,
        drawing: Drawing,
        overlays: Path,
        writer: ResultsWriter,
        bar: ProgressBar,
        stop: Stop,
        total: int,
        proposals: Proposals | None = None,
    ):
        self.proposals = proposals
        self.predictor, self.wanted, self.drawing = predictor, wanted, drawing
        self.overlays, self.writer, self.bar, self.stop, self.total = overlays, writer, bar, stop, total
        self.rows: list[PhotoRow] = []
        self.failed: list[PansightError] = []
        self.notes: list[str] = []
        self.start = time.monotonic()
        self._names: set[str] = set()
        self._seen = self._written = 0

    def tune(self, clips: Sequence[Clip]) -> None:
        """Let the predictor try what is fastest for the first frame that can be read."""
        for frame in (frame for clip in clips for frame in _frames(clip)):
            found = self._read(frame)
            if isinstance(found, Shown):
                left = self.total - self._seen
                self.predictor = self.predictor.tuned(found.photo, left, found.proposals, **self.wanted.options)
                return

    def run(self, clips: Sequence[Clip], batch_size: int) -> None:
        """Predict, draw and write each frame; a row for each clip, errors for frames that cannot be read.

        Frames are read and predicted ahead by threads (`engine.predict.pipeline`); here they are decoded and their maps
        written, while another thread draws the overlays of those before.
        """
        frames = (frame for clip in clips for frame in _frames(clip))
        results = self.predictor.stream(frames, self._read, batch_size, **self.wanted.options)
        movie: VideoWriter | None = None
        with closing(results), closing(mapped(self._draw, self._recorded(results))) as pictures:
            for clip, path, picture in pictures:
                if movie is not None and movie.path != path:
                    self._finish(movie)
                    movie = None
                if clip.rate:
                    movie = movie or VideoWriter(path, clip.rate, (picture.shape[0], picture.shape[1]))
                    movie.add(picture)
            if movie is not None:
                self._finish(movie)

    def _read(self, frame: Frame) -> Shown | PansightError:
        """The photo of a frame with its regions: none where their file says nothing of it."""
        source = frame.source
        if isinstance(source, Path | Piece):
            try:
                source = read_photo(source, frame.name)
            except PansightError as error:
                return error
        if isinstance(source, PansightError) or self.proposals is None:
            return source if isinstance(source, PansightError) else Shown(source)
        found = self.proposals.boxes("", frame.name, (source.shape[0], source.shape[1]))
        return Shown(source, torch.zeros(0, 4) if found is None else found)

    def _recorded(self, results: Iterator[Result[Frame]]) -> Iterator[_Picture]:
        """Write what was found, add a row for each clip, and pass on what is to be drawn."""
        for clip, of_clip in groupby(results, key=lambda result: result.item.clip):
            path = self.overlays / flat_name(clip.name, OURS if clip.rate else ".png", self._names)
            categories: list[int] = []
            seconds, frames, size = 0.0, 0, (0, 0)
            for name, found, each in self._readable(of_clip):
                height, width = found.photo.shape[:2]
                if clip.rate and frames and (height, width) != size:
                    expected = f"frames of {size[0]}×{size[1]}, as the first"
                    self.failed.append(PansightError(where=name, expected=expected, found=f"{height}×{width}"))
                    continue
                seconds, frames, size = seconds + each, frames + 1, (height, width)
                self._written += 1
                self.writer.add(self._written, name, found, size=size)
                categories += found_categories(found, self.wanted.drawn)
                yield _Picture(clip, path, found)
            if frames:
                classes = _counted(categories, self.predictor.labels)
                self.rows.append(PhotoRow(shown(clip.name), size, len(categories), classes, seconds, frames))

    def _readable(self, results: Iterator[Result[Frame]]) -> Iterator[tuple[str, PhotoPrediction, float]]:
        """(name, what is wanted of the prediction, seconds) of each frame that could be read, with progress.

        Raises Interrupted after the frame at hand.
        """
        for result in results:
            if isinstance(result.found, PansightError):
                self.failed.append(result.found)
                continue
            self._seen += 1
            total = max(self.total, self._seen)  # a video may have more frames than it promises
            rate = rate_of(self._seen, time.monotonic() - self.start)
            self.bar.update(self._seen / total, f"image {self._seen}/{total}, {rate}")
            yield result.item.name, self.wanted.narrowed(result.found), result.seconds
            if self.stop.is_set():
                text = f"interrupted after image {self._seen} of {total}; nothing is written"
                raise Interrupted(text, self.stop.number)

    def _draw(self, picture: _Picture) -> tuple[Clip, Path, NDArray[np.uint8]]:
        """The overlay, written where it is that of a photo."""
        options = self.drawing._replace(score=self.wanted.drawn)._asdict()
        clip, path, found = picture
        drawn = image_array(
            draw_prediction(image_tensor(found.photo), found, self.predictor.labels, **options, by_class=clip.rate > 0)
        )
        if not clip.rate:
            write_png(path, drawn)
        return clip, path, drawn

    def _finish(self, movie: VideoWriter) -> None:
        movie.close()
        if movie.written_size != movie.size:
            told = "×".join(map(str, reversed(movie.written_size)))
            self.notes.append(f"{movie.path.name} is {told} pixels large, since its codec needs even sides")


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

    def narrowed(self, prediction: PredictionKind) -> PredictionKind:
        """The kind that is kept, without objects under the least score."""
        panoptic, semantic, instances = prediction.panoptic, prediction.semantic, prediction.instances
        if self.kind is not None:
            panoptic = panoptic if self.kind == "panoptic" else None
            semantic = semantic if self.kind == "semantic" else None
            instances = instances if self.kind == "instances" else None
        if panoptic is None and instances is not None:
            instances = surer_than(instances, self.least)
        return replace(prediction, panoptic=panoptic, semantic=semantic, instances=instances)


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


def rate_of(images: int, seconds: float) -> str:
    """The pace of a job for its progress and its table: "12 images/s"."""
    rate = images / max(seconds, 1e-6)
    return f"{rate:.{2 if rate < 10 else 0}f} images/s"


def photo_table(results: PhotoResults) -> str:
    """A line for each photo, the sum, what was left out, and what could not be read."""
    rows = results.rows
    width = max(4, *(len(r.file) for r in rows))
    lines = [f"{'file':{width}}  {'size':>11}  {'segments':>8}  {'seconds':>7}  classes"]
    for row in rows:
        size = f"{row.size[1]}×{row.size[0]}"
        frames = f"  ({row.frames} frames)" if row.frames > 1 else ""
        lines.append(f"{row.file:{width}}  {size:>11}  {row.segments:8d}  {row.seconds:7.2f}  {row.classes}{frames}")
    images = sum(r.frames for r in rows)
    counts = f"{images} images, {sum(r.segments for r in rows)} segments"
    lines.append(f"{counts}, {results.seconds:.2f} s, {rate_of(images, results.seconds)}")
    lines += [f"speed      {results.speed}"] if results.speed else []
    lines += [left_out_line(results.left_out)] if results.left_out else []
    lines += [f"note       {note}" for note in results.notes]
    lines += [f"not read   {error}" for error in results.failed]
    return "\n".join(lines)
