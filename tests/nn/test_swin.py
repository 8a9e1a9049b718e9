"""Our Swin beside timm's and transformers'; sizes and names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.nn.backbones import pyramid as backbones
from pansight.nn.backbones.pyramid import timm_backbone
from pansight.nn.backbones.swin import (
    SWINS,
    Swin,
    SwinSize,
    from_timm,
    from_windows,
    relative_places,
    shift_mask,
    swin_name,
    swin_size,
    to_windows,
)
from pansight.weights.huggingface.backbones import from_hf, to_hf

SMALL = SwinSize(16, (1, 2, 2, 1), (1, 2, 4, 4), 7)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("swin_tiny_patch4_window7_224", 27_520_698),
        ("swin_small_patch4_window7_224", 48_838_602),
        ("swin_base_patch4_window12_384", 86_880_376),
        ("swin_large_patch4_window12_384.ms_in22k", 195_201_204),
    ],
)
def test_published_sizes(name: str, count: int) -> None:
    size = swin_size(name)
    assert size is not None
    with torch.device("meta"):
        assert sum(p.numel() for p in Swin(size).parameters()) == count  # what the official models have


def test_names_and_sizes_are_one_to_one() -> None:
    assert swin_name(SMALL) == "swin_c16_d1-2-2-1_h1-2-4-4_w7"
    for name in [*SWINS, swin_name(SMALL)]:
        size = swin_size(name)
        assert size is not None
        assert swin_name(size) == name
    for other in ("resnet50", "swin_s3_tiny_224", "swin_c16_d1-2_h1_w7"):
        assert swin_size(other) is None


def random_timm(size: SwinSize, side: int) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    net = SwinTransformer(
        img_size=side,
        window_size=size.window,
        embed_dim=size.channels,
        depths=size.depths,
        num_heads=size.heads,
        num_classes=3,
        always_partition=True,
    )
    return disturbed(net).eval()


def disturbed(net: nn.Module) -> nn.Module:
    """Every parameter random, so that none can be taken for another."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3 if parameter.ndim < 2 else 0.1)
    return net


