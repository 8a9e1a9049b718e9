"""The record that becomes evaluation.json."""

from __future__ import annotations

import json

import pytest
import torch

from pansight.errors import PansightError
from pansight.metrics import METRICS, create_metrics, evaluation_record
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment

LABELS = LabelSpace.from_names(["cat"], ["sky"])
TRUTH = PanopticSegmentation(torch.tensor([[1, 1, 2], [1, 1, 2]], dtype=torch.int32), (Segment(1, 0), Segment(2, 1)))
SAMPLE = Sample(torch.zeros(3, 2, 3, dtype=torch.uint8), TRUTH, "one.png", (2, 3))
CAT = Instances(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([0]), torch.tensor([0.9]), TRUTH.ids[None] == 1)


def record(prediction: Prediction) -> dict:
    metrics = create_metrics(LABELS)
    for metric in metrics.values():
        metric.update(prediction, SAMPLE)
    return evaluation_record(metrics)


def test_keys_of_the_run_folder():
    result = json.loads(json.dumps(record(Prediction(panoptic=TRUTH, instances=CAT)), allow_nan=False))
    groups = ["All", "Things", "Stuff", "per_class"]
    assert list(result) == [*groups, "images", "image_ids", "counts", "semantic", "instances"]
    assert result["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 2}
    assert set(result["per_class"]["1"]) == {"name", "isthing", "pq", "sq", "rq", "tp", "fp", "fn", "iou"}
    assert result["images"] == [{"image_id": "one.png", "pq": 1.0}]
    assert result["semantic"]["miou"] == 1.0
    assert result["instances"]["mask"]["ap"] == pytest.approx(1.0)
    assert result["instances"]["box"]["ap_large"] is None


def test_what_a_model_does_not_predict_is_left_out():
    assert list(record(Prediction(instances=CAT))) == ["instances"]
    with pytest.raises(PansightError, match="expected at least one image"):
        evaluation_record(create_metrics(LABELS))


def test_an_unknown_metric_is_told_what_exists():
    assert list(METRICS) == list(create_metrics(LABELS))
    with pytest.raises(PansightError, match="unknown metric 'pq'; known: instances, panoptic, semantic"):
        evaluation_record({"pq": create_metrics(LABELS)["panoptic"]})
