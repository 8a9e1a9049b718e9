"""FCN: the sizes, crops and upsampling of the published network, and the dilated one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract import LABELS, random_sample, shapes_batch, small, void_batch
from torch import Tensor, nn

from pansight.data.loader import collate
from pansight.errors import PansightError
from pansight.models import build
from pansight.models.semantic.fcn import OFFSETS, Upsampling, bilinear_kernels
from pansight.nn.backbones import vgg
from pansight.types import LabelSpace

VOC = LabelSpace.from_names([], [f"class {k}" for k in range(21)])
EVERY_STRIDE = pytest.mark.parametrize("stride", [32, 16, 8])


def learned(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def opened(model: Any) -> Any:
    """The model with scores that are not zero."""
    torch.manual_seed(3)
    for key, parameter in model.named_parameters():
        if key.startswith("score_"):
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fcn32s", 134_346_581),
        ("fcn16s", 134_357_354),
        ("fcn8s", 134_362_751),
        ("fcn_r50_tv", 35_322_218),
        ("fcn_r101_tv", 54_314_346),
    ],
)
def test_parameters_of_the_published_networks(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert learned(build(name, VOC)) == parameters


@pytest.mark.parametrize(("name", "kernels"), [("fcn32s", [64]), ("fcn16s", [4, 32]), ("fcn8s", [4, 4, 16])])
def test_upsampling_is_learned_where_asked_for(name: str, kernels: list[int]) -> None:
    with torch.device("meta"):
        fixed, trained = build(name, VOC), build(name, VOC, learn_upsampling=True)
    assert learned(trained) - learned(fixed) == sum(21 * 21 * k * k for k in kernels)


@pytest.mark.parametrize(
    ("factor", "row"), [(2, [0.25, 0.75, 0.75, 0.25]), (3, [1 / 6, 0.5, 5 / 6, 5 / 6, 0.5, 1 / 6])]
)
def test_kernels_are_those_of_caffe(factor: int, row: list[float]) -> None:
    """Of even sides: w = (1 - |i - c| / f)(1 - |j - c| / f), f = k / 2, c = f - 0.5; zero between two classes."""
    kernels = bilinear_kernels(3, factor)
    assert kernels.shape == (3, 3, 2 * factor, 2 * factor)
    torch.testing.assert_close(kernels[1, 1], torch.outer(torch.tensor(row), torch.tensor(row)))
    assert kernels[0, 1].abs().sum() == kernels[2, 0].abs().sum() == 0


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_a_resize_is_the_transposed_convolution(factor: int, size: tuple[int, int]) -> None:
    scores = torch.randn(2, 3, *size)
    expected = F.conv_transpose2d(scores, bilinear_kernels(3, factor), stride=factor)
    torch.testing.assert_close(Upsampling(3, factor, learned=False)(scores), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(Upsampling(3, factor, learned=True)(scores), expected)


def reference(model: Any, pixels: Tensor, scales: tuple[float, float]) -> Tensor:
    """The published graph written out with Caffe's layers, for one image."""
    x, maps = F.pad(pixels, (99, 99, 99, 99)), list[Tensor]()  # and one by the first convolution itself
    for block in model.backbone:
        for layer in block:
            x = F.relu(F.conv2d(x, layer[0].weight, layer[0].bias, padding=1))
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        maps.append(x)
    x = F.relu(F.conv2d(x, model.fc6.weight, model.fc6.bias))
    score = model.score_fr(F.relu(F.conv2d(x, model.fc7.weight, model.fc7.bias)))
    classes = score.shape[1]
    if model.stride < 32:
        up = F.conv_transpose2d(score, bilinear_kernels(classes, 2), stride=2)
        skip = model.score_pool4(maps[3] * scales[0])
        score = up + skip[:, :, 5 : 5 + up.shape[2], 5 : 5 + up.shape[3]]
    if model.stride < 16:
        up = F.conv_transpose2d(score, bilinear_kernels(classes, 2), stride=2)
        skip = model.score_pool3(maps[2] * scales[1])
        score = up + skip[:, :, 9 : 9 + up.shape[2], 9 : 9 + up.shape[3]]
    up = F.conv_transpose2d(score, bilinear_kernels(classes, model.stride), stride=model.stride)
    offset = {32: 19, 16: 27, 8: 31}[model.stride]
    return up[:, :, offset : offset + pixels.shape[2], offset : offset + pixels.shape[3]]


