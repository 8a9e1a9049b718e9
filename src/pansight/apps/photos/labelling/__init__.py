"""``pansight label``: the sure predictions of a model as a data set to train on, alone or in the void of annotations.

The folder that is written is COCO panoptic with one part, ``train``: photos, PNGs and their JSON; label.json, which
says how it was made; and label.html, a page to look at before anything is trained on it.
"""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from pansight.apps.photos import rate_of
from pansight.apps.photos.finding import find_photos, left_out_line
from pansight.apps.photos.labelling.classes import Joined, joined_classes, own_classes
from pansight.apps.photos.labelling.filling import REASONS, UNSURE, Labelled, Rule, labelled
from pansight.apps.photos.labelling.page import PAGE, Examples, write_page
from pansight.apps.photos.labelling.tally import ClassCount, Tally
from pansight.data import DATASETS, detect_format, open_dataset, reading_notes
from pansight.data.check.output import Names, new_folder, place_file, require_new
from pansight.data.dataset import Dataset, image_array
from pansight.data.formats.coco_panoptic import PanopticWriter
from pansight.data.images import read_image
from pansight.data.left_out import FolderDataset, left_out_of, usable
from pansight.engine.infer import known_decode_options
from pansight.engine.predict import PhotoPrediction, Predictor, load
from pansight.engine.predict.pipeline import Result, Shown
from pansight.engine.progress import ProgressBar, Stop, stop_signal
from pansight.errors import Interrupted, PansightError, shown
from pansight.files import write_json
from pansight.models import entry
from pansight.types import PanopticSegmentation

RECEIPT = "label.json"
"""How the folder was made; only a folder that has it is ever replaced."""

PART = "train"


class Labelling(NamedTuple):
    """What was written. images: their number. annotated: pixels that were annotated before, 0 … 1; void: pixels that
    stay void, likewise, and in `reasons` why. empty: photos where nothing was sure enough, which are left out. failed:
    photos and annotations that cannot be used.
    """

    folder: Path
    images: int
    classes: tuple[ClassCount, ...]
    annotated: float
    void: float
    reasons: dict[str, float]
    empty: int
    failed: tuple[PansightError, ...]
    notes: tuple[str, ...]
    seconds: float


def label(
    weights: str | Path,
    photos: Sequence[str | Path] = (),
    out: str | Path = "labelled",
    *,
    confidence: float = 0.7,
    fill_void: str | Path | None = None,
    classes: Sequence[str] = (),
    min_area: int = 16,
    threshold: float | None = None,
    split: str | None = None,
    options: Mapping[str, Any] | None = None,
    recursive: bool = True,
    link: bool = False,
    strict: bool = False,
    batch_size: int = 1,
    overwrite: bool = False,
) -> Labelling:
    """Write what a model is sure of as a data set to train on, COCO panoptic; all of it appears, or nothing does.

    photos: files, folders and patterns. confidence: the least score, 0 … 1, of a segment, or of a pixel of a model of
    semantic maps; what is below is void. fill_void: annotations in a format of DATASETS, whose void alone is filled;
    every annotated pixel stays as it is, and photos without annotation are not looked at. `photos` may then be one
    folder, where they lie apart from the annotations. classes: of the model, by their names, or "things", "stuff",
    "all"; (): all, in the void of annotations the stuff. min_area: pixels; smaller objects become void. threshold: of
    the model's own decode. split, options: the part of the annotations, and options of their reader. recursive: look
    into sub-folders of `photos`. link: hard links instead of copies of the photos. strict: stop at a photo that cannot
    be used, instead of leaving it out. batch_size: photos of equal network size that are predicted at once.
    Raises PansightError in one line for bad input, and where nothing is sure enough.
    """
    out = Path(out)
    _check(out, confidence, min_area, threshold, overwrite)
    if fill_void is None:
        if split is not None or options:
            raise PansightError(where="split, options", expected="annotations to fill (--fill-void)", found="none")
        source = _Photos.found(photos, recursive, out)
    else:
        source = _Annotated.opened(fill_void, photos, split, options or {}, strict)
    predictor = load(weights)
    decode = _decode_options(predictor, weights, confidence, threshold)
    if isinstance(source, _Annotated):
        joined = joined_classes(source.dataset.labels, predictor.labels, classes)
    else:
        joined = own_classes(predictor.labels, classes)
    void_is = UNSURE if "certainty" in decode else "nothing"
    rule = Rule(joined.labels, joined.of_model, confidence, min_area, void_is=void_is)
    asked = {"weights": str(weights), "photos": [str(path) for path in photos], "confidence": confidence}
    asked |= {"fill_void": None if fill_void is None else str(fill_void), "split": split, "min_area": min_area}
    with ExitStack() as stack:
        stop = stack.enter_context(stop_signal("image"))
        folder = stack.enter_context(new_folder(out, RECEIPT, source.inputs(), overwrite))
        bar = stack.enter_context(ProgressBar("label"))
        job = _Job(source, rule, link, strict, bar, stop)
        job.run(predictor, folder, batch_size, decode)
        result = job.result(out, joined)
        write_json(folder / RECEIPT, _receipt(result, asked, joined, predictor))
        write_page(folder / PAGE, result, joined.labels, job.examples, asked)
    return result


