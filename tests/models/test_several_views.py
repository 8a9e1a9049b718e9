"""Models that join views: mirrored and resized looks at a photo, made one before the decision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from contract import LABELS, SMALL, assert_legal, core_first, shapes_batch, small, thresholds
from torch import Tensor

from pansight.engine.infer import Inference, JoinsViews, infer, prepare
from pansight.errors import PansightError
from pansight.ops.fusion.instances import Detections
from pansight.ops.fusion.views import Frame, mean_map, pooled
from pansight.types import Prediction

CPU = torch.device("cpu")
JOINING = ("faster_rcnn", "mask_rcnn", "panoptic_fpn", "panoptic_deeplab", "upsnet", "efficientps")


def ramp(frame: Frame, stride: int, align_corners: bool) -> Tensor:
    """A map (B, 2, h, w) that says of each place where it lies in its photo: y and x as shares of its sides."""
    axes = []
    for axis in range(2):
        span = frame.canvas[axis]
        count = (span - 1) // stride + 1 if align_corners else span // stride
        places = (
            torch.arange(count) * (span - 1) / (count - 1) if align_corners else (torch.arange(count) + 0.5) * stride
        )
        share = (places + 0.5 * align_corners) / frame.extents[:, axis, None]  # (B, count)
        axes.append(1 - share if frame.mirrored and axis == 1 else share)
    down, across = axes
    return torch.stack(torch.broadcast_tensors(down[:, :, None], across[:, None, :]), dim=1)


@pytest.mark.parametrize("align_corners", [False, True])
def test_every_view_is_read_where_the_first_one_is(align_corners: bool) -> None:
    """Maps that tell their own places are the same in all views; the outermost places of a view have no neighbours."""
    more = int(align_corners)
    frames = [
        Frame(torch.tensor([[64, 96], [48, 60]]), (64 + more, 96 + more)),
        Frame(torch.tensor([[64, 96], [48, 60]]), (64 + more, 96 + more), mirrored=True),
        Frame(torch.tensor([[128, 192], [96, 120]]), (128 + more, 192 + more)),
        Frame(torch.tensor([[35, 53], [27, 33]]), (64 + more, 64 + more), mirrored=True),
    ]
    maps = [ramp(frame, 4, align_corners) for frame in frames]
    for index in range(1, 4):
        mean = mean_map([maps[0], maps[index]], [frames[0], frames[index]], align_corners)
        for photo, (height, width) in enumerate(((16, 24), (12, 15))):
            inner = slice(1, height - 1), slice(1, width - 1)
            wanted = maps[0][photo, :, *inner]
            # the mirrored view ends within a cell, beyond which its ramp goes on outside of the photo
            assert torch.allclose(mean[photo, :, *inner], wanted, atol=1e-5), (index, photo)
    assert torch.equal(mean_map(maps[:1], frames[:1], align_corners), maps[0])


def test_detections_are_brought_to_the_first_view() -> None:
    """A box at the left of a photo of 10×20, seen in a mirrored view of twice the size at the right."""
    mask = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    plain = Detections(
        torch.tensor([[2.0, 1, 6, 5]]), torch.tensor([1]), torch.tensor([0.5]), mask, torch.zeros(1).long()
    )
    seen = plain._replace(boxes_xyxy=torch.tensor([[28.0, 2, 36, 10]]), mask_logits=mask.flip(2))
    frames = [Frame(torch.tensor([[10, 20]]), (0, 0)), Frame(torch.tensor([[20, 40]]), (0, 0), mirrored=True)]
    both = pooled([plain, seen], frames)
    assert both.boxes_xyxy.tolist() == [[2, 1, 6, 5], [2, 1, 6, 5]]
    assert torch.equal(both.mask_logits, mask.repeat(2, 1, 1))
    assert both.labels.tolist() == [1, 1]
    assert both.image_index.tolist() == [0, 0]


def by_hand(outputs: Any, factor: int = 1, mirrored: bool = False) -> Any:
    """What the network would say of another view if it saw the same there; photos fill their canvas."""
    changed: dict[str, Any] = {"extents": factor * outputs.extents}
    for name, value in zip(outputs._fields, outputs, strict=True):
        if isinstance(value, Detections):
            boxes, masks = factor * value.boxes_xyxy, value.mask_logits
            if mirrored:
                width = factor * outputs.extents[value.image_index, 1]
                boxes = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
                masks = masks.flip(2)
            changed[name] = value._replace(boxes_xyxy=boxes, mask_logits=masks)
        elif name == "canvas":
            changed[name] = factor * value
        elif value.ndim == 4:
            maps = value.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
            if name == "offsets_yx":
                maps = maps * torch.tensor([factor, -factor if mirrored else factor])[None, :, None, None]
            changed[name] = maps.flip(3) if mirrored else maps
    return outputs._replace(**changed)


def assert_same(left: Prediction, right: Prediction) -> None:
    """Maps but for single pixels of equal chances; without maps the same objects."""
    if left.panoptic is not None and right.panoptic is not None:
        assert (left.panoptic.ids == right.panoptic.ids).float().mean() > 0.995
        assert [s.category for s in left.panoptic.segments] == [s.category for s in right.panoptic.segments]
    elif left.instances is not None and right.instances is not None:
        assert torch.equal(left.instances.labels, right.instances.labels)
        assert torch.allclose(left.instances.boxes_xyxy, right.instances.boxes_xyxy, atol=1e-3)


@pytest.mark.slow
def test_which_models_join_views() -> None:
    assert [name for name in SMALL if isinstance(small(name), JoinsViews)] == [n for n in SMALL if n in JOINING]


@pytest.mark.parametrize("name", core_first(JOINING))
def test_views_that_agree_change_nothing(name: str) -> None:
    model, batch = small(name).eval(), shapes_batch(2, 64)
    sizes, options = [(64, 64), (50, 70)], thresholds(model)
    with torch.inference_mode():
        outputs = model(batch.images, batch.valid)
        plain = model.decode(outputs, sizes, **options)
        assert any(len(each.instances) for each in plain)
        alone = model.join_views([outputs], [False])
        both = model.join_views([outputs, by_hand(outputs, mirrored=True)], [False, True])
        if name == "panoptic_deeplab":  # votes of untrained classes are ties, so its maps are compared
            expected = outputs._replace(semantic_logits=outputs.semantic_logits.log_softmax(1))
            for joined in (alone, both):
                for one, other in zip(joined, expected, strict=True):
                    assert torch.allclose(one, other, atol=1e-5)
            return
        for joined in (alone, both):
            for one, other in zip(model.decode(joined, sizes, **options), plain, strict=True):
                assert_same(one, other)
        twice = by_hand(outputs, 2)
        joined = model.join_views([twice, by_hand(outputs, 1, mirrored=True)], [False, True])
        for one, other in zip(model.decode(joined, sizes), model.decode(twice, sizes), strict=True):
            assert_same(replace(one, panoptic=None), replace(other, panoptic=None))


@pytest.mark.parametrize("name", core_first(JOINING))
def test_photos_are_looked_at_several_times(name: str) -> None:
    """The result is that of the views by hand, the largest first, and is not what one look gives."""
    model = small(name)
    options = thresholds(model)
    if "thing_threshold" in options:
        options["thing_threshold"] = 0.0
    settings = Inference(CPU, flip=True, scales=(0.5, 1.0), decode_options=options)
    seen: list[tuple[int, ...]] = []
    forward = type(model).forward

    class Watched(type(model)):  # type: ignore[misc]
        def forward(self, images: Tensor, valid: Tensor) -> Any:
            seen.append(tuple(images.shape[2:]))
            return forward(self, images, valid)

    model.__class__ = Watched
    images = list(shapes_batch(2, 96).images)
    found = list(infer(prepare(model, settings), images, settings))
    assert seen[:4] == seen[4:]
    assert seen[0] == seen[2] == (96, 96)  # the mirrored ones last
    assert seen[1] == seen[3] < seen[0]
    plain = list(infer(model, images, replace(settings, flip=False, scales=(1.0,))))
    for one, other in zip(found, plain, strict=True):
        assert_legal(one, (96, 96), LABELS)
        assert not torch.equal(one.instances.scores, other.instances.scores)


def test_only_scores_are_seen_mirrored_through_windows() -> None:
    with pytest.raises(PansightError, match="windows alone, or one that joins views and no windows; found MaskRCNN"):
        prepare(small("mask_rcnn"), Inference(CPU, flip=True, window=64))
    with pytest.raises(PansightError, match="found FCIS"):
        prepare(small("fcis"), Inference(CPU, flip=True))
