"""DETR's own numbers; what it shares with every model is in test_contract.py."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract import LABELS, shapes_batch, void_batch

from pansight.data.categories.coco import coco_ids
from pansight.errors import PansightError
from pansight.models import build
from pansight.ops.fast.convolutions import upsample_conv
from pansight.ops.resize import ResizeRule

TINY: dict[str, Any] = {
    "backbone": "resnet10t",
    "short": 0,
    "long": 0,
    "channels": 32,
    "heads": 4,
    "hidden": 48,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "queries": 9,
}


def tiny(name: str = "detr_panoptic", **options: Any) -> Any:
    torch.manual_seed(0)
    return build(name, LABELS, **(TINY | options))


COUNTS = {
    # name: (classes, trained, frozen)
    "detr_r50": (91, 41_302_368, 222_400),
    "detr_r50_dc5": (91, 41_302_368, 222_400),
    "detr_r101": (91, 60_242_272, 222_400),
    "detr_panoptic_r50": (250, 42_899_288 - 222_400, 222_400),
    "detr_panoptic_r50_dc5": (250, 42_899_288 - 222_400, 222_400),
    "detr_panoptic_r101": (250, 61_839_192 - 222_400, 222_400),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name: str) -> None:
    classes, trained, frozen = COUNTS[name]
    model = build(name, coco_ids(classes))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == frozen
    assert model.backbone.strides == ((4, 8, 16, 16) if "dc5" in name else (4, 8, 16, 32))
    assert model.input.resize == ResizeRule(800, 1333, 1, "detr")
    if "panoptic" in name:
        heads = [*model.mask_head.parameters(), *model.bbox_attention.parameters()]
        assert sum(p.numel() for p in heads) == 1_333_657
    if name.endswith("r50"):
        buffers = sum(b.numel() for k, b in model.named_buffers() if k in model.state_dict())
        assert buffers == 106_240


def test_enlarging_convolution_is_the_plain_one() -> None:
    """All small sides, doubled, doubled less one, equal, and others."""
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    for height, width in itertools.product(range(1, 6), repeat=2):
        x = torch.randn(2, 3, height, width, dtype=torch.float64)
        for size in itertools.product({2 * height, 2 * height - 1, 3 * height}, {2 * width, 2 * width - 1, width}):
            expected = F.conv2d(F.interpolate(x, size), weight, padding=1)
            torch.testing.assert_close(upsample_conv(x, weight, size), expected, rtol=1e-12, atol=1e-12)


def test_masks_of_some_queries_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny().eval(), shapes_batch(2, 72)
    with torch.inference_mode():
        outputs = model(batch.images, batch.valid)
        every = model.mask_logits(outputs, 1)
        assert every.shape == (9, 24, 24)
        assert every.dtype == torch.float32
        chosen = torch.tensor([5, 0, 7])
        torch.testing.assert_close(model.mask_logits(outputs, 1, chosen), every[chosen], rtol=1e-4, atol=1e-5)
        assert model.mask_logits(outputs, 1, chosen[:0]).shape == (0, 24, 24)
        monkeypatch.setattr(sys.modules["pansight.nn.queries.mask_head"], "CHUNK_ELEMENTS", 1)  # one query at a time
        torch.testing.assert_close(model.mask_logits(outputs, 1), every, rtol=1e-4, atol=1e-5)


def test_half_precision_outputs_give_masks_outside_autocast() -> None:
    model, batch = tiny().eval(), shapes_batch(1, 64)
    with torch.inference_mode():
        expected = model.mask_logits(model(batch.images, batch.valid), 0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(batch.images, batch.valid)
        found = model.mask_logits(outputs, 0)
    assert outputs.adapted[0].dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.1 * expected.std()


def test_second_step_trains_the_mask_head_alone() -> None:
    """Two steps by the same keys: a detection model's tensors are the panoptic one's, heads beside."""
    first, second = tiny("detr"), tiny()
    report = second.load_state_dict(first.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert all(key.startswith(("mask_head.", "bbox_attention.")) for key in report.missing_keys)
    for key, parameter in second.named_parameters():
        parameter.requires_grad_(key.startswith(("mask_head.", "bbox_attention.")))
    losses = second.train().loss(shapes_batch())
    assert sorted(losses) == ["dice", "mask"]
    sum(losses.values(), torch.zeros(())).backward()
    for key, parameter in second.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, key
    assert second.loss(void_batch())["mask"] == 0


def test_detection_learns_things_alone() -> None:
    model = tiny("detr").eval()
    losses = model.loss(shapes_batch())
    assert sorted(losses) == ["box", "class", "giou"]
    alone = tiny("detr", auxiliary=False).eval().loss(shapes_batch())
    assert all(alone[key] < losses[key] for key in losses)  # of two layers
    batch = shapes_batch()
    outputs = model(batch.images, batch.valid)
    with pytest.raises(PansightError, match="unknown task 'panoptic'"):
        model.decode(outputs, batch.sizes, task="panoptic")


def test_hidden_layers_of_the_class_head() -> None:
    model = tiny(class_hidden=[24, 12])
    assert [tuple(layer.weight.shape) for layer in model.class_embed.layers] == [
        (24, 32),
        (12, 24),
        (len(LABELS) + 1, 12),
    ]
    assert torch.stack([*model.loss(shapes_batch()).values()]).isfinite().all()


def test_dilated_last_stage() -> None:
    model = tiny(backbone="resnet26", dilate=True).eval()
    with torch.inference_mode():
        outputs = model(shapes_batch(1, 64).images)
    assert outputs.memory.shape == (1, 4, 4, 32)
    assert model.mask_logits(outputs, 0).shape == (9, 16, 16)


def test_channels_must_fit() -> None:
    with pytest.raises(PansightError, match="channels of model detr_panoptic: expected a multiple of 16, found 40"):
        tiny(channels=40)


@pytest.mark.parametrize("name", ["detr", "detr_panoptic"])
def test_hidden_layers_of_the_class_head_without_relu_are_one_linear_map(name: str) -> None:
    queries = torch.randn(3, 32)
    for relu in (True, False):
        head = tiny(name, class_hidden=(16, 8), class_relu=relu).class_embed
        straight = torch.allclose(head(queries) + head(-queries), 2 * head(0 * queries), atol=1e-5)
        assert straight is not relu