def _check(out: Path, confidence: float, min_area: int, threshold: float | None, overwrite: bool) -> None:
    """Raises PansightError, before anything is read or loaded."""
    for name, value in (("--confidence", confidence), ("--threshold", threshold)):
        if value is not None and not 0 <= value <= 1:
            raise PansightError(where=name, expected="0 … 1", found=f"{value:g}")
    if min_area < 0:
        raise PansightError(where="--min-area", expected="0 or more pixels", found=min_area)
    require_new(out, RECEIPT, overwrite)


def _decode_options(
    predictor: Predictor, weights: str | Path, confidence: float, threshold: float | None
) -> dict[str, Any]:
    """What makes panoptic maps. Of a semantic map, whose pixels are sure by themselves, the unsure ones are void.

    Raises PansightError for a model of boxes alone.
    """
    known, produces = known_decode_options(predictor.model), entry(predictor.name).produces
    if not {"panoptic", "semantic"} & set(produces):
        found = f"{predictor.name}, which gives boxes alone"
        raise PansightError(where=weights, expected="a model of masks or maps", found=found)
    given: dict[str, Any] = {} if threshold is None else {"score_threshold": threshold}
    if "certainty" in known:
        return {**given, "components": True, "certainty": confidence}
    return {**given, "task": "panoptic"} if "task" in known else given


@dataclass(frozen=True)
class _Item:
    """A photo that is labelled. image_id, name: in what is written. file: of the photo."""

    index: int
    image_id: str | int
    name: str
    file: Path


class _Photos:
    """Photos without annotations."""

    def __init__(self, items: Sequence[_Item], given: Sequence[Path], left_out: Counter[str]):
        self.items, self._given = items, given
        line = left_out_line(left_out)
        self.notes: tuple[str, ...] = (line,) if line else ()
        self.failed: tuple[PansightError, ...] = ()

    @classmethod
    def found(cls, photos: Sequence[str | Path], recursive: bool, out: Path) -> _Photos:
        if not photos:
            raise PansightError(where="label", expected="photos: files or a folder", found="none")
        found = find_photos(photos, recursive, without=out)
        names = Names()
        items = [_Item(n, n + 1, names.take(photo.name), photo.file) for n, photo in enumerate(found.photos)]
        return cls(items, [Path(path) for path in photos if Path(path).is_dir()], found.left_out)

    def inputs(self) -> tuple[Path, ...]:
        return tuple(self._given)

    def read(self, item: _Item) -> Shown | PansightError:
        try:
            return Shown(read_image(item.file))
        except PansightError as error:
            return error

    def annotation(self, item: _Item) -> PanopticSegmentation | None:
        """What was annotated before."""
        return None


