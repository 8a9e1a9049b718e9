"""The two-stage detector by the older convention: the same numbers as formulas with "+ 1" give."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

from pansight.nn.rcnn.legacy import detectron1_cells, legacy_rcnn, mmdet1_cells
from pansight.nn.rcnn.two_stage import RCNN
from pansight.ops.regions import boxes as box_ops
from pansight.ops.regions.roi import make_pyramid

RATIOS = (0.5, 1.0, 2.0)
CHANNELS = 8


def boxes(count: int, seed: int) -> Tensor:
    """Edges x1, y1, x2, y2; the last pixel of a box is x2 − 1."""
    chance = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 60, (count, 2), generator=chance).float()
    return torch.cat((corner, corner + torch.randint(1, 40, (count, 2), generator=chance)), dim=1)


def inclusive(edges: Tensor) -> Tensor:
    return edges - torch.tensor([0.0, 0.0, 1.0, 1.0])


def test_anchors_of_the_first_detectron() -> None:
    """Its well-known ones of 128 pixels at stride 16, whose sides are x2 − x1 + 1."""
    expected = torch.tensor([[-84.0, -40, 99, 55], [-56, -56, 71, 71], [-36, -80, 51, 95]])
    assert torch.equal(inclusive(detectron1_cells(16, 8, RATIOS)), expected)
    # at stride 4: √(16 / 0.5) = 5.66 → 6 and 6 · 0.5 = 3, times 8, around 2
    assert detectron1_cells(4, 8, (0.5,)).tolist() == [[-22, -10, 26, 14]]


def test_anchors_of_mmdet_1() -> None:
    """At stride 4 and ratio 0.5 the sides are 45.25 and 22.63, around 1.5: −20.6 … 23.6 and −9.3 … 12.3."""
    assert inclusive(mmdet1_cells(4, 8, (0.5,))).tolist() == [[-21, -9, 24, 12]]
    assert inclusive(mmdet1_cells(8, 8, (1.0,))).tolist() == [[-28, -28, 35, 35]]


def test_overlaps_are_those_of_inclusive_boxes() -> None:
    a, b = boxes(20, 0), boxes(30, 1)
    p, q = inclusive(a)[:, None], inclusive(b)[None]
    low, high = torch.maximum(p[..., :2], q[..., :2]), torch.minimum(p[..., 2:], q[..., 2:])
    overlap = (high - low + 1).clamp(min=0).prod(-1)
    areas = [(each[..., 2:] - each[..., :2] + 1).prod(-1) for each in (p, q)]
    torch.testing.assert_close(box_ops.box_iou_matrix(a, b), overlap / (areas[0] + areas[1] - overlap))


def test_codes_are_those_of_inclusive_boxes() -> None:
    """dx = (x − xa) / wa of centres x1 + (w − 1) / 2 and widths x2 − x1 + 1, and back again."""
    anchors, truth = boxes(20, 2), boxes(20, 3)
    a, t = inclusive(anchors), inclusive(truth)
    sides = [each[:, 2:] - each[:, :2] + 1 for each in (a, t)]
    centers = [each[:, :2] + 0.5 * (side - 1) for each, side in zip((a, t), sides, strict=True)]
    expected = torch.cat(((centers[1] - centers[0]) / sides[0], torch.log(sides[1] / sides[0])), dim=1)
    codes = box_ops.encode_boxes(truth, anchors, (1, 1, 1, 1))
    torch.testing.assert_close(codes, expected)
    side = expected[:, 2:].exp() * sides[0]
    center = expected[:, :2] * sides[0] + centers[0]
    decoded = torch.cat((center - 0.5 * (side - 1), center + 0.5 * (side - 1)), dim=1)
    torch.testing.assert_close(inclusive(box_ops.decode_boxes(codes, anchors, (1, 1, 1, 1))), decoded)


def test_a_side_shrinks_no_more_than_it_grows_where_that_is_asked_for() -> None:
    code, anchor = torch.tensor([[0.0, 0.0, -9.0, 9.0]]), torch.tensor([[0.0, 0, 100, 16]])
    free, limited = (box_ops.decode_boxes(code, anchor, (1, 1, 1, 1), limits) for limits in (False, True))
    assert float(free[0, 2] - free[0, 0]) == pytest.approx(100 * 2.718281828**-9, abs=1e-3)
    assert float(limited[0, 2] - limited[0, 0]) == pytest.approx(1.6, abs=1e-4)
    assert float(limited[0, 3] - limited[0, 1]) == pytest.approx(1000, rel=1e-5)


def test_a_truth_that_no_anchor_comes_near_has_none_where_that_is_asked_for() -> None:
    iou = torch.tensor([[0.1, 0.2, 0.0], [0.0, 0.1, 0.35]])
    assert box_ops.match_boxes(iou, 0.3, 0.7, True).tolist() == [box_ops.BELOW, 0, 1]
    assert box_ops.match_boxes(iou, 0.3, 0.7, True, 0.3).tolist() == [box_ops.BELOW, box_ops.BELOW, 1]


def tiny(**options: float) -> RCNN:
    torch.manual_seed(0)
    sizes = {"box_features": 16, "mask_convs": 1, "mask_channels": 8, "roi_samples": 16, "anchor_sizes": (8, 16, 32)}
    return legacy_rcnn(3, CHANNELS, strides=(4, 8, 16), roi_strides=(4, 8), **{**sizes, **options}).eval()  # pyright: ignore


def features(count: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(count, CHANNELS, 64 // s, 96 // s) for s in (4, 8, 16)]


@pytest.mark.parametrize("shift", [-1.0, 0.0])
def test_features_are_read_to_the_last_pixel_or_to_the_edge(shift: float) -> None:
    """The level goes by the sides with both pixels: 112 pixels are the limit of the second level."""
    pool = tiny(end_shift=shift, canonical_size=224.0).box_pooler
    maps = features()
    regions = torch.tensor([[4.0, 5, 44, 30], [0, 0, 112, 112], [0, 0, 112, 111]])
    image = torch.tensor([0, 1, 1])
    found = pool(make_pyramid(maps[:2], (4, 8)), regions, image)
    for k, level in enumerate((0, 1, 0)):
        area = regions[k] + torch.tensor([0, 0, shift, shift])
        roi = torch.cat((image[k, None].float(), area))[None]  # (1, 5)
        expected = torchvision.ops.roi_align(maps[level], roi, 7, 1 / (4, 8)[level], 2, False)
        torch.testing.assert_close(found[k], expected[0], rtol=1e-4, atol=1e-5)


def test_all_heads_have_rows_of_the_background() -> None:
    rcnn = tiny()
    assert rcnn.background_first
    assert rcnn.box_predictor.cls_score.out_features == 4
    assert rcnn.box_predictor.bbox_pred.out_features == 16
    assert rcnn.mask_head.predictor.out_channels == 4  # pyright: ignore


def test_boxes_suppress_those_of_their_class_or_of_all_classes() -> None:
    rcnn, maps = tiny(score_threshold=0.2, detections=1000), features()
    with torch.no_grad():  # untrained: all classes are equally likely, and their boxes nearly the same
        extents = torch.tensor([[64, 96], [60, 90]])
        alone, (within, among) = rcnn(maps, extents), rcnn.both_suppressions(maps, extents)
        for a, b in zip(alone, within, strict=True):
            torch.testing.assert_close(a, b)
        assert 0 < len(among.labels) < len(within.labels)
        expected = rcnn.masks_in(maps, among.boxes_xyxy, among.image_index, among.labels)
        torch.testing.assert_close(among.mask_logits, expected, rtol=1e-4, atol=1e-5)
    for image in (0, 1):
        mine = among.image_index == image
        iou = box_ops.box_iou_matrix(among.boxes_xyxy[mine], among.boxes_xyxy[mine]).fill_diagonal_(0)
        assert float(iou.max()) <= 0.5
        assert bool((among.scores[mine].diff() <= 0).all())
