"""SegNet: sizes, indices of the poolings, BatchNorm's averages, and ImageNet weights for the encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract import LABELS, random_sample, small, void_batch
from test_fcn import classifier
from torch import nn

from pansight.models import build
from pansight.models.semantic.segnet import unpooled
from pansight.types import LabelSpace

CAMVID = LabelSpace.from_names([], [f"class {k}" for k in range(11)])


def test_parameters_of_the_published_network() -> None:
    with torch.device("meta"):
        model: Any = build("segnet_camvid", CAMVID)
    assert sum(p.numel() for p in model.parameters()) == 29_449_355
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    mirrored = [512] * 5 + [256] * 3 + [128] * 2 + [64] * 2 + [11]
    assert [layer.out_channels for layer in layers[13:]] == mirrored


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 8), (23, 30)])
def test_unpooling_is_that_of_torch(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    values, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
    found = unpooled(values, indices, size)
    assert torch.equal(found, F.max_unpool2d(values, indices, 2, output_size=size))
    assert torch.equal(F.max_pool2d(found.clamp(min=0), 2, ceil_mode=True), values.clamp(min=0))


def test_maps_have_the_sizes_of_the_prototxt() -> None:
    """Of 360 × 480 pixels; the last blocks meet odd sizes on the way back."""
    model: Any = build("segnet", LABELS, width=1).eval()
    sizes: list[tuple[int, int]] = []
    for block in (*model.backbone, *model.decoder):
        block.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[2:])))
    with torch.inference_mode():
        outputs = model(torch.zeros(1, 3, 360, 480, dtype=torch.uint8))
    down = [(360, 480), (180, 240), (90, 120), (45, 60), (23, 30)]
    assert sizes == [*down, *reversed(down)]
    assert outputs.logits.shape == (1, len(LABELS), 360, 480)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (31, 2), (33, 65)])
def test_any_size_is_covered(size: tuple[int, int]) -> None:
    model = small("segnet").eval()
    with torch.inference_mode():
        outputs = model(random_sample(*size, 1).image[None])
        (found,) = model.decode(outputs, [size])
    assert outputs.logits.shape[2:] == found.semantic.shape == size


def test_images_without_a_label_cost_a_finite_nothing() -> None:
    model = small("segnet").train()
    losses = model.loss(void_batch())
    assert all(value == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_running_averages_become_long_at_the_end() -> None:
    """A function of the share alone, so that a resumed training goes on as it was."""
    model = small("segnet")
    norm = model.backbone[0][0][1]
    found: list[float] = []
    for share in (0.0, 0.5, 0.8, 0.9, 0.99, 1.0, 0.9):
        model.set_progress(share)
        found.append(norm.momentum)
    assert found == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.01, 0.01, 0.05])


def test_the_end_of_training_averages_over_many_images() -> None:
    """The statistics of the first layer are nearer to those of all images than averages over ten steps are."""
    images = torch.rand(400, 3, 8, 8) * torch.rand(400, 1, 1, 1) * 255
    errors: list[float] = []
    for with_progress in (False, True):
        model = small("segnet").train()
        with torch.no_grad():
            for step in range(400):
                if with_progress:
                    model.set_progress(step / 400)
                layer = model.backbone[0][0]
                layer(model.input(images[torch.randint(0, 400, (4,), generator=torch.Generator().manual_seed(step))]))
            exact = layer[0](model.input(images)).mean((0, 2, 3))
        errors.append((layer[1].running_mean - exact).norm().item())
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_classifiers_start_the_encoder(batch_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    state = classifier(2, 4, batch_norm, linear=True)
    monkeypatch.setattr("pansight.models.semantic.segnet.timm_vgg16", lambda **_: state)
    model: Any = build("segnet", LABELS, width=2, pretrained="timm")
    convolution, norm = model.backbone[4][2][0], model.backbone[4][2][1]
    assert torch.equal(convolution.weight, state["features.40.weight" if batch_norm else "features.28.weight"])
    if batch_norm:
        assert torch.equal(norm.running_var, state["features.41.running_var"])
        assert torch.equal(norm.bias, state["features.41.bias"])
    else:
        assert norm.running_mean.abs().sum() == 0