class _Annotated:
    """Photos with annotations that have void. The truth of a photo is kept from its reading to its labelling."""

    def __init__(self, dataset: Dataset, files: FolderDataset):
        self.dataset, self._folder = dataset, files.images
        names = Names()
        self.items = [
            _Item(n, dataset.image_id(n), names.take(dataset.file_name(n)), self._folder / dataset.file_name(n))
            for n in range(len(dataset))
        ]
        self.notes, self.failed = reading_notes(dataset), left_out_of(dataset)
        self._truths: dict[int, PanopticSegmentation] = {}

    @classmethod
    def opened(
        cls,
        source: str | Path,
        photos: Sequence[str | Path],
        split: str | None,
        options: Mapping[str, Any],
        strict: bool,
    ) -> _Annotated:
        """The format is found out. Where it can leave what is not annotated void, it does.

        Raises PansightError for anything but files, for more than one folder of photos, and as `open_dataset` does.
        """
        format = detect_format(source, split)
        known, chosen = inspect.signature(DATASETS[format]).parameters, dict(options)
        if "background" in known:
            chosen.setdefault("background", "void")
        if photos:
            if len(photos) > 1 or not Path(photos[0]).is_dir():
                expected = "one folder, of the photos that are annotated"
                raise PansightError(where=photos[0], expected=expected, found=f"{len(photos)} files or folders")
            if not format.startswith("coco_"):
                hint = "leave the folder of photos away"
                raise PansightError(
                    where=photos[0], expected=f"{format}, which knows its photos", found="a folder", hint=hint
                )
            chosen.setdefault("images", str(Path(photos[0]).resolve()))
        dataset = open_dataset(source, format, split, chosen)
        if not isinstance(dataset, FolderDataset):
            found = "shards: pansight convert unpacks them" if format == "webdataset" else "generated images"
            raise PansightError(where=source, expected="annotations in files", found=found)
        return cls(usable(dataset, strict), dataset)

    def inputs(self) -> tuple[Path, ...]:
        return (self._folder,)

    def read(self, item: _Item) -> Shown | PansightError:
        try:
            sample = self.dataset[item.index]
        except PansightError as error:
            return error
        self._truths[item.index] = sample.truth
        return Shown(image_array(sample.image))

    def annotation(self, item: _Item) -> PanopticSegmentation | None:
        """What was annotated before."""
        return self._truths.pop(item.index)


