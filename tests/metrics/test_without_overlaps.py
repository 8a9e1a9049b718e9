"""AP without overlaps, on a case that is worked out by hand, and where it stands."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from pansight.apps.pages.figures import score_cards
from pansight.config import EvaluateConfig
from pansight.engine.evaluate import _Figures
from pansight.metrics import AveragePrecision
from pansight.metrics.files.summary import summary
from pansight.metrics.without_overlaps import WithoutOverlaps
from pansight.ops.fusion.instances import merge_by_label_map
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment

LABELS = LabelSpace.from_names(["cat"], ["sky"])


def mask(left: int, right: int) -> torch.Tensor:
    """Columns left … right − 1 of an image of 4 × 12 pixels."""
    result = torch.zeros(4, 12, dtype=torch.bool)
    result[:, left:right] = True
    return result


def sample() -> Sample:
    """Two cats side by side: columns 0 … 5 and 6 … 11."""
    ids = torch.ones(4, 12, dtype=torch.int32)
    ids[:, 6:] = 2
    truth = PanopticSegmentation(ids, (Segment(1, 0), Segment(2, 0)))
    return Sample(torch.zeros(3, 4, 12, dtype=torch.uint8), truth, "cats", (4, 12))


def prediction() -> Prediction:
    """The first cat as columns 0 … 7 (IoU 6 / 8), with score 0.9; the second one exactly, with score 0.8.

    The merge gives columns 6 and 7 to the first, so 4 of 6 columns of the second remain: IoU 4 / 6.
    """
    masks = torch.stack((mask(0, 8), mask(6, 12)))
    boxes = torch.tensor([[0.0, 0, 8, 4], [6, 0, 12, 4]])
    labels, scores = torch.tensor([0, 0]), torch.tensor([0.9, 0.8])
    panoptic = merge_by_label_map(masks, scores, labels, None, LABELS)
    return Prediction(panoptic, None, Instances(boxes, labels, scores, masks))


def figures(found: Prediction = prediction()) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: B008 (immutable)
    """(AP of the detections, AP of the things of the panoptic map)."""
    plain, without = AveragePrecision(LABELS), WithoutOverlaps(LABELS)
    plain.update(found, sample())
    without.update(found, sample(), plain.last_truth)
    return plain.compute(), without.compute()


def test_what_the_merge_takes_by_hand() -> None:
    """Up to IoU 0.75 both detections are right, AP 1; above it only the second, with precision 1/2 at recall 1/2.

    So AP = (6 · 1 + 4 · 51/101 · 1/2) / 10: 51 of COCO's 101 recalls are reached. Without overlaps the second is right
    up to 0.65 (4/6), and the first up to 0.75 (6/8): four thresholds with AP 1, two (0.70, 0.75) with the first alone,
    precision 1 at recall 1/2, and four with nothing.
    """
    plain, without = figures()
    assert plain["mask"]["ap"] == pytest.approx((6 * 1 + 4 * 51 / 101 * 0.5) / 10)
    assert without["mask"]["ap"] == pytest.approx((4 * 1 + 2 * 51 / 101) / 10)
    assert without["mask"]["ap50"] == pytest.approx(1)
    assert without["mask"]["ap75"] == pytest.approx(51 / 101)
    assert set(without) == {"box", "mask"}


def test_where_nothing_overlaps_both_are_equal() -> None:
    masks = torch.stack((mask(0, 6), mask(6, 12)))
    boxes, labels = torch.tensor([[0.0, 0, 6, 4], [6, 0, 12, 4]]), torch.tensor([0, 0])
    scores = torch.tensor([0.9, 0.8])
    panoptic = merge_by_label_map(masks, scores, labels, None, LABELS)
    plain, without = figures(Prediction(panoptic, None, Instances(boxes, labels, scores, masks)))
    assert without == {kind: plain[kind] for kind in ("box", "mask")}


def test_it_stands_where_there_are_both_and_nowhere_else() -> None:
    """In the record, on the terminal, and on the page."""
    record = record_of(prediction())
    assert record["without_overlaps"]["mask"]["ap"] == pytest.approx((4 * 1 + 2 * 51 / 101) / 10)
    json.dumps(record, allow_nan=False)
    (line,) = [line for line in summary(record).splitlines() if line.startswith("AP^NO")]
    assert "AP 50.1" in line
    (card,) = [card for card in score_cards(record) if card["title"] == "AP^NO"]
    assert card["value"] == record["without_overlaps"]["mask"]["ap"]
    found = prediction()
    for other in (Prediction(found.panoptic), Prediction(None, None, found.instances)):
        record = record_of(other)
        assert "without_overlaps" not in record
        assert "AP^NO" not in summary(record)
        assert not [card for card in score_cards(record) if card["title"] == "AP^NO"]


def record_of(found: Prediction) -> dict[str, Any]:
    every = _Figures(LABELS, EvaluateConfig(), 0)
    every.update(found, sample())
    return every.record(Accelerator(cpu=True), False)


def test_processes_are_joined() -> None:
    plain = AveragePrecision(LABELS)
    plain.update(prediction(), sample())
    parts = [WithoutOverlaps(LABELS) for _ in range(2)]
    parts[0].update(prediction(), sample(), plain.last_truth)
    parts[1].update(Prediction(prediction().panoptic), sample(), plain.last_truth)
    again = WithoutOverlaps(LABELS)
    again.load_state_dict(json.loads(json.dumps(parts[0].state_dict())))
    assert again.compute() == parts[0].compute() != {}
    again.merge(parts[1])  # an image without instances: there is nothing to compare with
    assert again.compute() == {}
