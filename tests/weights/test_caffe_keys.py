"""FCN's and SegNet's Caffe weights, as dicts of arrays by the names and shapes of their layers."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.models.semantic.fcn import bilinear_kernels
from pansight.nn.backbones import vgg
from pansight.weights import load_model
from pansight.weights.official.semantic import caffe

pytestmark = pytest.mark.slow  # networks of full size

Shapes = dict[str, tuple[int, ...]]
KERNELS = {
    32: {"upscore": 64},
    16: {"upscore2": 4, "upscore16": 32},
    8: {"upscore2": 4, "upscore_pool4": 4, "upscore8": 16},
}


def encoder(width: int) -> Shapes:
    """conv1_1 … conv5_3, weights alone."""
    shapes: Shapes = {}
    inputs = 3
    for block, (count, outputs) in enumerate(zip((2, 2, 3, 3, 3), vgg.vgg16_channels(width)), start=1):
        for place in range(1, count + 1):
            shapes[f"conv{block}_{place}"] = (outputs, inputs, 3, 3)
            inputs = outputs
    return shapes


def fcn(stride: int, classes: int = 21, width: int = 64, hidden: int = 4096) -> dict[str, Tensor]:
    """Random values; bilinear kernels."""
    last = vgg.vgg16_channels(width)
    shapes = encoder(width) | {"fc6": (hidden, last[4], 7, 7), "fc7": (hidden, hidden, 1, 1)}
    shapes["score_fr"] = (classes, hidden, 1, 1)
    if stride < 32:
        shapes["score_pool4"] = (classes, last[3], 1, 1)
    if stride < 16:
        shapes["score_pool3"] = (classes, last[2], 1, 1)
    state = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    return state | {f"{name}.weight": bilinear_kernels(classes, k // 2) for name, k in KERNELS[stride].items()}


def segnet(classes: int = 11, width: int = 64) -> dict[str, Tensor]:
    shapes = encoder(width)
    for name, (outputs, inputs, *_) in list(shapes.items()):
        shapes[f"{name}_D"] = (classes if name == "conv1_1" else inputs, outputs, 3, 3)
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        state |= {f"{name}.weight": torch.randn(shape) / shape[1] ** 0.5, f"{name}.bias": torch.randn(shape[0])}
        if name != "conv1_1_D":
            state |= {
                f"{name}_bn.weight": torch.rand(1, shape[0], 1, 1),
                f"{name}_bn.bias": torch.randn(1, shape[0], 1, 1),
            }
    return state


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published builders with networks of two channels, for files of two channels."""
    from pansight.models.semantic import fcn as fcns
    from pansight.models.semantic import segnet as segnets

    vgg_fcn, seg_net = fcns.VGGFCN, segnets.SegNet
    monkeypatch.setattr(fcns, "VGGFCN", lambda *given, **more: vgg_fcn(*given, width=2, hidden=4, **more))
    monkeypatch.setattr(segnets, "SegNet", lambda *given: seg_net(*given, width=2))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize(
    "named",
    [
        lambda layer, part: f"{layer}.{part}",
        lambda layer, part: f"{layer}_{part[0]}",
        lambda layer, part: f"{layer}/{part}s" if part == "weight" else f"{layer}/biases",
        lambda layer, part: f"{layer}.{0 if part == 'weight' else 1}",
    ],
    ids=["pytorch", "caffe2", "tensorflow", "blobs"],
)
def test_fcn(stride: int, named: Callable[[str, str], str], tmp_path: Path) -> None:
    state = fcn(stride, width=2, hidden=4)
    renamed = {named(*key.split(".")): tensor.numpy() for key, tensor in state.items()}
    (tmp_path / "fcn.pkl").write_bytes(pickle.dumps(renamed, protocol=2))
    model, name, options = load_model(tmp_path / "fcn.pkl")
    assert (name, options) == (f"fcn{stride}s", {})
    assert model.input.bgr
    assert model.labels[0].name == "background"
    ours = model.state_dict()
    assert torch.equal(ours["backbone.0.0.0.weight"], state["conv1_1.weight"])
    assert torch.equal(ours["backbone.4.2.0.bias"], state["conv5_3.bias"])
    for layer in ("fc6", "fc7", "score_fr"):
        assert torch.equal(ours[f"{layer}.weight"], state[f"{layer}.weight"])
    kernels = [key for key in state if key.startswith("upscore")]
    assert len(ours) == len(state) - len(kernels)


