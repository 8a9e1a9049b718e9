"""What every model promises (docs/architecture.md), stated once; test_contract.py holds each entry of MODELS to it.

A new model adds one line to SMALL (options that make it tiny) or, where its builder fixes every size, to FULL_SIZE
(detectors) or PUBLISHED (query models, whose parameters are counted in the tests of each system).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pansight.data.formats.shapes import Shapes
from pansight.data.loader import collate
from pansight.models import build
from pansight.types import Batch, Instances, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment

RCNN: dict[str, Any] = {
    "backbone": "resnet10t",
    "short": 0,
    "long": 0,
    "fpn_channels": 16,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "proposals": 40,
    "roi_samples": 32,
    "detections": 20,
    "box_features": 16,
}
MASKS: dict[str, Any] = {"mask_convs": 1, "mask_channels": 8}
QUERY: dict[str, Any] = {
    "backbone": "resnet10t",
    "short": 0,
    "long": 0,
    "queries": 12,
    "channels": 64,
    "heads": 4,
    "hidden": 32,
}
DETR: dict[str, Any] = QUERY | {"encoder_layers": 1, "decoder_layers": 2}
VIT: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "vit_options": {"depth": 3, "embed_dim": 32, "num_heads": 4},
    "size": 64,
    "square": False,
    "queries": 12,
    "blocks": 2,
    "points": 128,
}

SMALL: dict[str, dict[str, Any]] = {
    "faster_rcnn": RCNN,
    "mask_rcnn": RCNN | MASKS,
    "panoptic_fpn": RCNN | MASKS | {"semantic_width": 16},
    "detr": DETR,
    "detr_panoptic": DETR,
    "maskformer": QUERY | {"layers": 2, "encoder_layers": 1},
    "mask2former": QUERY | {"layers": 3, "encoder_layers": 1, "encoder_hidden": 32, "loss_points": 128},
    "eomt": VIT,
}
QUERY_MODELS = ("detr_panoptic", "maskformer", "mask2former", "eomt")
"""Those that decode by thresholds of queries and do all three tasks."""

FULL_SIZE = (
    "faster_rcnn_r50_tv",
    "faster_rcnn_r50_tv_v2",
    "faster_rcnn_r50_d2",
    "faster_rcnn_r101_d2",
    "mask_rcnn_r50_tv",
    "mask_rcnn_r50_tv_v2",
    "mask_rcnn_r50_d2",
    "mask_rcnn_r101_d2",
    "panoptic_fpn_r50_d2",
    "panoptic_fpn_r101_d2",
)
PUBLISHED = (
    *(f"detr_{n}" for n in ("r50", "r50_dc5", "r101", "panoptic_r50", "panoptic_r50_dc5", "panoptic_r101")),
    *(f"maskformer_{n}" for n in ("r50", "r101", "swin_tiny", "swin_small", "swin_base", "swin_large")),
    *(f"mask2former_{n}" for n in ("r50", "r101", "swin_tiny", "swin_small", "swin_base", "swin_large")),
    *(f"eomt_{n}" for n in ("small_640", "base_640", "large_640", "large_1280", "giant_640", "giant_1280")),
    *(f"eomt_dinov3_{n}" for n in ("small_640", "base_640", "large_640", "large_1280")),
)

QUERY_ALL: dict[str, Any] = {"score_threshold": 0.0, "mask_threshold": 0.0, "overlap": 0.0, "task": "all"}
KEEP_ALL: dict[str, dict[str, Any]] = {
    "faster_rcnn": {},
    "mask_rcnn": {"score_threshold": 0.0, "max_overlap": 0.9},
    "panoptic_fpn": {"score_threshold": 0.0, "max_overlap": 0.9, "min_stuff_area": 0},
    "detr_panoptic": QUERY_ALL,
    "detr": {"score_threshold": 0.0},
    "maskformer": QUERY_ALL,
    "mask2former": QUERY_ALL,
    "eomt": QUERY_ALL,
}
"""Thresholds of decode that let an untrained model say something, by the first words of a model's name."""

LABELS = Shapes().labels


