"""Images so narrow that a map has one column, or one place: every model trains and predicts, the same every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import LABELS, SMALL, core_first, flat, random_sample, small, thresholds
from torch import Tensor, nn

from pansight.data.loader import collate
from pansight.models import build, builder_options
from pansight.nn.backbones.pyramid import timm_backbone
from pansight.nn.norms import BatchNorm2d, GroupNorm

CORE_FIRST = pytest.mark.parametrize("name", core_first(SMALL))
SIZES = [(1, 1), (33, 5), (20, 70)]


def batch_of(size: tuple[int, int], model: Any) -> Any:
    return collate([random_sample(*size, 1)], model.input.resize.divisor)


@pytest.mark.slow
@CORE_FIRST
@pytest.mark.parametrize("frozen_bn", [True, False])
def test_one_place_trains_and_predicts(name: str, frozen_bn: bool) -> None:
    options = {"frozen_bn": frozen_bn} if "frozen_bn" in builder_options(name) else {}
    torch.manual_seed(0)
    model: Any = build(name, LABELS, **{**SMALL[name], **options})
    batch = batch_of((1, 1), model)
    total = sum(model.train().loss(batch).values(), torch.zeros(()))
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point())
    with torch.inference_mode():
        (found,) = model.eval().decode(model(batch.images, batch.valid), [(1, 1)], **thresholds(model))
    assert found is not None


@pytest.mark.slow
@CORE_FIRST
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_convolutions_of_stride_2_to_one_column_are_in_float32(name: str, size: tuple[int, int]) -> None:
    """In bfloat16, torch's read memory that nobody wrote, on processors that compute in it."""
    model = small(name)
    batch = batch_of(size, model)
    wrong: list[str] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        strided = module.kernel_size == (3, 3) and module.stride == (2, 2)
        if strided and min(output.shape[2:]) == 1 and output.dtype == torch.bfloat16:
            wrong.append(f"{tuple(inputs[0].shape)} → {tuple(output.shape)}")

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        sum(model.train().loss(batch).values(), torch.zeros(())).backward()
        with torch.inference_mode():
            outputs = model.eval()(batch.images, batch.valid)
            again = model(batch.images, batch.valid)
    assert wrong == []
    for left, right in zip(flat(outputs), flat(again), strict=True):
        assert torch.equal(left, right)


def test_maps_of_one_place_are_those_of_the_image_alone() -> None:
    """With frozen BatchNorm, or in evaluation, nothing is added around the image."""
    torch.manual_seed(0)
    net = timm_backbone("resnet10t", frozen_bn=False)
    pixels = torch.randn(1, 3, 20, 20)
    assert [m.shape[2:] for m in net.train()(pixels)] == [m.shape[2:] for m in net.eval()(pixels)]
    alone = net.eval().features(pixels)
    assert all(torch.equal(a, b) for a, b in zip(net(pixels), alone, strict=True))


def test_norms_of_a_single_value() -> None:
    """What torch refuses; everything else is what torch gives."""
    group, batch = GroupNorm(4, 4), BatchNorm2d(4)
    nn.init.normal_(group.bias)
    x = torch.randn(1, 4, 1, 1)
    torch.testing.assert_close(group(x).flatten(), group.bias)
    before = batch.running_var.clone() if batch.running_var is not None else None
    torch.testing.assert_close(batch.train()(x), x / (1 + batch.eps) ** 0.5)
    assert before is not None
    assert torch.equal(batch.state_dict()["running_var"], before)
    y = torch.randn(2, 4, 3, 3)
    plain_group, plain_batch = nn.GroupNorm(4, 4), nn.BatchNorm2d(4)
    plain_group.load_state_dict(group.state_dict())
    assert torch.equal(group(y), plain_group(y))
    assert torch.equal(BatchNorm2d(4).train()(y), plain_batch.train()(y))
