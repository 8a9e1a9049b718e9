"""Class 255 of 300 and of 1,000 is trained, scored, mapped and drawn like any other: the ignore value is no class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pansight.data.loader import collate
from pansight.drawing.segments import overlay
from pansight.metrics import SemanticIoU
from pansight.metrics.files.class_map import ClassMap
from pansight.metrics.files.panoptic_json import UNMAPPED
from pansight.metrics.mapped import map_prediction
from pansight.models import build
from pansight.ops.maps.regions import class_regions
from pansight.ops.targets import semantic_targets
from pansight.types import IGNORE, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment

COUNTS = [300, 1000]


def labels_of(count: int) -> LabelSpace:
    return LabelSpace.from_names(["thing"], [f"stuff {k}" for k in range(1, count)])


def sample_of(*categories: int) -> Sample:
    """Stripes of 16 × 32 px, one for each category, below a void one."""
    ids = torch.arange(len(categories) + 1, dtype=torch.int32).repeat_interleave(16)[:, None].repeat(1, 32)
    segments = tuple(Segment(n, category) for n, category in enumerate(categories, 1))
    image = torch.randint(0, 256, (3, *ids.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Sample(image, PanopticSegmentation(ids, segments), 1, (ids.shape[0], ids.shape[1]))


@pytest.mark.parametrize("count", COUNTS)
def test_the_loss_trains_class_255(count):
    """The semantic branch of Panoptic FPN: a gradient that pulls class 255 up, and none from void."""
    torch.manual_seed(0)
    labels = labels_of(count)
    options = {
        "backbone": "resnet18",
        "fpn_channels": 16,
        "semantic_width": 16,
        "box_features": 16,
        "mask_channels": 16,
    }
    model = build("panoptic_fpn", labels, **options).train()
    losses = model.loss(collate([sample_of(255)]))
    losses["semantic"].backward()
    gradient = model.semantic_head.predictor.bias.grad
    assert gradient.shape == (count,)  # any thing, and each stuff class
    assert gradient[255] < -1e-3  # stuff class 255 is the 255th
    assert (gradient[torch.arange(count) != 255] > 0).all()
    assert model.loss(collate([sample_of()]))["semantic"].detach() == 0


@pytest.mark.parametrize("count", COUNTS)
def test_targets_hold_every_class_and_void_is_none_of_them(count):
    batch = collate([sample_of(254, 255, 256, count - 1)])
    target = semantic_targets(batch, range(count))
    assert target[0, :80:16, 0].tolist() == [IGNORE, 254, 255, 256, count - 1]
    assert IGNORE not in range(count)


@pytest.mark.parametrize("count", COUNTS)
def test_class_255_is_scored(count):
    labels, sample = labels_of(count), sample_of(254, 255, 256)
    found = semantic_targets(collate([sample]), range(count))[0, :64].clone()
    found[32:40] = IGNORE  # half of class 255 is not found
    metric = SemanticIoU(labels)
    metric.update(Prediction(semantic=found), sample)
    rows = metric.compute()["per_class"]
    assert [rows[str(c + 1)]["iou"] for c in (254, 255, 256)] == [1.0, 0.5, 1.0]
    assert metric.compute()["n"] == 3


@pytest.mark.parametrize("count", COUNTS)
def test_class_255_is_mapped_and_void_stays_void(count):
    target = np.arange(count)[::-1].copy()
    target[7] = UNMAPPED
    semantic = torch.tensor([[255, 7, IGNORE, 0, count - 1]])
    found = map_prediction(Prediction(semantic=semantic), ClassMap(target, np.arange(count)), labels_of(count))
    assert found.semantic.tolist() == [[count - 1 - 255, IGNORE, IGNORE, count - 1, 0]]


@pytest.mark.parametrize("count", COUNTS)
def test_class_255_is_drawn_in_its_colour(count):
    labels = labels_of(count)
    semantic = torch.full((20, 30), 255)
    semantic[:, 15:] = IGNORE
    picture = overlay(
        torch.zeros((3, 20, 30), dtype=torch.uint8), class_regions(semantic), labels, opacity=1, names=False
    )
    assert tuple(picture[:, 10, 5].tolist()) == labels[255].color
    assert picture[:, 10, 20].tolist() == [0, 0, 0]