def small(name: str, labels: LabelSpace = LABELS, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build(name, labels, **SMALL[name])


def thresholds(name: str) -> dict[str, Any]:
    return next(values for start, values in KEEP_ALL.items() if name.startswith(start))


def shapes_batch(count: int = 2, side: int = 96) -> Batch:
    dataset = Shapes(count, side, side, seed=3)
    return collate([dataset[i] for i in range(count)])


def void_batch() -> Batch:
    """Images in which nothing is annotated."""
    samples = [random_sample(64, 96, k) for k in range(2)]
    return collate([replace(s, truth=PanopticSegmentation(torch.zeros_like(s.truth.ids), ())) for s in samples])


def stuff_batch() -> Batch:
    """Images of stuff alone."""
    stuff = LABELS.stuff[0].id
    samples = [random_sample(64, 96, k) for k in range(2)]
    truths = [PanopticSegmentation(torch.ones_like(s.truth.ids), (Segment(1, stuff),)) for s in samples]
    return collate([replace(s, truth=t) for s, t in zip(samples, truths)])


def mixed_batch() -> Batch:
    """One image with objects, one without, of different sizes."""
    return collate([Shapes(1, 96, 96, seed=3)[0], random_sample(33, 65, 1)])


def random_sample(height: int, width: int, seed: int) -> Sample:
    """Noise with one thing in the top left quarter (at least one pixel) and void elsewhere."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    ids = torch.zeros((height, width), dtype=torch.int32)
    ids[: -(-height // 2), : -(-width // 2)] = 7
    truth = PanopticSegmentation(ids, (Segment(7, 0),))
    return Sample(torch.from_numpy(pixels).permute(2, 0, 1), truth, seed, (height, width))


def clone(batch: Batch) -> Batch:
    truths = tuple(PanopticSegmentation(t.ids.clone(), t.segments) for t in batch.truths)
    return replace(batch, images=batch.images.clone(), valid=batch.valid.clone(), truths=truths)


def assert_same_batch(a: Batch, b: Batch) -> None:
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.valid, b.valid)
    for left, right in zip(a.truths, b.truths, strict=True):
        assert torch.equal(left.ids, right.ids)
        assert left.segments == right.segments


def flat(value: Any) -> list[Tensor]:
    """The tensors of nested NamedTuples, lists and predictions, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Prediction):
        value = (value.panoptic, value.semantic, value.instances)
    if isinstance(value, PanopticSegmentation):
        value = (value.ids,)
    if isinstance(value, Instances):
        value = (value.boxes_xyxy, value.labels, value.scores, value.masks)
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in flat(item)]
    return []


def assert_legal(prediction: Prediction, size: tuple[int, int], labels: LabelSpace) -> None:
    """A prediction that any metric, writer or viewer can rely on."""
    assert prediction.panoptic is not None or prediction.semantic is not None or prediction.instances is not None
    if prediction.panoptic is not None:
        assert_legal_panoptic(prediction.panoptic, size, labels)
    if prediction.semantic is not None:
        assert prediction.semantic.shape == size
        assert prediction.semantic.dtype == torch.int64
    if prediction.instances is not None:
        assert_legal_instances(prediction.instances, size, labels)


def assert_legal_panoptic(panoptic: PanopticSegmentation, size: tuple[int, int], labels: LabelSpace) -> None:
    """One id map: segments are disjoint by construction; the table must list exactly what is in it."""
    assert panoptic.ids.dtype == torch.int32
    assert panoptic.size == size
    assert sorted(s.id for s in panoptic.segments) == sorted(set(panoptic.ids.unique().tolist()) - {0})
    assert all(0 < s.id < 256**3 and 0 <= s.score <= 1 and not s.is_crowd for s in panoptic.segments)
    stuff = [s.category for s in panoptic.segments if not labels[s.category].is_thing]
    assert len(stuff) == len(set(stuff))  # one segment per stuff class


def assert_legal_instances(found: Instances, size: tuple[int, int], labels: LabelSpace) -> None:
    height, width = size
    count = len(found)
    assert found.boxes_xyxy.shape == (count, 4)
    assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32
    assert found.labels.dtype == torch.int64
    assert found.scores.shape == (count,)
    assert bool((found.boxes_xyxy[:, :2] >= 0).all())
    assert bool((found.boxes_xyxy[:, 2:] <= torch.tensor([width, height])).all())
    assert bool((found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all())
    assert all(labels[label].is_thing for label in found.labels.tolist())
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert bool(((found.scores >= 0) & (found.scores <= 1)).all())
    if found.masks is not None:
        assert found.masks.shape == (count, height, width)
        assert found.masks.dtype == torch.bool


def assert_close(left: Sequence[Tensor], right: Sequence[Tensor], tolerance: float) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
