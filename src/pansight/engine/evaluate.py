"""Evaluation of a model on a data set: its scores, its predictions, and its best and worst images."""

from __future__ import annotations

import copy
import heapq
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from pansight.config import EvaluateConfig
from pansight.data.dataset import Dataset, ids_tensor
from pansight.data.formats.coco_panoptic import PanopticWriter, segment_rows
from pansight.data.images import read_rgb_ids, write_png
from pansight.data.loader import evaluation_loader
from pansight.engine import distributed
from pansight.engine.progress import ProgressBar
from pansight.errors import PansightError
from pansight.files import read_json, replacing_folder, write_json
from pansight.metrics import create_metrics, evaluation_record
from pansight.metrics.bootstrap import record_intervals
from pansight.metrics.files.class_map import ClassMap
from pansight.metrics.mapped import map_prediction, map_truth
from pansight.metrics.panoptic.dagger import PanopticQualityDagger
from pansight.metrics.panoptic.errors import ErrorAnalysis
from pansight.metrics.scores import image_pq
from pansight.ops.idmap import ids_to_rgb
from pansight.types import LabelSpace, PanopticSegmentation, Prediction, Sample, Segment

EVALUATION = "evaluation.json"
PREDICTIONS = "predictions"


def evaluate(
    model: Any,
    dataset: Dataset,
    config: EvaluateConfig,
    accelerator: Accelerator,
    out: Path | None = None,
    workers: int = 0,
    class_map: ClassMap | None = None,
) -> dict[str, Any]:
    """The record of evaluation.json, the same on every process; each of them measures its share of the images.

    model: on the accelerator's device, with the labels of `dataset`, or with others that class_map takes to them.
    It is left in eval mode.
    out: a folder for evaluation.json, predictions/predictions.json with its PNGs, and predictions/sheet with the best
    and the worst images; each appears whole or not at all.
    Raises PansightError where the labels differ, an image is bad, or the folder cannot be written.
    """
    if class_map is None and dataset.labels != model.labels:
        raise PansightError(f"evaluation: expected the classes of the model {model.labels}, found {dataset.labels}")
    rank, world = accelerator.process_index, accelerator.num_processes
    count = min(len(dataset), config.limit) if config.limit else len(dataset)
    mine = range(rank, count, world)
    metrics = create_metrics(dataset.labels, config.max_detections)
    errors, dagger = ErrorAnalysis(dataset.labels), PanopticQualityDagger(dataset.labels)
    sheet = Sheet(config.sheet if out is not None else 0)
    start = time.monotonic()
    with ExitStack() as stack:
        writer = None
        if out is not None:
            part = "predictions" if world == 1 else f"part{rank}"
            writer = stack.enter_context(_Predictions(out / PREDICTIONS / f"{part}.json", dataset.labels))
        bar = stack.enter_context(ProgressBar("evaluate", accelerator.is_main_process))
        for number, (prediction, sample) in enumerate(
            predict_all(model, dataset, mine, config, accelerator.device, workers), 1
        ):
            if class_map is not None:
                prediction, sample = map_prediction(prediction, class_map, dataset.labels), map_truth(sample, class_map)
            match = metrics["panoptic"].update(prediction, sample)
            metrics["semantic"].update(prediction, sample)
            metrics["instances"].update(prediction, sample)
            if prediction.panoptic is not None and match is not None:
                errors.update(match)
                dagger.update(match)
                if writer is not None:
                    writer.add(sample, dataset.file_name(mine[number - 1]), prediction.panoptic)
                quality = image_pq(match, len(dataset.labels))
                if quality is not None:  # None where nothing was there and nothing was predicted
                    sheet.offer(quality, sample, prediction.panoptic, dataset.labels)
            rate = number * world / (time.monotonic() - start)
            bar.update(number / len(mine), f"image {number}/{len(mine)}, {rate:.1f} images/s")
    for metric in (*metrics.values(), errors, dagger):
        _join_ranks(metric, accelerator)
    record = evaluation_record(metrics)
    if "All" in record:
        record |= errors.compute() | {"pq_dagger": dagger.compute()}
        if out is not None:
            record["intervals"] = record_intervals(record)
    record["seconds"] = max(distributed.largest([time.monotonic() - start], accelerator))
    record["images_per_second"] = count / record["seconds"]
    if out is not None:
        rows = [row for each in distributed.gather(sheet.rows, accelerator) for row in each]
        if accelerator.is_main_process:
            if world > 1 and "All" in record:
                _join(out / PREDICTIONS, world, dataset.labels)
            if rows:
                write_sheet(out / PREDICTIONS / "sheet", rows, config.sheet)
            write_json(out / EVALUATION, record)
        accelerator.wait_for_everyone()
    return record


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
    """(prediction, sample) of each image, both on the CPU at the size of the file."""
    model.eval()
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    precision = "fp32" if config.precision == "auto" else config.precision
    for batch, samples in evaluation_loader(dataset, model.resize, config.batch_size, workers, indices):
        images = batch.images.to(device, non_blocking=True)
        valid = batch.valid.to(device, non_blocking=True)
        with torch.inference_mode():
            with distributed.autocast(precision, device):
                outputs = model(images, valid)
            predictions = model.decode(outputs, batch.sizes, **config.thresholds)
        yield from zip(map(distributed.to_cpu, predictions), samples, strict=True)