@pytest.mark.usefixtures("narrow")
def test_trained_upsampling_is_kept() -> None:
    state = fcn(8, width=2, hidden=4)
    state["upscore8.weight"] = state["upscore8.weight"] + 0.01
    model, _, options = caffe.load(state, "fcn.pkl")
    assert options == {"learn_upsampling": True}
    assert torch.equal(model.upscore.weight, state["upscore8.weight"])
    assert torch.equal(model.upscore_pool4.weight, state["upscore_pool4.weight"])


@pytest.mark.usefixtures("narrow")
def test_the_network_that_was_trained_at_once() -> None:
    state = fcn(8, width=2, hidden=4)
    state |= {"scale_pool4.weight": torch.full((16,), 0.01), "scale_pool3.weight": torch.full((8,), 0.0001)}
    model, name, options = caffe.load(state, "fcn.pkl")
    assert (name, options) == ("fcn8s", {"at_once": True})
    assert model.scales == (0.01, 0.0001)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_shapes_are_those_of_the_published_networks(stride: int) -> None:
    """Compared without memory."""
    from pansight.models import build
    from pansight.types import LabelSpace

    with torch.device("meta"):
        theirs = {key: value for key, value in fcn(stride).items() if "upscore" not in key}
        ours = build(f"fcn{stride}s", LabelSpace.from_names([], [f"c{k}" for k in range(21)]))
    assert isinstance(ours, nn.Module)
    found = {key.replace("weight", "").replace("bias", ""): 0 for key in ours.state_dict()}
    assert len(found) == len(theirs) // 2
    assert sorted(v.shape for v in ours.state_dict().values()) == sorted(v.shape for v in theirs.values())


def plain_segnet(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The inference graph with scale and shift alone, as Caffe's layers run."""

    def layer(x: Tensor, name: str) -> Tensor:
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)
        return F.relu(x * state[f"{name}_bn.weight"] + state[f"{name}_bn.bias"])

    x, kept = pixels, list[Any]()
    for block, count in enumerate((2, 2, 3, 3, 3), start=1):
        for place in range(1, count + 1):
            x = layer(x, f"conv{block}_{place}")
        size = x.shape[2:]
        x, indices = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
        kept.append((indices, size))
    for block, count in reversed(list(enumerate((2, 2, 3, 3, 3), start=1))):
        indices, size = kept[block - 1]
        x = F.max_unpool2d(x, indices, 2, output_size=size)
        for place in range(count, 0, -1):
            if (block, place) == (1, 1):
                return F.conv2d(x, state["conv1_1_D.weight"], state["conv1_1_D.bias"], padding=1)
            x = layer(x, f"conv{block}_{place}_D")
    raise AssertionError


@pytest.mark.usefixtures("narrow")
def test_segnet(tmp_path: Path) -> None:
    """Scale and shift alone: the outputs are those of a network without statistics."""
    torch.manual_seed(0)
    state = segnet(width=2)
    arrays = {
        key.replace("_bn.weight", "_bn_scale").replace("_bn.bias", "_bn_shift"): np.asarray(v)
        for key, v in state.items()
    }
    (tmp_path / "segnet.pkl").write_bytes(pickle.dumps(arrays, protocol=2))
    model, name, options = load_model(tmp_path / "segnet.pkl")
    assert (name, options) == ("segnet_camvid", {})
    assert model.labels.names[0] == "sky"
    image = torch.randint(0, 256, (1, 3, 45, 61), dtype=torch.uint8)
    with torch.inference_mode():
        found = model(image).logits
        expected = plain_segnet(state, image.flip(1).float())  # blue, green, red, and nothing subtracted
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("state", "change", "message"),
    [
        (fcn(8, width=2, hidden=4), {"conv3_3.bias": None}, r"x\.pkl: expected tensor backbone\.2\.2\.0\.bias"),
        (fcn(8, width=2, hidden=4), {"fc8.weight": torch.zeros(1)}, r"x\.pkl: unknown tensor fc8\.weight"),
        (fcn(8, width=2, hidden=4), {"conv1_1_w": torch.zeros(1)}, r"x\.pkl: expected one array for conv1_1\.weight"),
        (segnet(width=2), {"conv6_1_D.weight": torch.zeros(1)}, r"x\.pkl: .*decoder\.-1"),
        (segnet(width=2), {"conv5_3_D_bn.bias": None}, r"x\.pkl: expected tensor decoder\.0\.0\.1\.bias"),
        (segnet(width=2), {"conv1_1_D.weight": torch.zeros(11, 3, 3, 3)}, r"classifier\.weight: expected shape"),
    ],
)
def test_what_is_wrong_is_named(state: dict[str, Tensor], change: dict[str, Tensor | None], message: str) -> None:
    state = {key: value for key, value in (state | change).items() if value is not None}
    with pytest.raises(PansightError, match=message) as error:
        caffe.load(state, "x.pkl")
    assert "\n" not in str(error.value)
