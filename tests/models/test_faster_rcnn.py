"""Faster R-CNN against torchvision's own, with the same weights, and its parameter counts."""

from typing import Any

import pytest
import torch
from torchvision.models import detection
from twins import calibrate, load, photo, small_twins

from pansight.data.categories.coco import coco_91, coco_things
from pansight.models import build


@pytest.mark.slow
@pytest.mark.parametrize("size", [(128, 160), (160, 96), (97, 160)])
def test_small_twins_find_the_same(size):
    theirs, ours = small_twins(masks=False)
    image = photo(*size, seed=1)
    with torch.inference_mode():
        (expected,) = theirs([image.float() / 255])
        padded = torch.zeros((1, 3, 160, 160), dtype=torch.uint8)
        valid = torch.zeros((1, 160, 160), dtype=torch.bool)
        padded[0, :, : size[0], : size[1]] = image
        valid[0, : size[0], : size[1]] = True
        height, width = (-(-s // 32) * 32 for s in size)  # torchvision pads to multiples of 32
        outputs = ours(padded[:, :, :height, :width], valid[:, :height, :width])
        (found,) = ours.decode(outputs, [size])
    assert found.panoptic is None
    assert found.instances.masks is None
    assert len(found.instances) == 50
    torch.testing.assert_close(found.instances.boxes_xyxy, expected["boxes"], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found.instances.scores, expected["scores"], rtol=0, atol=1e-4)
    assert torch.equal(found.instances.labels, expected["labels"] - 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reference", "options"),
    [
        pytest.param("faster_rcnn_r50_tv", detection.fasterrcnn_resnet50_fpn, {"bn_eps": 1e-5}, marks=pytest.mark.long),
        pytest.param("faster_rcnn_r50_tv_v2", detection.fasterrcnn_resnet50_fpn_v2, {}, marks=pytest.mark.long),
    ],
)
def test_full_networks_find_the_same(name: str, reference: Any, options: dict[str, Any]):
    theirs = reference(weights=None, weights_backbone=None, min_size=192, max_size=256)
    image = photo(192, 256, seed=1)
    calibrate(theirs, image)
    ours = build(name, coco_91(), **options)
    load(ours, theirs)
    with torch.inference_mode():
        (expected,) = theirs([image.float() / 255])
        (found,) = ours.decode(ours(image[None]), [(192, 256)])
    assert len(found.instances) > 20
    torch.testing.assert_close(found.instances.scores, expected["scores"], rtol=0, atol=1e-4)
    # Scores that are equal but for rounding come in either order: the rows are put into one that does not depend on it.
    rows = torch.column_stack([found.instances.labels, found.instances.boxes_xyxy])
    wanted = torch.column_stack([expected["labels"] - 1, expected["boxes"]])
    distances = torch.cdist(rows.double(), wanted.double(), p=torch.inf)  # (found, expected)
    assert sorted(distances.argmin(1).tolist()) == list(range(len(wanted)))
    assert distances.amin(1).max() < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "labels", "count"),
    [
        ("faster_rcnn_r50_tv", coco_91(), 41_755_286),
        ("faster_rcnn_r50_tv_v2", coco_91(), 43_712_278),
        ("faster_rcnn_r50_d2", coco_things(), 41_699_936),
    ],
)
def test_parameter_counts(name: str, labels: Any, count: int):
    ours = build(name, labels)
    assert sum(p.numel() for p in ours.parameters()) == count


def test_limits_are_options():
    labels = coco_things()
    tiny = {"backbone": "resnet10t", "fpn_channels": 16, "box_features": 16}
    ours = build("faster_rcnn", labels, **tiny, detections=400, score_threshold=0.01, nms_threshold=0.3).eval()
    with torch.inference_mode():
        (found,) = ours.decode(ours(photo(128, 128, 0)[None]), [(128, 128)])
    assert len(found.instances) == 400
    assert ours.rcnn.nms_threshold == 0.3
