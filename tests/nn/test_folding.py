"""A network whose convolutions carry the BatchNorm behind them says what the network itself says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pansight.engine.predict import Predictor
from pansight.models import MODELS, build
from pansight.nn.backbones.folding import folded, stamp
from pansight.nn.backbones.pyramid import FrozenBatchNorm, timm_backbone
from pansight.ops.fast import plain
from pansight.types import LabelSpace

GENERAL = [name for name, entry in MODELS.items() if not entry.variant_of]
FOLDED = ("resnet18", "resnet26d", "tf_efficientnet_lite0", "mobilenetv3_small_050", "densenet121", "regnetx_002")
OTHERS = ("convnext_atto", "nf_regnet_b0")
"""Without BatchNorm, or with convolutions that change their weights themselves."""


def shaken(model: nn.Module) -> Any:
    """In eval mode, with statistics and scales as after a training."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm):
            for tensor in (module.running_mean, module.bias):
                assert tensor is not None
                tensor.data.normal_(0, 0.2)
            for tensor in (module.running_var, module.weight):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5)
    return model.eval()


def norms_of(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d | FrozenBatchNorm) for module in model.modules())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", FOLDED + OTHERS)
@torch.no_grad()
def test_maps_of_a_backbone(name: str, frozen: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm_backbone(name, frozen_bn=frozen)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return self.backbone(x)

    model = shaken(Model())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    twin, x = folded(model, least=0), torch.randn(2, 3, 70, 90)
    for found, expected in zip(twin(x), model(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    if name in FOLDED:
        assert norms_of(twin) < 0.6 * norms_of(model)  # every other one of DenseNet's follows no convolution
        assert twin is not model
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", GENERAL)
@torch.no_grad()
def test_every_model(name: str) -> None:
    model = shaken(build(name, LabelSpace.from_names(["a", "b"], ["c"]), **MODELS[name].tiny))  # type: ignore[arg-type]
    twin = folded(model, least=0)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    for found, expected in zip(twin(images), model(images), strict=True):
        if isinstance(expected, torch.Tensor) and expected.is_floating_point() and found.shape == expected.shape:
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    shared = {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    assert shared or not list(model.parameters())


def test_what_is_small_learns_or_shall_be_plain_stays_itself() -> None:
    model = shaken(timm_backbone("resnet10t"))
    assert folded(model, least=2**40) is model
    with plain():
        assert folded(model, least=0) is model
    assert folded(model.train(), least=0) is model


def test_a_twin_follows_the_memory_format() -> None:
    model: Any = build("fcn", LabelSpace.from_names([], ["a", "b"]), backbone="resnet18")
    twin: Any = folded(shaken(model).to(memory_format=torch.channels_last))
    assert twin.backbone.features.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_stamp_tells_what_was_learnt_and_moved() -> None:
    model = shaken(timm_backbone("resnet10t"))
    first = stamp(model)
    assert stamp(model) == first
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert (second := stamp(model)) != first
    model.load_state_dict(model.state_dict())
    assert (third := stamp(model)) != second
    assert stamp(model.train()) != third
    with torch.inference_mode():
        stamp(timm_backbone("resnet10t"))


def test_a_predictor_follows_its_model() -> None:
    model: Any = build("fcn", LabelSpace.from_names([], ["a", "b", "c"]), backbone="resnet18", short=0, long=0)
    predictor = Predictor(shaken(model), "fcn", {}, device="cpu")
    photo = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    first = predictor.predict(photo).semantic
    with torch.no_grad():
        model.head[-1].bias[2] += 100
    assert first is not None
    found = predictor.predict(photo).semantic
    assert found is not None
    assert bool((found == 2).all())
    assert not bool((first == 2).all())
