"""Average precision against pycocotools itself, on random objects with crowds, ties and all sizes."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pansight.errors import PansightError
from pansight.metrics import AveragePrecision
from pansight.metrics.average_precision import segment_codes
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment

LABELS = LabelSpace.from_names(["cat", "dog", "bird"], ["sky"])
SIZE = (180, 200)
SIZES = ("small", "medium", "large")
KEYS = ["ap", "ap50", "ap75", *(f"ap_{s}" for s in SIZES), "ar1", "ar10", "ar100", *(f"ar_{s}" for s in SIZES)]


def random_objects(rng: np.random.Generator, count: int, truth: bool) -> Instances:
    """Rectangles with a corner cut off, with sides of 4 to 170 pixels; scores in steps of 0.1, so that ties occur."""
    masks = np.zeros((count, *SIZE), bool)
    for mask in masks:
        height, width = (4 * 2 ** rng.uniform(0, 5.4, 2)).astype(int)
        y, x = rng.integers(0, SIZE[0] // 2), rng.integers(0, SIZE[1] // 2)
        mask[y : y + height, x : x + width] = True
        mask[y : y + height // 3, x : x + width // 3] = False
    return as_instances(
        masks,
        rng.integers(0, 3, count),
        np.ones(count) if truth else rng.integers(1, 10, count) / 10,
        rng.random(count) < 0.15 if truth else None,
    )


def as_instances(masks, labels, scores, crowd=None) -> Instances:
    order = np.argsort(-np.asarray(scores), kind="stable")
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks):
        ys, xs = np.nonzero(mask)
        box[:] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    return Instances(
        torch.from_numpy(boxes[order]),
        torch.from_numpy(np.asarray(labels, np.int64)[order]),
        torch.from_numpy(np.asarray(scores, np.float32)[order]),
        torch.from_numpy(masks[order]),
        None if crowd is None else torch.from_numpy(np.asarray(crowd)[order]),
    )


def near(truth: Instances, rng: np.random.Generator) -> Instances:
    """The truth shifted by some pixels, a few dropped, a few relabelled, some phantoms and duplicates."""
    chosen = rng.choice(len(truth), int(1.3 * len(truth)) + 1)
    masks = np.stack([np.roll(truth.masks[i].numpy(), rng.integers(-4, 5, 2), (0, 1)) for i in chosen])
    labels = np.where(rng.random(len(chosen)) < 0.85, truth.labels.numpy()[chosen], rng.integers(0, 3, len(chosen)))
    return as_instances(masks, labels, rng.integers(1, 10, len(chosen)) / 10)


def sample(instances: Instances | None, image_id: int | str, ids=None, segments=()) -> Sample:
    ids = np.zeros(SIZE) if ids is None else ids
    truth = PanopticSegmentation(torch.as_tensor(ids, dtype=torch.int32), tuple(segments))
    return Sample(torch.zeros(3, *truth.size, dtype=torch.uint8), truth, image_id, truth.size, instances)


def pycocotools_figures(pairs: list[tuple[Instances, Instances]], kind: str, max_detections: int) -> list[float]:
    """The twelve figures by the reference; read off its tables, since its summary knows only 100 detections."""
    images = [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(1, len(pairs) + 1)]
    truth_rows, found_rows = [], []
    for image, (truth, found) in enumerate(pairs, 1):
        for side, rows in ((truth, truth_rows), (found, found_rows)):
            for n in range(len(side)):
                code = coco_mask.encode(np.asfortranarray(side.masks[n].numpy().astype(np.uint8)))
                x0, y0, x1, y1 = side.boxes_xyxy[n].tolist()
                row = {"image_id": image, "category_id": int(side.labels[n]) + 1}
                if side is truth:
                    row |= {"id": len(rows) + 1, "iscrowd": int(side.is_crowd[n]), "area": float(coco_mask.area(code))}
                    row |= {"segmentation": code, "bbox": [x0, y0, x1 - x0, y1 - y0]}
                else:
                    row |= {"score": float(side.scores[n])}
                    row |= {"segmentation": code} if kind == "segm" else {"bbox": [x0, y0, x1 - x0, y1 - y0]}
                rows.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = COCO()
        categories = [{"id": c.id + 1, "name": c.name} for c in LABELS.things]
        truth_set.dataset = {"info": {}, "images": images, "categories": categories, "annotations": truth_rows}
        truth_set.createIndex()
        evaluation = COCOeval(truth_set, truth_set.loadRes(found_rows), kind)
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        if max_detections == 100:
            evaluation.summarize()
            return evaluation.stats.tolist()
    p, r = evaluation.eval["precision"], evaluation.eval["recall"]
    tables = [p[..., 0, 2], p[0, :, :, 0, 2], p[5, :, :, 0, 2], *(p[..., n, 2] for n in (1, 2, 3))]
    tables += [*(r[..., 0, n] for n in (0, 1, 2)), *(r[..., n, 2] for n in (1, 2, 3))]
    return [float(t[t > -1].mean()) for t in tables]


@pytest.mark.parametrize(("seed", "max_detections"), [(0, 100), (1, 100), (2, 100), (3, 12), (4, 400)])
def test_twelve_figures_equal_pycocotools(seed, max_detections):
    rng = np.random.default_rng(seed)
    truths = [random_objects(rng, int(rng.integers(1, 30)), truth=True) for _ in range(8)]
    pairs = [(truth, near(truth, rng)) for truth in truths]
    metric = AveragePrecision(LABELS, max_detections)
    for number in rng.permutation(len(pairs)):  # the order of arrival must not matter
        metric.update(Prediction(instances=pairs[number][1]), sample(pairs[number][0], int(number)))
    result = metric.compute()
    keys = [k if k != "ar100" else f"ar{max_detections}" for k in KEYS]
    for ours, theirs in (("box", "bbox"), ("mask", "segm")):
        expected = pycocotools_figures(pairs, theirs, max_detections)
        assert list(result[ours]) == keys
        assert list(result[ours].values()) == pytest.approx(expected, abs=1e-12)
        assert 0.05 < result[ours]["ap"] < 0.95  # the case means something
        mean = np.mean([row[ours] for row in result["per_class"].values()])
        assert mean == pytest.approx(result[ours]["ap"], abs=1e-12)


def test_truth_from_the_map_equals_truth_from_instances():
    rng = np.random.default_rng(5)
    from_map, from_instances = AveragePrecision(LABELS), AveragePrecision(LABELS)
    for number in range(4):
        ids = np.zeros(SIZE, np.int32)
        for i in range(1, 9):
            y, x = rng.integers(0, 100, 2)
            ids[y : y + rng.integers(5, 40), x : x + rng.integers(5, 60)] = i * 70_001
        segments = [Segment(i * 70_001, i % 4, is_crowd=i == 5) for i in range(1, 9) if (ids == i * 70_001).any()]
        things = [s for s in segments if s.category != 3]
        masks = np.stack([ids == s.id for s in things])
        truth = as_instances(masks, [s.category for s in things], np.ones(len(things)), [s.is_crowd for s in things])
        prediction = Prediction(instances=near(truth, rng))
        from_map.update(prediction, sample(None, number, ids, segments))
        from_instances.update(prediction, sample(truth, number))
    assert from_map.compute() == from_instances.compute()
    assert from_map.compute()["mask"]["ap"] > 0.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (37, 23), (0, 5)])
def test_segment_codes_equal_encoded_masks(shape):
    ids = np.random.default_rng(1).choice([0, 3, 2**24 - 1], shape)
    codes = segment_codes(np.asarray(ids, np.int32))
    assert set(codes) == set(np.unique(ids).tolist()) - {0}
    for value, code in codes.items():
        expected = coco_mask.encode(np.asfortranarray((ids == value).astype(np.uint8)))["counts"]
        assert code == expected.decode()


def test_shards_merge_to_the_whole():
    rng = np.random.default_rng(6)
    truths = [random_objects(rng, 12, truth=True) for _ in range(6)]
    whole, odd, even = (AveragePrecision(LABELS) for _ in range(3))
    for number, truth in enumerate(truths):
        prediction = Prediction(instances=near(truth, rng))
        whole.update(prediction, sample(truth, f"{number}.png"))
        (odd if number % 2 else even).update(prediction, sample(truth, f"{number}.png"))
    received = AveragePrecision(LABELS)
    received.load_state_dict(odd.state_dict())
    received.merge(even)
    assert received.compute() == whole.compute()
    with pytest.raises(PansightError, match="max_detections on both sides"):
        received.merge(AveragePrecision(LABELS, 400))


def test_a_model_without_masks_gets_box_figures_only():
    truth = random_objects(np.random.default_rng(7), 6, truth=True)
    boxes_only = Instances(truth.boxes_xyxy, truth.labels, truth.scores)
    metric = AveragePrecision(LABELS)
    metric.update(Prediction(instances=boxes_only), sample(truth, 1))
    result = metric.compute()
    assert "mask" not in result
    assert result["box"]["ap"] == pytest.approx(1.0)


def test_no_instances_no_figures_and_no_objects_no_crash():
    metric = AveragePrecision(LABELS)
    metric.update(Prediction(), sample(None, 1))
    assert metric.compute() == {}
    metric = AveragePrecision(LABELS)
    nothing = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0, *SIZE) > 0)
    metric.update(Prediction(instances=nothing), sample(None, 1))
    assert set(metric.compute()["box"].values()) == {None}
    one = np.zeros(SIZE, np.int32)
    one[:5, :9] = 1
    metric.update(Prediction(instances=nothing), sample(None, 2, one, [Segment(1, 0)]))
    assert metric.compute()["mask"]["ap"] == 0.0
    assert not any(math.isnan(v) for v in metric.compute()["box"].values() if v is not None)


def test_fewer_detections_than_the_second_recall_is_refused():
    with pytest.raises(PansightError, match="expected max_detections above 10, found 10"):
        AveragePrecision(LABELS, 10)


def test_masks_of_another_size_are_named():
    truth = random_objects(np.random.default_rng(8), 3, truth=True)
    small = Instances(truth.boxes_xyxy, truth.labels, truth.scores, truth.masks[:, :50, :50])
    with pytest.raises(PansightError, match=r"image 9: expected predicted masks of \(180, 200\), found \(50, 50\)"):
        AveragePrecision(LABELS).update(Prediction(instances=small), sample(truth, 9))


def test_memory_holds_codes_not_masks():
    truth = random_objects(np.random.default_rng(9), 20, truth=True)
    metric = AveragePrecision(LABELS)
    metric.update(Prediction(instances=truth), sample(truth, 1))
    codes = metric.state_dict()["images"][0]["truth"]["codes"]
    assert sum(map(len, codes)) < truth.masks.numel() / 20
