"""Unet of segmentation_models_pytorch: keys, sizes and outputs, from golden facts and, where it is installed, from it.

GOLDEN are the first logits that version 0.6 gives for the weights of `filled` and the image of `picture`.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pansight.errors import PansightError
from pansight.models import build
from pansight.types import LabelSpace
from pansight.weights import load_model
from pansight.weights.official.semantic.smp_unet import load

pytestmark = pytest.mark.slow  # networks of full size

PARAMETERS = {"resnet18": 14_328_789, "resnet34": 24_436_949, "resnet50": 32_521_685, "convnext_atto": 5_775_053}
PARAMETERS |= {"tf_efficientnet_lite0": 5_198_741, "mobilenetv3_small_050": 2_198_837}
"""Of Unet with five classes, on timm's encoders and its own ResNets alike."""

SMALL = {"decoder_channels": [16, 12, 8, 8, 4]}
GOLDEN = {
    "resnet18": [-0.88647, -0.89713, 0.39312, 0.42079, -0.36421, -0.3456, 0.3317, 0.33389, 0.34378, 0.38107],
    "tu-convnext_atto": [-0.20736, -0.21145, 0.06849, 0.0704, -0.33963, -0.34188, 0.07452, 0.07825, 0.10217, 0.10841],
}
CLASSES = LabelSpace.from_names([], [f"class_{n}" for n in range(5)])


def filled(key: str, like: Tensor) -> Tensor:
    """Numbers that follow from the name and the shape of a tensor."""
    if not like.is_floating_point():
        return torch.zeros_like(like)
    drawn = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(like.shape))  # stable for ever
    if key.endswith("running_var"):
        drawn = 1 + 0.2 * np.abs(drawn)
    elif like.ndim == 4:
        drawn *= (2 / like[0].numel()) ** 0.5
    else:
        drawn = (1 if re.search(r"(bn\d|\.1|norm\d?)\.weight$", key) else 0) + 0.2 * drawn
    return torch.from_numpy(np.asarray(drawn)).to(like.dtype)


def picture(height: int = 64, width: int = 96) -> Tensor:
    """uint8 (1, 3, H, W)."""
    wave = torch.sin(torch.arange(3 * height * width, dtype=torch.float64) * 0.013)
    return (127.5 + 127.5 * wave).round().to(torch.uint8).reshape(1, 3, height, width)


def theirs(key: str, timm: bool) -> str:
    """Their name for a tensor of ours."""
    key = key.replace("backbone.features.", "encoder.model." if timm else "encoder.")
    return re.sub(r"^head\.", "segmentation_head.0.", key)


def state_of(backbone: str, timm: bool = False, labels: LabelSpace = CLASSES, **options: Any) -> dict[str, Tensor]:
    """A whole state dict of theirs, from the shapes of our model."""
    with torch.device("meta"):
        model = build("unet", labels, backbone=backbone, **SMALL | options)
    names = {theirs(key, timm): tensor for key, tensor in model.state_dict().items()}
    return {key: filled(key, torch.empty(like.shape, dtype=like.dtype)) for key, like in names.items()}


def logits_of(model: Any) -> Tensor:
    images = picture()
    with torch.inference_mode():
        return model(images).logits


@pytest.mark.parametrize("backbone", PARAMETERS)
def test_as_many_parameters(backbone: str) -> None:
    with torch.device("meta"):
        model = build("unet", CLASSES, backbone=backbone)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[backbone]


@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_are_theirs(name: str, tmp_path: Path) -> None:
    """Loaded from a folder as ``save_pretrained`` writes it."""
    timm = name.startswith("tu-")
    save_file(state_of(name.removeprefix("tu-"), timm), tmp_path / "model.safetensors")
    config = {"_model_class": "Unet", "encoder_name": name, "classes": 5, **SMALL}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for source in (tmp_path, tmp_path / "model.safetensors"):
        model, found, options = load_model(source)
        assert (found, options["backbone"]) == ("unet", name.removeprefix("tu-"))
        logits = logits_of(model)
        assert logits.shape == (1, 5, 64, 96)
        torch.testing.assert_close(logits[0, :, 20, 30:32].flatten(), torch.tensor(GOLDEN[name]), rtol=1e-4, atol=1e-4)


def test_every_tensor_is_at_its_place() -> None:
    state = state_of("resnet18")
    model, _, options = load(state, "unet.pth")
    assert options == {"backbone": "resnet18", "decoder_norm": "batch", **SMALL}
    assert {theirs(key, False) for key in model.state_dict()} == set(state)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[theirs(key, False)]), key


def test_without_norm() -> None:
    model, _, options = load(state_of("resnet18", decoder_norm="none"), "unet.pth")
    assert options["decoder_norm"] == "none"
    assert logits_of(model).isfinite().all()


def test_a_sigmoid_becomes_two_classes() -> None:
    """The probability of the object is that of the sigmoid."""
    one = LabelSpace.from_names(["object"])
    state = state_of("resnet18", labels=one)
    model, *_ = load(state, "unet.pth")
    assert model.labels == LabelSpace.from_names(["object"], ["background"])
    logits = logits_of(model)
    assert not logits[:, 1].any()
    torch.testing.assert_close(logits.softmax(1)[:, 0], logits[:, 0].sigmoid())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.blocks.0.attention1.attention.sSE.0.weight": 1}, "unknown tensor decoder.blocks.0.attention1"),
        ({"classification_head.3.weight": 1}, "unknown tensor classification_head"),
        ({"decoder.blocks.4.conv1.0.weight": None}, "expected a decoder of 5 blocks, found 4"),
        ({"decoder.blocks.4.conv2.0.weight": None}, "expected tensor decoder.blocks.4.conv2.0.weight"),
    ],
)
def test_other_networks_are_refused_in_a_line(change: dict[str, Any], message: str) -> None:
    state = state_of("resnet18")
    for key, value in change.items():
        if value is None:
            del state[key]
        else:
            state[key] = torch.zeros(1, 1, 1, 1)
    with pytest.raises(PansightError, match=message):
        load(state, "unet.pth")


def test_a_timm_encoder_needs_its_name(tmp_path: Path) -> None:
    torch.save(state_of("convnext_atto", timm=True), tmp_path / "unet.pth")
    with pytest.raises(PansightError, match=r"expected a ResNet, or the config\.json .*found another encoder"):
        load_model(tmp_path / "unet.pth")


@pytest.mark.parametrize("encoder", ["resnet18", "resnet34", "resnet50", "tu-convnext_atto", "tu-resnet18"])
def test_the_library_itself(encoder: str, tmp_path: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    reference = smp.Unet(encoder, encoder_weights=None, classes=5, **SMALL).eval()
    reference.load_state_dict({key: filled(key, tensor) for key, tensor in reference.state_dict().items()})
    reference.save_pretrained(tmp_path / "saved")
    model, *_ = load_model(tmp_path / "saved")
    with torch.inference_mode():
        expected = reference(model.input(picture()))
    found = logits_of(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    if "resnet" in encoder:  # which take any size
        odd = picture()[:, :, :61, :93]
        with torch.inference_mode():
            torch.testing.assert_close(model(odd).logits, reference(model.input(odd)), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in reference.parameters()) == sum(p.numel() for p in model.parameters())
    if encoder in GOLDEN:
        assert expected[0, :, 20, 30:32].flatten().tolist() == pytest.approx(GOLDEN[encoder], abs=1e-4)
