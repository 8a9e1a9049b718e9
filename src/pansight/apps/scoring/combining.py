"""``pansight combine``: an instance prediction and a semantic one of any tools, as files, to COCO panoptic; and, of two
models, one.

Images stream through memory one by one. What cannot be combined is left out and told, and nothing else of it is lost;
with `strict` it stops the command instead.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pansight.apps.scoring.machine import MachineFigures, Truth
from pansight.apps.scoring.pairing import Classes, Pair, match_classes, pair_images, read_reference
from pansight.data.convert.source import Region
from pansight.data.formats.coco_panoptic import PanopticWriter
from pansight.data.formats.predictions.listing import Row
from pansight.data.formats.predictions.objects import ObjectPredictions, mask_of, region_of
from pansight.data.formats.predictions.semantic import SemanticPredictions, open_semantic, size_of
from pansight.data.images import MAX_PIXELS
from pansight.engine.predict import combine_models
from pansight.engine.progress import ProgressBar, stop_signal
from pansight.errors import Interrupted, PansightError, choice_error
from pansight.files import write_json
from pansight.metrics.files.summary import machine_table, summary
from pansight.ops.fusion.instances import merge_by_label_map, merge_by_stuff_masks
from pansight.ops.fusion.label_spaces import MISSING
from pansight.types import IGNORE, Instances, PanopticSegmentation, Prediction
from pansight.weights.native import is_saved

RULES = ("panopticapi", "detectron2")
PREDICTIONS, EVALUATION, RECEIPT = "predictions.json", "evaluation.json", "combine.json"
NO_CLASS = (0, 255, 65535)
"""Numbers that stand for no class in the PNGs of most tools; where they do stand for one, that is listed."""
SHOWN = 5
"""Lines of a long list on the terminal; the receipt has them all."""


class Merge(NamedTuple):
    """The published rule and its numbers (docs/systems/merging.md)."""

    rule: str = "panopticapi"
    score_threshold: float = 0.5
    max_overlap: float = 0.5
    min_stuff_area: int = 4096

    def checked(self) -> Merge:
        """Itself. Raises PansightError for an unknown rule and for numbers out of range."""
        if self.rule not in RULES:
            raise choice_error("rule", self.rule, RULES)
        for name, value in (("score-threshold", self.score_threshold), ("max-overlap", self.max_overlap)):
            if not 0 <= value <= 1:
                raise PansightError(where=f"--{name}", expected="0 … 1", found=f"{value:g}")
        if self.min_stuff_area < 0:
            raise PansightError(where="--min-stuff-area", expected="0 or more pixels", found=self.min_stuff_area)
        return self


class Inputs(NamedTuple):
    """The files of a combination; None: not given."""

    instances: Path  # COCO results, or a folder with instances.json
    semantic: Path  # a folder of PNGs, semantic.json, or COCO-stuff results
    data: Path | None = None  # a COCO JSON that says which images, and if it can which classes, are meant
    categories: Path | None = None  # a JSON of categories
    class_table: Path | None = None  # what the numbers of the PNGs stand for
    gt: Path | None = None  # COCO panoptic, to be measured against; also says what `data` and `categories` do
    gt_dir: Path | None = None


class Combination(NamedTuple):
    """What came of it. record: the evaluation against the truth, None without one."""

    images: int
    left_out: list[PansightError]
    notes: list[str]
    record: dict[str, Any] | None

    def text(self, out: Path) -> str:
        """Some lines for a person."""
        lines: list[str] = []
        if self.record is not None:
            lines.append(summary({key: value for key, value in self.record.items() if key != "machine"}))
            lines += ["", *machine_table(self.record["machine"]), ""]
        lines += [f"note       {note}" for note in self.notes]
        lines += [f"left out   {error}" for error in self.left_out[:SHOWN]]
        if len(self.left_out) > SHOWN:
            lines.append(f"left out   … {len(self.left_out) - SHOWN} more in {out / RECEIPT}")
        return "\n".join([*lines, f"{self.images} images combined: {out / PREDICTIONS}"])


def combine_files(
    inputs: Inputs,
    out: str | Path,
    merge: Merge = Merge(),  # noqa: B008 (immutable)
    strict: bool = False,
    overwrite: bool = False,
) -> Combination:
    """Merge predicted objects with predicted semantic maps and write COCO panoptic predictions into the folder `out`.

    Written, whole or not at all: predictions.json and predictions/*.png; combine.json, which says what was done and
    left out; with a truth evaluation.json, which has the rows of `metrics.machine`, too.
    strict: raise instead of leaving out. Raises PansightError where a file is missing or is none of its kind, nothing
    says which classes are meant, a class is a thing here and stuff there, no image has both predictions, or `out` has
    results and `overwrite` is not set; Interrupted after Ctrl-C or SIGTERM, when nothing is written.
    """
    out, merge = Path(out), merge.checked()
    taken = [out / name for name in (PREDICTIONS, EVALUATION, RECEIPT) if (out / name).exists()]
    if taken and not overwrite:
        raise PansightError(where=taken[0], expected="no results yet", found="some", hint="add --overwrite")
    truth = None if inputs.gt is None else Truth(inputs.gt, inputs.gt_dir)
    objects, semantic = ObjectPredictions(inputs.instances), open_semantic(inputs.semantic, inputs.class_table)
    images, labels = _reference(inputs, truth)
    classes = match_classes(objects, semantic, labels)
    paired = pair_images(objects, semantic, images)
    job = _Job(objects, semantic, classes, merge, truth)
    left_out = [*_unlisted_objects(objects, classes), *paired.left_out]
    if strict and left_out:
        raise left_out[0]
    with PanopticWriter(out / PREDICTIONS, classes.labels, overwrite=True) as writer:
        failed = job.run(paired.pairs, writer, strict)
    left_out += failed
    left_out += [job.unlisted_numbers()] if job.unlisted else []
    notes = [*classes.notes, *paired.notes, *job.notes()]
    record = None
    if job.figures is not None and truth is not None:
        record = job.figures.record() | {"about": _about(inputs, merge)}
        measured = len(paired.pairs) - len(failed)
        if measured < len(truth):
            notes.append(f"the figures are those of {measured} of the {len(truth)} images of {inputs.gt}")
        write_json(out / EVALUATION, record)
    elif (out / EVALUATION).exists():
        (out / EVALUATION).unlink()  # of an earlier combination, which this one replaces
    found = Combination(len(paired.pairs) - len(failed), left_out, notes, record)
    write_json(out / RECEIPT, _about(inputs, merge) | {"left_out": list(map(str, left_out)), "notes": notes})
    return found


def _reference(inputs: Inputs, truth: Truth | None) -> tuple[Any, Any]:
    """(the images, the label space) that files other than the predictions ask for; None where there is none."""
    images, labels = (None, None) if truth is None else (truth.images, truth.labels)
    if inputs.data is not None:
        of_data = read_reference(inputs.data, classes_needed=False)
        images, labels = of_data.images or images, labels or of_data.labels
    if inputs.categories is not None and truth is None:
        labels = read_reference(inputs.categories, classes_needed=True).labels
    return images, labels


def _unlisted_objects(objects: ObjectPredictions, classes: Classes) -> list[PansightError]:
    """A line for each category id that is no thing of the result, with the number of objects that are left out."""
    listed = {c.source_id: c.name for c in classes.labels}
    lines: list[PansightError] = []
    for number, count in sorted(objects.category_ids().items()):
        if number not in classes.of_objects:
            is_stuff = objects.classes is None and number in listed
            kind = f", which is the stuff {listed[number]}" if is_stuff else ""
            found = f"category_id {number}{kind}, of {count} objects"
            lines.append(
                PansightError(
                    where=objects.path, expected="things that are listed", found=found, code="unlisted_category"
                )
            )
    return lines


def _about(inputs: Inputs, merge: Merge) -> dict[str, Any]:
    files = {name: None if path is None else str(path) for name, path in inputs._asdict().items()}
    settings = {"rule": merge.rule, "score_threshold": merge.score_threshold, "max_overlap": merge.max_overlap}
    settings |= {"min_stuff_area": merge.min_stuff_area}
    return {"data": files["gt"], "predictions": f"{files['instances']} + {files['semantic']}", "files": files} | {
        "settings": settings
    }


class _Job:
    """One combination: what is the same for every image, and what is counted over them."""

    def __init__(
        self,
        objects: ObjectPredictions,
        semantic: SemanticPredictions,
        classes: Classes,
        merge: Merge,
        truth: Truth | None,
    ):
        self.objects, self.semantic, self.classes, self.merge, self.truth = objects, semantic, classes, merge, truth
        self.figures = None if truth is None else MachineFigures(classes.labels)
        self.unlisted: Counter[int] = Counter()  # numbers of pixels that stand for no class → images
        self.with_stuff = self.without_stuff = 0  # images whose stuff is kept in part, or dropped altogether

    def run(self, pairs: list[Pair], writer: PanopticWriter, strict: bool) -> list[PansightError]:
        """Combine, write and measure each image; the errors of those that are left out.

        Raises the error of the first one where `strict`, or where all are left out.
        """
        failed: list[PansightError] = []
        with stop_signal("image") as stop, ProgressBar("combine") as bar:
            for number, pair in enumerate(pairs, 1):
                bar.update(number / len(pairs), f"image {number}/{len(pairs)}")
                try:
                    prediction, stuff_alone = self._predict(pair)
                    name = pair.image.file_name or f"{pair.image.id}.png"
                    if self.figures is not None and self.truth is not None:
                        self.figures.update(prediction, stuff_alone, self.truth.sample(pair.image.id))
                    assert prediction.panoptic is not None
                    writer.add(pair.image.id, name, prediction.panoptic)
                except PansightError as error:
                    if strict:
                        raise
                    failed.append(error)
                if strict and self.unlisted:
                    raise self.unlisted_numbers()
                if stop.is_set():
                    text = f"interrupted after image {number} of {len(pairs)}; nothing is written"
                    raise Interrupted(text, stop.number)
        if len(failed) == len(pairs):
            raise failed[0] if len(pairs) == 1 else failed[0].at(f"none of {len(pairs)} images can be combined")
        return failed

    def unlisted_numbers(self) -> PansightError:
        """One line on all pixels of no class, which stay void."""
        numbers = ", ".join(f"{n} in {count} images" for n, count in sorted(self.unlisted.items())[:SHOWN])
        return PansightError(
            where=self.semantic.path, expected="numbers of listed classes", found=numbers, code="unlisted_category"
        )

    def notes(self) -> list[str]:
        """A line where the threshold takes all stuff of all images, as that of large photos does with small ones."""
        if self.with_stuff or not self.without_stuff:
            return []
        area = self.merge.min_stuff_area
        return [f"no image keeps any stuff: none of it has {area} pixels (--min-stuff-area)"]

    def _predict(self, pair: Pair) -> tuple[Prediction, PanopticSegmentation]:
        """(everything that is known of an image, the stuff of its semantic map alone)."""
        size, masks = self.semantic.read(pair.image)
        rows = [row for row in self.objects.rows(pair.own_id) if row.category_id in self.classes.of_objects]
        size = self._size(pair, size, rows)
        semantic = torch.full(size, IGNORE, dtype=torch.int64)
        stuff: list[torch.Tensor] = []
        categories: list[int] = []
        for number, pixels in masks:
            category = self.classes.of_pixels.get(number)
            if category is None:
                self.unlisted.update([number] if number not in NO_CLASS else [])
            elif category != MISSING:
                mask = torch.from_numpy(pixels)
                semantic[mask & (semantic == IGNORE)] = category
                stuff.append(mask)
                categories.append(category)
        instances = self._instances(pair, rows, size)
        panoptic = self._merged(instances, semantic, torch.stack(stuff) if stuff else _no_masks(size), categories)
        alone = merge_by_label_map(
            _no_masks(size),
            instances.scores[:0],
            instances.labels[:0],
            semantic,
            self.classes.labels,
            min_stuff_area=self.merge.min_stuff_area,
        )
        if any(not self.classes.labels[category].is_thing for category in categories):
            self.with_stuff += bool(alone.segments)
            self.without_stuff += not alone.segments
        return Prediction(panoptic, semantic, instances), alone

    def _size(self, pair: Pair, found: tuple[int, int] | None, rows: list[Row]) -> tuple[int, int]:
        """(H, W). Raises PansightError where files do not agree on it, where none says it, and beyond MAX_PIXELS."""
        name = pair.image.file_name or pair.image.id
        stated = pair.image.size
        if stated is not None and found is not None and stated != found:
            expected, other = (f"{height}×{width}" for height, width in (stated, found))
            raise PansightError(
                where=f"{self.semantic.path}: image {name}",
                expected=f"a map of {expected} (its image)",
                found=f"{other} (height × width)",
            )
        size = found or stated or size_of(rows)
        if size is None:
            raise PansightError(where=f"image {name}", expected="a file that says its size", found="none")
        if not 0 < size[0] * size[1] <= MAX_PIXELS or min(size) < 1:
            expected = f"an image of 1 … {MAX_PIXELS // 10**6} million pixels"
            raise PansightError(where=f"image {name}", expected=expected, found=f"{size[0]}×{size[1]}")
        return size

    def _instances(self, pair: Pair, rows: list[Row], size: tuple[int, int]) -> Instances:
        """The objects in the order of the file; of those that the merge drops for their score only where measured."""
        kept: list[tuple[Region, Row]] = []
        for row in rows:
            if self.figures is None and row.score is not None and row.score < self.merge.score_threshold:
                continue
            where = f"{self.objects.path}: image {pair.own_id}: category_id {row.category_id}"
            region = region_of(row, size, where)
            if region is not None:
                kept.append((region, row))
        masks = torch.from_numpy(np.stack([mask_of(region, size) for region, _ in kept])) if kept else _no_masks(size)
        boxes = [(r.left, r.top, r.left + r.mask.shape[1], r.top + r.mask.shape[0]) for r, _ in kept]
        labels = torch.tensor([self.classes.of_objects[row.category_id] for _, row in kept], dtype=torch.int64)
        scores = torch.tensor([1.0 if row.score is None else row.score for _, row in kept], dtype=torch.float64)
        return Instances(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels, scores, masks)

    def _merged(
        self, found: Instances, semantic: torch.Tensor, stuff: torch.Tensor, categories: list[int]
    ) -> PanopticSegmentation:
        assert found.masks is not None
        numbers = self.merge.score_threshold, self.merge.max_overlap, self.merge.min_stuff_area
        objects = found.masks, found.scores, found.labels
        if self.merge.rule == "detectron2":
            return merge_by_label_map(*objects, semantic, self.classes.labels, *numbers)
        return merge_by_stuff_masks(*objects, stuff, categories, self.classes.labels, *numbers)


def _no_masks(size: tuple[int, int]) -> torch.Tensor:
    return torch.zeros((0, *size), dtype=torch.bool)


def combine(
    instances: str | Path,
    semantic: str | Path,
    out: str | Path,
    merge: Merge = Merge(),  # noqa: B008 (immutable)
    inputs: Inputs | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> Combination | None:
    """Two models as one saved model, or predictions of two as panoptic predictions → what came of these.

    instances, semantic: both what `load` takes, or both files and folders as of `combine_files`. inputs: the further
    files of that.
    Raises PansightError where the one is a model and the other is not, and as the two ways do.
    """
    kinds = [is_predictions(Path(path)) for path in (instances, semantic)]
    if kinds[0] != kinds[1]:
        words = [f"{path}, {'predictions' if kind else 'a model'}" for path, kind in zip((instances, semantic), kinds)]
        raise PansightError(where="combine", expected="two models, or predictions of two", found=" and ".join(words))
    if kinds[0]:
        return combine_files(inputs or Inputs(Path(instances), Path(semantic)), out, merge, strict, overwrite)
    given = [f"--{name.replace('_', '-')}" for name, path in (inputs._asdict() if inputs else {}).items() if path]
    further = [name for name in given if name not in ("--instances", "--semantic")]
    if further:
        raise PansightError(
            where=further[0], expected="predictions", found="two models", hint="evaluate measures these"
        )
    save_combined(instances, semantic, Path(out), merge.checked(), overwrite)
    return None


def is_predictions(path: Path) -> bool:
    """Whether a path is a JSON, or a folder with predictions; else it is taken for a model."""
    if path.is_dir():
        named = [path / name for name in ("instances.json", "semantic.json")]
        of_model = (path / "config.json").is_file() or (path / "checkpoints").is_dir()
        return not of_model and (any(file.is_file() for file in named) or next(path.rglob("*.png"), None) is not None)
    return path.suffix.lower() == ".json"


def save_combined(instances: str | Path, semantic: str | Path, out: Path, merge: Merge, overwrite: bool) -> None:
    """Write two models as one saved folder. Raises PansightError where something stands at `out`: with `overwrite`, a
    saved model is replaced, but nothing else.
    """
    if out.exists() and not (out.is_dir() and is_saved(out)):
        raise PansightError(where=out, expected="a new folder or a saved model", found="something else")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise PansightError(where=out, expected="no model yet", found="one", hint="add --overwrite")
    whole = combine_models(instances, semantic, merge.score_threshold, merge.max_overlap, merge.min_stuff_area, "cpu")
    whole.save(out)