def test_equals_timm_where_maps_are_multiples_of_the_window() -> None:
    """timm has no norm for each stage: both maps are normed without weights before they are compared."""
    theirs = random_timm(SMALL, 224)
    ours = Swin(SMALL).eval()
    result = ours.load_state_dict(from_timm(theirs.state_dict()), strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys == [f"norm{i}.{part}" for i in range(4) for part in ("weight", "bias")]
    x = torch.randn(2, 3, 224, 224)
    forward: Any = theirs.forward_intermediates
    with torch.inference_mode():
        expected = forward(x, output_fmt="NCHW", intermediates_only=True)
        found = ours(x)
    assert [tuple(m.shape) for m in found] == [(2, 16 << i, 56 >> i, 56 >> i) for i in range(4)]
    for a, b in zip(expected, found, strict=True):
        normed = nn.functional.layer_norm(a.permute(0, 2, 3, 1), a.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(b, normed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["swin", "maskformer-swin"])
def test_equals_transformers_at_any_size(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 × 320 and sides below one window; and the tensors go over and back without one lost or left out."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import MaskFormerSwinConfig, SwinBackbone, SwinConfig
    from transformers.models.maskformer.modeling_maskformer_swin import MaskFormerSwinBackbone

    sizes: dict[str, Any] = {"embed_dim": 16, "depths": [1, 2, 2, 1], "num_heads": [1, 2, 4, 4], "window_size": 7}
    sizes["out_features"] = ["stage1", "stage2", "stage3", "stage4"]
    theirs: Any = (
        SwinBackbone(SwinConfig(**sizes)) if kind == "swin" else MaskFormerSwinBackbone(MaskFormerSwinConfig(**sizes))
    )
    disturbed(theirs).eval()
    ours = timm_backbone(swin_name(SMALL)).eval()
    state, rest = from_hf({f"net.{k}": v for k, v in theirs.state_dict().items()} | {"x": torch.ones(1)}, "net.", "x")
    assert list(rest) == ["x"]
    ours.load_state_dict({key.removeprefix("backbone."): tensor for key, tensor in state.items()})
    for height, width in [(256, 320), (61, 90), (1, 5)]:
        x = torch.randn(1, 3, height, width)
        with torch.inference_mode():
            for a, b in zip(theirs(x).feature_maps, ours.features(x), strict=True):
                torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)

    back = to_hf(state, "net.", kind)
    again, rest = from_hf(back, "net.", "x")
    assert not rest
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())
    if kind == "maskformer-swin":  # the same names in memory as on disk
        memory = {f"net.{key}": tensor for key, tensor in theirs.state_dict().items()}
        assert back.keys() == memory.keys()
        equal = [key for key, tensor in memory.items() if torch.equal(tensor, back[key])]
        assert set(memory) - set(equal) == {"net.model.layernorm.weight", "net.model.layernorm.bias"}


def test_downloaded_weights_land(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's tensors under our names; the norms that timm lacks stay as they start."""
    theirs = random_timm(SMALL, 224)
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, options: dict[str, Any]) -> nn.Module:
        asked.append((name, options))
        return theirs

    monkeypatch.setitem(SWINS, "swin_tiny_patch4_window7_224", SMALL)
    monkeypatch.setattr(backbones, "timm_network", download)
    ours = timm_backbone("swin_tiny_patch4_window7_224.ms_in1k", "timm").features.state_dict()
    assert asked == [("swin_tiny_patch4_window7_224.ms_in1k", {"num_classes": 0})]
    expected = from_timm(theirs.state_dict())
    assert "layers.0.downsample.reduction.weight" in expected
    assert set(ours) - set(expected) == {f"norm{i}.{part}" for i in range(4) for part in ("weight", "bias")}
    assert all(torch.equal(ours[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("side", [(1, 1), (1, 150), (33, 65), (3, 449)])
def test_every_image_size_has_maps(side: tuple[int, int]) -> None:
    with torch.inference_mode():
        maps = Swin(SMALL).eval()(torch.randn(1, 3, *side))
    for level, found in enumerate(maps):
        stride = 4 << level
        assert found.shape == (1, 16 << level, -(-side[0] // stride), -(-side[1] // stride))
        assert found.isfinite().all()


def test_batches_do_not_mix_and_gradients_reach_everything() -> None:
    torch.manual_seed(0)
    net = Swin(SMALL, drop_path=0.0).train()
    x = torch.randn(2, 3, 96, 70)
    together, alone = net(x), net(x[1:])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:], b, rtol=1e-4, atol=1e-5)
    torch.stack([(m * torch.randn_like(m)).sum() for m in together]).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_drop_path_rises_to_the_rate_asked_for() -> None:
    def rates(net: nn.Module) -> list[float]:
        return [round(m.drop_prob or 0.0, 3) for m in net.modules() if isinstance(m, DropPath)]

    assert rates(timm_backbone(swin_name(SMALL))) == [0.0, 0.06, 0.12, 0.18, 0.24, 0.3]
    assert rates(timm_backbone(swin_name(SMALL), drop_path=0.1)) == [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]
    assert rates(timm_backbone(swin_name(SMALL), strides=(4, 8), drop_path=0.5)) == [0.0, 0.1, 0.2]


def test_stages_wanted_and_stages_frozen() -> None:
    net = timm_backbone(swin_name(SMALL), strides=(8, 16), freeze_stages=2)
    assert (net.channels, net.strides) == ((32, 64), (8, 16))
    assert [tuple(m.shape) for m in net(torch.zeros((1, 3, 64, 96)))] == [
        (1, 32, 8, 12),
        (1, 64, 4, 6),
    ]
    frozen = {name for name, p in net.features.named_parameters() if not p.requires_grad}
    assert {name.split(".", 2)[0] + name.split(".", 2)[1][:1] for name in frozen} == {
        "patch_embedp",
        "patch_embedn",
        "layers0",
    }
    assert {name for name, _ in net.features.named_parameters() if name.startswith("norm")} == {
        "norm1.weight",
        "norm1.bias",
        "norm2.weight",
        "norm2.bias",
    }
    with pytest.raises(PansightError, match=r"expected feature maps at strides \(2, 4\), found \[4, 8, 16, 32\]"):
        timm_backbone(swin_name(SMALL), strides=(2, 4))
    with pytest.raises(PansightError, match="freeze_stages: expected at most 5, found 6"):
        timm_backbone(swin_name(SMALL), freeze_stages=6)
    with pytest.raises(PansightError, match="unknown backbone 'swin_c16_d1-2-2-1_h1-2-4-4_w7'"):
        timm_backbone(swin_name(SMALL), "timm")


def test_windows_places_and_masks() -> None:
    x = torch.arange(24.0).view(1, 4, 6, 1)
    windows = to_windows(x, 2)
    assert windows[:, :, 0].tolist()[:2] == [[0, 1, 6, 7], [2, 3, 8, 9]]
    assert torch.equal(from_windows(windows, 2, (4, 6)), x)
    # a token sees itself in the middle of the 3 × 3 table; the one to its right from one column on the left
    assert relative_places(2, x.device).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    mask = shift_mask(3, 4, 2, x.device)
    apart: Tensor = mask[:, 0] != 0
    assert mask.shape == (4, 1, 4, 4)
    assert [int(window.sum()) for window in apart] == [0, 8, 8, 12]  # no border, left | right, top | bottom, all four
    assert set(mask.unique().tolist()) == {-100.0, 0.0}
