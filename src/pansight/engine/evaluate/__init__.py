"""Evaluation of a model on a data set: its scores, its predictions, and its best and worst images."""

from __future__ import annotations

import copy
import heapq
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from pansight.config import EvaluateConfig
from pansight.data.dataset import Dataset
from pansight.data.formats.coco_panoptic import segment_rows
from pansight.data.formats.results import ResultsWriter
from pansight.data.images import write_png
from pansight.data.loader import evaluation_loader
from pansight.engine import distributed
from pansight.engine.evaluate.loss import validation_loss
from pansight.engine.infer import Inference, predict_views, prepare, views_maker
from pansight.engine.progress import ProgressBar, Stop, stop_signal
from pansight.errors import Interrupted, PansightError, interrupted
from pansight.files import replacing_folder, write_json
from pansight.metrics import create_metrics, evaluation_record
from pansight.metrics.bootstrap.records import with_intervals
from pansight.metrics.files.class_map import ClassMap
from pansight.metrics.machine import machine_rows
from pansight.metrics.mapped import map_prediction, map_truth
from pansight.metrics.panoptic.dagger import PanopticQualityDagger
from pansight.metrics.panoptic.errors import ErrorAnalysis
from pansight.metrics.panoptic.matching import ImageMatch
from pansight.metrics.panoptic.quality import match_maps
from pansight.metrics.scores import image_f1, image_pq
from pansight.metrics.semantic_iou import image_miou
from pansight.metrics.without_overlaps import WithoutOverlaps
from pansight.nn.backbones.folding import folded
from pansight.ops.idmap import ids_to_rgb
from pansight.ops.maps.overlap import IntArray
from pansight.ops.maps.regions import class_regions, object_regions, surer_than
from pansight.ops.targets import boxes_of_ids, semantic_map
from pansight.types import VOID, Instances, LabelSpace, PanopticSegmentation, Prediction, Sample

EVALUATION = "evaluation.json"
PREDICTIONS = "predictions"
DRAWN_SCORE = 0.5
"""Objects of a model without a panoptic map are drawn, and counted in the F1 of an image, from this score on."""

TOGETHER = 4
"""After so many images each, several processes ask one another whether one of them was told to stop."""


