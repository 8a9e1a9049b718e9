"""U-Net as published: its size, its borders, its tiles, its loss; and the padded form on other backbones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from contract import LABELS, random_sample
from steps import crowded_sample
from test_overfit import evaluate, train
from torch import nn

from pansight.data.formats.shapes import Shapes
from pansight.data.loader import collate
from pansight.errors import PansightError
from pansight.models import build
from pansight.models.semantic.unet import OriginalUNet, UnpaddedUNet, mirrored
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace


def original(**options: Any) -> OriginalUNet:
    torch.manual_seed(0)
    model = build("unet_original", LABELS, **{"width": 2, "depth": 2, "dropout": 0.0} | options)
    assert isinstance(model, OriginalUNet)
    return model.eval()


def test_the_published_network_has_as_many_parameters() -> None:
    with torch.device("meta"):
        network = UnpaddedUNet(1, 2)
    assert sum(p.numel() for p in network.parameters()) == 31_030_658
    assert network.margin == 92
    assert [network.output_side(side) for side in (1, 4, 5, 388, 389)] == [4, 4, 20, 388, 404]
    assert network(torch.empty(1, 1, 572, 572, device="meta")).shape == (1, 2, 388, 388)
    assert network.down[-1][:2](torch.empty(1, 512, 32, 32, device="meta")).shape[2:] == (30, 30)


@pytest.mark.parametrize("name", ["unet", "unet_original"])
def test_photos_keep_their_size_unless_one_is_given(name: str) -> None:
    with torch.device("meta"):
        assert build(name, LABELS).input.resize == ResizeRule(0, 0, 1)
        assert build(name, LABELS, short=64, long=128).input.resize == ResizeRule(64, 128, 1)


def test_weights_begin_as_published() -> None:
    """Of deviation √(2/N), N being the values that an output is made of: 9 · 64 in the second convolution."""
    torch.manual_seed(0)
    network = UnpaddedUNet(1, 2, width=64, depth=1)
    assert network.down[0][2].weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)
    assert network.up[0].weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    assert all(not m.bias.any() for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))


def test_dropout_stands_at_the_end_of_the_contracting_path() -> None:
    """On the last two levels: the first level's skip is the same in every pass."""
    network = UnpaddedUNet(1, 2, width=4, depth=2, dropout=0.5).train()
    seen: list[torch.Tensor] = []
    for convolutions in network.join:
        convolutions.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    x = torch.rand(1, 1, 44, 44)
    for _ in range(2):
        network(x)
    half = [each.shape[1] // 2 for each in seen]
    assert not torch.equal(seen[0][:, : half[0]], seen[2][:, : half[2]])
    assert torch.equal(seen[1][:, : half[1]], seen[3][:, : half[3]])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_output_size_fits(depth: int) -> None:
    network = UnpaddedUNet(1, 2, width=1, depth=depth)
    for side in (1, 3, 4, 5, 17, 30):
        out = network.output_side(side)
        assert side <= out < side + max(4, network.step)
        x = torch.zeros(1, 1, out + 2 * network.margin, out + 2 * network.margin)
        assert network(x).shape[2:] == (out, out)


def test_borders_are_mirrored_without_end() -> None:
    """As numpy's "reflect", which goes back and forth in small images, too; each image at its own border."""
    images = torch.arange(2 * 3 * 4).reshape(2, 1, 3, 4).float()
    found = mirrored(images, torch.tensor([[3, 4], [1, 2]]), 6, (14, 17))
    for image, (height, width), each in zip(images, [(3, 4), (1, 2)], found, strict=True):
        part = image[0, :height, :width].numpy()
        expected = np.pad(part, [(6, 8 - height), (6, 11 - width)], mode="reflect")
        assert np.array_equal(each[0].numpy(), expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (33, 61)])
def test_the_padded_form_takes_any_size_too(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = build("unet", LABELS, backbone="resnet18", decoder_channels=[16, 16, 8, 8, 8])
    batch = collate([random_sample(*size, seed=1)], model.input.resize.divisor)
    sum(model.train().loss(batch).values()).backward()
    with torch.inference_mode():
        outputs = model.eval()(batch.images, batch.valid)
    assert outputs.logits.shape[2:] == size
    assert outputs.logits.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (40, 61), (64, 20)])
