"""What every model promises, stated once; test_contract.py holds each entry of MODELS to it.

What is particular to a model stands in its entry (``pansight.models.contract.Entry``), so a new one adds nothing here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pansight.data.formats.shapes import Shapes
from pansight.data.loader import collate
from pansight.models import MODELS, build
from pansight.types import Batch, Instances, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment

SMALL: dict[str, dict[str, Any]] = {name: dict(e.tiny) for name, e in MODELS.items() if not e.variant_of}
"""The general entries, with options that make them tiny."""
CORE = ("mask_rcnn", "panoptic_fpn", "upsnet", "panoptic_deeplab", "mask2former", "eomt", "deeplabv3plus", "combined")
"""One or two of each family. What takes seconds for each entry is part of `make test-all` for these alone."""


def core_first(names: Iterable[str]) -> list[Any]:
    """The names as parameters of a test, those outside of `CORE` left to `make test-long`."""
    return [name if name in CORE else pytest.param(name, marks=[pytest.mark.slow, pytest.mark.long]) for name in names]


QUERY_MODELS = [name for name in SMALL if MODELS[name].tasks and "panoptic" in MODELS[name].produces]
"""Those that do all three tasks, as they decode masks of queries."""
FULL_SIZE = [name for name, e in MODELS.items() if e.variant_of and not e.tasks and "instances" in e.produces]
"""Detectors as published: their full networks are run."""
PUBLISHED = [name for name, e in MODELS.items() if e.variant_of and e.tasks and e.produces != ("semantic",)]
"""Query models as published, which are too large for that."""
SEMANTIC = [name for name, e in MODELS.items() if e.produces == ("semantic",)]
"""Networks of semantic maps alone, general and published ones."""

SAY_SOMETHING: dict[str, Any] = {
    "score_threshold": 0.0,
    "mask_threshold": 0.0,
    "overlap": 0.0,
    "max_overlap": 0.9,
    "min_stuff_area": 0,
    "thing_threshold": -1.0,
    "task": "all",
}
"""Arguments of decode that let an untrained model say something, those of them that it has."""

LABELS = Shapes().labels


def small(name: str, labels: LabelSpace = LABELS, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build(name, labels, **SMALL[name])


def thresholds(model: Any) -> dict[str, Any]:
    return {key: value for key, value in SAY_SOMETHING.items() if key in inspect.signature(model.decode).parameters}


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