def evaluate(
    model: Any,
    dataset: Dataset,
    config: EvaluateConfig,
    accelerator: Accelerator,
    out: Path | None = None,
    workers: int = 0,
    class_map: ClassMap | None = None,
    intervals: bool = True,
    about: Mapping[str, Any] | None = None,
    loss_batch: int = 0,
) -> dict[str, Any]:
    """The record of evaluation.json, the same on every process; each of them measures its share of the images.

    model: on the accelerator's device, left in eval mode; its labels are those of `dataset` unless class_map is given.
    out: a folder for evaluation.json, for predictions/ (what `data.formats.results` writes), and for predictions/sheet
    with the best and the worst images; each appears whole or not at all. intervals: whether the record of an evaluation
    with a folder has those of `metrics.bootstrap`, which take seconds on a large data set. about: further keys of the
    record. loss_batch: images at once for ``config.loss``, see `evaluate.loss`; 0: it is not computed.
    Raises PansightError where the labels differ, an image is bad, or the folder cannot be written. After Ctrl-C or
    SIGTERM the image at hand is finished, and Interrupted raised; nothing is written then.
    """
    if class_map is None and dataset.labels != model.labels:
        expected = f"the classes of the model {model.labels}"
        raise PansightError(where="evaluation", expected=expected, found=dataset.labels)
    if class_map is not None and config.loss:
        raise PansightError(where="evaluate.loss", expected="the classes of the model", found="a class map")
    rank, world = accelerator.process_index, accelerator.num_processes
    count = min(len(dataset), config.limit) if config.limit else len(dataset)
    mine = range(rank, count, world)
    figures = _Figures(dataset.labels, config, config.sheet if out is not None else 0)
    start = time.monotonic()
    with stop_signal("image", accelerator.is_main_process) as stop:
        with ExitStack() as stack:
            writer = None
            if out is not None:
                part = out / PREDICTIONS if world == 1 else out / PREDICTIONS / f"part{rank}"
                stack.enter_context(_leaving_no_empty_folder(part, out / PREDICTIONS, out))
                writer = stack.enter_context(ResultsWriter(part, dataset.labels))
            bar = stack.enter_context(ProgressBar("evaluate", accelerator.is_main_process))
            number = heard = 0
            for number, (prediction, sample) in enumerate(
                predict_all(model, dataset, mine, config, accelerator.device, workers), 1
            ):
                if class_map is not None:
                    prediction = map_prediction(prediction, class_map, dataset.labels)
                    sample = map_truth(sample, class_map)
                codes = figures.update(prediction, sample)
                if writer is not None:
                    writer.add(sample.image_id, dataset.file_name(mine[number - 1]), prediction, codes)
                rate = number * world / (time.monotonic() - start)
                bar.update(number / len(mine), f"image {number}/{len(mine)}, {rate:.1f} images/s")
                heard = _heard(stop, accelerator, number if number <= count // world else 0)
                if heard:
                    break
            loss = {}
            if config.loss and loss_batch and not heard:
                how = loss_batch, accelerator, config.precision, workers, stop
                loss = validation_loss(model, dataset, mine, *how)
            heard = heard or max(distributed.largest([stop.number], accelerator))
            if heard:
                raise Interrupted(f"interrupted after image {number} of {len(mine)}; nothing is written", int(heard))
            record = _interruptible_record(figures, accelerator, intervals and out is not None)
        record |= {"loss": loss} if loss else {}
        record["seconds"] = max(distributed.largest([time.monotonic() - start], accelerator))
        record |= {"images_per_second": count / record["seconds"], **(about or {})}
        if out is not None:
            _write(out, record, figures, accelerator)
    return record


def _heard(stop: Stop, accelerator: Accelerator, number: int) -> int:
    """The signal at which all processes stop after image `number` of each, 0 for none; number 0: not all have one."""
    if accelerator.num_processes == 1:
        return stop.number
    if not number or number % TOGETHER:
        return 0
    return int(max(distributed.largest([stop.number], accelerator)))


def _interruptible_record(figures: _Figures, accelerator: Accelerator, intervals: bool) -> dict[str, Any]:
    """The record of all processes; no image is at hand any more, so a signal stops this at once."""
    try:
        with stop_signal():
            return figures.record(accelerator, intervals)
    except Interrupted as error:
        raise interrupted(error, "interrupted after the last image; nothing is written") from None


@contextmanager
def _leaving_no_empty_folder(*folders: Path) -> Iterator[None]:
    """Remove the folders of an evaluation, inner ones first, that ended before anything was in them."""
    try:
        yield
    except BaseException:
        for folder in folders:
            with suppress(OSError):  # there is something in it, or it is gone
                folder.rmdir()
        raise


def _write(out: Path, record: dict[str, Any], figures: _Figures, accelerator: Accelerator) -> None:
    """What comes after the predictions of all processes: these joined, the sheet, and the record."""
    rows = [row for each in distributed.gather(figures.sheet.rows, accelerator) for row in each]
    if accelerator.is_main_process:
        world = accelerator.num_processes
        if world > 1:
            with ResultsWriter(out / PREDICTIONS, figures.labels) as whole:
                whole.join([out / PREDICTIONS / f"part{each}" for each in range(world)])
        if rows:
            write_sheet(out / PREDICTIONS / "sheet", rows, figures.sheet.size)
        write_json(out / EVALUATION, record)
    distributed.wait_for_everyone(accelerator)


class _Figures:
    """All figures of the images of one process, and its share of the sheet."""

    def __init__(self, labels: LabelSpace, config: EvaluateConfig, sheet: int):
        self.labels = labels
        self.metrics = create_metrics(labels, config.max_detections, config.miou)
        self.errors, self.dagger = ErrorAnalysis(labels), PanopticQualityDagger(labels)
        self.without_overlaps = WithoutOverlaps(labels, config.max_detections)
        self.sheet = Sheet(sheet)
        self.of_networks = True  # whether every prediction has a panoptic map, and what it was merged from

    def update(self, prediction: Prediction, sample: Sample) -> tuple[str, ...] | None:
        """Add one image; gives the run-length codes of the predicted masks."""
        match = self.metrics["panoptic"].update(prediction, sample)
        classes = self.metrics["semantic"].update(prediction, sample)
        objects = self.metrics["instances"].update(prediction, sample)
        truth = None if objects is None else self.metrics["instances"].last_truth
        self.without_overlaps.update(prediction, sample, truth)
        self.of_networks &= None not in (prediction.panoptic, prediction.semantic, prediction.instances)
        if match is not None:
            self.errors.update(match)
            self.dagger.update(match)
        if self.sheet.size:
            shown = _shown(prediction, sample, match, classes, self.labels)
            if shown is not None:
                self.sheet.offer(shown)
        return None if objects is None else objects.codes

    def record(self, accelerator: Accelerator, intervals: bool) -> dict[str, Any]:
        """The record of all processes together."""
        for metric in (*self.metrics.values(), self.errors, self.dagger, self.without_overlaps):
            _join_ranks(metric, accelerator)
        record = evaluation_record(self.metrics)
        if "All" in record:
            record |= self.errors.compute() | {"pq_dagger": self.dagger.compute()}
        if without_overlaps := self.without_overlaps.compute():
            record["without_overlaps"] = without_overlaps
        if self.of_networks and {"All", "semantic", "instances"} <= record.keys():
            record["machine"] = machine_rows(record)
        return with_intervals(record) if intervals else record


def _join_ranks(metric: Any, accelerator: Accelerator) -> None:
    """Give `metric` what it gathered on all processes."""
    states = distributed.gather(metric.state_dict(), accelerator)
    metric.load_state_dict(states[0])
    for state in states[1:]:
        other = copy.deepcopy(metric)
        other.load_state_dict(state)
        metric.merge(other)


def predict_all(
    model: Any, dataset: Dataset, indices: range, config: EvaluateConfig, device: torch.device, workers: int = 0
) -> Iterator[tuple[Prediction, Sample]]:
    """(prediction, sample) of each image, both on the CPU at the size of the file; the workers resize the images."""
    precision = "fp32" if config.precision == "auto" else config.precision
    settings = Inference.of(config, device, precision)
    make, network = views_maker(model, settings), folded(prepare(model, settings))
    for views, samples in evaluation_loader(dataset, make, config.batch_size, workers, indices):
        sizes = [(sample.image.shape[1], sample.image.shape[2]) for sample in samples]
        found = predict_views(network, views, sizes, settings, [sample.proposals for sample in samples])
        yield from zip([_surer_than(each, config.least_score) for each in found], samples, strict=True)


def _surer_than(prediction: Prediction, score: float) -> Prediction:
    """A prediction without the objects under `score`."""
    found = prediction.instances
    return prediction if found is None or not score else replace(prediction, instances=surer_than(found, score))


def _shown(
    prediction: Prediction, sample: Sample, match: ImageMatch | None, classes: IntArray | None, labels: LabelSpace
) -> SheetRow | None:
    """How an image looks in the report, and the figure that it is sorted by; None where nothing was to be found.

    Panoptic maps by PQ; objects without one by the F1 of those drawn, at IoU 0.5 of what is seen of them; semantic maps
    by the mIoU of the image.
    """
    figure, found, score = "PQ", prediction.panoptic, None
    sample = replace(sample, instances=None)  # masks of many objects would fill the memory
    if found is not None and match is not None:
        score = image_pq(match, len(labels))
    elif prediction.instances is not None:
        figure, found = "F1", object_regions(prediction.instances, sample.truth.size, DRAWN_SCORE)
        truth = _true_objects(sample, prediction.instances.masks is None, labels)
        sample = replace(sample, truth=truth)
        score = image_f1(match_maps(truth, found, background=True))
    elif prediction.semantic is not None and classes is not None:
        figure, found, score = "mIoU", class_regions(prediction.semantic), image_miou(classes)
        sample = replace(sample, truth=class_regions(semantic_map(sample.truth, range(len(labels)))))
    if found is None or score is None:
        return None
    return SheetRow(score, str(sample.image_id), sample, found, labels, figure)


def _true_objects(sample: Sample, as_boxes: bool, labels: LabelSpace) -> PanopticSegmentation:
    """The things of the truth, as boxes where the model knows nothing else."""
    things = [s for s in sample.truth.segments if labels[s.category].is_thing]
    ids = sample.truth.ids
    if as_boxes:
        boxes = boxes_of_ids(ids, torch.tensor([s.id for s in things], dtype=torch.int64))
        numbers = torch.tensor([s.category for s in things], dtype=torch.int64)
        crowd = torch.tensor([s.is_crowd for s in things], dtype=torch.bool)
        return object_regions(Instances(boxes, numbers, torch.ones(len(things)), None, crowd), sample.truth.size, 0)
    kept = torch.isin(ids, torch.tensor([s.id for s in things], dtype=ids.dtype))
    return PanopticSegmentation(torch.where(kept, ids, VOID), tuple(things))


class SheetRow(NamedTuple):
    """An image of the report; orders by score, ties by the image id's text."""

    score: float
    key: str
    sample: Sample
    prediction: PanopticSegmentation
    labels: LabelSpace
    figure: str = "PQ"  # what the score is


class Sheet:
    """Keeps the `size` best and the `size` worst images of those that are offered."""

    def __init__(self, size: int):
        self.size = size
        self._best: list[tuple[float, str, SheetRow]] = []
        self._worst: list[tuple[float, str, SheetRow]] = []

    def offer(self, row: SheetRow) -> None:
        for heap, sign in ((self._best, 1), (self._worst, -1)):
            heapq.heappush(heap, (sign * row.score, row.key, row))
            if len(heap) > self.size:
                heapq.heappop(heap)

    @property
    def rows(self) -> list[SheetRow]:
        """Each image once."""
        kept = {row.key: row for _, _, row in [*self._best, *self._worst]}
        return list(kept.values())


def write_sheet(folder: Path, rows: list[SheetRow], size: int) -> None:
    """The `size` best and worst of `rows` as plain files and sheet.json, by falling score.

    K_image.png is the photo, K_truth.png and K_prediction.png are RGB-coded id maps; sheet.json names the figure that
    the images are sorted by, the categories, and for each image its score and the segments of both maps as in COCO
    panoptic.
    """
    rows = sorted(rows, key=lambda row: (-row.score, row.key))
    if len(rows) > 2 * size:
        rows = rows[:size] + rows[-size:]
    listing: list[dict[str, Any]] = []
    with replacing_folder(folder) as temporary:
        for k, row in enumerate(rows):
            entry: dict[str, Any] = {"image_id": row.sample.image_id, "score": row.score, "image": f"{k}_image.png"}
            write_png(temporary / f"{k}_image.png", row.sample.image.permute(1, 2, 0).numpy())  # (H, W, 3)
            for side, segmentation in (("truth", row.sample.truth), ("prediction", row.prediction)):
                ids = segmentation.ids.numpy()
                write_png(temporary / f"{k}_{side}.png", ids_to_rgb(ids))
                entry[side] = f"{k}_{side}.png"
                entry[f"{side}_segments"] = segment_rows(segmentation, ids, row.labels)
            listing.append(entry)
        figure, categories = rows[0].figure, rows[0].labels.to_json()
        write_json(temporary / "sheet.json", {"figure": figure, "categories": categories, "images": listing})