class _Job:
    """A labelling at work: what is the same for every photo, and what came of those so far."""

    def __init__(
        self, source: _Photos | _Annotated, rule: Rule, link: bool, strict: bool, bar: ProgressBar, stop: Stop
    ):
        self.source, self.rule, self.link, self.strict, self.bar, self.stop = source, rule, link, strict, bar, stop
        self.tally = Tally(rule.labels)
        self.examples = Examples(rule.labels, len(source.items))
        self.failed = list(source.failed)
        self.start = time.monotonic()

    def run(self, predictor: Predictor, folder: Path, batch_size: int, decode: Mapping[str, Any]) -> None:
        """Predict, fill and write each photo.

        Raises PansightError where no photo can be read, or nothing was sure enough; Interrupted after a photo.
        """
        listing = folder / "annotations" / f"panoptic_{PART}.json"
        results = predictor.stream(self.source.items, self.source.read, batch_size, **decode)
        with closing(results), PanopticWriter(listing, self.rule.labels) as writer:
            for item, prediction in self._readable(results):
                found = self._labelled(item, prediction)
                if not found.map.segments:
                    self.tally.empty += 1
                    continue
                self.tally.add(found)
                self.examples.add(item.index, item.name, prediction.photo, found)
                place_file(item.file, folder / PART / item.name, self.link)
                writer.add(item.image_id, item.name, found.map)
            if not self.tally.images and self.failed and not self.tally.empty:
                error = self.failed[0]
                raise error if len(self.failed) == 1 else error.at(f"none of {len(self.failed)} photos can be read")
            self._check_found()

    def _labelled(self, item: _Item, prediction: PhotoPrediction) -> Labelled:
        if prediction.panoptic is None:
            raise PansightError(where="weights", expected="a model of masks or maps", found="one of boxes alone")
        self.tally.see(prediction.panoptic)
        return labelled(prediction.panoptic, self.rule, self.source.annotation(item))

    def _readable(self, results: Iterator[Result[_Item]]) -> Iterator[tuple[_Item, PhotoPrediction]]:
        total = len(self.source.items)
        for number, result in enumerate(results, 1):
            if isinstance(result.found, PansightError):
                if self.strict:
                    raise result.found
                self.failed.append(result.found)
            else:
                self.bar.update(number / total, f"image {number}/{total}, {self._rate(number)}")
                yield result.item, result.found
            if self.stop.is_set():
                text = f"interrupted after image {number} of {total}; nothing is written"
                raise Interrupted(text, self.stop.number)

    def _rate(self, images: int) -> str:
        return rate_of(images, time.monotonic() - self.start)

    def _check_found(self) -> None:
        """Raises PansightError where the model added nothing at all."""
        if any(row.segments for row in self.tally.rows()):
            return
        if isinstance(self.source, _Annotated) and not self.tally.open:
            raise PansightError(where="--fill-void", expected="void to fill", found="none: every pixel is annotated")
        best = f"none; the highest score is {self.tally.best:.3f}" if self.tally.best else "none"
        expected = f"segments with a confidence of {self.rule.confidence:g} or more"
        raise PansightError(where="label", expected=expected, found=best, hint="nothing was written")

    def result(self, out: Path, joined: Joined) -> Labelling:
        tally, notes = self.tally, list(self.source.notes)
        if joined.new:
            notes.append(f"classes that only the model knows are new: {', '.join(shown(n, 60) for n in joined.new)}")
        pixels = max(tally.pixels, 1)
        return Labelling(
            out,
            tally.images,
            tuple(tally.rows()),
            tally.kept / pixels,
            sum(tally.void.values()) / pixels,
            {reason: tally.void[reason] / pixels for reason in REASONS if tally.void[reason]},
            tally.empty,
            tuple(self.failed),
            tuple(notes),
            time.monotonic() - self.start,
        )


def _receipt(result: Labelling, asked: Mapping[str, Any], joined: Joined, predictor: Predictor) -> dict[str, Any]:
    """The content of label.json: what was asked for, and what came of it."""
    return {
        "made_by": f"pansight label {version('pansight')}",
        **asked,
        "model": predictor.name,
        "filled_classes": [joined.labels[index].name for index in joined.of_model.values()],
        "new_classes": list(joined.new),
        "images": result.images,
        "photos_without_a_sure_segment": result.empty,
        "annotated": result.annotated,
        "void": result.void,
        "void_reasons": result.reasons,
        "classes": [row._asdict() for row in result.classes],
        "left_out": [str(error) for error in result.failed],
    }


def label_table(result: Labelling) -> str:
    """A line for each class that the model gave, what stays void and why, and what could not be used."""
    rows = [row for row in result.classes if row.segments]
    width = max(5, *(len(shown(row.name, 40)) for row in rows))
    lines = [f"{'class':{width}}  {'images':>7}  {'segments':>8}  {'of all pixels':>13}  confidence"]
    for row in rows:
        confidence = "not scored" if row.confidence is None else f"{row.confidence:.3f}"
        name, share = shown(row.name, 40), f"{100 * row.share:.1f} %"
        lines.append(f"{name:{width}}  {row.images:7d}  {row.segments:8d}  {share:>13}  {confidence:>10}")
    reasons = ", ".join(f"{100 * share:.1f} % {REASONS[reason]}" for reason, share in result.reasons.items())
    lines.append(f"{result.images} images, {rate_of(result.images, result.seconds)}")
    lines += [f"annotated  {100 * result.annotated:.1f} % of all pixels were and are unchanged"] * (
        result.annotated > 0
    )
    lines.append(f"void       {100 * result.void:.1f} % of all pixels" + (f": {reasons}" if reasons else ""))
    lines += [f"left out   {result.empty} photos where nothing is sure enough"] if result.empty else []
    lines += [f"note       {note}" for note in result.notes]
    lines += [f"not used   {error}" for error in result.failed]
    return "\n".join(lines)