def test_any_size_is_predicted_at_its_size(size: tuple[int, int]) -> None:
    model = original()
    batch = collate([random_sample(*size, seed=1)], model.input.resize.divisor)
    assert tuple(batch.images.shape[2:]) == size
    with torch.inference_mode():
        outputs = model(batch.images)
        assert outputs.logits.shape[2:] == size
        assert model.decode(outputs, [(7, 9)])[0].semantic.shape == (7, 9)


@pytest.mark.parametrize("tile", [1, 8, 20, 33, 50])
@pytest.mark.parametrize("sizes", [[(61, 90)], [(61, 40), (33, 77)], [(5, 80)]])
def test_tiles_give_the_whole(tile: int, sizes: list[tuple[int, int]]) -> None:
    samples = [random_sample(*size, seed=k) for k, size in enumerate(sizes)]
    whole, tiled = original(), original(tile=tile)
    batch = collate(samples, 1)
    calls: list[int] = []
    tiled.network.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        expected, found = (model(batch.images, batch.valid).logits for model in (whole, tiled))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(calls) > 1


def test_the_published_depth_in_tiles() -> None:
    whole, tiled = (original(depth=4, width=1, tile=tile) for tile in (0, 36))
    batch = collate([random_sample(50, 70, seed=0)], 1)
    with torch.inference_mode():
        expected, found = (model(batch.images).logits for model in (whole, tiled))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_image_does_not_see_its_neighbours() -> None:
    model = original()
    samples = [random_sample(21, 30, 0), random_sample(40, 36, 1)]
    together = collate(samples, 1)
    with torch.inference_mode():
        both = model(together.images, together.valid).logits
        alone = model(samples[0].image[None]).logits
    torch.testing.assert_close(both[:1, :, :21, :30], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["unet", "unet_original"])
def test_border_weights_raise_the_loss_between_things(name: str) -> None:
    batch = collate([crowded_sample()])
    options: dict[str, Any] = {"width": 2, "depth": 2} if name == "unet_original" else {"backbone": "resnet10t"}
    losses: list[float] = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        model = build(name, LABELS, border_weight=weight, **options).eval()
        losses.append(sum(model.loss(batch).values()).item())
    assert losses[1] > losses[0] > 0


def test_border_weights_need_things() -> None:
    stuff = LabelSpace.from_names([], ["sky", "sea"])
    with pytest.raises(PansightError, match="border_weight: expected things among the classes, found stuff only"):
        build("unet_original", stuff, width=1, border_weight=1.0)


@pytest.mark.parametrize("word", ["median_frequency", "enet", "inverse"])
def test_words_for_class_weights_are_left_to_training(word: str) -> None:
    with pytest.raises(PansightError, match=r"class_weights: expected numbers, found .*training counts"):
        build("unet", LABELS, class_weights=word)


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_the_padded_form_on_any_backbone(backbone: str) -> None:
    """Also of one without a map of stride 2, and in training, with BatchNorm, on a single small image."""
    torch.manual_seed(0)
    model = build("unet", LABELS, backbone=backbone, decoder_channels=[16, 16, 8, 8, 8]).train()
    batch = collate([random_sample(32, 64, seed=0)])
    sum(model.loss(batch).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.inference_mode():
        assert model.eval()(batch.images, batch.valid).logits.shape == (1, len(LABELS), 32, 64)


def test_a_plain_vit_is_no_pyramid() -> None:
    with pytest.raises(PansightError, match="backbone vit_tiny_patch16_224"):
        build("unet", LABELS, backbone="vit_tiny_patch16_224")


PACKAGED = {"backbone": "tf_efficientnet_lite0", "pretrained": "packaged", "decoder_channels": [64, 32, 24, 16, 16]}
LEARNED: dict[str, tuple[dict[str, Any], int]] = {
    "unet": (PACKAGED, 4),
    "unet_original": ({"width": 12, "depth": 2, "dropout": 0.0}, 8),
}
"""Options, and images a step."""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", LEARNED)
def test_eight_images_are_memorised(name: str) -> None:
    """20 to 30 seconds each; mIoU 97 and more."""
    options, images = LEARNED[name]
    torch.manual_seed(0)
    dataset = Shapes(8, 64, 64, seed=0)
    model = build(name, dataset.labels, **options)
    train(model, dataset, 160, 5e-3, images)
    assert evaluate(model, dataset)["semantic"]["miou"] >= 0.95