class _Predictions:
    """A PanopticWriter that comes into being with the first panoptic map: not every model gives one."""

    def __init__(self, json: Path, labels: LabelSpace):
        self.json, self.labels = json, labels
        self._writer: PanopticWriter | None = None

    def __enter__(self) -> _Predictions:
        return self

    def add(self, sample: Sample, file_name: str, segmentation: PanopticSegmentation) -> None:
        if self._writer is None:
            self._writer = PanopticWriter(self.json, self.labels, overwrite=True).__enter__()
        self._writer.add(sample.image_id, file_name, segmentation)

    def __exit__(self, *error: Any) -> None:
        if self._writer is not None:
            self._writer.__exit__(*error)


def _join(folder: Path, world: int, labels: LabelSpace) -> None:
    """The parts that the processes wrote, as one predictions.json."""
    parts = [path for rank in range(world) if (path := folder / f"part{rank}.json").is_file()]
    index = {source: c.id for source, c in labels.by_source_id().items()}
    with PanopticWriter(folder / "predictions.json", labels, overwrite=True) as writer:
        for part in parts:
            content = read_json(part)
            for image, annotation in zip(content["images"], content["annotations"], strict=True):
                png = part.with_suffix("") / annotation["file_name"]
                segments = tuple(
                    Segment(row["id"], index[row["category_id"]], row.get("score", 1.0))
                    for row in annotation["segments_info"]
                )
                segmentation = PanopticSegmentation(ids_tensor(read_rgb_ids(png)), segments)
                writer.add(image["id"], image["file_name"], segmentation)
                png.unlink()
            part.with_suffix("").rmdir()
            part.unlink()


class SheetRow(NamedTuple):
    """An image of the report; orders by pq, ties by the image id's text."""

    pq: float
    key: str
    sample: Sample
    prediction: PanopticSegmentation
    labels: LabelSpace


class Sheet:
    """Keeps the `size` best and the `size` worst images of those that are offered."""

    def __init__(self, size: int):
        self.size = size
        self._best: list[tuple[float, str, SheetRow]] = []
        self._worst: list[tuple[float, str, SheetRow]] = []

    def offer(self, pq: float, sample: Sample, prediction: PanopticSegmentation, labels: LabelSpace) -> None:
        sample = replace(sample, instances=None)  # masks of many objects would fill the memory
        row = SheetRow(pq, str(sample.image_id), sample, prediction, labels)
        for heap, sign in ((self._best, 1), (self._worst, -1)):
            heapq.heappush(heap, (sign * row.pq, row.key, row))
            if len(heap) > self.size:
                heapq.heappop(heap)

    @property
    def rows(self) -> list[SheetRow]:
        """Each image once."""
        kept = {row.key: row for _, _, row in [*self._best, *self._worst]}
        return list(kept.values())


def write_sheet(folder: Path, rows: list[SheetRow], size: int) -> None:
    """The `size` best and worst of `rows` as plain files and sheet.json, by falling pq.

    K_image.png is the photo, K_truth.png and K_prediction.png are RGB-coded id maps; the segments of both stand in
    sheet.json as in COCO panoptic.
    """
    rows = sorted(rows, key=lambda row: (-row.pq, row.key))
    if len(rows) > 2 * size:
        rows = rows[:size] + rows[-size:]
    listing: list[dict[str, Any]] = []
    with replacing_folder(folder) as temporary:
        for k, row in enumerate(rows):
            entry: dict[str, Any] = {"image_id": row.sample.image_id, "pq": row.pq, "image": f"{k}_image.png"}
            write_png(temporary / f"{k}_image.png", row.sample.image.permute(1, 2, 0).numpy())  # (H, W, 3)
            for side, segmentation in (("truth", row.sample.truth), ("prediction", row.prediction)):
                ids = segmentation.ids.numpy()
                write_png(temporary / f"{k}_{side}.png", ids_to_rgb(ids))
                entry[side] = f"{k}_{side}.png"
                entry[f"{side}_segments"] = segment_rows(segmentation, ids, row.labels)
            listing.append(entry)
        write_json(temporary / "sheet.json", listing)