@EVERY_STRIDE
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("learn_upsampling", [False, True])
def test_the_graph_is_the_published_one(stride: int, at_once: bool, learn_upsampling: bool) -> None:
    options = {"width": 4, "hidden": 8, "stride": stride, "at_once": at_once, "learn_upsampling": learn_upsampling}
    model = opened(build("fcn_vgg16", LABELS, **options))
    image = random_sample(37, 50, 0).image[None]
    with torch.inference_mode():
        found = model(image).logits
        expected = reference(model, model.input(image), (0.01, 0.0001) if at_once else (1.0, 1.0))
    assert found.shape == (1, len(LABELS), 37, 50)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@EVERY_STRIDE
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (31, 2), (32, 32), (33, 65)])
def test_any_size_is_covered(stride: int, size: tuple[int, int]) -> None:
    """Offsets leave enough of every map, whatever the roundings of the poolings are."""
    model = opened(build("fcn_vgg16", LABELS, width=1, hidden=2, stride=stride))
    with torch.inference_mode():
        outputs = model(random_sample(*size, 1).image[None])
        assert outputs.logits.shape[2:] == size
        (found,) = model.decode(outputs, [size])
    assert found.semantic.shape == size
    assert set(OFFSETS) == {32, 16, 8}


def test_scores_begin_with_zero_and_a_step_opens_them() -> None:
    model, batch = small("fcn_vgg16").train(), shapes_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert model(batch.images, batch.valid).logits.abs().max() == 0
    moved: list[float] = []
    for _ in range(2):
        optimizer.zero_grad()
        sum(model.loss(batch).values()).backward()
        moved.append(model.backbone[0][0][0].weight.grad.abs().sum().item())
        optimizer.step()
    assert moved[0] == 0 < moved[1]


@pytest.mark.parametrize("name", ["fcn", "fcn_vgg16"])
def test_images_without_a_label_cost_a_finite_nothing(name: str) -> None:
    model = small(name).train()
    losses = model.loss(void_batch())
    assert all(value == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_other_strides_are_refused() -> None:
    with pytest.raises(PansightError, match=r"stride of model fcn_vgg16: expected 32, 16 or 8, found 24"):
        build("fcn_vgg16", LABELS, stride=24)


def test_the_auxiliary_head_is_for_training() -> None:
    model, batch = small("fcn"), shapes_batch()
    assert set(model.train().loss(batch)) == {"semantic", "auxiliary"}
    assert model.eval()(batch.images, batch.valid).aux_logits is None
    without = build("fcn", LABELS, backbone="resnet10t", short=0, long=0, aux_weight=0.0)
    assert set(without.loss(batch)) == {"semantic"}
    assert without(batch.images).logits.shape[2:] == (12, 12)  # stride 8


def test_coarser_weights_start_the_finer_network() -> None:
    """FCN-16s begins as FCN-32s, upsampled in two steps: its new scores are zero."""
    from pansight.models import entry
    from pansight.weights import transfer

    coarse = opened(build("fcn_vgg16", LABELS, width=4, hidden=8, stride=32))
    fine = build("fcn_vgg16", LABELS, width=4, hidden=8, stride=16)
    report = transfer(fine, coarse.state_dict(), LABELS, LABELS, entry("fcn_vgg16"))
    assert set(report.new) == {"score_pool4.weight", "score_pool4.bias"}
    batch = collate([random_sample(96, 96, 2)])
    with torch.inference_mode():
        first, second = (model.eval()(batch.images).logits for model in (coarse, fine))
    assert (first - second).abs().mean() < 0.15 * first.abs().mean()


def classifier(width: int, hidden: int, batch_norm: bool, linear: bool) -> dict[str, Tensor]:
    """A VGG16 of few channels as torchvision (linear) or timm names its tensors, each with its own number."""
    shapes: dict[str, tuple[int, ...]] = {}
    index, inputs = 0, 3
    for count, outputs in zip((2, 2, 3, 3, 3), vgg.vgg16_channels(width)):
        for _ in range(count):
            shapes |= {f"features.{index}.weight": (outputs, inputs, 3, 3), f"features.{index}.bias": (outputs,)}
            if batch_norm:
                names = ("weight", "bias", "running_mean", "running_var")
                shapes |= {f"features.{index + 1}.{name}": (outputs,) for name in names}
            inputs, index = outputs, index + (3 if batch_norm else 2)
        index += 1
    names = ("classifier.0", "classifier.3") if linear else ("pre_logits.fc1", "pre_logits.fc2")
    for name, (outputs, columns, side) in zip(names, ((hidden, inputs, 7), (hidden, hidden, 1))):
        shape = (outputs, columns * side**2) if linear else (outputs, columns, side, side)
        shapes |= {f"{name}.weight": shape, f"{name}.bias": (outputs,)}
    shapes["classifier.6.weight" if linear else "head.fc.weight"] = (10, hidden)
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def test_the_names_are_those_of_timm_and_torchvision() -> None:
    import timm
    from torchvision import models

    with torch.device("meta"):
        for batch_norm in (False, True):
            ending = "_bn" if batch_norm else ""
            for theirs, linear in (
                (timm.create_model(f"vgg16{ending}"), False),
                (getattr(models, f"vgg16{ending}")(), True),
            ):
                last = ("classifier.6", "head.fc")
                found = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith(last)}
                found = {k: shape for k, shape in found.items() if not k.endswith("num_batches_tracked")}
                ours = classifier(64, 4096, batch_norm, linear)
                assert found == {k: v.shape for k, v in ours.items() if not k.startswith(last)}


