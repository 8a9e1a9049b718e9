"""A run folder as the engine writes it, from drawn shapes and invented curves: what the report's tests read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch

from pansight.data.formats.shapes import Shapes
from pansight.engine.evaluate import SheetRow, write_sheet
from pansight.files import write_json
from pansight.metrics import create_metrics, evaluation_record
from pansight.types import Instances, PanopticSegmentation, Prediction, Sample, Segment

CONFIG = """# written by hand for a test
[model]
name = "panoptic_fpn"
backbone = "resnet50"
pretrained = "none"

[data]
source = "shapes"

[train]
steps = 400
batch_size = 8
lr = 0.001
optimizer = "adamw"
schedule = "cosine"
precision = "fp32"
"""


def disturbed(truth: PanopticSegmentation, rng: np.random.Generator, classes: int) -> PanopticSegmentation:
    """The truth shifted a little, with segments lost and misnamed."""
    ids = np.roll(truth.ids.numpy(), rng.integers(-3, 4, 2), (0, 1)).copy()
    for segment in truth.segments[1:]:
        if rng.random() < 0.15:
            ids[ids == segment.id] = truth.segments[0].id
    segments = [
        Segment(s.id, s.category if rng.random() < 0.85 else int(rng.integers(0, classes)), 0.9)
        for s in truth.segments
        if (ids == s.id).any()
    ]
    return PanopticSegmentation(torch.from_numpy(ids), tuple(segments))


def as_instances(segmentation: PanopticSegmentation, things: int) -> Instances:
    objects = [s for s in segmentation.segments if s.category < things]
    masks = torch.stack([segmentation.ids == s.id for s in objects] or [torch.zeros(segmentation.size) > 0])
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks):
        if mask.any():
            ys, xs = torch.nonzero(mask, as_tuple=True)
            box[:] = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    labels = torch.tensor([s.category for s in objects] or [0])
    return Instances(boxes, labels, torch.full((len(masks),), 0.9), masks)


def make_run(folder: Path, images: int = 8, sheet: int = 2, seed: int = 0) -> dict:
    """Fill the folder and give the record of its evaluation.json. seed: of the mistakes that it makes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    dataset = Shapes(images, split="val")
    metrics, rows = create_metrics(dataset.labels), []
    for index in range(images):
        sample: Sample = dataset[index]
        found = disturbed(sample.truth, rng, len(dataset.labels))
        prediction = Prediction(panoptic=found, instances=as_instances(found, len(dataset.labels.things)))
        for metric in metrics.values():
            metric.update(prediction, sample)
        pq = create_metrics(dataset.labels)["panoptic"]
        pq.update(prediction, sample)
        rows.append(SheetRow(pq.compute()["images"][0]["pq"], str(index), sample, found, dataset.labels))
    record = evaluation_record(metrics) | {"seconds": 3.2, "images_per_second": 12.5}
    write_json(folder / "evaluation.json", record)
    write_sheet(folder / "predictions" / "sheet", rows, sheet)
    (folder / "config.toml").write_text(CONFIG)
    with (folder / "metrics.jsonl").open("w") as log:
        for step in range(4, 401, 4):
            losses = {
                n: float(a * math.exp(-step / 90) + b + 0.05 * rng.random())
                for n, a, b in (("rpn_objectness", 0.7, 0.02), ("box_class", 1.4, 0.1), ("mask", 0.7, 0.15))
            }
            line = {"step": step, "kind": "train", "loss": sum(losses.values()), "losses": losses, "lr": 1e-3}
            line |= {"gradient_norm": 3 + rng.random(), "images_per_second": 14 + rng.random(), "time": step * 0.5}
            log.write(json.dumps(line) + "\n")
            if step % 100 == 0:
                factor = 1 - math.exp(-step / 130)
                shown = {g: record[g] | {"pq": record[g]["pq"] * factor} for g in ("All", "Things", "Stuff")}
                log.write(json.dumps({"step": step, "kind": "evaluation", "metrics": record | shown}) + "\n")
    return record