@pytest.mark.parametrize("linear", [False, True])
def test_classifiers_start_the_encoder(linear: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    state = classifier(2, 4, batch_norm=False, linear=linear)
    monkeypatch.setattr("pansight.models.semantic.fcn.timm_vgg16", lambda **_: state)
    model: Any = build("fcn_vgg16", LABELS, width=2, hidden=4, pretrained="timm")
    assert torch.equal(model.backbone[0][0][0].weight, state["features.0.weight"])
    assert torch.equal(model.backbone[4][2][0].bias, state["features.28.bias"])
    first, second = ("classifier.0", "classifier.3") if linear else ("pre_logits.fc1", "pre_logits.fc2")
    assert torch.equal(model.fc6.weight.flatten(), state[f"{first}.weight"].flatten())
    assert torch.equal(model.fc7.bias, state[f"{second}.bias"])
    assert model.score_fr.weight.abs().sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.28.weight": None}, r"expected a VGG16, with features\.28\.weight, found none"),
        (
            {"features.0.weight": torch.zeros(3, 3, 3, 3)},
            r"features\.0\.weight: expected the numbers of \[2, 3",
        ),
        ({"features.1.weight": torch.zeros(2)}, "expected a VGG16 without BatchNorm, found one with BatchNorm"),
        ({"classifier.0.weight": None}, r"expected a VGG16, with classifier\.0\.weight"),
    ],
)
def test_other_classifiers_are_refused(
    change: dict[str, Tensor | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = classifier(2, 4, batch_norm=False, linear=True) | change
    state = {key: value for key, value in state.items() if value is not None}
    monkeypatch.setattr("pansight.models.semantic.fcn.timm_vgg16", lambda **_: state)
    with pytest.raises(PansightError, match=message):
        build("fcn_vgg16", LABELS, width=2, hidden=4, pretrained="timm")


def test_pretrained_weights_have_their_width() -> None:
    with pytest.raises(PansightError, match=r"pretrained: expected width 64 and hidden 4096 .*found width 8"):
        build("fcn_vgg16", LABELS, width=8, hidden=16, pretrained="timm")
    with pytest.raises(PansightError, match=r"pretrained: expected width 64.*found width 8"):
        build("segnet", LABELS, width=8, pretrained="timm")
